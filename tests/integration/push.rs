//! Images on their way out: `berth tag`, `push`, `login` and `logout`, against a real registry and against one that fails.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::support::World;
use crate::support::fault::{FaultRegistry, Reply, Request};
use crate::support::image::{Blob, Image, Layer, Packing, many_layers, noise};
use crate::support::registry::{Access, Registry};
use crate::support::runtime::{Options, binaries};
use crate::{trial, trials};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        what_was_pushed_can_be_pulled,
        login_and_logout,
        a_helper_keeps_passwords,
        large_layers_go_in_pieces,
        an_index_goes_whole_or_not,
        a_token_to_push_and_a_registry_that_stumbles,
        mirrors_take_no_pushes_unless_told,
    ];
    let images = "discard_unpacked_layers = true".to_owned();
    trials.push(trial(
        "push::what_is_no_longer_kept_is_said",
        Options { images, ..Options::default() },
        what_is_no_longer_kept_is_said,
    ));
    trials
}

impl World {
    /// `berth` with Docker's configuration in `config` and `input` on its standard input.
    fn berth_with(&self, config: &Path, arguments: &[&str], input: &str) -> Output {
        let path = std::env::var("PATH").unwrap();
        let file = self.run.join("stdin");
        std::fs::write(&file, input).unwrap();
        self.netns
            .run(|| {
                std::process::Command::new(binaries().join("berth"))
                    .args(arguments)
                    .env("BERTH_ADDRESS", &self.daemon.socket)
                    .env("DOCKER_CONFIG", config)
                    .env("PATH", format!("{}:{path}", config.display()))
                    .stdin(std::fs::File::open(&file).unwrap())
                    .output()
            })
            .unwrap()
    }

    /// What skopeo sees of an image in a registry of this world.
    fn skopeo(&self, arguments: &[&str]) -> Value {
        let output = self
            .netns
            .run(|| {
                std::process::Command::new("skopeo")
                    .arg("inspect")
                    .arg("--tls-verify=false")
                    .args(arguments)
                    .output()
            })
            .expect("skopeo (apt-get install skopeo)");
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// It must have failed; what it said.
fn failed(output: &Output) -> String {
    assert!(!output.status.success(), "{}", text(&output.stdout));
    text(&output.stderr)
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

async fn what_was_pushed_can_be_pulled(world: &mut World) {
    let source = world.reference("users");
    world.berth_ok(&["pull", &source]);
    let before = world.image_status(&source).await.unwrap().unwrap();
    let (one, other) = (
        format!("{}/pushed/users:v1", world.registry.host()),
        format!("{}/pushed/again:v2", world.registry.host()),
    );
    world.berth_ok(&["tag", &source, &one]);
    world.berth_ok(&["tag", &before.id[..19], &other]);
    let tags = world.image_status(&source).await.unwrap().unwrap().repo_tags;
    assert!(tags.contains(&one) && tags.contains(&other), "{tags:?}");
    assert!(failed(&world.berth(&["tag", "nobody", &one])).contains("nobody"));
    let digest = format!("{one}@sha256:{}", "0".repeat(64));
    assert!(failed(&world.berth(&["tag", &source, &digest])).contains("give a tag"));

    // Its layers lie in another repository of the registry: they are not sent.
    let output = world.berth(&["push", &one]);
    let printed = done(&output);
    assert!(text(&output.stderr).contains("mounted"), "{}", text(&output.stderr));
    assert!(printed.starts_with(&format!("{}/pushed/users@sha256:", world.registry.host())), "{printed}");
    let output = world.berth(&["push", &one, &other]);
    assert!(text(&output.stderr).contains("exists already"), "{}", text(&output.stderr));
    assert_eq!(done(&output).lines().next().unwrap(), printed);

    let seen = world.skopeo(&[&format!("docker://{one}")]);
    assert_eq!(seen["Digest"], json!(printed.split('@').nth(1).unwrap()));
    let config = world.skopeo(&["--config", &format!("docker://{other}")]);
    assert_eq!(config["config"]["User"], "web");
    let status = world.image_status(&one).await.unwrap().unwrap();
    assert!(status.repo_digests.contains(&printed), "{:?}", status.repo_digests);

    // A tag of several is taken off; the image stays as long as it has another.
    world.berth_ok(&["rmi", &one]);
    assert!(world.image_status(&one).await.unwrap().is_none());
    assert!(world.image_status(&source).await.unwrap().is_some());
    world.berth_ok(&["rmi", &before.id]);
    assert!(world.list_images().await.unwrap().iter().all(|image| image.id != before.id));
    world.berth_ok(&["pull", &one]);
    assert_eq!(world.image_status(&one).await.unwrap().unwrap().id, before.id);
    assert_eq!(world.berth_ok(&["run", "--rm", &other, "id", "-u"]), "1000");
    assert!(failed(&world.berth(&["push", "localhost:1/nobody:1"])).contains("nobody"));
}

/// A registry on port 5001 whose user is `tester` with password `secret`.
fn private(world: &World) -> Registry {
    let htpasswd = world.run.join("htpasswd");
    let line = "tester:$2b$05$9OQVToC2fqVQmyd2hOS30ufZ1YILDm6/sEOCAK5PskwkxtYihLC5e\n";
    std::fs::write(&htpasswd, line).unwrap();
    let access = Access { htpasswd: Some(htpasswd), ..Access::default() };
    Registry::start(&world.netns, 5001, &world.disk.join("private"), &world.run, &access)
}

async fn login_and_logout(world: &mut World) {
    let registry = private(world);
    let (host, config) = (registry.host(), world.run.join("docker"));
    let name = format!("{host}/team/app:1");
    let berth = |arguments: &[&str], input: &str| world.berth_with(&config, arguments, input);
    let file = config.join("config.json");
    done(&berth(&["pull", &world.reference("busybox")], ""));
    done(&berth(&["tag", &world.reference("busybox"), &name], ""));

    let said = failed(&berth(&["push", &name], ""));
    assert!(said.contains(&format!("berth login {host}")), "{said}");
    let said = failed(&berth(&["login", "-u", "tester", "--password-stdin", &host], "wrong\n"));
    assert!(said.contains("401"), "{said}");
    assert!(!file.exists(), "only what the registry took is kept");
    done(&berth(&["login", "-u", "tester", "--password-stdin", &host], "secret\n"));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "{mode:o}");
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept["auths"][&host]["auth"], json!(STANDARD.encode("tester:secret")));

    done(&berth(&["push", &name], ""));
    let seen = world.skopeo(&["--creds", "tester:secret", &format!("docker://{name}")]);
    assert_eq!(seen["Architecture"], json!(if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }));
    done(&berth(&["rmi", &name], ""));
    done(&berth(&["pull", &name], ""));
    done(&berth(&["rmi", &name], ""));
    done(&berth(&["logout", &host], ""));
    let said = failed(&berth(&["pull", &name], ""));
    assert!(said.contains("berth login"), "{said}");
    assert!(done(&berth(&["logout", &host], "")).contains("no credentials"));
    // For once, and not kept.
    done(&berth(&["pull", "--creds", "tester:secret", &name], ""));
    let said = failed(&berth(&["login", "-u", "tester", "--password-stdin", "127.0.0.1:9"], "x"));
    assert!(said.contains("127.0.0.1:9"), "{said}");
}

