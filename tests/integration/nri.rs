//! NRI: what plugins are told, what they change, and what they can't break.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use berth::proto::nri::v1alpha1::*;
use k8s_cri::v1::{LinuxContainerResources as CriResources, UpdateContainerResourcesRequest};
use libtest_mimic::Trial;
use prost::Message;
use tonic::Code;

use super::resources::cgroup_file;
use crate::support::plugin::{Plugin, Reply, Told, agree, subscribe};
use crate::support::runtime::Options;
use crate::support::spec::script;
use crate::support::world::assert_code;
use crate::support::{World, container, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let quick = Options { nri: "plugin_request_timeout = \"2s\"".to_owned(), ..Options::default() };
    let mut all = trials![
        every_step_is_told_in_order,
        containers_are_made_as_plugins_want_them,
        conflicts_and_refusals_undo_the_create,
        a_refused_pod_leaves_nothing,
        plugins_change_limits_and_end_containers,
        a_late_plugin_is_told_of_what_there_is,
        many_containers_come_in_pieces,
        nonsense_ends_only_its_own_connection,
        launched_plugins,
    ];
    all.extend(trials![options = quick; a_hung_plugin_is_cut_off]);
    all
}

fn socket(world: &World) -> PathBuf {
    world.run.join("nri/nri.sock")
}

fn adjusting(adjust: ContainerAdjustment) -> Reply {
    Reply::With(CreateContainerResponse { adjust: Some(adjust), ..Default::default() }.encode_to_vec())
}

fn memory(limit: i64) -> LinuxResources {
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: limit }), ..Default::default() };
    LinuxResources { memory: Some(memory), ..Default::default() }
}

fn update(id: &str, resources: LinuxResources) -> ContainerUpdate {
    let linux = LinuxContainerUpdate { resources: Some(resources) };
    ContainerUpdate { container_id: id.to_owned(), linux: Some(linux), ignore_failure: false }
}

fn memory_limit(world: &World, id: &str) -> String {
    cgroup_file(world, id, &["memory.max", "memory.limit_in_bytes"])
}

