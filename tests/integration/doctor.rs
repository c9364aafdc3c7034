//! `berth doctor` and `berth debug` beside a daemon that works, and one that does not.

use std::collections::BTreeMap;
use std::io::Read;

use k8s_cri::v1::KeyValue;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::support::World;
use crate::support::runtime::Options;
use crate::support::spec::script;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let small = Options { subnets: vec!["10.85.0.0/29".into()], ..Options::default() };
    let mut trials = trials![
        a_node_that_works_has_nothing_wrong,
        what_is_wrong_is_named_with_what_to_do,
        leftovers_are_found,
        a_bundle_holds_what_is_needed_and_no_secret,
        a_bundle_comes_together_without_a_daemon,
    ];
    trials.extend(trials![options = small; a_full_pool_is_wrong]);
    trials
}

impl World {
    /// Exit code and findings.
    async fn doctor(&self) -> (i32, Vec<Value>) {
        let config = self.daemon.config.display().to_string();
        let output = self.berth(&["doctor", "-o", "json", "--config", &config]);
        let findings = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), findings)
    }

    /// Entries of a bundle by name, without the directory they are in.
    fn bundle(&self) -> BTreeMap<String, String> {
        let file = self.run.join("bundle.tar.gz");
        let _ = std::fs::remove_file(&file);
        let config = self.daemon.config.display().to_string();
        let output = self.berth(&["debug", "bundle", "-o", file.to_str().unwrap(), "--config", &config]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        let archive = flate2::read::GzDecoder::new(std::fs::File::open(&file).unwrap());
        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            entries.insert(path.strip_prefix("berth-debug/").unwrap().to_owned(), text);
        }
        entries
    }
}

fn of<'a>(findings: &'a [Value], check: &str) -> &'a Value {
    findings.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("no {check} in {findings:#?}"))
}

fn level<'a>(findings: &'a [Value], check: &str) -> &'a str {
    of(findings, check)["level"].as_str().unwrap()
}

async fn a_node_that_works_has_nothing_wrong(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    world.pod_with_sleeper("well").await;
    let (_, findings) = world.doctor().await;
    for check in [
        "configuration",
        "daemon",
        "runtime",
        "network",
        "progress",
        "addresses",
        "firewall",
        "leftovers",
        "versions",
    ] {
        assert_eq!(level(&findings, check), "ok", "{}", of(&findings, check));
    }
    // What is wrong with the machine that the tests run on is not this test's affair.
    let text = String::from_utf8(world.berth(&["doctor"]).stdout).unwrap();
    assert!(text.contains("WHAT TO DO") && text.contains("berth-shim"), "{text}");
}

async fn what_is_wrong_is_named_with_what_to_do(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    // Somebody flushes the rules. The daemon restores them at once; whoever is quicker is right.
    world.netns.command("nft", &["flush", "ruleset"]);
    let (_, findings) = world.doctor().await;
    let firewall = of(&findings, "firewall");
    assert!(
        firewall["level"] == "ok" || firewall["advice"].as_str().unwrap().contains("nft flush ruleset"),
        "{firewall}"
    );
    // A daemon that is gone.
    world.daemon.kill();
    let (code, findings) = world.doctor().await;
    assert_eq!((code, level(&findings, "daemon")), (1, "wrong"));
    assert_eq!(level(&findings, "configuration"), "ok", "the rest is looked at all the same");
    world.daemon.spawn();
    world.ready().await;
    assert_eq!(level(&world.doctor().await.1, "daemon"), "ok");
}

async fn leftovers_are_found(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let (_, container) = world.pod_with_sleeper("kept").await;
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let forgotten = world.daemon.state.join("containers").join("f".repeat(64));
    std::fs::create_dir(&forgotten).unwrap();
    let fresh = world.daemon.state.join("containers").join("e".repeat(64));
    std::fs::create_dir(&fresh).unwrap();
    std::fs::File::open(&forgotten).unwrap().set_modified(old).unwrap();
    // The interface has the name of one of ours, and nobody has it.
    let links = world.netns.ip("-o link");
    let ours = links
        .lines()
        .filter_map(|line| line.split(": ").nth(1)?.split('@').next())
        .find(|name| name.len() == 15);
    let unowned = format!("{}{}", &ours.unwrap()[..6], "012345678");
    world.netns.ip(&format!("link add {unowned} type veth peer name other0"));
    let (code, findings) = world.doctor().await;
    let found = of(&findings, "leftovers");
    assert_eq!((code, &found["level"]), (1, &Value::from("wrong")), "{found}");
    let said = found["found"].as_str().unwrap();
    assert!(said.contains(forgotten.to_str().unwrap()) && said.contains(&unowned), "{said}");
    assert!(!said.contains(&container) && !said.contains(fresh.to_str().unwrap()), "{said}");
    // As advised: what nobody owns goes when the daemon starts anew, and the container goes on.
    world.crash_and_restart().await;
    assert_eq!(level(&world.doctor().await.1, "leftovers"), "ok");
    assert!(!forgotten.exists());
    assert_eq!(world.sh(&container, "echo here").await, "here");
}

