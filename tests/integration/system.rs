//! The command `berth` on what there is: `top`, `system df`, `system prune`, `inspect --format`, sessions by TLS.

use libtest_mimic::Trial;
use serde_json::Value;

use crate::streaming_tls;
use crate::support::World;
use crate::support::runtime::Options;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let tls = |client: &str| {
        let streaming = streaming_tls::settings(client);
        Options { streaming, prepare: Some(streaming_tls::certificates), ..Options::default() }
    };
    let mut list = trials![processes, room_on_the_disk, what_is_over_is_removed, parts_of_what_is_inspected];
    list.extend(trials![options = tls(""); sessions_by_tls]);
    list.extend(trials![options = tls(&streaming_tls::client_authority()); sessions_with_a_certificate]);
    list
}

fn failure(world: &World, arguments: &[&str]) -> String {
    let output = world.berth(arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

fn json(world: &World, arguments: &[&str]) -> Value {
    serde_json::from_str(&world.berth_ok(arguments)).unwrap()
}

async fn processes(world: &mut World) {
    let image = world.reference("busybox");
    let script = "sleep 4321 & exec sleep 1234";
    let id = world.berth_ok(&["run", "-d", "--name", "busy", "-u", "1000", &image, "sh", "-c", script]);
    world.remember(&id);
    // The command runs when `run` comes back; that it has become another one, and has a child, takes a moment.
    let deadline = crate::support::within(20);
    let listed = loop {
        let listed = json(world, &["top", "-o", "json", "busy"]);
        let has = |command: &str| listed.as_array().unwrap().iter().any(|one| one["command"] == command);
        if has("sleep 1234") && has("sleep 4321") {
            break listed;
        }
        assert!(std::time::Instant::now() < deadline, "{listed}");
    };
    let processes = listed.as_array().unwrap();
    assert_eq!(processes.len(), 2, "{listed}");
    let first = processes.iter().find(|one| one["command"] == "sleep 1234").unwrap();
    let child = processes.iter().find(|one| one["command"] == "sleep 4321").unwrap();
    assert_eq!((first["containerPid"].as_u64(), first["uid"].as_u64()), (Some(1), Some(1000)));
    assert_eq!(child["parentPid"], first["pid"]);
    assert!(first["residentBytes"].as_u64().unwrap() > 0 && first["startedAt"].is_string());
    let table = world.berth_ok(&["top", "busy"]);
    assert!(table.starts_with("UID") && table.contains("sleep 4321"), "{table}");
    world.berth_ok(&["stop", "--time", "0", "busy"]);
    assert!(failure(world, &["top", "busy"]).contains("not running"));
    world.berth_ok(&["rm", "busy"]);
    world.no_leaks();
}

async fn room_on_the_disk(world: &mut World) {
    let none = json(world, &["system", "df", "-o", "json"]);
    assert_eq!((none["images"]["total"].as_u64(), none["containers"]["total"].as_u64()), (Some(0), Some(0)));
    // Two images that share their only layer.
    let (one, other) = (world.reference("busybox"), world.reference("users"));
    world.berth_ok(&["pull", &one, &other]);
    let df = json(world, &["system", "df", "-o", "json"]);
    assert_eq!((df["images"]["total"].as_u64(), df["images"]["active"].as_u64()), (Some(2), Some(0)));
    let bytes = |value: &Value| value.as_u64().unwrap();
    assert!(bytes(&df["images"]["reclaimableBytes"]) > 1 << 20, "{df}");
    for image in df["images"]["each"].as_array().unwrap() {
        assert!(bytes(&image["uniqueBytes"]) < 1 << 20, "the layer is shared: {df}");
        assert!(bytes(&image["bytes"]) > 1 << 20, "{df}");
    }
    let id = world.berth_ok(&["run", "-d", "--name", "using", &one, "sleep", "1000"]);
    world.remember(&id);
    let df = json(world, &["system", "df", "-o", "json"]);
    assert_eq!(df["containers"]["active"].as_u64(), Some(1));
    assert!(bytes(&df["images"]["reclaimableBytes"]) < 1 << 20, "the layer is in use: {df}");
    let table = world.berth_ok(&["system", "df", "-v"]);
    assert!(
        table.contains("RECLAIMABLE") && table.contains("using") && table.contains("test/users"),
        "{table}"
    );
    world.berth_ok(&["rm", "--force", "using"]);
    world.no_leaks();
}

async fn what_is_over_is_removed(world: &mut World) {
    let (used, unused) = (world.reference("busybox"), world.reference("web"));
    world.berth_ok(&["pull", &unused]);
    world.berth_ok(&["run", "--name", "over", &unused, "true"]);
    let id = world.berth_ok(&["run", "-d", "--name", "runs", &used, "sleep", "1000"]);
    world.remember(&id);
    // A pod of somebody else, whose container has ended.
    let pod = world.pod("kubelets");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let container = world.sleeper(&pod_id, &pod).await;
    world.stop_container(&container, 0).await.unwrap();

    assert!(failure(world, &["system", "prune"]).contains("--force"));
    let said = world.berth_ok(&["system", "prune", "--dry-run"]);
    assert!(said.contains("would remove container over") && !said.contains("runs"), "{said}");
    assert_eq!(world.list_pods().await.unwrap().len(), 3);
    assert!(world.image_status(&unused).await.unwrap().is_some());

    let said = world.berth_ok(&["system", "prune", "--images", "--force"]);
    assert!(!said.contains("removed container"), "{said}");
    assert!(world.image_status(&unused).await.unwrap().is_some(), "its container is still there");
    let said = world.berth_ok(&["system", "prune", "--force"]);
    assert!(
        said.contains("removed container over") && said.contains(&format!("removed image {unused}")),
        "{said}"
    );
    assert!(world.image_status(&unused).await.unwrap().is_none());
    assert!(world.image_status(&used).await.unwrap().is_some());
    let left = world.berth_ok(&["ps", "-a"]);
    assert!(left.contains("runs") && !left.contains("over"), "{left}");
    assert!(world.status(&container).await.is_ok(), "the kubelet's pods are its own business");
    world.berth_ok(&["rm", "--force", "runs"]);
    world.remove_pod(&pod_id).await.unwrap();
    world.no_leaks();
}

async fn parts_of_what_is_inspected(world: &mut World) {
    let image = world.reference("busybox");
    let id = world.berth_ok(&["run", "-d", "--name", "parts", "-l", "a.b=c", &image, "sleep", "1000"]);
    world.remember(&id);
    assert_eq!(world.berth_ok(&["inspect", "--type", "container", "--format", ".id", "parts"]), id);
    let format = "{.state} {.labels[\"a.b\"]}\\n";
    assert_eq!(world.berth_ok(&["inspect", "--type", "container", "-f", format, "parts"]), "running c");
    let tags = world.berth_ok(&["inspect", "--type", "image", "-f", ".repoTags[*]", &image]);
    assert_eq!(tags, image);
    let said = failure(world, &["inspect", "-f", ".nothing", "parts"]);
    assert!(said.contains("there is no `nothing`") && said.contains("id"), "{said}");
    assert!(failure(world, &["inspect", "-f", "{{.Id}}", "parts"]).contains("--format"));
    world.berth_ok(&["rm", "--force", "parts"]);
    world.no_leaks();
}

async fn sessions_by_tls(world: &mut World) {
    let image = world.reference("busybox");
    let id = world.berth_ok(&["run", "-d", "--name", "secret", &image, "sleep", "1000"]);
    world.remember(&id);
    let said = failure(world, &["exec", "-i", "secret", "echo", "hello"]);
    assert!(said.contains("--tls-ca"), "{said}");
    let (authority, stranger) = (streaming_tls::path("ca.pem"), streaming_tls::path("stranger.pem"));
    let said = failure(world, &["--tls-ca", &stranger, "exec", "-i", "secret", "echo", "hello"]);
    assert!(said.contains("certificate"), "{said}");
    let hello = world.berth_ok(&["--tls-ca", &authority, "exec", "-i", "secret", "echo", "hello"]);
    assert_eq!(hello, "hello");
    let printed = world.berth_ok(&["run", "--rm", "-i", "--tls-ca", &authority, &image, "echo", "streamed"]);
    assert_eq!(printed, "streamed");
    world.berth_ok(&["rm", "--force", "secret"]);
    world.no_leaks();
}

async fn sessions_with_a_certificate(world: &mut World) {
    let image = world.reference("busybox");
    let id = world.berth_ok(&["run", "-d", "--name", "secret", &image, "sleep", "1000"]);
    world.remember(&id);
    let path = streaming_tls::path;
    let authority = path("ca.pem");
    let with = |certificate: &str, key: &str| {
        let arguments = [
            "--tls-ca",
            &authority,
            "--tls-cert",
            certificate,
            "--tls-key",
            key,
            "exec",
            "-i",
            "secret",
            "echo",
            "me",
        ];
        world.berth(&arguments)
    };
    failure(world, &["--tls-ca", &authority, "exec", "-i", "secret", "echo", "hello"]);
    assert!(!with(&path("stranger.pem"), &path("stranger.key")).status.success());
    let output = with(&path("client.pem"), &path("client.key"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "me\n");
    world.berth_ok(&["rm", "--force", "secret"]);
    world.no_leaks();
}