async fn every_step_is_told_in_order(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let plugin = Plugin::join(&socket(world), "10", "watcher", agree).await;
    // Tells events that have a call of their own only as state changes.
    let old = Plugin::join(&socket(world), "20", "old", |told| {
        let known = ["Configure", "Synchronize", "CreateContainer", "StopContainer", "StateChange"];
        if known.contains(&told.method.as_str()) { Reply::Fine } else { Reply::Unknown }
    })
    .await;
    let image = world.image("busybox").await;
    let mut pod = world.pod("told");
    pod.labels.insert("tier".into(), "web".into());
    pod.annotations.insert("note".into(), "x".into());
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut config = container("main", &image, &["sleep", "10000"]);
    config.labels.insert("part".into(), "main".into());
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    let told = plugin.told();
    let started = told.iter().find(|told| told.method == "PostStartContainer").unwrap().container.clone();
    assert!(PathBuf::from(format!("/proc/{}", started.pid)).exists());
    assert_eq!(started.state(), ContainerState::ContainerRunning);
    world.stop_container(&id, 0).await.unwrap();
    world.remove_container(&id).await.unwrap();
    world.stop_pod(&pod_id).await.unwrap();
    world.stop_pod(&pod_id).await.unwrap();
    world.remove_pod(&pod_id).await.unwrap();
    assert_eq!(
        plugin.calls_about(&id),
        [
            "CreateContainer",
            "ValidateContainerAdjustment",
            "PostCreateContainer",
            "StartContainer",
            "PostStartContainer",
            "StopContainer",
            "RemoveContainer"
        ]
    );
    assert_eq!(plugin.calls_about(&pod_id), ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]);
    let told = plugin.wait_for("CreateContainer").await;
    let sandbox = &told.pod;
    assert_eq!((sandbox.name.as_str(), sandbox.namespace.as_str()), ("told", "default"));
    assert_eq!((sandbox.labels["tier"].as_str(), sandbox.annotations["note"].as_str()), ("web", "x"));
    assert_eq!(sandbox.ips.len(), 2, "{:?}", sandbox.ips);
    let namespaces = &sandbox.linux.as_ref().unwrap().namespaces;
    assert!(namespaces.iter().any(|namespace| namespace.r#type == "network" && !namespace.path.is_empty()));
    let made = &told.container;
    assert_eq!((made.name.as_str(), made.labels["part"].as_str()), ("main", "main"));
    assert_eq!(
        (made.args.clone(), made.pod_sandbox_id.as_str()),
        (vec!["sleep".into(), "10000".into()], pod_id.as_str())
    );
    assert!(made.mounts.iter().any(|mount| mount.destination == "/proc"));
    assert!(made.env.iter().any(|variable| variable.starts_with("PATH=")));
    let linux = made.linux.as_ref().unwrap();
    assert!(linux.cgroups_path.contains(&id) && !linux.namespaces.is_empty());
    assert!(made.image.as_ref().unwrap().config_digest.starts_with("sha256:"));
    let removed = plugin.wait_for("RemoveContainer").await.container;
    assert_eq!((removed.state(), removed.exit_code), (ContainerState::ContainerStopped, 137));

    let changes: Vec<_> = old
        .told()
        .iter()
        .filter(|told| told.method == "StateChange")
        .map(|told| {
            StateChangeEvent::decode(told.payload.as_slice()).unwrap().event().as_str_name().to_owned()
        })
        .collect();
    assert_eq!(changes.first().map(String::as_str), Some("RUN_POD_SANDBOX"));
    assert_eq!(changes.last().map(String::as_str), Some("REMOVE_POD_SANDBOX"));
    assert_eq!(changes.len(), 7, "{changes:?}");
    // What it has no call for was tried once.
    assert_eq!(old.told().iter().filter(|told| told.method == "StopPodSandbox").count(), 0);
    plugin.leave().await;
}

async fn containers_are_made_as_plugins_want_them(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let place = world.run.join("plugin");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("file"), "from the plugin").unwrap();
    let hooked = place.join("hooked");
    std::fs::create_dir_all(world.run.join("cdi/etc")).unwrap();
    std::fs::write(
        world.run.join("cdi/etc/x.json"),
        r#"{"cdiVersion":"0.6.0","kind":"vendor.test/x","devices":[{"name":"0","containerEdits":{"env":["CDI=yes"]}}]}"#,
    )
    .unwrap();
    let variable = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
    let resources = LinuxResources {
        cpu: Some(LinuxCpu { shares: Some(OptionalUInt64 { value: 333 }), ..Default::default() }),
        pids: Some(LinuxPids { limit: 77 }),
        ..memory(32 << 20)
    };
    let adjust = ContainerAdjustment {
        annotations: [("plugin".to_owned(), "was here".to_owned())].into(),
        env: vec![variable("ADDED", "1"), variable("-DROPPED", ""), variable("CHANGED", "new")],
        mounts: vec![
            Mount {
                destination: "/given".into(),
                r#type: "bind".into(),
                source: place.display().to_string(),
                options: vec!["bind".into(), "ro".into()],
            },
            Mount { destination: "-/dev/mqueue".into(), ..Default::default() },
        ],
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 555, soft: 444 }],
        hooks: Some(Hooks {
            create_runtime: vec![Hook {
                path: "/bin/sh".into(),
                args: vec!["sh".into(), "-c".into(), format!("cat > {}", hooked.display())],
                ..Default::default()
            }],
            ..Default::default()
        }),
        cdi_devices: vec![CdiDevice { name: "vendor.test/x=0".into() }],
        linux: Some(LinuxContainerAdjustment {
            devices: vec![LinuxDevice {
                path: "/dev/given".into(),
                r#type: "c".into(),
                major: 1,
                minor: 5,
                file_mode: Some(OptionalFileMode { value: 0o666 }),
                ..Default::default()
            }],
            resources: Some(resources),
            oom_score_adj: Some(OptionalInt { value: 321 }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let first = Plugin::join(&socket(world), "10", "first", move |told| match told.method.as_str() {
        "CreateContainer" => adjusting(adjust.clone()),
        _ => Reply::Fine,
    })
    .await;
    // The second sees what the first did, and adds to it.
    let second = Plugin::join(&socket(world), "20", "second", |told| match told.method.as_str() {
        "CreateContainer" => {
            assert!(told.container.env.contains(&"CHANGED=new".to_owned()), "{:?}", told.container.env);
            let env = vec![KeyValue { key: "SECOND".into(), value: "2".into() }];
            adjusting(ContainerAdjustment { env, ..Default::default() })
        }
        _ => Reply::Fine,
    })
    .await;
    let image = world.image("busybox").await;
    let pod = world.pod("adjusted");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let mut config = container("main", &image, &["sleep", "10000"]);
    for (key, value) in [("DROPPED", "x"), ("CHANGED", "old")] {
        config.envs.push(k8s_cri::v1::KeyValue { key: key.into(), value: value.into() });
    }
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.sh(&id, "echo $ADDED/$DROPPED/$CHANGED/$SECOND/$CDI").await, "1//new/2/yes");
    assert_eq!(
        world.sh(&id, "cat /given/file; touch /given/x 2>/dev/null || echo ro").await,
        "from the pluginro"
    );
    assert_eq!(world.sh(&id, "grep -c mqueue /proc/mounts || true").await, "0");
    assert_eq!(world.sh(&id, "head -c 3 /dev/given | wc -c").await, "3");
    // Of the container's own process: execs get their limits from the same specification.
    assert_eq!(world.sh(&id, "ulimit -n; ulimit -Hn; cat /proc/1/oom_score_adj").await, "444\n555\n321");
    assert_eq!(memory_limit(world, &id), (32 << 20).to_string());
    assert_eq!(cgroup_file(world, &id, &["pids.max"]), "77");
    assert!(matches!(cgroup_file(world, &id, &["cpu.weight", "cpu.shares"]).as_str(), "13" | "333"));
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(&hooked).unwrap()).unwrap();
    assert_eq!(state["id"], id.as_str());
    assert_eq!(state["annotations"]["plugin"], "was here");
    // Later steps show the container as it became.
    let started = second.wait_for("StartContainer").await.container;
    assert!(started.env.contains(&"SECOND=2".to_owned()));
    assert_eq!(started.annotations["plugin"], "was here");
    first.leave().await;
    second.leave().await;
    // Without them the next container is as it was asked for.
    let config = script("plain", &image, "echo :$ADDED; sleep 10000");
    let id = world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!(world.sh(&id, "echo :$ADDED").await, ":");
}