async fn a_helper_keeps_passwords(world: &mut World) {
    let registry = private(world);
    let (host, config) = (registry.host(), world.run.join("docker"));
    std::fs::create_dir_all(&config).unwrap();
    let kept = config.join("kept");
    // Keeps what it is given in a file; knows one registry.
    let script = format!(
        "#!/bin/sh\ncase $1 in\n\
         store) cat > {kept} ;;\n\
         get) test -s {kept} && cat {kept} || {{ echo 'credentials not found in native keychain'; exit 1; }} ;;\n\
         erase) : > {kept} ;;\nesac\n",
        kept = kept.display()
    );
    let program = config.join("docker-credential-test");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = config.join("config.json");
    std::fs::write(&file, json!({"credHelpers": {host.clone(): "test"}}).to_string()).unwrap();

    let berth = |arguments: &[&str], input: &str| world.berth_with(&config, arguments, input);
    let name = format!("{host}/helped/app:1");
    done(&berth(&["pull", &world.reference("busybox")], ""));
    done(&berth(&["tag", &world.reference("busybox"), &name], ""));
    assert!(failed(&berth(&["push", &name], "")).contains("berth login"));
    let said = done(&berth(&["login", "-u", "tester", "--password-stdin", &host], "secret"));
    assert!(said.contains("docker-credential-test"), "{said}");
    assert!(!text(&std::fs::read(&file).unwrap()).contains("auths"), "nothing in the file");
    assert!(text(&std::fs::read(&kept).unwrap()).contains("secret"));
    done(&berth(&["push", &name], ""));
    done(&berth(&["logout", &host], ""));
    assert!(failed(&berth(&["push", &name], "")).contains("berth login"));
}

