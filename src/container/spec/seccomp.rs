//! The filter of system calls: which profile applies, our own default one, and profiles in files.
//!
//! A `SCMP_CMP_MASKED_EQ` is written as the OCI runtime specification and runc have it: `value` is the mask, `valueTwo`
//! what the masked argument must be. libcontainer 0.7 takes them the other way round, which would turn "no new
//! namespaces" into "anything": who hands a specification to libcontainer swaps the two first.

mod table;

use std::collections::HashSet;
use std::io::Read;
use std::path::Path;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::error::ProfileError;
use super::{Error, SeccompDefault, SpecInput, security};
use crate::proto::runtime::v1::security_profile::ProfileType;

/// Profiles are some tens of kilobytes.
const MAX_FILE: u64 = 4 << 20;

/// The container's filter; `None` is unconfined. `bounding` is the container's capability bounding set.
pub(super) fn build(
    input: &SpecInput<'_>,
    bounding: &HashSet<Capability>,
) -> Result<Option<LinuxSeccomp>, Error> {
    const FIELD: &str = "linux.security_context.seccomp";
    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    if context.is_some_and(|c| c.privileged) {
        return Ok(None);
    }
    if let Some(profile) = context.and_then(|c| c.seccomp.as_ref()) {
        let (kind, file) = security::profile_of(FIELD, profile)?;
        return match kind {
            ProfileType::Unconfined => Ok(None),
            ProfileType::RuntimeDefault => Ok(Some(runtime_default(bounding))),
            ProfileType::Localhost => local(FIELD, file).map(Some),
        };
    }
    #[allow(deprecated)]
    let old = context.map(|c| c.seccomp_profile_path.as_str()).unwrap_or_default();
    match old {
        "" => match &input.handler.unset_seccomp_profile {
            SeccompDefault::Unconfined => Ok(None),
            SeccompDefault::RuntimeDefault => Ok(Some(runtime_default(bounding))),
            SeccompDefault::Localhost(file) => load(file).map(Some),
        },
        "unconfined" => Ok(None),
        "runtime/default" | "docker/default" => Ok(Some(runtime_default(bounding))),
        other => match other.strip_prefix("localhost/") {
            Some(file) => local("linux.security_context.seccomp_profile_path", file).map(Some),
            None => Err(Error::invalid(
                "linux.security_context.seccomp_profile_path",
                other,
                "must be runtime/default, unconfined or localhost/<path>",
            )),
        },
    }
}

fn local(field: &'static str, file: &str) -> Result<LinuxSeccomp, Error> {
    if file.is_empty() {
        return Err(Error::invalid(field, file, "localhost_ref is missing"));
    }
    if !file.starts_with('/') {
        return Err(Error::invalid(field, file, "must be the absolute path of a profile on this host"));
    }
    load(Path::new(file))
}

/// Reads a profile in the OCI runtime specification's format.
fn load(file: &Path) -> Result<LinuxSeccomp, Error> {
    let fail = |source: ProfileError| Error::SeccompProfile { path: file.to_path_buf(), source };
    let mut text = Vec::new();
    let open = std::fs::File::open(file).map_err(|e| fail(e.into()))?;
    open.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| fail(e.into()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(fail(ProfileError::TooLarge(MAX_FILE)));
    }
    let profile: LinuxSeccomp = serde_json::from_slice(&text).map_err(|e| fail(e.into()))?;
    let notify = LinuxSeccompAction::ScmpActNotify;
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    if profile.default_action() == notify || rules.iter().any(|rule| rule.action() == notify) {
        return Err(fail(ProfileError::Notify));
    }
    Ok(profile)
}

