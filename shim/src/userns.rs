//! User namespaces: mappings of ids, and namespaces that have them.
//!
//! A namespace is made by a child that does nothing but be in it: the maps are written from outside, as only there is who
//! may map ids that are not his own.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceType, Spec};

use crate::status::{Code, Failure};
use crate::sys::{self, Fork};

/// The kernel takes no more ranges in one map (user_namespaces(7), "Defining user and group ID mappings").
const RANGES_MAX: usize = 340;

/// Users' and groups' ids of a namespace, each as those outside.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Maps {
    pub(crate) uids: Vec<LinuxIdMapping>,
    pub(crate) gids: Vec<LinuxIdMapping>,
}

impl Maps {
    /// From the form of mount options and arguments: `inside:outside:count`, and more after commas.
    pub(crate) fn parse(uids: &str, gids: &str) -> Result<Self, String> {
        Ok(Self { uids: ranges(uids)?, gids: ranges(gids)? })
    }

    /// The user outside who is root inside, and his group; `None` where the maps have no root.
    pub(crate) fn root(&self) -> Option<(u32, u32)> {
        Some((outside(&self.uids, 0)?, outside(&self.gids, 0)?))
    }

    /// User and group outside for those inside.
    pub(crate) fn host(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((outside(&self.uids, uid)?, outside(&self.gids, gid)?))
    }

    /// Those of the namespace that process `pid` is in, from where the caller is.
    pub(crate) fn of_process(pid: i32) -> io::Result<Self> {
        let read = |file: &str| -> io::Result<Vec<LinuxIdMapping>> {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
            let lines: Vec<String> =
                text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(":")).collect();
            ranges(&lines.join(",")).map_err(io::Error::other)
        };
        Ok(Self { uids: read("uid_map")?, gids: read("gid_map")? })
    }
}

fn ranges(text: &str) -> Result<Vec<LinuxIdMapping>, String> {
    let wrong = || format!("{text:?} is no mapping of ids: inside:outside:count");
    let list = text
        .split(',')
        .map(|range| {
            let mut numbers = range.split(':').map(|number| number.parse::<u32>().map_err(|_| wrong()));
            let mut next = || numbers.next().unwrap_or_else(|| Err(wrong()));
            let (inside, outside, count) = (next()?, next()?, next()?);
            let builder = LinuxIdMappingBuilder::default().container_id(inside).host_id(outside).size(count);
            let range = builder.build().map_err(|error| error.to_string())?;
            if numbers.next().is_some() { Err(wrong()) } else { Ok(range) }
        })
        .collect::<Result<Vec<_>, String>>()?;
    if list.len() > RANGES_MAX { Err(wrong()) } else { Ok(list) }
}

fn outside(map: &[LinuxIdMapping], id: u32) -> Option<u32> {
    map.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id()).filter(|offset| *offset < range.size())?;
        range.host_id().checked_add(offset)
    })
}

/// What a container's specification says about its user namespace.
#[derive(Debug, Default)]
pub(crate) struct OfContainer {
    /// It has one.
    pub(crate) there: bool,
    /// Open, when it is one to be joined.
    pub(crate) joined: Option<OwnedFd>,
    pub(crate) maps: Maps,
}

impl OfContainer {
    pub(crate) fn read(spec: &Spec) -> io::Result<Self> {
        let Some(linux) = spec.linux() else { return Ok(Self::default()) };
        let namespace =
            linux.namespaces().iter().flatten().find(|namespace| namespace.typ() == LinuxNamespaceType::User);
        let Some(namespace) = namespace else { return Ok(Self::default()) };
        let joined = match namespace.path() {
            Some(path) => Some(File::open(path)?.into()),
            None => None,
        };
        let maps = Maps {
            uids: linux.uid_mappings().clone().unwrap_or_default(),
            gids: linux.gid_mappings().clone().unwrap_or_default(),
        };
        Ok(Self { there: true, joined, maps })
    }
}

impl OfContainer {
    /// Refuses what can't be done with a namespace.
    pub(crate) fn refuse(&self, message: &str) -> Result<(), Failure> {
        if self.there { Err(Failure::new(Code::FailedPrecondition, message)) } else { Ok(()) }
    }