async fn large_layers_go_in_pieces(world: &mut World) {
    // More than two pieces of 16 MiB, and bytes that don't compress.
    let layer = Layer::new().file("large", 0o644, &noise(36 << 20, 77));
    let image = Image::busybox(json!({"Cmd": ["true"]})).layer(layer, Packing::Plain);
    let name = format!("{}/large/image:1", world.registry.host());
    let archive = world.registry.push("large/source", "1", &image);
    world.berth_ok(&["pull", &archive]);
    // A registry that knows nothing yet.
    let access = Access::default();
    let fresh = Registry::start(&world.netns, 5002, &world.disk.join("fresh"), &world.run, &access);
    let there = format!("{}/large/image:1", fresh.host());
    world.berth_ok(&["tag", &archive, &there]);
    let output = world.berth(&["push", &there]);
    done(&output);
    assert!(text(&output.stderr).contains("uploading"), "{}", text(&output.stderr));
    world.berth_ok(&["rmi", &image.id()]);
    world.berth_ok(&["pull", &there]);
    let pulled = world.image_status(&there).await.unwrap().unwrap();
    assert_eq!(pulled.id, image.id());
    assert!(!pulled.repo_tags.contains(&name));
}

async fn an_index_goes_whole_or_not(world: &mut World) {
    let images = [Image::busybox(json!({"Cmd": ["true"]})), many_layers(1, 1, 31).architecture("arm64")];
    let mut entries = Vec::new();
    for (number, image) in images.iter().enumerate() {
        world.registry.push("platforms/source", &format!("p{number}"), image);
        let mut entry = image.manifest().descriptor();
        let architecture = if number == 0 { "amd64" } else { "arm64" };
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries
    });
    let index = Blob::new("application/vnd.oci.image.index.v1+json", serde_json::to_vec(&index).unwrap());
    let headers = [("Content-Type", index.media_type.as_str())];
    let put = world.registry.request("PUT", "/v2/platforms/source/manifests/all", &headers, &index.bytes);
    assert_eq!(put.unwrap().status, 201);

    let source = format!("{}/platforms/source:all", world.registry.host());
    let target = format!("{}/platforms/target:all", world.registry.host());
    world.berth_ok(&["pull", "--platform", "linux/amd64", &source]);
    world.berth_ok(&["tag", &source, &target]);
    // Only one is here.
    let printed = world.berth_ok(&["push", &target]);
    assert!(printed.ends_with(&images[0].manifest().digest), "{printed}");
    let raw = world.skopeo(&["--raw", &format!("docker://{target}")]);
    assert!(raw["manifests"].is_null() && raw["layers"].is_array(), "{raw}");
    // With the other one: all.
    world.berth_ok(&["pull", "--platform", "linux/arm64", &source]);
    let printed = world.berth_ok(&["push", &target]);
    assert!(printed.ends_with(&index.digest), "{printed}");
    let raw = world.skopeo(&["--raw", &format!("docker://{target}")]);
    assert_eq!(raw["manifests"].as_array().unwrap().len(), 2);
    let arm = format!("{}/platforms/target@{}", world.registry.host(), images[1].manifest().digest);
    world.skopeo(&["--raw", &format!("docker://{arm}")]);
}

/// A registry that takes everything from who shows a token with the right to push, and fails at first at each step.
#[derive(Default)]
struct Stumbling {
    uploads: AtomicUsize,
    manifests: AtomicUsize,
    scopes: Mutex<Vec<String>>,
}

impl Stumbling {
    fn answer(&self, request: &Request) -> Reply {
        let full = |status, headers: &[(&str, String)]| {
            let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            Reply::Full(status, headers.collect(), Vec::new())
        };
        if request.path.starts_with("/token") {
            self.scopes.lock().unwrap().push(request.path.clone());
            let pushes = request.path.contains("push");
            let token = json!({"token": if pushes { "may-push" } else { "may-pull" }}).to_string();
            return Reply::Full(200, Vec::new(), token.into_bytes());
        }
        let shown = request.headers.get("authorization").map_or("", String::as_str);
        if shown != "Bearer may-push" {
            // As registries do: the first question is one for reading.
            let challenge = format!(
                "Bearer realm=\"http://{}/token\",service=\"x\",scope=\"repository:a/b:pull\"",
                request.headers["host"]
            );
            return full(401, &[("WWW-Authenticate", challenge)]);
        }
        match request.method.as_str() {
            "HEAD" => Reply::status(404),
            "POST" => match self.uploads.fetch_add(1, Ordering::Relaxed) {
                0 => full(503, &[]),
                number => full(202, &[("Location", format!("/v2/a/b/blobs/uploads/{number}?state=kept"))]),
            },
            "PUT" if request.path.contains("/manifests/") => {
                match self.manifests.fetch_add(1, Ordering::Relaxed) {
                    0 => full(500, &[]),
                    _ => full(201, &[]),
                }
            }
            // The first upload is lost on the way: its answer never comes whole.
            "PUT" if request.path.contains("/uploads/1?") => full(502, &[]),
            "PUT" if !request.path.contains("state=kept&digest=sha256") => full(400, &[]),
            "PUT" => full(201, &[]),
            _ => Reply::status(405),
        }
    }
}

