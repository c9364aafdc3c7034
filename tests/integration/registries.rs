//! How a registry is reached: credentials, tokens, HTTPS, mirrors.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_cri::v1::{AuthConfig, RemoveImageRequest};
use libtest_mimic::Trial;
use serde_json::json;

use crate::images::plain_http;
use crate::support::World;
use crate::support::fault::{FaultRegistry, Reply, Request, serve_image};
use crate::support::image::{Image, many_layers};
use crate::support::registry::{Access, Registry};
use crate::support::world::image_spec;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        password,
        token,
        token_given_by_the_caller,
        https_with_a_certificate_authority_of_its_own,
        certificates_of_clients,
        mirrors_in_order,
        configuration_is_read_without_a_restart,
    ]
}

fn user(username: &str, password: &str) -> Option<AuthConfig> {
    Some(AuthConfig { username: username.into(), password: password.into(), ..Default::default() })
}

/// A registry on port 5001 that holds `private/image:1`, reached as `access` says.
fn private(world: &World, access: &Access) -> (Registry, String) {
    let storage = world.disk.join("private");
    let open = Registry::start(&world.netns, 5001, &storage, &world.run, &Access::default());
    let reference = open.push("private/image", "1", &Image::busybox(json!({"Cmd": ["true"]})));
    drop(open);
    (Registry::start(&world.netns, 5001, &storage, &world.run, access), reference)
}

fn hosts(world: &World, host: &str, text: &str) {
    let directory = world.daemon.certs.join(host);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), text).unwrap();
}

async fn password(world: &mut World) {
    let htpasswd = world.run.join("htpasswd");
    // bcrypt of "secret".
    let line = "tester:$2b$05$9OQVToC2fqVQmyd2hOS30ufZ1YILDm6/sEOCAK5PskwkxtYihLC5e\n";
    std::fs::write(&htpasswd, line).unwrap();
    let access = Access { htpasswd: Some(htpasswd), ..Access::default() };
    let (registry, reference) = private(world, &access);
    hosts(world, &registry.host(), &format!("server = \"http://{}\"\n", registry.host()));
    world.pull(&reference).await.unwrap_err();
    world.pull_with(&reference, user("tester", "wrong")).await.unwrap_err();
    assert!(world.image_status(&reference).await.unwrap().is_none());
    world.pull_with(&reference, user("tester", "secret")).await.unwrap();
    let request = RemoveImageRequest { image: Some(image_spec(&reference)) };
    world.images().remove_image(request).await.unwrap();
    let both = STANDARD.encode("tester:secret");
    world.pull_with(&reference, Some(AuthConfig { auth: both, ..Default::default() })).await.unwrap();
}

/// Serves `image` to who shows `token`; the token is had for a password at `/token`.
fn with_token(image: &Image, request: &Request, token: &str) -> Reply {
    let authorization = request.headers.get("authorization").map_or("", String::as_str);
    if request.path.starts_with("/token") {
        let basic = format!("Basic {}", STANDARD.encode("tester:secret"));
        let right = authorization == basic
            && request.path.contains("service=the-service")
            && (request.path.contains("scope=repository%3Aowner%2Fimage%3Apull")
                || request.path.contains("scope=repository:owner/image:pull"));
        return if right {
            let body = json!({"token": token, "expires_in": 300}).to_string().into_bytes();
            Reply::Full(200, vec![("Content-Type".into(), "application/json".into())], body)
        } else {
            Reply::status(401)
        };
    }
    if authorization == format!("Bearer {token}") {
        return serve_image(image, request);
    }
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"the-service\",scope=\"repository:owner/image:pull\"",
        request.headers["host"]
    );
    Reply::Full(401, vec![("WWW-Authenticate".into(), challenge)], b"{}".to_vec())
}

async fn token(world: &mut World) {
    let image = many_layers(2, 1, 21);
    let registry = FaultRegistry::start(&world.netns, move |request| with_token(&image, request, "t0ken"));
    plain_http(world, &registry);
    let reference = format!("{}/owner/image:1", registry.host);
    world.pull(&reference).await.unwrap_err();
    world.pull_with(&reference, user("tester", "wrong")).await.unwrap_err();
    world.pull_with(&reference, user("tester", "secret")).await.unwrap();
    assert!(world.image_status(&reference).await.unwrap().is_some());
}

async fn token_given_by_the_caller(world: &mut World) {
    if !world.is_berth() {
        return; // containerd 1.6 ignores `registry_token`
    }
    let image = many_layers(1, 1, 22);
    let registry = FaultRegistry::start(&world.netns, move |request| with_token(&image, request, "given"));
    plain_http(world, &registry);
    let reference = format!("{}/owner/image:1", registry.host);
    let auth = |token: &str| Some(AuthConfig { registry_token: token.into(), ..Default::default() });
    world.pull_with(&reference, auth("other")).await.unwrap_err();
    world.pull_with(&reference, auth("given")).await.unwrap();
}

