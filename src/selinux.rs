//! SELinux: whether it is on, and the labels of pods' processes and files.
//!
//! A label is `user:role:type:level`. The default ones are those of the policy for containers (`contexts/lxc_contexts`, which
//! container-selinux brings); what a pod or a container says takes the place of the parts that it says. A pod that names no level
//! gets categories of its own, so that the processes of one pod can't touch the files of another: "If unspecified, the container
//! runtime will allocate a random SELinux context" (Kubernetes API, `SELinuxOptions`).
//!
//! Those categories are a hash of the pod's id: they are the same after a restart and for each container, without a record. Four
//! out of 1024 make 45 thousand million levels; two pods of one node never share one in practice, and since all sets have the same
//! size none is part of another.
//!
//! A policy that has no types for containers (none is installed, or one of one's own) gives no label to who asks for none.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::proto::runtime::v1::SeLinuxOption;

/// Where the kernel shows its policy.
const FILESYSTEM: &str = "/sys/fs/selinux";
const CONFIGURATION: &str = "/etc/selinux";
/// Role and type of containers' processes and files in container-selinux.
const PROCESS: [&str; 2] = ["system_r", "container_t"];
const FILE: [&str; 2] = ["object_r", "container_file_t"];
/// Categories of a level of ours, and of the policies that distributions have.
const CATEGORIES: usize = 4;
const CATEGORIES_MAX: u16 = 1024;

/// Why there is no label.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part would end the label, or begin another part.
    #[error("{0:?} is not part of a label")]
    Part(String),
    /// The kernel does not know it.
    #[error(
        "the SELinux policy {policy:?} has no such label {label:?}: look for its parts with `seinfo`, or install a policy that has \
         them (the package container-selinux has those of containers)"
    )]
    Unknown {
        /// The label.
        label: String,
        /// The policy's name.
        policy: String,
    },
}

/// The labels of a container.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Labels {
    /// Of its processes. `None`: the one that the policy gives them.
    pub process: Option<String>,
    /// Of its files.
    pub files: Option<String>,
}

impl Labels {
    /// The label of the files without categories: every container may use those, whatever its own are.
    pub fn files_for_all(&self) -> Option<String> {
        let mut context = Context::parse(self.files.as_ref()?)?;
        // `low[:categories][-high[:categories]]`
        context.level =
            context.level.as_ref().and_then(|level| level.split([':', '-']).next()).map(str::to_owned);
        Some(context.to_string())
    }
}

/// SELinux on this machine.
#[derive(Clone, Debug)]
pub struct SeLinux {
    filesystem: PathBuf,
    policy: String,
    process: Context,
    file: Context,
}

/// The parts of a label.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Context {
    user: String,
    role: String,
    r#type: String,
    /// Policies without levels have none.
    level: Option<String>,
}

impl Context {
    fn of([role, kind]: [&str; 2]) -> Self {
        let [user, role, kind, level] = ["system_u", role, kind, "s0"].map(str::to_owned);
        Self { user, role, r#type: kind, level: Some(level) }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        Some(Self { user: parts.next()?, role: parts.next()?, r#type: parts.next()?, level: parts.next() })
    }
}

impl std::fmt::Display for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.r#type)?;
        self.level.iter().try_for_each(|level| write!(f, ":{level}"))
    }
}