/// Berth's default profile, for a container with these capabilities in its bounding set.
pub fn runtime_default(bounding: &HashSet<Capability>) -> LinuxSeccomp {
    let mut rules = vec![allow(table::ALWAYS.iter().flat_map(|group| group.iter().copied()), Vec::new())];
    let (architectures, own) = architecture();
    rules.push(allow(own.iter().copied(), Vec::new()));
    for personality in table::PERSONALITIES {
        rules.extend(allow_if("personality", LinuxSeccompOperator::ScmpCmpEq, personality, 0));
    }
    rules.extend(allow_if("socket", LinuxSeccompOperator::ScmpCmpNe, table::AF_VSOCK, 0));
    for (capability, names) in table::WITH {
        if bounding.contains(capability) {
            rules.push(allow(names.iter().copied(), Vec::new()));
        }
    }
    if !bounding.contains(&Capability::SysAdmin) {
        // New threads and processes, but no new namespaces.
        rules.extend(allow_if("clone", LinuxSeccompOperator::ScmpCmpMaskedEq, table::CLONE_NAMESPACES, 0));
        // The flags of clone3 lie in memory, where a filter can't look: say "not there", so that libraries take clone.
        let mut absent = rule(["clone3"], LinuxSeccompAction::ScmpActErrno, Vec::new());
        absent.set_errno_ret(Some(libc::ENOSYS.unsigned_abs()));
        rules.push(absent);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM.unsigned_abs()))
        .set_architectures(Some(architectures))
        .set_syscalls(Some(rules));
    profile
}

/// The architectures that this machine runs programs of, and the calls that only it has.
fn architecture() -> (Vec<Arch>, &'static [&'static str]) {
    if cfg!(target_arch = "x86_64") {
        (vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32], table::X86_64)
    } else if cfg!(target_arch = "aarch64") {
        (vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm], table::AARCH64)
    } else {
        (vec![Arch::ScmpArchNative], &[])
    }
}

fn allow<'a>(names: impl IntoIterator<Item = &'a str>, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActAllow, args)
}

fn rule<'a>(
    names: impl IntoIterator<Item = &'a str>,
    action: LinuxSeccompAction,
    args: Vec<LinuxSeccompArg>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.into_iter().map(str::to_owned).collect())
        .set_action(action)
        .set_args((!args.is_empty()).then_some(args));
    rule
}