async fn a_full_pool_is_wrong(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    // A /29 has five addresses for pods.
    let mut pods = Vec::new();
    for number in 0..5 {
        pods.push(world.run_pod(&world.pod(&format!("pod-{number}"))).await.unwrap());
    }
    let (code, findings) = world.doctor().await;
    let found = of(&findings, "addresses");
    assert_eq!((code, &found["level"]), (1, &Value::from("wrong")), "{found}");
    assert!(found["found"].as_str().unwrap().contains("5 of 5 of bridge"), "{found}");
    let labels = "{network=\"bridge\",subnet=\"10.85.0.0/29\"}";
    for metric in ["berth_network_pool_addresses", "berth_network_pool_leased"] {
        assert_eq!(world.metric(&format!("{metric}{labels}")), Some(5.0), "{metric}");
    }
    for pod in pods {
        world.remove_pod(&pod).await.unwrap();
    }
    assert_eq!(level(&world.doctor().await.1, "addresses"), "ok");
}

/// What must not be in an archive that is sent to others.
const SECRET: &str = "hunter2-is-secret";

async fn a_bundle_holds_what_is_needed_and_no_secret(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    // A registry's password, as the kubelet hands it over with a pull.
    let image = k8s_cri::v1::ImageSpec {
        image: format!("{}/test/none:1", world.registry.host()),
        ..Default::default()
    };
    let auth =
        k8s_cri::v1::AuthConfig { username: "bob".into(), password: SECRET.into(), ..Default::default() };
    let pull = k8s_cri::v1::PullImageRequest { image: Some(image), auth: Some(auth), sandbox_config: None };
    world.images().pull_image(pull).await.unwrap_err();
    let certs = world.daemon.certs.join("registry.test");
    std::fs::create_dir(&certs).unwrap();
    // A key, as TLS has it, beside the configuration, and an address with a password.
    let key = format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n");
    std::fs::write(certs.join("client.key"), key).unwrap();
    std::fs::write(certs.join("hosts.toml"), format!("server = \"https://bob:{SECRET}@registry.test\"\n"))
        .unwrap();
    // Environments, and what kubectl apply keeps.
    let image = world.image("busybox").await;
    let mut pod_config = world.pod("secretive");
    pod_config.annotations.insert(
        "kubectl.kubernetes.io/last-applied-configuration".into(),
        format!("{{\"env\":\"{SECRET}\"}}"),
    );
    let mut config = script("app", &image, "exec sleep 1000");
    config.envs.push(KeyValue { key: "DATABASE".into(), value: format!("postgres://bob:{SECRET}@db/x") });
    let pod = world.run_pod(&pod_config).await.unwrap();
    let container = world.launch(&pod, &pod_config, &config).await.unwrap();
    let entries = world.bundle();
    for (name, text) in &entries {
        assert!(!text.contains(SECRET), "a secret is in {name}");
    }
    for (name, part) in [
        ("config.toml", "berth0"),
        ("doctor.json", "\"check\""),
        ("info.json", "RuntimeReady"),
        ("health.json", "underWay"),
        ("leftovers.json", "firewall"),
        ("events.json", container.as_str()),
        ("metrics.txt", "berth_pods"),
        ("pods.json", "DATABASE"),
        ("pods.json", container.as_str()),
        ("networks.json", pod.as_str()),
        ("addresses.json", "10.85.0.0/16"),
        ("images.json", "busybox"),
        ("host/proc/meminfo", "MemTotal"),
        ("README.txt", "taken out"),
    ] {
        let text =
            entries.get(name).unwrap_or_else(|| panic!("no {name}; errors: {}", entries["errors.txt"]));
        assert!(text.contains(part), "{part} in {name}: {text}");
    }
    let events: Vec<Value> = serde_json::from_str(&entries["events.json"]).unwrap();
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["created", "started", "created", "started"], "of the pod, then of the container");
}

async fn a_bundle_comes_together_without_a_daemon(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    world.daemon.kill();
    let entries = world.bundle();
    assert!(
        entries["errors.txt"].contains("info.json: ") && entries["errors.txt"].contains("is berthd running?")
    );
    assert!(entries["doctor.json"].contains("is berthd running?"), "{}", entries["doctor.json"]);
    assert!(entries["config.toml"].contains("berth0"));
    world.daemon.spawn();
    world.ready().await;
}
