//! Named volumes: `berth volume`, `berth run -v NAME:/path`.

use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::World;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        kept_and_shared,
        filled_from_the_image,
        used_ones_stay,
        volumes_survive_the_daemon,
        those_without_a_name
    ]
}

fn failure(world: &World, arguments: &[&str]) -> String {
    let output = world.berth(arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

async fn kept_and_shared(world: &mut World) {
    let image = world.reference("busybox");
    let run = |volume: &str, script: &str| {
        world.berth_ok(&["run", "--rm", "-v", volume, &image, "sh", "-c", script])
    };
    run("data:/data", "echo kept > /data/file");
    assert_eq!(
        run("data:/elsewhere:ro", "cat /elsewhere/file; touch /elsewhere/x 2>/dev/null || echo no"),
        "kept\nno"
    );
    // A path of the host is what it was before.
    let path = world.berth_ok(&["volume", "inspect", "-f", ".path", "data"]);
    assert_eq!(run(&format!("{path}:/host"), "cat /host/file"), "kept");
    assert_eq!(world.berth_ok(&["volume", "create", "-l", "a=b", "made"]), "made");
    assert_eq!(world.berth_ok(&["volume", "ls", "-q"]), "data\nmade");
    let list: Value = serde_json::from_str(&world.berth_ok(&["volume", "ls", "-o", "json"])).unwrap();
    assert_eq!((list[1]["labels"]["a"].as_str(), list[1]["users"].as_array().unwrap().len()), (Some("b"), 0));
    assert!(world.berth_ok(&["volume", "ls"]).contains("made"));
    let said = failure(world, &["run", "--rm", "-v", "b@d:/x", &image, "true"]);
    assert!(said.contains("b@d"), "{said}");
    assert!(failure(world, &["volume", "create", "a/b"]).contains("no name of a volume"));
    assert!(failure(world, &["volume", "rm", "nobody"]).contains("not found"));
    assert_eq!(world.berth_ok(&["volume", "rm", "data", "made"]), "data\nmade");
    assert!(!std::path::Path::new(&path).exists());
    world.no_leaks();
}

async fn filled_from_the_image(world: &mut World) {
    let image = world.reference("web");
    let run = |volume: &str, script: &str| {
        world.berth_ok(&["run", "--rm", "-v", volume, &image, "sh", "-c", script])
    };
    assert_eq!(run("pages:/www", "cat /www/index.html && rm /www/index.html"), "It works.");
    assert_eq!(run("pages:/www", "ls /www | grep -c index || true"), "0", "filled once, not again");
    assert_eq!(run("empty:/not/in/the/image", "ls -a /not/in/the/image | wc -l"), "2");
    world.berth_ok(&["volume", "rm", "pages", "empty"]);
    world.no_leaks();
}

async fn used_ones_stay(world: &mut World) {
    let image = world.reference("busybox");
    let id = world.berth_ok(&["run", "-d", "--name", "user", "-v", "used:/data", &image, "sleep", "1000"]);
    world.remember(&id);
    world.berth_ok(&["volume", "create", "unused"]);
    let said = failure(world, &["volume", "rm", "used"]);
    assert!(said.contains(&id) && said.contains("is used by"), "{said}");
    assert_eq!(world.berth_ok(&["volume", "inspect", "-f", ".users[0]", "used"]), id);
    assert!(failure(world, &["volume", "prune"]).contains("--force"));
    assert_eq!(world.berth_ok(&["volume", "prune", "--dry-run"]), "would remove volume unused");
    assert_eq!(
        world.berth_ok(&["system", "prune", "--volumes", "--force"]).lines().next(),
        Some("removed volume unused")
    );
    // One that has ended may be looked at, and its volume with it.
    world.berth_ok(&["stop", "--time", "0", "user"]);
    assert!(failure(world, &["volume", "rm", "used"]).contains("is used by"));
    world.berth_ok(&["rm", "user"]);
    assert_eq!(world.berth_ok(&["volume", "prune", "--force"]), "removed volume used");
    world.no_leaks();
}

async fn those_without_a_name(world: &mut World) {
    let image = world.reference("web");
    let volumes = |world: &World| world.berth_ok(&["volume", "ls", "-q"]).lines().count();
    let run = |more: &[&str], command: &[&str]| {
        let arguments =
            [&["run"][..], more, &["-v", "/www", "-v", "/other", image.as_str()], command].concat();
        world.berth_ok(&arguments)
    };
    // It is filled from the image, is a mount, and goes with --rm, also when the command fails.
    let look = "cat /www/index.html; touch /www/new; grep -c ' /www ' /proc/self/mounts";
    assert_eq!(run(&["--rm"], &["sh", "-c", look]), "It works.\n1");
    assert_eq!(volumes(world), 0);
    let failing = world.berth(&["run", "--rm", "-v", "/x", &image, "false"]);
    assert_eq!((failing.status.code(), volumes(world)), (Some(1), 0));
    let not_there = world.berth(&["run", "--rm", "-v", "/x", &image, "/no/such/command"]);
    assert_eq!((not_there.status.code(), volumes(world)), (Some(127), 0));
    // Else it is kept, unless its removal is asked for.
    let id = run(&["-d", "--name", "kept"], &["sleep", "1000"]);
    world.remember(&id);
    assert_eq!(volumes(world), 2);
    let name = world.berth_ok(&["volume", "ls", "-q"]).lines().next().unwrap().to_owned();
    assert_eq!(
        world.berth_ok(&["volume", "inspect", "-f", ".labels[\"berth.dev/anonymous\"]", &name]),
        "kept"
    );
    world.berth_ok(&["rm", "--force", "kept"]);
    assert_eq!(volumes(world), 2);
    world.berth_ok(&["volume", "prune", "--force"]);
    world.berth_ok(&["volume", "create", "named"]);
    let id = run(&["-d", "--name", "gone", "-v", "named:/named"], &["sleep", "1000"]);
    world.remember(&id);
    assert_eq!(volumes(world), 3);
    world.berth_ok(&["rm", "-fv", "gone"]);
    assert_eq!(world.berth_ok(&["volume", "ls", "-q"]), "named");
    world.berth_ok(&["volume", "rm", "named"]);
    world.no_leaks();
}

async fn volumes_survive_the_daemon(world: &mut World) {
    let image = world.reference("busybox");
    world.berth_ok(&["run", "--rm", "-v", "data:/data", &image, "sh", "-c", "echo kept > /data/file"]);
    let id = world.berth_ok(&["run", "-d", "--name", "user", "-v", "data:/data", &image, "sleep", "1000"]);
    world.remember(&id);
    world.crash_and_restart().await;
    assert!(failure(world, &["volume", "rm", "data"]).contains("is used by"));
    assert_eq!(world.berth_ok(&["exec", "user", "cat", "/data/file"]), "kept");
    world.berth_ok(&["rm", "--force", "user"]);
    world.berth_ok(&["volume", "rm", "data"]);
    world.no_leaks();
}