/// Certificate authority, certificate for 127.0.0.1, and its key.
fn certificates(directory: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let path = |name: &str| directory.join(name);
    let openssl = |line: &str| {
        let output = Command::new("openssl").args(line.split(' ')).current_dir(directory).output();
        let output = output.expect("openssl (apt-get install openssl)");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    std::fs::write(path("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=tests"));
    openssl(&format!("req -new {key} -keyout registry.key -out registry.csr -subj /CN=registry"));
    openssl(
        "x509 -req -in registry.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions \
         -out registry.crt",
    );
    openssl(&format!("req -new {key} -keyout client.key -out client.csr -subj /CN=node"));
    openssl(
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out client.crt",
    );
    (path("ca.crt"), path("registry.crt"), path("registry.key"))
}

async fn https_with_a_certificate_authority_of_its_own(world: &mut World) {
    let (authority, certificate, key) = certificates(&world.run);
    let access = Access { tls: Some((certificate, key)), ..Access::default() };
    let (registry, reference) = private(world, &access);
    let host = registry.host();
    hosts(world, &host, &format!("server = \"https://{host}\"\n"));
    world.pull(&reference).await.expect_err("nobody vouches for it");
    let with = |line: &str| {
        format!(
            "server = \"https://{host}\"\n[host.\"https://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\n{line}\n"
        )
    };
    hosts(world, &host, &with(&format!("ca = \"{}\"", authority.display())));
    world.pull(&reference).await.unwrap();
    let request = RemoveImageRequest { image: Some(image_spec(&reference)) };
    world.images().remove_image(request).await.unwrap();
    hosts(world, &host, &with("skip_verify = true"));
    world.pull(&reference).await.unwrap();
}

async fn certificates_of_clients(world: &mut World) {
    let (authority, certificate, key) = certificates(&world.run);
    let access = Access {
        tls: Some((certificate.clone(), key.clone())),
        clients: Some(authority.clone()),
        ..Access::default()
    };
    // The image is there already when the registry begins to ask who one is: its readiness is seen by a bare connection.
    let (registry, reference) = private(world, &access);
    let host = registry.host();
    let with = |client: &str| {
        format!(
            "server = \"https://{host}\"\n[host.\"https://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = \"{}\"\n{client}\n",
            authority.display()
        )
    };
    hosts(world, &host, &with(""));
    world.pull(&reference).await.expect_err("nobody said who is asking");
    let path = |name: &str| world.run.join(name).display().to_string();
    hosts(
        world,
        &host,
        &with(&format!("client = [[\"{}\", \"{}\"]]", path("client.crt"), path("client.key"))),
    );
    world.pull(&reference).await.unwrap();
    let request = RemoveImageRequest { image: Some(image_spec(&reference)) };
    world.images().remove_image(request).await.unwrap();
    // A pair beside the file, as docker's users lay it down.
    let directory = world.daemon.certs.join(&host);
    std::fs::copy(path("client.crt"), directory.join("node.cert")).unwrap();
    std::fs::copy(path("client.key"), directory.join("node.key")).unwrap();
    std::fs::copy(&authority, directory.join("ca.crt")).unwrap();
    std::fs::remove_file(directory.join("hosts.toml")).unwrap();
    world.pull(&reference).await.unwrap();
}

async fn mirrors_in_order(world: &mut World) {
    let image = many_layers(2, 1, 23);
    let served = image.clone();
    let broken = FaultRegistry::start(&world.netns, |_| Reply::status(503));
    let mirror = FaultRegistry::start(&world.netns, move |request| serve_image(&served, request));
    // The registry itself does not exist.
    let text = format!(
        "server = \"http://127.0.0.1:9\"\n\
         [host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\
         [host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        broken.host, mirror.host
    );
    hosts(world, "registry.test", &text);
    let reference = "registry.test/mirrored/image:1";
    world.pull(reference).await.unwrap();
    let status = world.image_status(reference).await.unwrap().unwrap();
    assert_eq!(status.id, image.id());
    assert_eq!(status.repo_tags, [reference], "the name is the registry's, not the mirror's");
    assert!(broken.count("/v2/mirrored/image") > 0, "asked first");
    let asked = mirror.requests.lock().unwrap().clone();
    assert!(asked.iter().any(|line| line.contains("ns=registry.test")), "{asked:?}");
}

async fn configuration_is_read_without_a_restart(world: &mut World) {
    let image = many_layers(1, 1, 24);
    let mirror = FaultRegistry::start(&world.netns, move |request| serve_image(&image, request));
    let reference = "late.test/image:1";
    world.pull(reference).await.unwrap_err();
    let text = format!(
        "server = \"http://127.0.0.1:9\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        mirror.host
    );
    hosts(world, "late.test", &text);
    world.pull(reference).await.unwrap();
}
