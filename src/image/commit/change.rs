//! Instructions that change an image's configuration, in the words of a Dockerfile: those that only set values.

use serde_json::{Map, Value, json};

use crate::image::Error;

/// Longest instruction.
const LONGEST: usize = 64 << 10;
/// The words, for people.
const WORDS: &str =
    "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR can be changed";

/// Applies one instruction to a whole configuration (with its section `config`, an object).
pub(super) fn apply(config: &mut Map<String, Value>, text: &str) -> Result<(), Error> {
    let refused = |problem| Error::Change { text: text.chars().take(200).collect(), problem };
    if text.len() > LONGEST {
        return Err(refused("it is longer than 65536 bytes"));
    }
    let (word, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
    let rest = rest.trim();
    let Some(section) = config.get_mut("config").and_then(Value::as_object_mut) else {
        return Err(refused("the image's configuration has no section for it"));
    };
    if rest.is_empty() {
        return Err(refused("it has no value"));
    }
    match word.to_ascii_uppercase().as_str() {
        "CMD" => set(section, "Cmd", command(rest)),
        "ENTRYPOINT" => {
            set(section, "Entrypoint", command(rest));
            // As with `docker build`: the arguments of another program are none of this one.
            section.remove("Cmd");
        }
        "ENV" => {
            let (name, value) = pair(rest).ok_or_else(|| refused("write NAME=VALUE"))?;
            environment(section, name, value);
        }
        "LABEL" => {
            let (name, value) = pair(rest).ok_or_else(|| refused("write KEY=VALUE"))?;
            insert(section, "Labels", name, json!(value));
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let port = exposed(port).ok_or_else(|| refused("write PORT[/tcp|udp|sctp]"))?;
                insert(section, "ExposedPorts", &port, json!({}));
            }
        }
        "VOLUME" => {
            let paths = match serde_json::from_str::<Vec<String>>(rest) {
                Ok(paths) => paths,
                Err(_) => rest.split_whitespace().map(str::to_owned).collect(),
            };
            if paths.iter().any(|path| !path.starts_with('/')) {
                return Err(refused("a volume is a path from /"));
            }
            for path in paths {
                insert(section, "Volumes", &path, json!({}));
            }
        }
        "USER" => set(section, "User", json!(rest)),
        "WORKDIR" if rest.starts_with('/') => set(section, "WorkingDir", json!(rest)),
        "WORKDIR" => return Err(refused("a working directory is a path from /")),
        "STOPSIGNAL" => set(section, "StopSignal", json!(rest)),
        _ => return Err(refused(WORDS)),
    }
    Ok(())
}

fn set(section: &mut Map<String, Value>, key: &str, value: Value) {
    section.insert(key.to_owned(), value);
}

fn insert(section: &mut Map<String, Value>, key: &str, name: &str, value: Value) {
    let table = section.entry(key).or_insert_with(|| json!({}));
    if !table.is_object() {
        *table = json!({});
    }
    if let Some(table) = table.as_object_mut() {
        table.insert(name.to_owned(), value);
    }
}

/// A list as JSON, or a line for a shell.
fn command(text: &str) -> Value {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(words) => json!(words),
        Err(_) => json!(["/bin/sh", "-c", text]),
    }
}

/// `NAME=VALUE`; quotes around the value are taken off.
fn pair(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once('=')?;
    let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    let name = name.trim();
    (!name.is_empty() && !name.contains(char::is_whitespace)).then_some((name, bare))
}

fn environment(section: &mut Map<String, Value>, name: &str, value: &str) {
    let list = section.entry("Env").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.retain(|one| one.as_str().and_then(|one| one.split('=').next()) != Some(name));
        list.push(json!(format!("{name}={value}")));
    }
}

fn exposed(text: &str) -> Option<String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let known = matches!(protocol, "tcp" | "udp" | "sctp") && port.parse::<u16>().is_ok_and(|port| port > 0);
    known.then(|| format!("{port}/{protocol}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn changed(instructions: &[&str]) -> Result<Value, Error> {
        let before = json!({"config": {"Env": ["PATH=/bin", "A=1"], "Cmd": ["old"], "Volumes": null}});
        let Value::Object(mut config) = before else { panic!("an object") };
        for text in instructions {
            apply(&mut config, text)?;
        }
        Ok(config["config"].clone())
    }

    #[test]
    fn values_are_set() {
        let config = changed(&[
            "ENTRYPOINT [\"/bin/app\", \"-v\"]",
            "cmd echo $A",
            "ENV A=two words",
            "LABEL who=\"me\"",
            "EXPOSE 80 53/udp",
            "VOLUME /data",
            "USER web",
            "WORKDIR /srv",
            "STOPSIGNAL SIGUSR1",
        ])
        .unwrap();
        let expected = json!({
            "Entrypoint": ["/bin/app", "-v"], "Cmd": ["/bin/sh", "-c", "echo $A"],
            "Env": ["PATH=/bin", "A=two words"], "Labels": {"who": "me"},
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/data": {}},
            "User": "web", "WorkingDir": "/srv", "StopSignal": "SIGUSR1"
        });
        assert_eq!(config, expected);
    }

    #[test]
    fn another_program_has_no_old_arguments() {
        assert!(changed(&["ENTRYPOINT [\"x\"]"]).unwrap().get("Cmd").is_none());
    }

    #[test]
    fn mistakes_are_named() {
        for text in
            ["RUN rm -rf /", "CMD", "ENV A", "EXPOSE http", "EXPOSE 0", "WORKDIR here", "VOLUME data", ""]
        {
            let error = changed(&[text]).unwrap_err();
            assert!(matches!(error, Error::Change { .. }), "{text}: {error}");
        }
    }
}
