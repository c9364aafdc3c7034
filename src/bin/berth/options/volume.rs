//! Host paths and volumes in containers: `source:destination[:options]`, or just the destination.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use berth::proto::runtime::v1::{Mount, MountPropagation};

/// A volume to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Volume {
    /// Kept until it is removed.
    Named(String),
    /// Of this container alone.
    Anonymous,
}

/// A mount, and the volume that is its source where no path is: the path is not known yet then.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    pub mount: Mount,
    pub volume: Option<Volume>,
}

/// Reads one `-v`. A source that starts with a dot is taken from the directory `here`.
pub(crate) fn parse(text: &str, here: &Path) -> Result<Wanted> {
    read(text, here).with_context(|| format!("-v {text}"))
}

fn read(text: &str, here: &Path) -> Result<Wanted> {
    let mut parts = text.split(':');
    let (source, destination, options) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(destination), None, None, None) => {
            if !Path::new(destination).is_absolute() {
                bail!(
                    "write SOURCE:DESTINATION[:OPTIONS], or a path from / in the container for a volume without a name"
                );
            }
            let mount = Mount { container_path: destination.to_owned(), ..Mount::default() };
            return Ok(Wanted { mount, volume: Some(Volume::Anonymous) });
        }
        (Some(source), Some(destination), options, None) => (source, destination, options.unwrap_or("")),
        _ => bail!("write SOURCE:DESTINATION[:OPTIONS], as in /srv/www:/usr/share/nginx/html:ro"),
    };
    if !Path::new(destination).is_absolute() {
        bail!("the destination `{destination}` must be a path from / in the container");
    }
    let volume = is_name(source).then(|| Volume::Named(source.to_owned()));
    let host_path = if volume.is_some() { String::new() } else { host_path(source, here)? };
    let mut mount = Mount { container_path: destination.to_owned(), host_path, ..Mount::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.readonly = true,
            "rro" => (mount.readonly, mount.recursive_read_only) = (true, true),
            "rw" => mount.readonly = false,
            "rprivate" | "private" => mount.set_propagation(MountPropagation::PropagationPrivate),
            "rslave" | "slave" => mount.set_propagation(MountPropagation::PropagationHostToContainer),
            "rshared" | "shared" => mount.set_propagation(MountPropagation::PropagationBidirectional),
            "z" | "Z" => mount.selinux_relabel = true,
            _ => bail!("unknown option `{option}`: there are ro, rro, rw, rprivate, rslave, rshared and z"),
        }
    }
    Ok(Wanted { mount, volume })
}

/// Whether a source is a volume's name: the daemon has the same rule, and the last word.
fn is_name(source: &str) -> bool {
    let first = source.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && source.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn host_path(source: &str, here: &Path) -> Result<String> {
    let path = Path::new(source);
    let whole = match path.components().next() {
        None => bail!("which path of the host? the source is empty"),
        Some(Component::RootDir) => path.to_path_buf(),
        Some(Component::CurDir | Component::ParentDir) => absolute(&here.join(path)),
        Some(_) => bail!(
            "`{source}` is neither a volume's name (letters, digits, `.`, `_`, `-`) nor a path: write that as in ./{source}"
        ),
    };
    whole
        .into_os_string()
        .into_string()
        .map_err(|_| anyhow!("the current directory is not UTF-8: give a path from /"))
}

/// Without `.` and `..`, by text alone: the daemon resolves links, in its own view of the file system.
fn absolute(path: &Path) -> PathBuf {
    let mut whole = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                whole.pop();
            }
            other => whole.push(other),
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn of(text: &str) -> Result<Mount> {
        parse(text, Path::new("/home/me/work")).map(|wanted| wanted.mount)
    }

    #[test]
    fn names_are_volumes() {
        let wanted = parse("my-data.1:/data:ro", Path::new("/")).unwrap();
        assert_eq!(wanted.volume, Some(Volume::Named("my-data.1".into())));
        assert!(wanted.mount.readonly && wanted.mount.host_path.is_empty());
        assert_eq!(parse("./data:/data", Path::new("/")).unwrap().volume, None);
        let wanted = parse("/data", Path::new("/")).unwrap();
        assert_eq!((wanted.volume, wanted.mount.container_path.as_str()), (Some(Volume::Anonymous), "/data"));
    }

    #[test]
    fn sources_and_destinations() {
        for (text, source) in [
            ("/srv:/data", "/srv"),
            (".:/data", "/home/me/work"),
            ("../x:/data", "/home/me/x"),
            ("./a/b:/data", "/home/me/work/a/b"),
        ] {
            let mount = of(text).unwrap();
            assert_eq!(
                (mount.host_path.as_str(), mount.container_path.as_str()),
                (source, "/data"),
                "{text}"
            );
            assert!(!mount.readonly);
        }
    }

    #[test]
    fn options() {
        assert!(of("/a:/b:ro").unwrap().readonly);
        let mount = of("/a:/b:rro,rslave").unwrap();
        assert!(mount.readonly && mount.recursive_read_only);
        assert_eq!(mount.propagation(), MountPropagation::PropagationHostToContainer);
        assert!(of("/a:/b:z").unwrap().selinux_relabel);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("data", "SOURCE:DESTINATION"),
            ("/a:/b:ro:x", "SOURCE:DESTINATION"),
            ("/a:b", "from / in the container"),
            ("da ta:/b", "./da ta"),
            ("a/b:/b", "./a/b"),
            (":/b", "source is empty"),
            ("/a:/b:fast", "unknown option `fast`"),
        ] {
            let error = format!("{:#}", of(text).unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
