//! Our shim as a runtime of the containerd that is there.
//!
//! Where its configuration imports `/etc/containerd/conf.d/*.toml` in format 3, a drop-in of ours says so. Elsewhere a marked
//! block at the end of `config.toml` does: containerd 1.x takes an imported file's plugin section for the whole of it,
//! and would forget what `config.toml` says there.

use super::root::{HostPath, HostRoot};
use super::{BIN, Error};

/// Its configuration.
pub(crate) const CONFIG: &str = "/etc/containerd/config.toml";
/// Our drop-in.
pub(crate) const DROP_IN: &str = "/etc/containerd/conf.d/50-berth.toml";
const IMPORT: &str = "/etc/containerd/conf.d/*.toml";
/// Bytes of the largest configuration that is read.
const LIMIT: u64 = 1 << 20;

const BEGIN: &str = "\n# >>> berth node install: do not edit between these lines >>>\n";
const END: &str = "# <<< berth node install <<<\n";

/// What to do with containerd.
pub(crate) enum Amended {
    /// A file gets this content.
    File { path: &'static str, content: Vec<u8> },
    /// Nothing: somebody named the runtime already.
    Theirs(String),
}

/// Finds out what to write.
pub(crate) fn amend(root: &HostRoot) -> Result<Amended, Error> {
    let path = HostPath::try_from(CONFIG)?;
    let Some(content) = root.read(&path, LIMIT)? else {
        let program = ["/usr/bin/containerd", "/usr/local/bin/containerd", "/bin/containerd"];
        let mut program =
            program.iter().map(|path| HostPath::try_from(*path).and_then(|path| root.look(&path)));
        if !root.is_directory("/etc/containerd") && !program.any(|found| matches!(found, Ok(Some(_)))) {
            return Err(Error::NoContainerd);
        }
        // Format 2 is read by all versions since 1.3.
        return Ok(Amended::File { path: CONFIG, content: format!("version = 2\n{}", block(2)).into() });
    };
    let wrong = |why: String| Error::Containerd { path: path.clone(), why };
    let text = String::from_utf8(content).map_err(|_| wrong("it is not UTF-8".into()))?;
    if [2, 3].iter().any(|version| text.contains(&block(*version))) {
        // It is in there already, wherever; containerd itself judges the rest.
        return Ok(Amended::File { path: CONFIG, content: text.into() });
    }
    let own = cut(&text).unwrap_or_else(|| text.clone());
    let table: toml::Table = toml::from_str(&own)
        .map_err(|error| wrong(format!("containerd itself could not read it: {}", error.message())))?;
    let version = table.get("version").and_then(toml::Value::as_integer).unwrap_or(1);
    if !(2..=3).contains(&version) {
        return Err(wrong(format!(
            "its format is version {version}, ours goes into 2 and 3: see `containerd config migrate`, or install with \
             --no-switch and name the runtime by hand"
        )));
    }
    let runtimes = |plugin: &str| {
        let at = table.get("plugins")?.get(plugin)?.get("containerd")?;
        at.get("runtimes")?.get("berth")
    };
    if runtimes(plugin(2)).is_some() || runtimes(plugin(3)).is_some() {
        return Ok(Amended::Theirs(format!("{CONFIG} names a runtime berth already: it is left as it is")));
    }
    let imports = table.get("imports").and_then(toml::Value::as_array);
    if version == 3 && imports.is_some_and(|imports| imports.iter().any(|one| one.as_str() == Some(IMPORT))) {
        let content = format!("version = 3\n{}", block(3));
        return Ok(Amended::File { path: DROP_IN, content: content.into() });
    }
    let content = format!("{own}{}", block(version));
    // A table written inline can't be added to.
    toml::from_str::<toml::Table>(&content).map_err(|error| {
        wrong(format!(
            "our runtime can't be added at its end ({}); install with --no-switch and name it by hand",
            error.message()
        ))
    })?;
    Ok(Amended::File { path: CONFIG, content: content.into() })
}

/// The text without our block, if it is in there.
pub(crate) fn cut(text: &str) -> Option<String> {
    let (head, rest) = text.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{tail}"))
}

fn plugin(version: i64) -> &'static str {
    if version >= 3 { "io.containerd.cri.v1.runtime" } else { "io.containerd.grpc.v1.cri" }
}

fn block(version: i64) -> String {
    format!(
        "{BEGIN}[plugins.\"{}\".containerd.runtimes.berth]\n  runtime_type = \"io.containerd.berth.v1\"\n  \
         runtime_path = \"{BIN}/containerd-shim-berth-v1\"\n{END}",
        plugin(version)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn amended(text: Option<&str>) -> Result<Amended, Error> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/containerd")).unwrap();
        if let Some(text) = text {
            std::fs::write(dir.path().join("etc/containerd/config.toml"), text).unwrap();
        }
        amend(&HostRoot::open(dir.path()).unwrap())
    }

    fn file(text: Option<&str>) -> (&'static str, String) {
        match amended(text).unwrap() {
            Amended::File { path, content } => (path, String::from_utf8(content).unwrap()),
            Amended::Theirs(note) => panic!("{note}"),
        }
    }

    #[test]
    fn the_block_fits_the_format_and_is_cut_again_exactly() {
        for theirs in
            ["version = 2", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"x\"\n"]
        {
            let (path, text) = file(Some(theirs));
            assert_eq!(path, CONFIG);
            assert!(text.starts_with(theirs) && text.contains("grpc.v1.cri\".containerd.runtimes.berth"));
            assert_eq!(cut(&text).unwrap(), theirs);
            assert_eq!(file(Some(&text)).1, text, "again is the same");
        }
        let (path, text) = file(None);
        assert!(path == CONFIG && toml::from_str::<toml::Table>(&text).is_ok());
        assert!(file(Some("version = 3\n")).1.contains("cri.v1.runtime\".containerd.runtimes.berth"));
        let (path, text) = file(Some("version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"));
        assert!(path == DROP_IN && text.starts_with("version = 3\n"));
    }

    #[test]
    fn what_can_not_be_amended_is_refused() {
        for (text, why) in [
            ("disabled_plugins = []\n", "version 1"),
            ("version = 2\nplugins = {}\n", "inline"),
            ("version = \n", "could not read"),
        ] {
            let Err(error) = amended(Some(text)) else { panic!("{text}") };
            assert!(error.to_string().contains(why) || why == "inline", "{error}");
        }
        let theirs =
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.berth]\nx = 1\n";
        assert!(matches!(amended(Some(theirs)), Ok(Amended::Theirs(_))));
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(amend(&HostRoot::open(dir.path()).unwrap()), Err(Error::NoContainerd)));
    }
}
