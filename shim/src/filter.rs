//! The filter of system calls: compiled once, kept as a program of the kernel's, loaded by the container's first process and by
//! every exec.
//!
//! Compiling a profile takes milliseconds and loading the program microseconds, and most containers of a node share one profile.
//! So programs are kept in a directory of the daemon's by a hash of the profile, each with the profile it was compiled from: one
//! that only has the same hash is not taken. A copy in the bundle serves the container's execs.
//!
//! `SCMP_CMP_MASKED_EQ` is what the OCI specification and runc have it: `value` is the mask and `valueTwo` what the masked
//! argument must be. libcontainer 0.7 takes them the other way round.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use crate::bundle::state_root;
use crate::say::say;
use crate::status::{Code, Failure};
use crate::sys;

/// First bytes of a kept program: what wrote it. Another version may compile otherwise.
const MAGIC: &str = concat!("berth-shim ", env!("CARGO_PKG_VERSION"), " seccomp\n");
/// A kept program with its profile is some tens of kilobytes.
const KEPT_MAX: u64 = 8 << 20;

/// A compiled filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    flags: u32,
    program: Vec<u8>,
}

impl Filter {
    /// The filter of `profile`: from `cache` if it is there, compiled (and put there) otherwise. `None` for a profile that needs a
    /// listener, which libcontainer serves.
    pub(crate) fn of(profile: &LinuxSeccomp, cache: Option<&Path>) -> Result<Option<Self>, Failure> {
        if libcontainer::seccomp::is_notify(profile)
            || profile.default_action() == LinuxSeccompAction::ScmpActNotify
        {
            return Ok(None);
        }
        let text = serde_json::to_vec(profile).unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let kept = cache.map(|cache| cache.join(format!("{:016x}", hasher.finish())));
        if let Some(filter) = kept.as_deref().and_then(|path| load(path, &text)) {
            return Ok(Some(filter));
        }
        let filter = compile(profile)?;
        if let Some(path) = kept
            && let Err(error) = store(&path, &text, &filter)
        {
            say(format_args!("keeping a compiled filter as {}: {error}", path.display()));
        }
        Ok(Some(filter))
    }

    /// Keeps a copy for the container's execs.
    pub(crate) fn keep(&self, bundle: &Path) -> io::Result<()> {
        store(&own(bundle), &[], self)
    }

    /// The copy kept for execs.
    pub(crate) fn kept(bundle: &Path) -> Option<Self> {
        load(&own(bundle), &[])
    }

    /// Installs it in the calling process.
    pub(crate) fn install(&self) -> io::Result<()> {
        sys::install_filter(self.flags, &self.program)
    }
}

fn own(bundle: &Path) -> PathBuf {
    state_root(bundle).join("seccomp")
}

fn store(path: &Path, profile: &[u8], filter: &Filter) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let mut bytes = MAGIC.as_bytes().to_vec();
    bytes.extend_from_slice(&u64::try_from(profile.len()).unwrap_or(0).to_le_bytes());
    bytes.extend_from_slice(profile);
    bytes.extend_from_slice(&filter.flags.to_le_bytes());
    bytes.extend_from_slice(&filter.program);
    let temporary = path.with_extension(std::process::id().to_string());
    fs::write(&temporary, bytes)?;
    fs::rename(temporary, path)
}

fn load(path: &Path, profile: &[u8]) -> Option<Filter> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(KEPT_MAX).read_to_end(&mut bytes).ok()?;
    let rest = bytes.strip_prefix(MAGIC.as_bytes())?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (of, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let (flags, program) = rest.split_first_chunk::<4>()?;
    let whole = !program.is_empty() && program.len() % 8 == 0;
    (of == profile && whole).then(|| Filter { flags: u32::from_le_bytes(*flags), program: program.to_vec() })
}

fn compile(profile: &LinuxSeccomp) -> Result<Filter, Failure> {
    let context = context(profile).map_err(|error| Failure::doing("compiling the seccomp filter", &error))?;
    let export = || -> io::Result<Vec<u8>> {
        let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)?;
        context.export_bpf(&memory).map_err(io::Error::other)?;
        let mut file = fs::File::from(memory);
        file.rewind()?;
        let mut program = Vec::new();
        file.read_to_end(&mut program)?;
        Ok(program)
    };
    let program = export().map_err(|error| Failure::doing("compiling the seccomp filter", &error))?;
    if program.len() / 8 > usize::from(u16::MAX) {
        return Err(Failure::new(Code::InvalidArgument, "the seccomp profile is too large for the kernel"));
    }
    let flags = profile.flags().iter().flatten().map(|flag| flag_bit(*flag)).fold(0, |all, bit| all | bit);
    Ok(Filter { flags, program })
}

fn context(profile: &LinuxSeccomp) -> Result<ScmpFilterContext, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut context = ScmpFilterContext::new(default)?;
    for architecture in profile.architectures().iter().flatten() {
        context.add_arch(translate_architecture(*architecture))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret());
        // A rule that says what happens anyway is refused by libseccomp.
        if action != default {
            add(&mut context, rule, action)?;
        }
    }
    Ok(context)
}

fn add(context: &mut ScmpFilterContext, rule: &LinuxSyscall, action: ScmpAction) -> Result<(), SeccompError> {
    let arguments: &[LinuxSeccompArg] = rule.args().as_deref().unwrap_or_default();
    let compares: Vec<ScmpArgCompare> = arguments.iter().map(compare).collect();
    let mut seen = Vec::new();
    // One rule can compare an argument once; runc takes several comparisons of one argument as alternatives.
    let repeats = arguments.iter().any(|argument| {
        let again = seen.contains(&argument.index());
        seen.push(argument.index());
        again
    });
    for name in rule.names() {
        // One that this library or architecture does not know can't be called by that name either.
        let Ok(number) = ScmpSyscall::from_name(name) else { continue };
        if repeats {
            for compare in &compares {
                context.add_rule_conditional(action, number, std::slice::from_ref(compare))?;
            }
        } else {
            context.add_rule_conditional(action, number, &compares)?;
        }
    }
    Ok(())
}

