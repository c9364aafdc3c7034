//! Our CRI against a copy of the published one: the proto that the crate `k8s-cri` carries in its package.
//!
//! Each message, field, enum value and call that both have must be the same on the wire. Ours may have more (that copy
//! is some releases old), never less.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost_reflect::prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

/// What is on the wire: by name, a text that says all that matters.
#[derive(Debug, Default)]
struct Wire {
    messages: BTreeMap<String, BTreeMap<String, String>>,
    enums: BTreeMap<String, BTreeMap<String, String>>,
    calls: BTreeMap<String, String>,
}

impl Wire {
    fn compile(directory: &Path, file: &str) -> Self {
        Self::of(protox::compile([file], [directory]).expect("the proto compiles"))
    }

    fn of(set: FileDescriptorSet) -> Self {
        let mut wire = Self::default();
        for file in set.file.iter().filter(|file| file.package() == "runtime.v1") {
            file.message_type.iter().for_each(|message| wire.message("", message));
            file.enum_type.iter().for_each(|values| wire.enumeration("", values));
            for service in &file.service {
                for call in &service.method {
                    let shape = format!(
                        "{}{} -> {}{}",
                        if call.client_streaming() { "stream " } else { "" },
                        call.input_type(),
                        if call.server_streaming() { "stream " } else { "" },
                        call.output_type(),
                    );
                    wire.calls.insert(format!("{}.{}", service.name(), call.name()), shape);
                }
            }
        }
        wire
    }

    fn message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}{}", message.name());
        let fields = message.field.iter().map(|field| {
            let kind =
                format!("{} {:?} {:?} {}", field.number(), field.label(), field.r#type(), field.type_name());
            (field.name().to_owned(), kind)
        });
        self.messages.insert(name.clone(), fields.collect());
        let scope = format!("{name}.");
        message.nested_type.iter().for_each(|nested| self.message(&scope, nested));
        message.enum_type.iter().for_each(|values| self.enumeration(&scope, values));
    }

    fn enumeration(&mut self, scope: &str, values: &EnumDescriptorProto) {
        let numbers = values.value.iter().map(|value| (value.name().to_owned(), value.number().to_string()));
        self.enums.insert(format!("{scope}{}", values.name()), numbers.collect());
    }

    /// Messages that somebody wrote: the entries of maps are made by the compiler.
    fn written(&self) -> usize {
        self.messages.keys().filter(|name| !name.contains('.')).count()
    }
}

fn ours() -> Wire {
    Wire::compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("proto"), "runtime/v1/api.proto")
}

fn theirs() -> Wire {
    Wire::compile(&k8s_cri().join("proto"), "v1.proto")
}

/// Where cargo has unpacked the crate.
fn k8s_cri() -> PathBuf {
    // Without a platform cargo wants the packages of all platforms, and would have to download them.
    let platform = format!("--filter-platform={}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", &platform, "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "k8s-cri").expect("a dev-dependency");
    Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

/// Fields whose type was changed upstream after that copy was made, to one that is the same on the wire.
const CHANGED_UPSTREAM: [(&str, &str, &str, &str); 1] =
    // An environment variable may hold any bytes (cri-api v0.37).
    [("KeyValue", "value", "2 Optional String ", "2 Optional Bytes ")];

/// What of `theirs` is missing or different in `ours`.
fn differences(
    what: &str,
    ours: &BTreeMap<String, BTreeMap<String, String>>,
    theirs: &BTreeMap<String, BTreeMap<String, String>>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (name, parts) in theirs {
        let Some(mine) = ours.get(name) else {
            found.push(format!("{what} {name} is missing"));
            continue;
        };
        for (part, shape) in parts {
            match mine.get(part) {
                None => found.push(format!("{what} {name}: {part} ({shape}) is missing")),
                Some(other) if CHANGED_UPSTREAM.contains(&(name, part, shape, other)) => {}
                Some(other) if other != shape => {
                    found.push(format!("{what} {name}: {part} is ({other}), published as ({shape})"));
                }
                Some(_) => {}
            }
        }
        // A number must not mean two things, whatever the names.
        let number = |shape: &str| shape.split(' ').next().unwrap_or_default().to_owned();
        for (part, shape) in mine.iter().filter(|(part, _)| !parts.contains_key(*part)) {
            if let Some((taken, _)) = parts.iter().find(|(_, theirs)| number(theirs) == number(shape)) {
                found.push(format!("{what} {name}: {part} has the number of {taken}"));
            }
        }
    }
    found
}

#[test]
fn messages_are_the_same_on_the_wire() {
    let (ours, theirs) = (ours(), theirs());
    let found = differences("message", &ours.messages, &theirs.messages);
    assert!(found.is_empty(), "{}", found.join("\n"));
    let shared = theirs.messages.keys().filter(|name| ours.messages.contains_key(*name)).count();
    assert!(shared > 150, "only {shared} messages were compared");
}

#[test]
fn enums_are_the_same_on_the_wire() {
    let (ours, theirs) = (ours(), theirs());
    let found = differences("enum", &ours.enums, &theirs.enums);
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(theirs.enums.len() >= 10);
}

#[test]
fn calls_are_the_same() {
    let (ours, theirs) = (ours(), theirs());
    assert!(theirs.calls.len() > 30);
    for (name, shape) in &theirs.calls {
        assert_eq!(ours.calls.get(name), Some(shape), "{name}");
    }
}

/// The whole of v0.37: 175 messages, 43 calls.
#[test]
fn nothing_is_left_out() {
    let ours = ours();
    assert_eq!(ours.written(), 175);
    assert_eq!(ours.calls.len(), 43);
    let messages =
        ["StreamContainersRequest", "UpdatePodSandboxResourcesRequest", "RestorePodRequest", "PsiData"];
    for name in messages {
        assert!(ours.messages.contains_key(name), "{name}");
    }
}

/// That a difference is seen at all.
#[test]
fn a_changed_field_is_found() {
    let (mut ours, theirs) = (ours(), theirs());
    let version = ours.messages.get_mut("VersionResponse").unwrap();
    let shape = version.remove("runtime_name").unwrap();
    version.insert("runtime_title".into(), shape);
    version.insert("version".into(), "1 Optional Int32 ".into());
    let found = differences("message", &ours.messages, &theirs.messages);
    assert_eq!(found.len(), 3, "{found:?}");
}

/// Every call, message and enum says what it is for.
#[test]
fn everything_is_documented() {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/runtime/v1/api.proto"));
    let text = text.unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.windows(2) {
        let line = pair[1].trim_start();
        let top = pair[1].starts_with("message ") || pair[1].starts_with("enum ") || line.starts_with("rpc ");
        assert!(!top || pair[0].trim_start().starts_with("//"), "no comment: {line}");
    }
}