impl SeLinux {
    /// Looks at this machine. `None` when SELinux is off, or on without a policy.
    pub fn detect() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/attr/current").ok()?;
        // Before a policy is loaded all processes have this one name.
        if !Path::new(FILESYSTEM).join("enforce").exists() || own.trim_end_matches('\0') == "kernel" {
            return None;
        }
        Some(Self::of(Path::new(FILESYSTEM), Path::new(CONFIGURATION)))
    }

    fn of(filesystem: &Path, configuration: &Path) -> Self {
        let assigned = |path: &Path, key: &str| {
            let text = fs::read_to_string(path).ok()?;
            let value = text
                .lines()
                .find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='))?;
            Some(value.trim().trim_matches('"').to_owned())
        };
        let policy =
            assigned(&configuration.join("config"), "SELINUXTYPE").unwrap_or_else(|| "targeted".to_owned());
        let contexts = configuration.join(&policy).join("contexts/lxc_contexts");
        let context = |key: &str, default: [&str; 2]| {
            assigned(&contexts, key)
                .as_deref()
                .and_then(Context::parse)
                .unwrap_or_else(|| Context::of(default))
        };
        let (mut process, mut file) = (context("process", PROCESS), context("file", FILE));
        if fs::read_to_string(filesystem.join("mls")).is_ok_and(|text| text.trim() == "0") {
            (process.level, file.level) = (None, None);
        }
        Self { filesystem: filesystem.to_owned(), policy, process, file }
    }

    /// The labels of a container, or of what all containers of a pod share (`container` is `None`). Privileged ones run under the
    /// label that the policy gives them.
    ///
    /// # Errors
    /// [`Error`] when what is asked for is no label of this policy.
    pub fn labels(
        &self,
        pod_id: &str,
        pod: Option<&SeLinuxOption>,
        container: Option<&SeLinuxOption>,
        privileged: bool,
    ) -> Result<Labels, Error> {
        let asked = container.or(pod).filter(|options| {
            [&options.user, &options.role, &options.r#type, &options.level]
                .iter()
                .any(|part| !part.is_empty())
        });
        let (mut process, mut file) = (self.process.clone(), self.file.clone());
        // A level of the policy's own stays.
        if process.level.as_deref() == Some("s0") && file.level.as_deref() == Some("s0") {
            process.level = Some(categories(pod_id));
            file.level.clone_from(&process.level);
        }
        if let Some(asked) = asked {
            let part = |text: &String| {
                if text.contains(|c: char| c.is_whitespace() || c.is_control() || "\"\\".contains(c)) {
                    return Err(Error::Part(text.clone()));
                }
                Ok((!text.is_empty()).then(|| text.clone()))
            };
            for part in [&asked.user, &asked.role, &asked.r#type] {
                // A level has colons of its own.
                if part.contains(':') {
                    return Err(Error::Part(part.clone()));
                }
            }
            if let Some(user) = part(&asked.user)? {
                process.user.clone_from(&user);
                file.user = user;
            }
            if let Some(role) = part(&asked.role)? {
                process.role = role;
            }
            if let Some(kind) = part(&asked.r#type)? {
                process.r#type = kind;
            }
            if let Some(level) = part(&asked.level)? {
                process.level = Some(level.clone());
                file.level = Some(level);
            }
        }
        let labels = Labels { process: Some(process.to_string()), files: Some(file.to_string()) };
        for label in [&labels.process, &labels.files].into_iter().flatten() {
            match self.check(label) {
                Err(_) if asked.is_none() => return Ok(Labels::default()),
                result => result?,
            }
        }
        Ok(Labels { process: labels.process.filter(|_| !privileged), ..labels })
    }

    /// Asks the kernel whether its policy has the label. One that it does not answer for is found out by who applies it.
    fn check(&self, label: &str) -> Result<(), Error> {
        let ask = || -> io::Result<()> {
            let mut file = OpenOptions::new().read(true).write(true).open(self.filesystem.join("context"))?;
            file.write_all(&[label.as_bytes(), b"\0"].concat())
        };
        match ask() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(Error::Unknown { label: label.to_owned(), policy: self.policy.clone() })
            }
            _ => Ok(()),
        }
    }

    /// What there is, for verbose status.
    pub fn describe(&self) -> Value {
        let enforcing =
            fs::read_to_string(self.filesystem.join("enforce")).is_ok_and(|text| text.trim() == "1");
        let process = self.process.to_string();
        json!({
            "mode": if enforcing { "enforcing" } else { "permissive" },
            "policy": self.policy,
            "containersByDefault": if self.check(&process).is_ok() { process } else { "no label".to_owned() },
        })
    }
}

/// The level of a pod.
fn categories(pod_id: &str) -> String {
    let mut chosen = BTreeSet::new();
    let mut hash = Sha256::digest(pod_id);
    while chosen.len() < CATEGORIES {
        for pair in hash.as_chunks::<2>().0 {
            if chosen.len() < CATEGORIES {
                chosen.insert(u16::from_le_bytes(*pair) % CATEGORIES_MAX);
            }
        }
        hash = Sha256::digest(hash);
    }
    let list: Vec<String> = chosen.iter().map(|category| format!("c{category}")).collect();
    format!("s0:{}", list.join(","))
}

