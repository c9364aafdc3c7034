//! AppArmor: whether it is on, which profiles are loaded, and the profile that `RuntimeDefault` means.
//!
//! That profile is made by us and loaded once, when the daemon starts; no pod waits for it. Only `apparmor_parser` can compile a
//! profile: a host that has AppArmor but not this program (package `apparmor`) runs `RuntimeDefault` containers unconfined, as
//! containerd does, and the log says so.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The name of the profile that `RuntimeDefault` means.
pub const DEFAULT_PROFILE: &str = "berth-default";

const TEMPLATE: &str = include_str!("apparmor/profile.txt");
/// Where the distribution keeps what profiles include.
const CONFIGURATION: &str = "/etc/apparmor.d";
/// Compiling takes a tenth of a second; seconds on an emulated machine.
const PARSER_MAX: Duration = Duration::from_secs(60);

/// Loading the profile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compiler of profiles is missing.
    #[error(
        "AppArmor is on, but there is no apparmor_parser to load profiles with: install the package apparmor"
    )]
    NoParser,
    /// It could not be run.
    #[error("running {program}")]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It refused.
    #[error("{program} did not load the profile {DEFAULT_PROFILE}: {said}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// Its own words.
        said: String,
    },
}

/// Whether AppArmor is on.
pub fn is_on() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
        && Path::new("/sys/kernel/security/apparmor").is_dir()
}

/// Whether a profile of that name is loaded.
pub fn is_loaded(name: &str) -> bool {
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    // Each line is the name and, in brackets, the mode.
    loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(profile, _)| profile == name))
}

/// Loads the default profile, in the place of an older version. Takes as long as the compiler does.
///
/// # Errors
/// [`Error`]; one that is loaded already stays.
pub fn load_default() -> Result<(), Error> {
    let program = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser", "/usr/bin/apparmor_parser"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .ok_or(Error::NoParser)?;
    let text = profile(Path::new(CONFIGURATION), &own_label());
    let run = |source| Error::Run { program: program.clone(), source };
    // Without its cache of compiled profiles: ours has no file there.
    let mut child = Command::new(&program)
        .args(["--skip-cache", "--replace"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(run)?;
    // It reads all before it says anything: neither pipe can fill up.
    child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes())).map_err(run)?;
    let deadline = Instant::now() + PARSER_MAX;
    while child.try_wait().map_err(run)?.is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(run(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().map_err(run)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Refused { program, said })
}

/// The profile under which this process runs: its containers must take signals from it.
fn own_label() -> String {
    let read = |path| fs::read_to_string(path).ok();
    let label = read("/proc/self/attr/apparmor/current").or_else(|| read("/proc/self/attr/current"));
    let label = label.unwrap_or_default();
    let name = label.trim_matches(['\0', '\n', ' ']).rsplit_once(" (").map_or(label.trim(), |(name, _)| name);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if name.is_empty() || !name.chars().all(plain) { "unconfined".to_owned() } else { name.to_owned() }
}

/// The profile's text, with what the distribution's `configuration` has to include.
fn profile(configuration: &Path, own_label: &str) -> String {
    let has = |file: &str| configuration.join(file).exists();
    let mut head = String::new();
    // Rules keep the meaning they had with these features, whatever a later kernel mediates.
    if has("abi/3.0") {
        head.push_str("abi <abi/3.0>,\n");
    }
    head.push_str(if has("tunables/global") { "#include <tunables/global>" } else { "@{PROC}=/proc/" });
    let base = if has("abstractions/base") { "#include <abstractions/base>" } else { "" };
    TEMPLATE
        .replace("@HEAD@", &head)
        .replace("@BASE@", base)
        .replace("@NAME@", DEFAULT_PROFILE)
        .replace("@OWN@", own_label)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_profile_includes_only_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let bare = profile(directory.path(), "unconfined");
        assert!(!bare.contains("include <") && bare.contains("@{PROC}=/proc/") && !bare.contains("abi <"));
        for file in ["abi/3.0", "tunables/global", "abstractions/base"] {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let full = profile(directory.path(), "/usr/bin/berthd");
        assert!(full.contains("abi <abi/3.0>,\n#include <tunables/global>\n"));
        assert!(full.contains("  #include <abstractions/base>\n"));
        assert!(full.contains("peer=/usr/bin/berthd,"));
        for text in [&bare, &full] {
            assert!(text.contains("profile berth-default flags="));
            let unfilled = ["@HEAD@", "@BASE@", "@NAME@", "@OWN@"];
            assert!(!unfilled.iter().any(|mark| text.contains(mark)), "{text}");
        }
    }

    #[test]
    fn a_label_is_a_name() {
        let label = own_label();
        assert!(!label.is_empty() && !label.contains(['\0', '\n', '(']));
    }
}
