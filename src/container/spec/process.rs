//! The process: arguments, environment, working directory, terminal, limits.

use std::collections::HashMap;
use std::path::{Component, PathBuf};
use std::str::FromStr;

use oci_spec::image::Config;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process};

use super::{Error, Host, Rlimit, SpecInput};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Sets everything of the process that is not an identity or a security setting.
pub(super) fn build(input: &SpecInput<'_>, process: &mut Process) -> Result<(), Error> {
    let image = input.image.config().as_ref();
    process
        .set_terminal(Some(input.container.tty))
        .set_args(Some(args(input, image)?))
        .set_env(Some(env(input, image)?))
        .set_cwd(cwd(input, image)?)
        .set_rlimits(rlimits(&input.handler.rlimits, input.host)?);
    Ok(())
}

/// Kubernetes, "Define a Command and Arguments for a Container": `command` replaces the image's entrypoint and its cmd,
/// `args` alone replaces the cmd and keeps the entrypoint.
fn args(input: &SpecInput<'_>, image: Option<&Config>) -> Result<Vec<String>, Error> {
    let config = input.container;
    let of_image = |list: Option<&Option<Vec<String>>>| list.and_then(|l| l.clone()).unwrap_or_default();
    let mut line = config.command.clone();
    let mut args = config.args.clone();
    if line.is_empty() {
        line = of_image(image.map(Config::entrypoint));
        if args.is_empty() {
            args = of_image(image.map(Config::cmd));
        }
    }
    line.append(&mut args);
    match line.first().map(String::as_str) {
        None => Err(Error::NoCommand),
        Some("") => Err(Error::invalid("command", "", "the program's name is empty")),
        Some(_) if line.iter().any(|arg| arg.contains('\0')) => {
            Err(Error::invalid("command", line.join(" "), "an argument has a zero byte"))
        }
        Some(_) => Ok(line),
    }
}

/// PATH and HOSTNAME (and TERM with a terminal) as defaults, then the image's, then the container's: later wins and
/// keeps the place of the first. HOME is left to the OCI runtime, which takes it from the container's passwd file.
fn env(input: &SpecInput<'_>, image: Option<&Config>) -> Result<Vec<String>, Error> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    let hostname = super::hostname(input.pod);
    if !hostname.is_empty() {
        env.set("HOSTNAME", &hostname);
    }
    if input.container.tty {
        env.set("TERM", "xterm");
    }
    for entry in image.and_then(|c| c.env().as_ref()).into_iter().flatten() {
        match entry.split_once('=') {
            Some((key, value)) if !key.is_empty() && !entry.contains('\0') => env.set(key, value),
            // An image is not the caller's fault: what can't be set is left out, as Docker does.
            _ => {}
        }
    }
    for pair in &input.container.envs {
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
            return Err(Error::invalid(
                "envs[].key",
                &pair.key,
                "must not be empty or contain '=' or a zero byte",
            ));
        }
        let value = std::str::from_utf8(&pair.value)
            .ok()
            .filter(|v| !v.contains('\0'))
            // The value itself may be a secret: it is not repeated.
            .ok_or_else(|| {
                Error::invalid("envs[].value of", &pair.key, "must be UTF-8 without a zero byte")
            })?;
        env.set(&pair.key, value);
    }
    Ok(env.entries)
}

/// Variables in the order in which they were first set. A pod in a cluster of many services has tens of thousands.
#[derive(Default)]
struct Environment {
    entries: Vec<String>,
    places: HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, key: &str, value: &str) {
        let entry = format!("{key}={value}");
        match self.places.get(key).and_then(|place| self.entries.get_mut(*place)) {
            Some(place) => *place = entry,
            None => {
                self.places.insert(key.to_owned(), self.entries.len());
                self.entries.push(entry);
            }
        }
    }
}

fn cwd(input: &SpecInput<'_>, image: Option<&Config>) -> Result<PathBuf, Error> {
    let of_image = image.and_then(|c| c.working_dir().as_deref()).unwrap_or_default();
    let asked = match input.container.working_dir.as_str() {
        "" => of_image,
        asked => asked,
    };
    if asked.contains('\0') {
        return Err(Error::invalid("working_dir", asked, "has a zero byte"));
    }
    // The OCI specification wants an absolute path; images do come with `app`, and mean `/app`.
    let mut path = PathBuf::from("/");
    for component in PathBuf::from(asked).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(path)
}