async fn a_token_to_push_and_a_registry_that_stumbles(world: &mut World) {
    let registry = std::sync::Arc::new(Stumbling::default());
    let served = std::sync::Arc::clone(&registry);
    let server = FaultRegistry::start(&world.netns, move |request| served.answer(request));
    let name = format!("{}/a/b:1", server.host);
    world.berth_ok(&["pull", &world.reference("busybox")]);
    world.berth_ok(&["tag", &world.reference("busybox"), &name]);
    world.berth_ok(&["push", "--quiet", &name]);
    let scopes = registry.scopes.lock().unwrap().clone();
    assert!(scopes[0].contains("pull%2Cpush") || scopes[0].contains("pull,push"), "{scopes:?}");
    assert_eq!(scopes.len(), 1, "one token for all: {scopes:?}");
    assert!(registry.manifests.load(Ordering::Relaxed) == 2, "the manifest was sent again");
    let asked = server.requests.lock().unwrap().clone();
    assert!(asked.last().unwrap().starts_with("PUT /v2/a/b/manifests/1"), "the manifest is last: {asked:?}");
}

async fn mirrors_take_no_pushes_unless_told(world: &mut World) {
    let seen = |_: &Request| Reply::status(404);
    let mirror = FaultRegistry::start(&world.netns, seen);
    let directory: PathBuf = world.daemon.certs.join("upstream.test");
    std::fs::create_dir_all(&directory).unwrap();
    let hosts = |capabilities: &str, own: &str| {
        let text = format!(
            "server = \"http://{}\"\ncapabilities = [{own}]\n[host.\"http://{}\"]\ncapabilities = [{capabilities}]\n",
            world.registry.host(),
            mirror.host
        );
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
    };
    world.berth_ok(&["pull", &world.reference("busybox")]);
    world.berth_ok(&["tag", &world.reference("busybox"), "upstream.test/mirrored/push:1"]);
    hosts("\"pull\", \"resolve\"", "\"pull\", \"resolve\", \"push\"");
    world.berth_ok(&["push", "upstream.test/mirrored/push:1"]);
    assert_eq!(mirror.count("/v2/"), 0);
    world.skopeo(&[&format!("docker://{}/mirrored/push:1", world.registry.host())]);
    hosts("\"pull\", \"resolve\"", "\"pull\", \"resolve\"");
    let said = failed(&world.berth(&["push", "upstream.test/mirrored/push:1"]));
    assert!(said.contains("take pushes"), "{said}");
}

async fn what_is_no_longer_kept_is_said(world: &mut World) {
    // Layers are dropped once they are on disk, which a sweep sees.
    let source = world.reference("busybox");
    world.berth_ok(&["pull", &source]);
    let blobs = world.daemon.root.join("images/blobs/sha256");
    let layer = |world: &World| {
        let raw = world.skopeo(&["--raw", &format!("docker://{source}")]);
        let digest = raw["layers"][0]["digest"].as_str().unwrap().to_owned();
        blobs.join(digest.trim_start_matches("sha256:"))
    };
    let path = layer(world);
    let deadline = crate::support::within(20);
    while path.exists() {
        assert!(std::time::Instant::now() < deadline, "{path:?} is kept");
        // A sweep follows what was let go.
        world.berth_ok(&["pull", &world.reference("web")]);
        world.berth_ok(&["rmi", &world.reference("web")]);
    }
    let target = format!("{}/not/kept:1", world.registry.host());
    world.berth_ok(&["tag", &source, &target]);
    // The registry has it, in another repository.
    world.berth_ok(&["push", &target]);
    let access = Access::default();
    let empty = Registry::start(&world.netns, 5003, &world.disk.join("empty"), &world.run, &access);
    let target = format!("{}/not/kept:1", empty.host());
    world.berth_ok(&["tag", &source, &target]);
    let said = failed(&world.berth(&["push", &target]));
    assert!(said.contains("is not kept here") && said.contains("discard_unpacked_layers"), "{said}");
}