    /// A user and group of the container as they are outside of it.
    pub(crate) fn outside(&self, uid: u32, gid: u32) -> (u32, u32) {
        if self.there { self.maps.host(uid, gid).unwrap_or((uid, gid)) } else { (uid, gid) }
    }
}

/// A process in a user namespace of its own, and perhaps in others that belong to it; it ends with this.
#[derive(Debug)]
pub(crate) struct Holder {
    pid: i32,
    /// When our end closes, the process ends.
    release: Option<UnixStream>,
}

impl Holder {
    /// Makes the process. It is root in the namespace if that has a root, and takes the namespaces `further`
    /// (`CLONE_NEW…`) once it is.
    pub(crate) fn new(maps: &Maps, further: i32) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        match sys::fork()? {
            Fork::Child => {
                drop(ours);
                sys::close_others(&[theirs.as_raw_fd()]);
                let _ = hold(theirs, maps.root().is_some(), further);
                sys::exit_now(0)
            }
            Fork::Parent(pid) => {
                drop(theirs);
                let mut holder = Self { pid, release: None };
                holder.write_maps(ours, maps)?;
                Ok(holder)
            }
        }
    }

    fn write_maps(&mut self, mut channel: UnixStream, maps: &Maps) -> io::Result<()> {
        answer(&mut channel)?;
        for (file, map) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
            let lines: Vec<String> = map
                .iter()
                .map(|range| format!("{} {} {}", range.container_id(), range.host_id(), range.size()))
                .collect();
            fs::write(format!("/proc/{}/{file}", self.pid), lines.join("\n")).map_err(|error| {
                io::Error::new(error.kind(), format!("writing {file} {lines:?}: {error}"))
            })?;
        }
        channel.write_all(&[0])?;
        answer(&mut channel)?;
        self.release = Some(channel);
        Ok(())
    }

    /// Where one of its namespaces is seen (`user`, `net`, …).
    pub(crate) fn namespace(&self, kind: &str) -> String {
        format!("/proc/{}/ns/{kind}", self.pid)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.release = None;
        let _ = sys::kill(self.pid, libc::SIGKILL);
        let _ = waitpid(Pid::from_raw(self.pid), None);
    }
}

/// The child's side. Each step is answered with a system error number, 0 for none.
fn hold(mut channel: UnixStream, has_root: bool, further: i32) -> io::Result<()> {
    let number = |result: &io::Result<()>| match result {
        Ok(()) => 0_i32,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let made = sys::unshare(libc::CLONE_NEWUSER);
    channel.write_all(&number(&made).to_le_bytes())?;
    made?;
    channel.read_exact(&mut [0])?;
    let entered = (if has_root { become_root() } else { Ok(()) })
        .and_then(|()| if further == 0 { Ok(()) } else { sys::unshare(further) });
    channel.write_all(&number(&entered).to_le_bytes())?;
    entered?;
    // Ends when the other side does.
    let _ = channel.read(&mut [0]);
    Ok(())
}

fn answer(channel: &mut UnixStream) -> io::Result<()> {
    let mut number = [0; 4];
    channel.read_exact(&mut number)?;
    match i32::from_le_bytes(number) {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// Makes the caller, who has entered a user namespace with all capabilities in it, its root.
pub(crate) fn become_root() -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// Enters the namespace and becomes its root. Only for a process that goes on to do nothing else.
pub(crate) fn enter(namespace: &impl AsFd) -> io::Result<()> {
    sys::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWUSER)?;
    become_root()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn mappings_are_read_and_applied() {
        let maps = Maps::parse("0:1000:10,100:5000:1", "0:2000:10").unwrap();
        assert_eq!(maps.root(), Some((1000, 2000)));
        assert_eq!(maps.host(100, 9), Some((5000, 2009)));
        assert_eq!(maps.host(10, 0), None);
        assert_eq!(maps.host(0, 10), None);
        assert_eq!(Maps::parse("1:1000:10", "0:1:1").unwrap().root(), None);
        for bad in ["", "0:1", "0:1:2:3", "0:1:-1", "0:1:4294967296", "a:b:c"] {
            assert!(Maps::parse(bad, "0:1:1").is_err(), "{bad}");
        }
        assert!(Maps::parse(&vec!["0:1:1"; RANGES_MAX + 1].join(","), "0:1:1").is_err());
        assert_eq!(outside(&ranges("0:4294967295:2").unwrap(), 1), None);
    }
}