/// A machine for tests: `refuses` tells whether its policy has no label at all.
#[cfg(test)]
pub(crate) fn of_test(directory: &Path, refuses: bool) -> SeLinux {
    let context = directory.join("context");
    let _ = fs::remove_file(&context);
    if refuses {
        // A file that says "invalid argument" to what is no number.
        let _ = std::os::unix::fs::symlink("/proc/self/oom_score_adj", &context);
    } else {
        let _ = fs::write(&context, "");
    }
    SeLinux::of(directory, directory)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn level(level: &str) -> SeLinuxOption {
        SeLinuxOption { level: level.to_owned(), ..Default::default() }
    }

    #[test]
    fn a_pod_has_categories_of_its_own_and_says_what_else_it_wants() {
        let directory = tempfile::tempdir().unwrap();
        let host = of_test(directory.path(), false);
        let of = |pod: &str| host.labels(pod, None, None, false).unwrap();
        let (one, other) = (of("pod1"), of("pod2"));
        assert_eq!(one, of("pod1"));
        assert_ne!(one.process, other.process);
        let process = one.process.unwrap();
        let categories = process.strip_prefix("system_u:system_r:container_t:s0:").unwrap();
        assert_eq!(categories.split(',').count(), CATEGORIES);
        assert_eq!(one.files.unwrap(), format!("system_u:object_r:container_file_t:s0:{categories}"));
        // The container's own word comes before the pod's, a type alone keeps the categories.
        let asked = host.labels("pod1", Some(&level("s0:c1,c2")), None, false).unwrap();
        assert_eq!(asked.files_for_all().as_deref(), Some("system_u:object_r:container_file_t:s0"));
        assert_eq!(asked.process.as_deref(), Some("system_u:system_r:container_t:s0:c1,c2"));
        assert_eq!(asked.files.as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
        let kind = SeLinuxOption { r#type: "web_t".into(), role: "web_r".into(), ..Default::default() };
        let asked = host.labels("pod1", Some(&level("s0:c1,c2")), Some(&kind), false).unwrap();
        assert_eq!(asked.process, Some(format!("system_u:web_r:web_t:s0:{categories}")));
        let privileged = host.labels("pod1", None, Some(&level("s0")), true).unwrap();
        assert_eq!(privileged.process, None);
        assert_eq!(privileged.files.as_deref(), Some("system_u:object_r:container_file_t:s0"));
    }

    #[test]
    fn what_the_policy_has_not_is_refused_to_who_asks_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let host = of_test(directory.path(), true);
        assert_eq!(host.labels("pod1", None, None, false).unwrap(), Labels::default());
        let error = host.labels("pod1", Some(&level("s0:c1")), None, false).unwrap_err().to_string();
        assert!(error.contains("\"targeted\"") && error.contains("container_t:s0:c1"), "{error}");
        for part in ["a b", "a\0", "a:b", "\"", "a\n"] {
            let bad = SeLinuxOption { user: part.into(), ..Default::default() };
            assert!(matches!(host.labels("pod1", None, Some(&bad), false), Err(Error::Part(_))), "{part:?}");
        }
        assert_eq!(host.describe()["containersByDefault"], "no label");
    }

    #[test]
    fn the_policys_own_contexts_are_the_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("config"), "# SELINUXTYPE=no\nSELINUX=permissive\nSELINUXTYPE = ours\n").unwrap();
        fs::create_dir_all(path.join("ours/contexts")).unwrap();
        let contexts = "process = \"u:r:svirt_t:s0\"\nfile=\"u:object_r:svirt_file_t:s0\"\n";
        fs::write(path.join("ours/contexts/lxc_contexts"), contexts).unwrap();
        let labels = of_test(path, false).labels("p", Some(&level("s0:c9")), None, false).unwrap();
        assert_eq!(labels.process.as_deref(), Some("u:r:svirt_t:s0:c9"));
        assert_eq!(labels.files.as_deref(), Some("u:object_r:svirt_file_t:s0:c9"));
        // A policy without levels.
        fs::write(path.join("mls"), "0").unwrap();
        let labels = of_test(path, false).labels("p", None, None, false).unwrap();
        assert_eq!(labels.process.as_deref(), Some("u:r:svirt_t"));
        assert_eq!(labels.files_for_all(), labels.files);
        assert_eq!(Labels::default().files_for_all(), None);
        let range = Labels { files: Some("u:r:t:s1:c2-s3:c2.c5".into()), process: None };
        assert_eq!(range.files_for_all().as_deref(), Some("u:r:t:s1"));
        assert_eq!(of_test(path, false).describe()["policy"], "ours");
    }
}