/// Without CAP_SYS_RESOURCE a hard limit above our own is refused by the kernel: it is lowered to ours.
fn rlimits(wanted: &[Rlimit], host: &Host) -> Result<Option<Vec<PosixRlimit>>, Error> {
    let mut limits = Vec::new();
    for limit in wanted {
        let typ = PosixRlimitType::from_str(&limit.name)
            .map_err(|_| Error::invalid("rlimits", &limit.name, "no such resource limit"))?;
        if limit.soft > limit.hard {
            return Err(Error::invalid("rlimits", &limit.name, "the soft limit is above the hard limit"));
        }
        let bound = match host.rlimits.get(&limit.name) {
            Some(own) if !host.may_exceed => *own,
            _ => u64::MAX,
        };
        let posix =
            PosixRlimitBuilder::default().typ(typ).hard(limit.hard.min(bound)).soft(limit.soft.min(bound));
        let posix =
            posix.build().map_err(|_| Error::invalid("rlimits", &limit.name, "is not a resource limit"))?;
        limits.push(posix);
    }
    Ok((!limits.is_empty()).then_some(limits))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::proto::runtime::v1::KeyValue;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn command_and_args() {
        for (entrypoint, cmd, command, args, want) in [
            (vec!["e"], vec!["c"], vec![], vec![], vec!["e", "c"]),
            (vec!["e"], vec!["c"], vec!["x"], vec![], vec!["x"]),
            (vec!["e"], vec!["c"], vec![], vec!["y"], vec!["e", "y"]),
            (vec!["e"], vec!["c"], vec!["x"], vec!["y"], vec!["x", "y"]),
            (vec![], vec!["c", "d"], vec![], vec![], vec!["c", "d"]),
            (vec![], vec![], vec![], vec!["y"], vec!["y"]),
        ] {
            let mut fixture = Fixture::new();
            fixture.image_config(serde_json::json!({"Entrypoint": entrypoint, "Cmd": cmd}));
            fixture.container.command = strings(&command);
            fixture.container.args = strings(&args);
            let input = fixture.input();
            assert_eq!(super::args(&input, input.image.config().as_ref()).unwrap(), want);
        }
    }

    #[test]
    fn command_errors() {
        let mut fixture = Fixture::new();
        fixture.image_config(serde_json::json!({}));
        fixture.container.command.clear();
        assert!(matches!(args(&fixture.input(), None), Err(Error::NoCommand)));
        fixture.container.command = strings(&[""]);
        assert!(matches!(args(&fixture.input(), None), Err(Error::Invalid { .. })));
        fixture.container.command = strings(&["a", "b\0c"]);
        assert!(matches!(args(&fixture.input(), None), Err(Error::Invalid { .. })));
    }

    #[test]
    fn environment() {
        let mut fixture = Fixture::new();
        fixture.image_config(serde_json::json!({"Env": ["PATH=/bin", "A=1", "B=2", "bad", "=bad", "E=x=y"]}));
        fixture.container.tty = true;
        fixture.container.envs = vec![
            KeyValue { key: "B".into(), value: b"3".to_vec() },
            KeyValue { key: "C".into(), value: b"a=b".to_vec() },
            KeyValue { key: "B".into(), value: b"4".to_vec() },
        ];
        let input = fixture.input();
        assert_eq!(
            env(&input, input.image.config().as_ref()).unwrap(),
            ["PATH=/bin", "HOSTNAME=web-0", "TERM=xterm", "A=1", "B=4", "E=x=y", "C=a=b"]
        );
        fixture.container.tty = false;
        fixture.image_config(serde_json::json!({}));
        fixture.container.envs.clear();
        let defaults = [format!("PATH={DEFAULT_PATH}"), "HOSTNAME=web-0".to_owned()];
        assert_eq!(env(&fixture.input(), None).unwrap(), defaults);
        // Those of five thousand services: seven each.
        let key = |number| KeyValue { key: format!("SERVICE_{number}_HOST"), value: b"10.0.0.1".to_vec() };
        fixture.container.envs = (0..35_000).map(key).collect();
        assert_eq!(env(&fixture.input(), None).unwrap().len(), 35_002);
    }

    #[test]
    fn environment_errors_keep_the_value_secret() {
        for (key, value) in [("", "hush"), ("A=B", "hush"), ("A", "hush\0"), ("A\0", "hush")] {
            let mut fixture = Fixture::new();
            fixture.container.envs = vec![KeyValue { key: key.into(), value: value.into() }];
            let error = env(&fixture.input(), None).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn working_directory() {
        for (of_image, of_container, want) in [
            ("", "", "/"),
            ("/srv", "", "/srv"),
            ("app", "", "/app"),
            ("/srv", "/tmp", "/tmp"),
            ("", "/a/../../b/./c/", "/b/c"),
        ] {
            let mut fixture = Fixture::new();
            fixture.image_config(serde_json::json!({"WorkingDir": of_image}));
            fixture.container.working_dir = of_container.into();
            let input = fixture.input();
            assert_eq!(cwd(&input, input.image.config().as_ref()).unwrap(), PathBuf::from(want));
        }
    }

    #[test]
    fn limits_are_capped_to_ours() {
        let mut fixture = Fixture::new();
        fixture.host.rlimits.insert("RLIMIT_NOFILE".into(), 4096);
        let wanted = [Rlimit { name: "RLIMIT_NOFILE".into(), soft: 1024, hard: 1 << 20 }];
        let got = rlimits(&wanted, &fixture.host).unwrap().unwrap();
        assert_eq!((got[0].soft(), got[0].hard()), (1024, 4096));
        fixture.host.may_exceed = true;
        assert_eq!(rlimits(&wanted, &fixture.host).unwrap().unwrap()[0].hard(), 1 << 20);
        let unknown = [Rlimit { name: "RLIMIT_JOY".into(), soft: 1, hard: 1 }];
        assert!(rlimits(&unknown, &fixture.host).is_err());
        let inverted = [Rlimit { name: "RLIMIT_NOFILE".into(), soft: 2, hard: 1 }];
        assert!(rlimits(&inverted, &fixture.host).is_err());
        assert!(rlimits(&[], &fixture.host).unwrap().is_none());
    }
}
