//! A whole specification, and what an OCI runtime makes of its JSON.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use oci_spec::runtime::Spec;

use super::testing::Fixture;
use super::*;
use crate::proto::runtime::v1 as cri;
use crate::proto::runtime::v1::security_profile::ProfileType;

fn full() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.image_config(serde_json::json!({"User": "www", "Env": ["A=1"], "Entrypoint": ["/bin/web"]}));
    fixture.image_file("etc/passwd", b"www:x:33:33:www:/var/www:/bin/sh\n");
    fixture.container.tty = true;
    fixture.container.mounts = vec![cri::Mount {
        host_path: "/usr".into(),
        container_path: "/data".into(),
        readonly: true,
        ..Default::default()
    }];
    fixture.container.devices = vec![cri::Device {
        host_path: "/dev/null".into(),
        container_path: "/dev/nil".into(),
        permissions: "r".into(),
    }];
    fixture.context().seccomp =
        Some(cri::SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, ..Default::default() });
    fixture.resources().memory_limit_in_bytes = 1 << 26;
    fixture.resources().oom_score_adj = 1000;
    fixture
}

#[test]
fn survives_a_round_trip() {
    let fixture = full();
    let built = build(&fixture.input()).unwrap();
    let text = serde_json::to_string(&built.spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), built.spec);
    assert_eq!(built.user, User { uid: 33, gid: 33, groups: vec![33] });
    assert_eq!(built.stop_signal, 15);
    assert!(built.notes.is_empty(), "{:?}", built.notes);
}

/// The names and shapes of OCI runtime-spec, config.md and config-linux.md, by hand.
#[test]
fn json_is_what_the_specification_says() {
    let fixture = full();
    let spec = serde_json::to_value(build(&fixture.input()).unwrap().spec).unwrap();
    for (pointer, want) in [
        ("/ociVersion", serde_json::json!("1.1.0")),
        ("/root", serde_json::json!({"path": "rootfs", "readonly": false})),
        ("/process/terminal", serde_json::json!(true)),
        ("/process/cwd", serde_json::json!("/")),
        ("/process/args", serde_json::json!(["/bin/web"])),
        ("/process/user", serde_json::json!({"uid": 33, "gid": 33, "additionalGids": [33]})),
        ("/process/oomScoreAdj", serde_json::json!(1000)),
        ("/process/noNewPrivileges", serde_json::json!(false)),
        ("/process/capabilities/ambient", serde_json::json!([])),
        ("/linux/cgroupsPath", serde_json::json!("/berth/pod1/c1")),
        ("/linux/resources/memory/limit", serde_json::json!(1 << 26)),
        ("/linux/resources/devices/0", serde_json::json!({"allow": false, "type": "a", "access": "rwm"})),
        ("/linux/resources/devices/1/major", serde_json::json!(1)),
        ("/linux/devices/0/path", serde_json::json!("/dev/nil")),
        ("/linux/seccomp/defaultAction", serde_json::json!("SCMP_ACT_ERRNO")),
        ("/linux/seccomp/defaultErrnoRet", serde_json::json!(1)),
        ("/linux/namespaces/0", serde_json::json!({"type": "mount"})),
        ("/linux/namespaces/1", serde_json::json!({"type": "network", "path": "/ns/net"})),
        ("/annotations/io.kubernetes.cri.container-type", serde_json::json!("container")),
    ] {
        assert_eq!(spec.pointer(pointer), Some(&want), "{pointer}");
    }
    for absent in
        ["/hostname", "/process/rlimits", "/linux/uidMappings", "/linux/sysctl", "/process/selinuxLabel"]
    {
        assert_eq!(spec.pointer(absent), None, "{absent}");
    }
    let destinations: Vec<_> =
        spec["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert!(destinations.contains(&"/data"));
    let capabilities = spec["process"]["capabilities"]["bounding"].as_array().unwrap();
    assert!(capabilities.iter().all(|c| c.as_str().unwrap().starts_with("CAP_")));
}

#[test]
fn an_empty_configuration_on_this_machine() {
    let fixture = Fixture::new();
    let host = Host::detect();
    let container = cri::ContainerConfig { command: vec!["true".into()], ..Default::default() };
    let input = SpecInput { host: &host, container: &container, ..fixture.input() };
    let spec = serde_json::to_value(build(&input).unwrap().spec).unwrap();
    assert_eq!(spec["linux"]["maskedPaths"][0], "/proc/acpi");
    assert_eq!(spec["linux"].get("seccomp"), None);
}

#[test]
fn every_kind_of_error_names_its_field() {
    for (change, text) in [
        ((|f| f.container.command.clear()) as fn(&mut Fixture), "no command"),
        (|f| f.context().run_as_username = "ghost".into(), "ghost"),
        (|f| f.container.stop_signal = 99, "stop_signal \"99\""),
        (|f| f.resources().cpu_shares = -1, "linux.resources.cpu_shares \"-1\""),
        (
            |f| {
                f.container.mounts = vec![cri::Mount {
                    host_path: "/no/such".into(),
                    container_path: "/a".into(),
                    ..Default::default()
                }]
            },
            "mounts[].host_path /no/such: No such file or directory",
        ),
    ] {
        let mut fixture = Fixture::new();
        change(&mut fixture);
        let error = build(&fixture.input()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}
