//! `berth cp`: files into and out of containers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use k8s_cri::v1::{IdMapping, NamespaceMode, NamespaceOption, UserNamespace};
use libtest_mimic::Trial;

use crate::support::runtime::binaries;
use crate::support::spec::{ContainerOptions, PodOptions, namespaces};
use crate::support::{World, container};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        as_docker_has_it,
        archives_by_stdin_and_stdout,
        links_lead_nowhere,
        a_container_that_changes_names_meanwhile,
        mounts_and_volumes_are_seen,
        what_became_a_link_is_not_followed,
        ended_containers,
        owners_with_a_user_namespace,
        large_files_and_clients_that_go,
        mistakes_are_named,
    ]
}

/// A running container `work` of busybox with `mounts` (`-v`), and a directory here.
fn work(world: &World, mounts: &[&str]) -> PathBuf {
    let image = world.reference("busybox");
    let mut arguments = vec!["run", "-d", "--name", "work"];
    arguments.extend(mounts.iter().flat_map(|mount| ["-v", mount]));
    arguments.extend([image.as_str(), "sleep", "100000"]);
    let id = world.berth_ok(&arguments);
    world.remember(&id);
    let here = world.run.join("here");
    fs::create_dir_all(&here).unwrap();
    here
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn failure(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

impl World {
    fn cp(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) {
        self.berth_ok(&["cp", &text(from.as_ref()), &text(to.as_ref())]);
    }

    fn cp_fails(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> String {
        failure(&self.berth(&["cp", &text(from.as_ref()), &text(to.as_ref())]))
    }

    fn inside(&self, script: &str) -> String {
        self.berth_ok(&["exec", "work", "sh", "-c", script])
    }

    /// A script here, with `berth` in its way.
    fn shell(&self, script: &str) -> Output {
        let path = format!("{}:{}", binaries().display(), std::env::var("PATH").unwrap());
        self.netns
            .run(|| {
                Command::new("bash")
                    .args(["-c", script])
                    .env("PATH", path)
                    .env("BERTH_ADDRESS", &self.daemon.socket)
                    .stdin(Stdio::null())
                    .output()
            })
            .unwrap()
    }
}

async fn as_docker_has_it(world: &mut World) {
    let here = work(world, &[]);
    let at = |name: &str| here.join(name);
    fs::write(at("file"), "one").unwrap();
    fs::set_permissions(at("file"), fs::Permissions::from_mode(0o4640)).unwrap();
    fs::create_dir_all(at("dir/sub")).unwrap();
    fs::write(at("dir/sub/x"), "x").unwrap();
    symlink("sub/x", at("dir/link")).unwrap();

    // Into a directory, under another name, over a file.
    world.cp(at("file"), "work:/tmp");
    world.cp(at("file"), "work:/tmp/other");
    assert_eq!(
        world.inside("stat -c '%n %a %u:%g' /tmp/file /tmp/other; cat /tmp/other"),
        "/tmp/file 640 0:0\n/tmp/other 640 0:0\none"
    );
    fs::write(at("file"), "two").unwrap();
    world.cp(at("file"), "work:tmp/other");
    assert_eq!(world.inside("cat /tmp/other"), "two");
    // A directory: into one that is there, its contents, as a new one.
    world.cp(at("dir"), "work:/tmp");
    world.cp(at("dir/."), "work:/tmp/dir/sub");
    world.cp(at("dir"), "work:/tmp/new");
    assert_eq!(
        world.inside("cd /tmp && find dir new | sort; readlink new/link"),
        "dir\ndir/link\ndir/sub\ndir/sub/link\ndir/sub/sub\ndir/sub/sub/x\ndir/sub/x\nnew\nnew/link\nnew/sub\nnew/sub/x\nsub/x"
    );
    // And out again.
    world.cp("work:/tmp/new", at("out"));
    assert_eq!(fs::read_to_string(at("out/sub/x")).unwrap(), "x");
    assert_eq!(fs::read_link(at("out/link")).unwrap(), Path::new("sub/x"));
    world.cp("work:/tmp/new/.", at("out/sub"));
    assert!(at("out/sub/sub/x").exists() && !at("out/sub/new").exists());
    // A link by itself, and where it leads.
    world.cp("work:/tmp/new/link", at("as-link"));
    assert!(fs::symlink_metadata(at("as-link")).unwrap().is_symlink());
    world.berth_ok(&["cp", "-L", "work:/tmp/new/link", &text(&at("as-file"))]);
    assert_eq!(fs::read_to_string(at("as-file")).unwrap(), "x");
    // Owners go along only when they are asked for.
    world.inside("echo mine > /tmp/mine && chown 12:34 /tmp/mine && chmod 4711 /tmp/mine");
    world.cp("work:/tmp/mine", at("plain"));
    world.berth_ok(&["cp", "-a", "work:/tmp/mine", &text(&at("kept"))]);
    let seen = |name: &str| fs::metadata(at(name)).map(|m| (m.uid(), m.gid(), m.mode() & 0o7777)).unwrap();
    assert_eq!((seen("plain"), seen("kept")), ((0, 0, 0o711), (12, 34, 0o4711)));
    world.berth_ok(&["cp", "-a", &text(&at("kept")), "work:/tmp/back"]);
    assert_eq!(world.inside("stat -c '%a %u:%g' /tmp/back"), "4711 12:34");
    // A directory that is there stays as it is; no kind takes the place of the other.
    world.inside("mkdir -m 1777 /tmp/t && echo keep > /tmp/t/keep");
    fs::create_dir_all(at("t")).unwrap();
    fs::write(at("t/new"), "new").unwrap();
    world.cp(at("t"), "work:/tmp");
    assert_eq!(world.inside("stat -c %a /tmp/t; ls /tmp/t"), "1777\nkeep\nnew");
    assert!(world.cp_fails(at("dir"), "work:/tmp/file").contains("is a file"));
    fs::create_dir_all(at("u/file")).unwrap();
    assert!(world.cp_fails(at("u/."), "work:/tmp").contains("something else of that name is there"));
    fs::write(at("u/t"), "").unwrap();
    fs::remove_dir(at("u/file")).unwrap();
    assert!(world.cp_fails(at("u/."), "work:/tmp").contains("a directory of that name is there"));
    assert_eq!(world.inside("cat /tmp/t/keep"), "keep");
}

async fn archives_by_stdin_and_stdout(world: &mut World) {
    let here = work(world, &[]);
    fs::create_dir_all(here.join("d")).unwrap();
    fs::write(here.join("d/f"), "f").unwrap();
    let output = world.shell(&format!("tar -C {} -c d | berth cp - work:/tmp", here.display()));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(world.inside("cat /tmp/d/f"), "f");
    let output = world.shell("set -o pipefail; berth cp work:/tmp/d - | tar -tv");
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && listed.contains("d/f"), "{output:?}");
    // What is no archive is said to be none.
    let said = failure(&world.shell("echo nonsense that is longer than nothing | berth cp - work:/tmp"));
    assert!(said.contains("archive"), "{said}");
    assert!(failure(&world.shell("berth cp - work:/tmp/d/f < /dev/null")).contains("is none"));
    // A reader that goes away ends it.
    let output = world.shell("berth cp work:/bin - | head -c 1 | wc -c");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1");
}

async fn links_lead_nowhere(world: &mut World) {
    let here = work(world, &[]);
    let secret = world.run.join("secret");
    fs::write(&secret, "of the host").unwrap();
    let secret = text(&secret);
    // Links of the container end in the container.
    world.inside(&format!(
        "ln -s {secret} /tmp/absolute && ln -s ../../../../../..{secret} /tmp/up && ln -s / /tmp/root"
    ));
    for path in
        ["/tmp/absolute", "/tmp/up", &format!("/tmp/root{secret}"), &format!("/tmp/root/../..{secret}")]
    {
        let said = failure(&world.berth(&["cp", "-L", &format!("work:{path}"), &text(&here)]));
        assert!(said.contains("there is no"), "{path}: {said}");
    }
    // Nor are they written through.
    fs::write(here.join("f"), "changed").unwrap();
    world.inside(&format!("ln -s {} /tmp/dir", text(&world.run)));
    assert!(world.cp_fails(here.join("f"), "work:/tmp/dir/f").contains("/tmp/dir"));
    world.cp(here.join("f"), "work:/tmp/absolute");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "of the host");
    assert_eq!(world.inside("cat /tmp/absolute"), "changed", "the link was replaced");
    // Links of /proc, which lead to files without a path, are none here.
    for path in ["/proc/1/root/etc/passwd", "/proc/self/exe", "/proc/1/cwd/x"] {
        let output = world.berth(&["cp", "-L", &format!("work:{path}"), &text(&here)]);
        assert!(!output.status.success(), "{path}");
    }
    // An archive by others: its names can't leave the directory.
    let script = format!(
        "cd {} && mkdir -p a/b && ln -s /etc a/b/out && tar -c a > x.tar && rm a/b/out && mkdir a/b/out && echo x > a/b/out/evil && \
         tar -r -f x.tar a/b/out/evil && berth cp - work:/tmp < x.tar",
        here.display()
    );
    let said = failure(&world.shell(&script));
    assert!(said.contains("leads out"), "{said}");
    assert_eq!(world.inside("ls /etc/evil 2>/dev/null || echo none"), "none");
    // Devices are described when they are read, and never made.
    let said = world.cp_fails(Path::new("/dev/null"), "work:/tmp/null");
    assert!(said.contains("devices are not copied"), "{said}");
}

/// CVE-2018-15664: what is looked at is swapped for a link to the host's before it is opened.
async fn a_container_that_changes_names_meanwhile(world: &mut World) {
    let here = work(world, &[]);
    let secret = world.run.join("swapped");
    fs::create_dir_all(&secret).unwrap();
    fs::write(secret.join("file"), "of the host").unwrap();
    let script = format!(
        "mkdir -p /tmp/real /tmp/race && echo inside > /tmp/real/file && \
         (while :; do rm -rf /tmp/race; ln -s {s} /tmp/race; rm -f /tmp/race; cp -r /tmp/real /tmp/race; done) >/dev/null 2>&1 &",
        s = secret.display()
    );
    world.inside(&script);
    let mut read = 0;
    for round in 0..30 {
        let to = here.join(format!("{round}"));
        let output = world.berth(&["cp", "work:/tmp/race/file", &text(&to)]);
        if output.status.success() {
            assert_ne!(fs::read_to_string(&to).unwrap(), "of the host");
            read += 1;
        }
        fs::write(here.join("mine"), "mine").unwrap();
        let _ = world.berth(&["cp", &text(&here.join("mine")), "work:/tmp/race/mine"]);
        assert!(!secret.join("mine").exists());
    }
    println!("{read} of 30 copies found the file");
    assert_eq!(fs::read_to_string(secret.join("file")).unwrap(), "of the host");
}

async fn mounts_and_volumes_are_seen(world: &mut World) {
    let host = world.run.join("host");
    fs::create_dir_all(&host).unwrap();
    fs::write(host.join("f"), "f").unwrap();
    let bind = format!("{}:/host:ro", host.display());
    let here = work(world, &["data:/data", &bind]);
    fs::write(here.join("v"), "v").unwrap();
    world.cp(here.join("v"), "work:/data/v");
    let path = world.berth_ok(&["volume", "inspect", "-f", ".path", "data"]);
    assert_eq!(fs::read_to_string(Path::new(&path).join("v")).unwrap(), "v");
    world.cp("work:/host/f", here.join("from-host"));
    assert!(world.cp_fails(here.join("v"), "work:/host/new").to_lowercase().contains("read-only"));
    assert!(!host.join("new").exists());
    // The same of the container that has ended.
    world.berth_ok(&["stop", "--time", "0", "work"]);
    world.cp("work:/data/v", here.join("again"));
    world.cp("work:/host/f", here.join("again"));
    assert_eq!(fs::read_to_string(here.join("again")).unwrap(), "f");
    assert!(world.cp_fails(here.join("v"), "work:/host/new").to_lowercase().contains("read-only"));
    fs::write(here.join("v"), "w").unwrap();
    world.cp(here.join("v"), "work:/data/v");
    assert_eq!(fs::read_to_string(Path::new(&path).join("v")).unwrap(), "w");
    world.berth_ok(&["rm", "work"]);
    world.berth_ok(&["volume", "rm", "data"]);
    world.no_leaks();
}

/// Who may write where a volume lies could put a link in its place, to what only root may read.
async fn what_became_a_link_is_not_followed(world: &mut World) {
    let (host, secret) = (world.run.join("host"), world.run.join("secret"));
    for directory in [&host, &secret] {
        fs::create_dir_all(directory.join("volume")).unwrap();
    }
    fs::write(host.join("volume/f"), "of the volume").unwrap();
    fs::write(secret.join("volume/f"), "of the host").unwrap();
    let here = work(world, &[&format!("{}:/data", host.join("volume").display())]);
    world.berth_ok(&["stop", "--time", "0", "work"]);
    world.cp("work:/data/f", here.join("f"));
    let refused = |here: &Path| {
        let error = world.cp_fails("work:/data/f", here.join("stolen"));
        assert!(error.contains("symbolic link") && error.contains("/data"), "{error}");
        assert!(world.cp_fails(here.join("f"), "work:/data/f").contains("symbolic link"));
        assert!(!here.join("stolen").exists());
        assert_eq!(fs::read_to_string(secret.join("volume/f")).unwrap(), "of the host");
    };
    // The volume itself, and a directory on the way.
    for (of, by) in [("host/volume", "secret/volume"), ("host", "secret")] {
        let (of, by, aside) = (world.run.join(of), world.run.join(by), world.run.join("aside"));
        fs::rename(&of, &aside).unwrap();
        std::os::unix::fs::symlink(by, &of).unwrap();
        refused(&here);
        fs::remove_file(&of).unwrap();
        // One that is gone is left out, as before.
        world.cp("work:/etc/passwd", here.join("passwd"));
        fs::rename(&aside, &of).unwrap();
    }
    world.cp("work:/data/f", here.join("again"));
    assert_eq!(fs::read_to_string(here.join("again")).unwrap(), "of the volume");
    world.berth_ok(&["rm", "work"]);
    world.no_leaks();
}

async fn ended_containers(world: &mut World) {
    let image = world.reference("web");
    let script = "echo written > /tmp/w && rm /www/index.html && mkdir /new && ln -s /etc/passwd /new/link";
    let id = world.berth_ok(&["run", "-d", "--name", "work", &image, "sh", "-c", script]);
    world.remember(&id);
    world.wait_exit(&id).await;
    let here = world.run.join("here");
    fs::create_dir_all(&here).unwrap();
    world.cp("work:/tmp/w", here.join("w"));
    assert_eq!(fs::read_to_string(here.join("w")).unwrap(), "written\n");
    world.cp("work:/new", &here);
    assert!(fs::symlink_metadata(here.join("new/link")).unwrap().is_symlink());
    assert!(
        world.cp_fails("work:/www/index.html", &here).contains("there is no /www/index.html"),
        "it was removed"
    );
    world.cp("work:/etc/passwd", here.join("passwd"));
    // What is put there is there: for commit, for one.
    world.cp(here.join("w"), "work:/www/index.html");
    let name = format!("{}/made/cp:1", world.registry.host());
    world.berth_ok(&["commit", "work", &name]);
    assert_eq!(world.berth_ok(&["run", "--rm", &name, "cat", "/www/index.html"]), "written");
    // Over a restart of the daemon, too; and nothing of it shows on the host.
    world.crash_and_restart().await;
    world.cp("work:/tmp/w", here.join("w2"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.lines().any(|line| line.contains(&id) && line.contains(" overlay ")), "{mounts}");
    world.berth_ok(&["rm", "work"]);
    assert!(world.cp_fails("work:/tmp/w", &here).contains("no container is called work"));
    let removed = world.berth(&["rmi", &name]);
    assert!(removed.status.success(), "{removed:?}\n{}", world.daemon.log());
    world.no_leaks();
}

async fn owners_with_a_user_namespace(world: &mut World) {
    const OUTSIDE: u32 = 131_072;
    let status = world.runtime().status(k8s_cri::v1::StatusRequest::default()).await.unwrap().into_inner();
    let default = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    if !default.features.unwrap().user_namespaces {
        println!("skipped: no user namespaces of pods here");
        return;
    }
    let mapping = || vec![IdMapping { host_id: OUTSIDE, container_id: 0, length: 65_536 }];
    let userns = UserNamespace { mode: NamespaceMode::Pod.into(), uids: mapping(), gids: mapping() };
    let options = NamespaceOption { userns_options: Some(userns), ..namespaces() };
    let mut pod = world.pod("mapped");
    pod.security().namespace_options = Some(options.clone());
    let pod_id = world.run_pod(&pod).await.unwrap();
    let image = world.image("busybox").await;
    let mut config = container("work", &image, &["sleep", "100000"]);
    config.security().namespace_options = Some(options);
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();

    let here = world.run.join("here");
    fs::create_dir_all(here.join("d")).unwrap();
    fs::write(here.join("d/f"), "f").unwrap();
    std::os::unix::fs::chown(here.join("d/f"), Some(5), Some(6)).unwrap();
    world.cp(here.join("d"), "work:/tmp/plain");
    world.berth_ok(&["cp", "-a", &text(&here.join("d")), "work:/tmp/kept"]);
    let seen =
        world.inside("stat -c '%u:%g' /tmp/plain /tmp/plain/f /tmp/kept/f; touch /tmp/plain/new && echo may");
    assert_eq!(seen, "0:0\n0:0\n5:6\nmay");
    world.inside("echo x > /tmp/x && chown 7:8 /tmp/x");
    world.berth_ok(&["cp", "-a", "work:/tmp/x", &text(&here.join("x"))]);
    let x = fs::metadata(here.join("x")).unwrap();
    assert_eq!((x.uid(), x.gid()), (7, 8), "as the container calls them");
    // Who has no number inside can't own anything there.
    std::os::unix::fs::chown(here.join("d/f"), Some(100_000), Some(6)).unwrap();
    let said = failure(&world.berth(&["cp", "-a", &text(&here.join("d/f")), "work:/tmp/nobody"]));
    assert!(said.contains("100000:6"), "{said}");
    world.stop_container(&id, 0).await.unwrap();
    world.berth_ok(&["cp", "-a", "work:/tmp/kept/f", &text(&here.join("ended"))]);
    let ended = fs::metadata(here.join("ended")).unwrap();
    assert_eq!((ended.uid(), ended.gid()), (5, 6));
}

async fn large_files_and_clients_that_go(world: &mut World) {
    let here = work(world, &[]);
    let noise = crate::support::image::noise(24 << 20, 5);
    fs::write(here.join("large"), &noise).unwrap();
    world.cp(here.join("large"), "work:/tmp/large");
    world.cp("work:/tmp/large", here.join("back"));
    assert!(fs::read(here.join("back")).unwrap() == noise);
    // Clients that are killed midway leave neither threads nor places: more of them than there are places.
    for _ in 0..17 {
        let output = world.shell("berth cp work:/tmp/large - | head -c 100000 | wc -c");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "100000");
        // An archive that stops within a file.
        let script = format!(
            "(tar -c -C {} large | head -c 1000000; sleep 0.4) | timeout -s KILL 0.2 berth cp - work:/tmp",
            here.display()
        );
        world.shell(&script);
    }
    let deadline = crate::support::within(20);
    while !world.berth(&["cp", "work:/etc/passwd", &text(&here)]).status.success() {
        assert!(std::time::Instant::now() < deadline, "no place is free again");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // A tree with the kernel's own file systems in it ends.
    let output = world.shell("set -o pipefail; berth cp work:/ - | tar -t | grep -c '^\\./proc/.'");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
}

async fn mistakes_are_named(world: &mut World) {
    let here = work(world, &[]);
    for (from, to, word) in [
        ("work:/nothing".to_owned(), text(&here), "there is no /nothing"),
        (text(&here.join("nothing")), "work:/tmp".to_owned(), "nothing"),
        (text(&here), "nobody:/tmp".to_owned(), "no container is called nobody"),
        ("a".to_owned(), "b".to_owned(), "CONTAINER:PATH"),
        ("work:/etc".to_owned(), "work:/tmp".to_owned(), "container to container"),
        ("work:/etc/passwd".to_owned(), format!("{}/new/", here.display()), "no directory"),
        ("work:/etc/passwd".to_owned(), format!("{}/new/deep", here.display()), "opening the directory"),
        ("/etc/passwd".to_owned(), "work:/new/deep".to_owned(), "/new"),
        ("/etc/passwd".to_owned(), format!("work:/{}", "x".repeat(5000)), "longer than 4096"),
    ] {
        let said = world.cp_fails(&from, &to);
        assert!(said.contains(word) && said.lines().count() == 1, "{from} {to}: {said}");
    }
}