async fn conflicts_and_refusals_undo_the_create(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let args = |told: &Told| match told.method.as_str() {
        "CreateContainer" if told.container.name == "both" => {
            adjusting(ContainerAdjustment { args: vec!["true".into()], ..Default::default() })
        }
        "CreateContainer" if told.container.name == "nonsense" => {
            let limit = PosixRlimit { r#type: "RLIMIT_NOTHING".into(), ..Default::default() };
            adjusting(ContainerAdjustment { rlimits: vec![limit], ..Default::default() })
        }
        "CreateContainer" if told.container.name == "refused" => Reply::Refuse("not on my node"),
        _ => Reply::Fine,
    };
    let first = Plugin::join(&socket(world), "10", "first", args).await;
    let second =
        Plugin::join(&socket(world), "20", "second", move |told| match told.container.name.as_str() {
            "both" => args(told),
            _ => Reply::Fine,
        })
        .await;
    let validator = Plugin::join(&socket(world), "30", "validator", |told| match told.method.as_str() {
        "Configure" => subscribe(&[Event::ValidateContainerAdjustment.into()]),
        "ValidateContainerAdjustment" => {
            let request = ValidateContainerAdjustmentRequest::decode(told.payload.as_slice()).unwrap();
            let name = request.container.unwrap().name;
            let reject = name == "invalid";
            let answer = ValidateContainerAdjustmentResponse { reject, reason: "I object".into() };
            Reply::With(answer.encode_to_vec())
        }
        _ => Reply::Fine,
    })
    .await;
    let image = world.image("busybox").await;
    let pod = world.pod("refused");
    let pod_id = world.run_pod(&pod).await.unwrap();
    for (name, parts) in [
        ("both", ["20-second", "10-first has set Args"]),
        ("nonsense", ["RLIMIT_NOTHING", "CreateContainer"]),
        ("refused", ["10-first", "not on my node"]),
        ("invalid", ["30-validator", "I object"]),
    ] {
        let config = container(name, &image, &["sleep", "10000"]);
        let message = assert_code(world.create(&pod_id, &pod, &config).await, Code::FailedPrecondition);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    assert!(world.list_containers().await.unwrap().is_empty());
    // Who was told of it was told of its end.
    let lost = first.told().into_iter().find(|told| told.container.name == "invalid").unwrap().container.id;
    assert_eq!(
        first.calls_about(&lost),
        ["CreateContainer", "ValidateContainerAdjustment", "StopContainer", "RemoveContainer"]
    );
    assert!(!world.daemon.state.join("containers").join(&lost).exists());
    // The same name can be used at once.
    let config = container("good", &image, &["sleep", "10000"]);
    world.launch(&pod_id, &pod, &config).await.unwrap();
    for plugin in [first, second, validator] {
        plugin.leave().await;
    }
}

async fn a_refused_pod_leaves_nothing(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let plugin = Plugin::join(&socket(world), "10", "strict", |told| match told.method.as_str() {
        "RunPodSandbox" if told.pod.labels.contains_key("bad") => Reply::Refuse("bad label"),
        _ => Reply::Fine,
    })
    .await;
    let mut pod = world.pod("refused");
    pod.labels.insert("bad".into(), String::new());
    let message = assert_code(world.run_pod(&pod).await, Code::FailedPrecondition);
    assert!(message.contains("10-strict") && message.contains("bad label"), "{message}");
    assert!(world.list_pods().await.unwrap().is_empty());
    let id = plugin.wait_for("RunPodSandbox").await.pod.id;
    world.remember(&id);
    world.no_leaks();
    assert_eq!(plugin.calls_about(&id), ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]);
    pod.labels.remove("bad");
    world.run_pod(&pod).await.unwrap();
    plugin.leave().await;
}

async fn plugins_change_limits_and_end_containers(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let plugin = Plugin::join(&socket(world), "10", "manager", |told| match told.method.as_str() {
        "UpdateContainer" => {
            let request = UpdateContainerRequest::decode(told.payload.as_slice()).unwrap();
            let asked = request.linux_resources.unwrap().memory.unwrap().limit.unwrap().value;
            if asked == 1 << 20 {
                return Reply::Refuse("too little");
            }
            let own = update(&told.container.id, memory(asked / 2));
            Reply::With(UpdateContainerResponse { update: vec![own], ..Default::default() }.encode_to_vec())
        }
        _ => Reply::Fine,
    })
    .await;
    let (_, id) = world.pod_with_sleeper("limits").await;
    let ask = |limit: i64| UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(CriResources { memory_limit_in_bytes: limit, ..Default::default() }),
        ..Default::default()
    };
    world.runtime().update_container_resources(ask(128 << 20)).await.unwrap();
    assert_eq!(memory_limit(world, &id), (64 << 20).to_string());
    let resources = world.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
    assert_eq!(plugin.wait_for("PostUpdateContainer").await.container.id, id);
    let refused = world.runtime().update_container_resources(ask(1 << 20)).await.unwrap_err();
    assert!(refused.message().contains("too little"), "{refused:?}");
    assert_eq!(memory_limit(world, &id), (64 << 20).to_string());

    // Unasked; what fails comes back.
    let pids = LinuxResources { pids: Some(LinuxPids { limit: 55 }), ..memory(96 << 20) };
    let updates = vec![update(&id, pids), update("nobody", memory(1))];
    let failed =
        plugin.update(UpdateContainersRequest { update: updates, ..Default::default() }).await.failed;
    assert_eq!(failed.iter().map(|update| update.container_id.as_str()).collect::<Vec<_>>(), ["nobody"]);
    assert_eq!(memory_limit(world, &id), (96 << 20).to_string());
    assert_eq!(cgroup_file(world, &id, &["pids.max"]), "55");
    let told = plugin.told().iter().filter(|told| told.method == "UpdateContainer").count();
    assert_eq!(told, 2, "what a plugin wants itself is not told again");

    let evict = vec![ContainerEviction { container_id: id.clone(), reason: "test".into() }];
    plugin.update(UpdateContainersRequest { evict, ..Default::default() }).await;
    assert_eq!(world.wait_exit(&id).await.exit_code, 137);
    plugin.wait_for("StopContainer").await;
    plugin.leave().await;
}