fn compare(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let index = u32::try_from(argument.index()).unwrap_or(u32::MAX);
    let (value, second) = (argument.value(), argument.value_two().unwrap_or(0));
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpArgCompare::new(index, ScmpCompareOp::NotEqual, value),
        LinuxSeccompOperator::ScmpCmpLt => ScmpArgCompare::new(index, ScmpCompareOp::Less, value),
        LinuxSeccompOperator::ScmpCmpLe => ScmpArgCompare::new(index, ScmpCompareOp::LessOrEqual, value),
        LinuxSeccompOperator::ScmpCmpEq => ScmpArgCompare::new(index, ScmpCompareOp::Equal, value),
        LinuxSeccompOperator::ScmpCmpGe => ScmpArgCompare::new(index, ScmpCompareOp::GreaterEqual, value),
        LinuxSeccompOperator::ScmpCmpGt => ScmpArgCompare::new(index, ScmpCompareOp::Greater, value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            ScmpArgCompare::new(index, ScmpCompareOp::MaskedEqual(value), second)
        }
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    let errno = errno.and_then(|errno| i32::try_from(errno).ok()).unwrap_or(libc::EPERM);
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(errno).unwrap_or(u16::MAX)),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    }
}

/// `SECCOMP_FILTER_FLAG_*`.
fn flag_bit(flag: LinuxSeccompFilterFlag) -> u32 {
    match flag {
        // One thread installs it, before there are others.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
        // Means something to listeners only, and the kernel refuses it without one.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    }
}

fn translate_architecture(architecture: Arch) -> ScmpArch {
    match architecture {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// The profile as libcontainer 0.7 has to be given it: see the module's text.
pub(crate) fn swap_masked(profile: &mut LinuxSeccomp) {
    let Some(rules) = profile.syscalls().clone() else { return };
    let swapped = rules.into_iter().map(|mut rule| {
        let arguments = rule.args().clone().map(|list| list.into_iter().map(swap).collect());
        rule.set_args(arguments);
        rule
    });
    let swapped = swapped.collect();
    profile.set_syscalls(Some(swapped));
}

fn swap(argument: LinuxSeccompArg) -> LinuxSeccompArg {
    if argument.op() != LinuxSeccompOperator::ScmpCmpMaskedEq {
        return argument;
    }
    LinuxSeccompArgBuilder::default()
        .index(argument.index())
        .op(argument.op())
        .value(argument.value_two().unwrap_or(0))
        .value_two(argument.value())
        .build()
        .unwrap_or(argument)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn profile(errno: u32) -> LinuxSeccomp {
        serde_json::from_value(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["swapon", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}],
        }))
        .unwrap()
    }

    #[test]
    fn a_kept_filter_is_taken_only_for_its_own_profile() {
        let cache = tempfile::tempdir().unwrap();
        let first = Filter::of(&profile(1), Some(cache.path())).unwrap().unwrap();
        let path = fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
        assert_eq!(Filter::of(&profile(1), Some(cache.path())).unwrap().unwrap(), first);
        // The same name with another profile in it, as if the hashes were equal.
        store(&path, b"another", &Filter { flags: 0, program: vec![0; 8] }).unwrap();
        assert_eq!(Filter::of(&profile(1), Some(cache.path())).unwrap().unwrap(), first);
        fs::write(&path, b"torn").unwrap();
        assert_eq!(Filter::of(&profile(1), Some(cache.path())).unwrap().unwrap(), first);
        assert_ne!(Filter::of(&profile(2), Some(cache.path())).unwrap().unwrap(), first);
    }

    #[test]
    fn a_masked_comparison_is_swapped_for_libcontainer() {
        let mut profile: LinuxSeccomp = serde_json::from_value(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 2_114_060_288_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
                         {"index": 1, "value": 7, "valueTwo": 9, "op": "SCMP_CMP_EQ"}]}],
        }))
        .unwrap();
        swap_masked(&mut profile);
        let rules = profile.syscalls().clone().unwrap();
        let arguments = rules[0].args().clone().unwrap();
        assert_eq!((arguments[0].value(), arguments[0].value_two()), (0, Some(2_114_060_288)));
        assert_eq!((arguments[1].value(), arguments[1].value_two()), (7, Some(9)));
    }

    #[test]
    fn a_masked_comparison_means_what_the_specification_says() {
        let namespaces = 0x7e02_0000_u64;
        let profile: LinuxSeccomp = serde_json::from_value(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOTSUP,
                "args": [{"index": 0, "value": namespaces, "valueTwo": libc::CLONE_NEWUTS, "op": "SCMP_CMP_MASKED_EQ"}]}],
        }))
        .unwrap();
        let filter = Filter::of(&profile, None).unwrap().unwrap();
        // A filter is the thread's own, and ends with it.
        let test = move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            filter.install().unwrap();
            let both = libc::CLONE_NEWUTS | libc::CLONE_FS;
            assert_eq!(sys::unshare(both).unwrap_err().raw_os_error(), Some(libc::ENOTSUP));
            sys::unshare(libc::CLONE_FS).unwrap();
        };
        std::thread::spawn(test).join().unwrap();
    }
}
