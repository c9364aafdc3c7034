//! A container as an image: `berth commit`, `save` and `load`.

use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::World;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![a_container_becomes_an_image, links_owners_and_devices, changes_and_mistakes, save_and_load]
}

async fn a_container_becomes_an_image(world: &mut World) {
    let source = world.reference("web");
    let id = world.berth_ok(&["run", "-d", "--name", "work", &source, "sleep", "1000"]);
    world.remember(&id);
    // What a layer must say: a file that is new, one that is changed, one that is gone, a directory that is another one.
    let script = "echo new > /new && echo changed > /www/index.html && rm /etc/group && rm -r /home && \
                  mkdir /home && echo mine > /home/me && mkdir -p /a/b/c && chmod 700 /a/b && chown 1000:1000 /a/b/c";
    world.berth_ok(&["exec", "work", "sh", "-c", script]);
    let name = format!("{}/committed/web:1", world.registry.host());
    let made = world.berth_ok(&[
        "commit",
        "--author",
        "me",
        "-m",
        "a try",
        "-c",
        "CMD [\"cat\", \"/new\"]",
        "-c",
        "ENV WHO=commit",
        "work",
        &name,
    ]);
    assert!(made.starts_with("sha256:"), "{made}");
    // The container runs on.
    assert_eq!(world.berth_ok(&["exec", "work", "cat", "/new"]), "new");
    world.berth_ok(&["rm", "--force", "work"]);

    let look =
        "cat /www/index.html; ls /etc/group /home 2>/dev/null; stat -c '%a %u:%g' /a/b /a/b/c; echo $WHO";
    let expected = "changed\n/home:\nme\n700 0:0\n755 1000:1000\ncommit";
    assert_eq!(world.berth_ok(&["run", "--rm", &name]), "new", "the changed command");
    assert_eq!(world.berth_ok(&["run", "--rm", &name, "sh", "-c", look]), expected);
    // Through a registry and back.
    let digest = world.berth_ok(&["push", &name]);
    world.berth_ok(&["rmi", &name]);
    assert!(world.image_status(&name).await.unwrap().is_none());
    world.berth_ok(&["pull", &name]);
    let back = world.image_status(&name).await.unwrap().unwrap();
    assert_eq!(back.id, made);
    assert_eq!(back.repo_digests, [digest]);
    assert_eq!(world.berth_ok(&["run", "--rm", &name, "sh", "-c", look]), expected);
    let output = world
        .netns
        .run(|| {
            std::process::Command::new("skopeo")
                .args(["inspect", "--config", "--tls-verify=false", &format!("docker://{name}")])
                .output()
        })
        .unwrap();
    let config: Value = serde_json::from_slice(&output.stdout).unwrap();
    let last = config["history"].as_array().unwrap().last().unwrap();
    assert_eq!((last["author"].as_str(), last["comment"].as_str()), (Some("me"), Some("a try")));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    world.no_leaks();
}

async fn links_owners_and_devices(world: &mut World) {
    let source = world.reference("busybox");
    let id = world.berth_ok(&["run", "-d", "--name", "kinds", &source, "sleep", "1000"]);
    world.remember(&id);
    let long = format!("/{}/{}", "d".repeat(110), "f".repeat(120));
    let script = format!(
        "echo x > /one && ln /one /two && ln -s /etc/passwd /link && mkfifo -m 640 /pipe && mknod -m 600 /null c 1 3 && \
         mkdir /{} && echo long > {long} && chmod 4755 /one && mkdir /volume",
        "d".repeat(110)
    );
    world.berth_ok(&["exec", "kinds", "sh", "-c", &script]);
    world.berth_ok(&["stop", "--time", "0", "kinds"]);
    // One that has ended as well.
    world.berth_ok(&["commit", "kinds", "committed/kinds:1"]);
    world.berth_ok(&["rm", "kinds"]);
    let look = format!(
        "stat -c '%h %a' /one /two; stat -c '%i' /one /two | uniq | wc -l; readlink /link; stat -c '%F %a' /pipe /null; \
         stat -c '%t:%T' /null; cat {long}"
    );
    assert_eq!(
        world.berth_ok(&["run", "--rm", "committed/kinds:1", "sh", "-c", &look]),
        "2 4755\n2 4755\n1\n/etc/passwd\nfifo 640\ncharacter special file 600\n1:3\nlong"
    );
    world.no_leaks();
}

async fn changes_and_mistakes(world: &mut World) {
    let source = world.reference("busybox");
    let id = world.berth_ok(&["run", "-d", "--name", "plain", &source, "sleep", "1000"]);
    world.remember(&id);
    let fail = |arguments: &[&str]| {
        let output = world.berth(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
    };
    let said = fail(&["commit", "plain", "Not A Name"]);
    assert!(said.contains("committing plain"), "{said}");
    let said = fail(&["commit", "-c", "RUN true", "plain", "x:1"]);
    assert!(said.contains("RUN true") && said.contains("ENTRYPOINT"), "{said}");
    let said = fail(&["commit", "nobody", "x:1"]);
    assert!(said.contains("nobody"), "{said}");
    assert!(world.image_status("x:1").await.unwrap().is_none());
    world.berth_ok(&["rmi", "--force", &source]);
    let said = fail(&["commit", "plain", "x:1"]);
    assert!(said.contains("is not here"), "{said}");
    world.berth_ok(&["rm", "--force", "plain"]);
    world.no_leaks();
}

async fn save_and_load(world: &mut World) {
    let image = world.reference("users");
    world.berth_ok(&["pull", &image]);
    let before = world.image_status(&image).await.unwrap().unwrap();
    let archive = world.disk.join("saved.tar");
    let path = archive.to_str().unwrap();
    world.berth_ok(&["save", "-o", path, &image]);
    world.berth_ok(&["rmi", &image]);
    world.berth_ok(&["load", "-i", path]);
    assert_eq!(world.image_status(&image).await.unwrap().unwrap().id, before.id);
    // By pipes.
    let output = world.berth(&["save", &image]);
    assert!(output.status.success());
    std::fs::write(&archive, &output.stdout).unwrap();
    world.berth_ok(&["rmi", &image]);
    let output = world
        .netns
        .run(|| {
            std::process::Command::new(crate::support::runtime::binaries().join("berth"))
                .args(["load", "--quiet"])
                .env("BERTH_ADDRESS", &world.daemon.socket)
                .stdin(std::fs::File::open(&archive).unwrap())
                .output()
        })
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(world.image_status(&image).await.unwrap().unwrap().id, before.id);
}