/// Allows calls by their first argument. Should the argument not be one, nothing is allowed.
fn allow_if(name: &str, op: LinuxSeccompOperator, value: u64, value_two: u64) -> Option<LinuxSyscall> {
    let arg = LinuxSeccompArgBuilder::default().index(0_usize).op(op).value(value).value_two(value_two);
    Some(allow([name], vec![arg.build().ok()?]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::error::{Classify, Kind};
    use crate::proto::runtime::v1::SecurityProfile;

    /// The rules of one call: (action, has arguments).
    fn rules(profile: &LinuxSeccomp, name: &str) -> Vec<(LinuxSeccompAction, usize)> {
        let all = profile.syscalls().as_deref().unwrap();
        let named = all.iter().filter(|rule| rule.names().iter().any(|n| n == name));
        named.map(|rule| (rule.action(), rule.args().as_ref().map_or(0, Vec::len))).collect()
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut seen = HashSet::new();
        for name in
            table::ALWAYS.iter().flat_map(|group| group.iter()).chain(table::X86_64).chain(table::AARCH64)
        {
            assert!(seen.insert(name), "{name}");
        }
        for (_, names) in table::WITH {
            assert!(names.iter().all(|name| !seen.contains(name)), "{names:?}");
        }
    }

    #[test]
    fn default_profile() {
        const ALLOW: LinuxSeccompAction = LinuxSeccompAction::ScmpActAllow;
        let profile = runtime_default(&HashSet::from([Capability::SysChroot]));
        assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActErrno);
        assert_eq!(profile.default_errno_ret(), Some(1));
        for name in ["read", "execve", "ptrace", "futex_waitv", "chroot", "landlock_add_rule"] {
            assert_eq!(rules(&profile, name), [(ALLOW, 0)], "{name}");
        }
        for name in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "init_module",
            "reboot",
            "keyctl",
            "add_key",
            "kexec_load",
            "io_uring_setup",
            "userfaultfd",
            "open_by_handle_at",
            "swapon",
            "settimeofday",
            "syslog",
        ] {
            assert_eq!(rules(&profile, name), [], "{name}");
        }
        assert_eq!(rules(&profile, "clone"), [(ALLOW, 1)]);
        assert_eq!(rules(&profile, "clone3"), [(LinuxSeccompAction::ScmpActErrno, 0)]);
        assert_eq!(rules(&profile, "socket"), [(ALLOW, 1)]);
        assert_eq!(rules(&profile, "personality").len(), 5);

        let profile = runtime_default(&HashSet::from([Capability::SysAdmin]));
        for name in ["mount", "clone", "clone3", "unshare", "bpf"] {
            assert_eq!(rules(&profile, name), [(ALLOW, 0)], "{name}");
        }
        assert_eq!(rules(&profile, "chroot"), []);
        assert_eq!(table::CLONE_NAMESPACES, 0x7e02_0000);
    }

    #[test]
    fn which_profile() {
        let new =
            |kind: ProfileType| Some(SecurityProfile { profile_type: kind as i32, ..Default::default() });
        for (profile, old, unset, privileged, filtered) in [
            (None, "", SeccompDefault::Unconfined, false, false),
            (None, "", SeccompDefault::RuntimeDefault, false, true),
            (new(ProfileType::RuntimeDefault), "", SeccompDefault::Unconfined, false, true),
            (new(ProfileType::RuntimeDefault), "", SeccompDefault::Unconfined, true, false),
            (new(ProfileType::Unconfined), "", SeccompDefault::RuntimeDefault, false, false),
            (new(ProfileType::Unconfined), "runtime/default", SeccompDefault::Unconfined, false, false),
            (None, "runtime/default", SeccompDefault::Unconfined, false, true),
            (None, "docker/default", SeccompDefault::Unconfined, false, true),
            (None, "unconfined", SeccompDefault::RuntimeDefault, false, false),
        ] {
            let mut fixture = Fixture::new();
            fixture.handler.unset_seccomp_profile = unset;
            let context = fixture.context();
            context.privileged = privileged;
            context.seccomp = profile;
            #[allow(deprecated)]
            {
                context.seccomp_profile_path = old.into();
            }
            assert_eq!(build(&fixture.input(), &HashSet::new()).unwrap().is_some(), filtered);
        }
    }

    #[test]
    fn files() {
        let dir = tempfile::Builder::new().prefix("berth-spec-seccomp").tempdir_in("/run").unwrap();
        let path = dir.path().join("profile.json");
        let file = path.to_str().unwrap();
        let huge = " ".repeat(usize::try_from(MAX_FILE).unwrap() + 1);
        let rule = r#"{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}"#;
        let good = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#);
        let notify =
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_NOTIFY"}]}"#;
        for (text, name, want) in [
            (good.as_str(), file, Ok(())),
            (good.as_str(), &format!("localhost/{file}"), Ok(())),
            ("{", file, Err("not a seccomp profile")),
            (r#"{"defaultAction":"SCMP_ACT_SING"}"#, file, Err("SCMP_ACT_SING")),
            (notify, file, Err("SCMP_ACT_NOTIFY")),
            (huge.as_str(), file, Err("larger")),
            (good.as_str(), "", Err("missing")),
            (good.as_str(), "profile.json", Err("absolute")),
            (good.as_str(), "/no/such/profile.json", Err("/no/such/profile.json")),
        ] {
            std::fs::write(&path, text).unwrap();
            let mut fixture = Fixture::new();
            fixture.context().seccomp = Some(SecurityProfile {
                profile_type: ProfileType::Localhost as i32,
                localhost_ref: name.into(),
            });
            match (build(&fixture.input(), &HashSet::new()), want) {
                (Ok(Some(profile)), Ok(())) => assert_eq!(rules(&profile, "mkdir").len(), 1),
                (Err(error), Err(text)) => {
                    assert!(error.to_string().contains(text), "{error}");
                    assert_eq!(error.kind(), Kind::InvalidArgument);
                }
                (got, want) => panic!("{got:?} is not {want:?}"),
            }
        }
        let mut fixture = Fixture::new();
        #[allow(deprecated)]
        {
            fixture.context().seccomp_profile_path = "odd".into();
        }
        assert!(build(&fixture.input(), &HashSet::new()).is_err());
    }
}
