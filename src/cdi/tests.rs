#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use oci_spec::runtime::LinuxDeviceType;

use super::*;

const GPU: &str = r#"
cdiVersion: "1.0.0"
kind: "vendor.test/gpu"
annotations: {made-by: test}
containerEdits:
  env: [SHARED=1]
  additionalGids: [44, 0]
devices:
  - name: "0"
    containerEdits:
      env: ["PATH=/gpu/bin", "GPU=0"]
      deviceNodes:
        - {path: /dev/gpu0, hostPath: /dev/null, permissions: rw, fileMode: 0o640}
      mounts:
        - {hostPath: /usr/lib, containerPath: /gpu/lib, options: [ro, nosuid]}
      hooks:
        - {hookName: createContainer, path: /bin/true, args: ["true", "x"], timeout: 3}
      intelRdt: {closID: gold, l3CacheSchema: "L3:0=f"}
  - name: "1"
    containerEdits:
      deviceNodes: [{path: /dev/zero}]
      netDevices: [{hostInterfaceName: eth9, name: fast0}]
"#;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["etc", "run"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.directory.path().join(file), text).unwrap();
    }

    fn inject(&self, names: &[&str]) -> Result<Spec, Error> {
        let directories = ["etc", "run", "absent"].map(|name| self.directory.path().join(name));
        let mut spec = Spec::default();
        spec.process_mut().as_mut().unwrap().set_env(Some(vec!["PATH=/bin".into(), "A=1".into()]));
        Registry::new(directories.to_vec()).inject(&mut spec, names.iter().copied()).map(|()| spec)
    }
}

fn one(env: &str) -> String {
    format!(
        r#"{{"cdiVersion":"0.6.0","kind":"vendor.test/gpu","devices":[{{"name":"0","containerEdits":{{"env":["{env}"]}}}}]}}"#
    )
}

#[test]
fn a_device_is_injected_with_all_it_needs() {
    let place = Place::new();
    place.write("etc/gpu.yaml", GPU);
    let spec = place.inject(&["vendor.test/gpu=0", "vendor.test/gpu=1", "vendor.test/gpu=0"]).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.env().as_ref().unwrap(), &["PATH=/gpu/bin", "A=1", "SHARED=1", "GPU=0"]);
    assert_eq!(process.user().additional_gids().as_ref().unwrap(), &[44]);
    let linux = spec.linux().as_ref().unwrap();
    let devices = linux.devices().as_ref().unwrap();
    let [gpu, zero] = devices.as_slice() else { panic!("{devices:?}") };
    assert_eq!(
        (gpu.path(), gpu.typ(), gpu.major(), gpu.minor()),
        (&"/dev/gpu0".into(), LinuxDeviceType::C, 1, 3)
    );
    assert_eq!((gpu.file_mode(), zero.file_mode(), zero.minor()), (Some(0o640), Some(0o666), 5));
    let rules: Vec<_> = linux.resources().as_ref().unwrap().devices().iter().flatten().collect();
    let access: Vec<_> = rules.iter().rev().take(2).map(|rule| rule.access().as_deref().unwrap()).collect();
    assert_eq!(access, ["rwm", "rw"]);
    assert_eq!(linux.net_devices().as_ref().unwrap()["eth9"].name().as_deref(), Some("fast0"));
    let rdt = linux.intel_rdt().as_ref().unwrap();
    assert_eq!(rdt.clos_id().as_deref(), Some("gold"));
    assert_eq!(rdt.schemata().as_deref(), Some(&["L3:0=f".to_owned()][..]));
    let mount = spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/gpu/lib")).unwrap();
    assert_eq!(mount.options().as_ref().unwrap(), &["ro", "nosuid", "rbind"]);
    let hooks = spec.hooks().as_ref().unwrap().create_container().as_ref().unwrap();
    assert_eq!((hooks.len(), hooks[0].timeout()), (1, Some(3)));
}

#[test]
fn a_later_directory_overrides_and_a_rival_makes_unusable() {
    let place = Place::new();
    place.write("etc/a.json", &one("FROM=etc"));
    let from = |spec: Spec| spec.process().as_ref().unwrap().env().as_ref().unwrap().last().cloned().unwrap();
    assert_eq!(from(place.inject(&["vendor.test/gpu=0"]).unwrap()), "FROM=etc");
    // Seen at the next use.
    place.write("run/b.json", &one("FROM=run"));
    assert_eq!(from(place.inject(&["vendor.test/gpu=0"]).unwrap()), "FROM=run");
    place.write("run/c.json", &one("FROM=rival"));
    let error = place.inject(&["vendor.test/gpu=0"]).unwrap_err();
    assert!(matches!(error, Error::Ambiguous { .. }), "{error}");
    fs::remove_file(place.directory.path().join("run/b.json")).unwrap();
    assert_eq!(from(place.inject(&["vendor.test/gpu=0"]).unwrap()), "FROM=rival");
}

#[test]
fn who_asks_for_what_is_not_there_is_told_where_it_was_looked_for() {
    let place = Place::new();
    place.write("etc/bad.json", "{");
    place.write("etc/unknown.yaml", "cdiVersion: 1.0.0\nkind: v/c\nnonsense: 1\n");
    place.write("run/future.json", r#"{"cdiVersion":"2.0.0","kind":"v/c"}"#);
    place.write("run/ignored.txt", "nothing");
    let error = place.inject(&["vendor.test/gpu=9"]).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::NotFound);
    for part in ["vendor.test/gpu=9", "/etc, ", "/run, ", "/absent", "bad.json", "nonsense", "2.0.0"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("ignored"), "{text}");
    let off = Registry::default().inject(&mut Spec::default(), ["v/c=d"].into_iter()).unwrap_err();
    assert!(off.to_string().contains("turned off"), "{off}");
    assert!(matches!(place.inject(&["gpu"]), Err(Error::Name { .. })));
}

#[test]
fn edits_that_can_not_be_are_named() {
    for (edits, part) in [
        (r#"{"env":["=x"]}"#, "NAME=VALUE"),
        (r#"{"deviceNodes":[{"path":"/dev/absent"}]}"#, "/dev/absent"),
        (r#"{"deviceNodes":[{"path":"/etc/passwd"}]}"#, "no device"),
        (r#"{"deviceNodes":[{"path":"dev/null"}]}"#, "absolute"),
        (r#"{"deviceNodes":[{"path":"/dev/null","type":"b"}]}"#, "another type"),
        (r#"{"deviceNodes":[{"path":"/dev/null","permissions":"x"}]}"#, "letters"),
        (r#"{"mounts":[{"hostPath":"/x","containerPath":"x"}]}"#, "absolute"),
        (r#"{"hooks":[{"hookName":"prestart","path":"true"}]}"#, "absolute"),
    ] {
        let place = Place::new();
        place.write(
            "etc/a.json",
            &format!(
                r#"{{"cdiVersion":"0.6.0","kind":"v/c","devices":[{{"name":"d","containerEdits":{edits}}}]}}"#
            ),
        );
        let error = place.inject(&["v/c=d"]).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("a.json"), "{error}");
    }
}

#[test]
fn annotations_name_devices() {
    let annotations = [("cdi.k8s.io/b", "v/c=2"), ("cdi.k8s.io/a", "v/c=0, v/c=1"), ("other", "v/c=3")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    assert_eq!(annotated(&annotations), ["v/c=0", "v/c=1", "v/c=2"]);
}