async fn a_late_plugin_is_told_of_what_there_is(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let (pod_id, id) = world.pod_with_sleeper("early").await;
    world.crash_and_restart().await;
    let wanted = id.clone();
    let plugin = Plugin::join(&socket(world), "10", "late", move |told| match told.method.as_str() {
        "Synchronize" => {
            let update = vec![update(&wanted, memory(48 << 20))];
            Reply::With(SynchronizeResponse { update, more: false }.encode_to_vec())
        }
        _ => Reply::Fine,
    })
    .await;
    let request =
        SynchronizeRequest::decode(plugin.wait_for("Synchronize").await.payload.as_slice()).unwrap();
    assert_eq!(request.pods.iter().map(|pod| &pod.id).collect::<Vec<_>>(), [&pod_id]);
    let [told] = request.containers.as_slice() else { panic!("one container") };
    assert_eq!((&told.id, told.state()), (&id, ContainerState::ContainerRunning));
    assert!(told.args.contains(&"sleep".to_owned()) && told.pid > 0);
    assert_eq!(memory_limit(world, &id), (48 << 20).to_string());

    // While a plugin is being told, what is made waits for it and nothing is lost to it; reading goes on.
    let slow = Plugin::connect(&socket(world), "20", "slow", |told| match told.method.as_str() {
        "Synchronize" => {
            std::thread::sleep(Duration::from_millis(1500));
            Reply::Fine
        }
        _ => Reply::Fine,
    })
    .await;
    let image = world.image("busybox").await;
    let pod = world.pod("early");
    let deadline = within(5);
    while !slow.told().iter().any(|told| told.method == "Synchronize") {
        assert!(Instant::now() < deadline, "it is not told what there is");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let config = container("during", &image, &["sleep", "10000"]);
    let is_made = Cell::new(false);
    let making = async {
        let made = world.create(&pod_id, &pod, &config).await.unwrap();
        is_made.set(true);
        made
    };
    let listing = async {
        world.list_containers().await.unwrap();
        !is_made.get()
    };
    let (made, listed_before) = tokio::join!(making, listing);
    assert!(listed_before, "the list waited for the plugin");
    assert!(slow.calls_about(&made).contains(&"CreateContainer".to_owned()), "{:?}", slow.told());
    plugin.leave().await;
    slow.leave().await;
}

async fn many_containers_come_in_pieces(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    // Each annotation is near what one message can hold in all.
    for name in ["one", "two", "three", "four"] {
        let mut pod = world.pod(name);
        pod.annotations.insert("big".into(), "x".repeat(1_500_000));
        world.run_pod(&pod).await.unwrap();
    }
    let plugin = Plugin::join(&socket(world), "10", "pieces", agree).await;
    let deadline = within(15);
    let pieces = loop {
        let told = plugin.told();
        let told = told.iter().filter(|told| told.method == "Synchronize");
        let pieces: Vec<_> =
            told.map(|told| SynchronizeRequest::decode(told.payload.as_slice()).unwrap()).collect();
        if pieces.last().is_some_and(|piece| !piece.more) {
            break pieces;
        }
        assert!(Instant::now() < deadline, "{} pieces and no end", pieces.len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(pieces.iter().map(|piece| piece.pods.len()).collect::<Vec<_>>(), [1, 1, 1, 1]);
    assert_eq!(pieces.iter().map(|piece| piece.more).collect::<Vec<_>>(), [true, true, true, false]);
    world.pod_with_sleeper("after").await;
    plugin.wait_for("PostStartContainer").await;
    plugin.leave().await;
}

async fn nonsense_ends_only_its_own_connection(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let good = Plugin::join(&socket(world), "50", "good", agree).await;
    for (name, bytes) in [
        ("frame", &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff][..]),
        ("message", &[0, 0, 0, 1, 0, 0, 0, 10, 0xff, 0, 0, 0, 0, 0, 0, 1, 1, 0]),
        ("type", &[0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0]),
        ("place", &[0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]),
    ] {
        let bad = Plugin::join(&socket(world), "10", name, agree).await;
        bad.send_raw(bytes).await;
        bad.wait_end().await;
    }
    // Names, events and calls that can't be.
    for (index, name) in [("1", "short"), ("10", "with/slash"), ("10", "")] {
        Plugin::connect(&socket(world), index, name, agree).await.wait_end().await;
    }
    let greedy = Plugin::connect(&socket(world), "10", "greedy", |told| match told.method.as_str() {
        "Configure" => Reply::With(ConfigureResponse { events: 1 << 20 }.encode_to_vec()),
        _ => Reply::Fine,
    })
    .await;
    greedy.wait_end().await;
    let silent = tokio::net::UnixStream::connect(socket(world)).await.unwrap();
    // More than there is room for: the rest is turned away, and those who left make room.
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(tokio::net::UnixStream::connect(socket(world)).await.unwrap());
    }
    drop((crowd, silent));
    world.pod_with_sleeper("alive").await;
    good.wait_for("PostStartContainer").await;
    let unknown: Result<Empty, _> = good.call("Nonsense", &Empty {}).await;
    assert!(unknown.unwrap_err().contains("Nonsense"));
    good.leave().await;
}

async fn a_hung_plugin_is_cut_off(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    let hung = Plugin::join(&socket(world), "10", "hung", |told| match told.method.as_str() {
        "CreateContainer" => Reply::Never,
        _ => Reply::Fine,
    })
    .await;
    let well = Plugin::join(&socket(world), "20", "well", agree).await;
    let image = world.image("busybox").await;
    let pod = world.pod("hung");
    let pod_id = world.run_pod(&pod).await.unwrap();
    let config = container("first", &image, &["sleep", "10000"]);
    let creations =
        |plugin: &Plugin| plugin.told().iter().filter(|told| told.method == "CreateContainer").count();
    let is_launched = Cell::new(false);
    let launching = async {
        world.launch(&pod_id, &pod, &config).await.unwrap();
        is_launched.set(true);
    };
    let reading = async {
        hung.wait_for("CreateContainer").await;
        world.list_containers().await.unwrap();
        world.pod_status(&pod_id).await.unwrap();
        !is_launched.get()
    };
    let ((), read_before) = tokio::join!(launching, reading);
    assert!(read_before, "a read waited for the plugin");
    hung.wait_end().await;
    assert!(world.daemon.log().contains("cut off"));
    // The next one does not wait for it, and the other plugin is told of both.
    let config = container("second", &image, &["sleep", "10000"]);
    world.launch(&pod_id, &pod, &config).await.unwrap();
    assert_eq!((creations(&hung), creations(&well)), (1, 2));
    well.leave().await;
}

async fn launched_plugins(world: &mut World) {
    if !world.is_berth() {
        return;
    }
    use std::os::unix::fs::symlink;
    let nri = world.run.join("nri");
    for directory in ["plugins", "conf.d"] {
        std::fs::create_dir_all(nri.join(directory)).unwrap();
    }
    let log = world.run.join("launched.log");
    symlink(std::env::current_exe().unwrap(), nri.join("plugins/10-launched")).unwrap();
    symlink("/bin/false", nri.join("plugins/20-broken")).unwrap();
    std::fs::write(nri.join("conf.d/launched.conf"), log.display().to_string()).unwrap();
    world.restart().await;
    let (pod_id, _) = world.pod_with_sleeper("launched").await;
    world.stop_pod(&pod_id).await.unwrap();
    let calls: Vec<_> = std::fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(
        calls,
        [
            "Configure",
            "Synchronize",
            "RunPodSandbox",
            "CreateContainer",
            "ValidateContainerAdjustment",
            "PostCreateContainer",
            "StartContainer",
            "PostStartContainer",
            "StopContainer",
            "StopPodSandbox"
        ]
    );
    assert!(world.daemon.log().contains("20-broken"), "{}", world.daemon.log());
}
