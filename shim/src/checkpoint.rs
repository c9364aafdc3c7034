//! Dumps a running container with criu, in a forked child of the shim.
//!
//! With the built-in runtime criu is asked directly: it stops the container's processes by tracing them, so that they go on by
//! themselves however criu ends. An OCI runtime binary asks criu itself; the container is frozen around that, because the
//! runtime says nothing between the dump and the moment when processes go on.
//!
//! Whoever wants the files as they were at the moment of the dump gives a socket to *hold* by: the shim connects to it when
//! criu has all it needs, and processes stand still until the connection ends, which the kernel sees to if that program dies.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use crate::adapt;
use crate::cgroup;
use crate::criu::Criu;
use crate::criu::request::{DESCRIPTORS, DUMP_LOG, Dump, program};
use crate::criu::wire::{Kind, Options};
use crate::job::Reporter;
use crate::oci::Binary;
use crate::status::Failure;

/// Files that are deleted but open are kept up to this size, in bytes.
const GHOST_MAX: u32 = 256 << 20;
/// How long the container is held at most for whoever wants its files.
const HOLD_MAX: Duration = Duration::from_secs(600);

/// Dumps, and reports how it went.
pub(crate) fn run(dump: &Dump, binary: Option<&Binary>, reporter: &Reporter) {
    let result = directory(&dump.images).and_then(|()| directory(&dump.work)).and_then(|()| match binary {
        None => built_in(dump),
        Some(binary) => by_binary(dump, binary),
    });
    match result {
        Ok(()) => reporter.done(),
        Err(failure) => reporter.failed(&failure),
    }
}

/// Memory of programs lies there: nobody else may read it.
fn directory(path: &Path) -> Result<(), Failure> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failure::doing(&format!("making {}", path.display()), &error))
        }
        _ => Ok(()),
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|error| Failure::doing(&format!("opening {}", path.display()), &error))
}

fn built_in(dump: &Dump) -> Result<(), Failure> {
    let spec = adapt::load(&dump.bundle)?;
    let program = program(&dump.asked.criu)?;
    let failed = |what: &'static str| move |error: io::Error| Failure::doing(what, &error);
    let mounts = external_mounts(&spec, dump.pid).map_err(failed("reading the container's mounts"))?;
    keep_descriptors(dump).map_err(failed("noting the container's standard streams"))?;
    let (images, work) = (open(&dump.images)?, open(&dump.work)?);
    let options = Options {
        images: images.as_raw_fd(),
        work: work.as_raw_fd(),
        log_file: DUMP_LOG.to_owned(),
        pid: Some(dump.pid),
        leave_running: !dump.asked.exit,
        root: dump.bundle.join("rootfs").display().to_string(),
        mounts: mounts.into_iter().map(|point| (point.clone(), point)).collect(),
        external: external_namespaces(&spec, dump.pid)
            .map_err(failed("reading the container's namespaces"))?,
        ghost_limit: GHOST_MAX,
        ..Options::default()
    };
    let keep = [images.as_raw_fd(), work.as_raw_fd()];
    let criu = Criu::start(&program, dump.work.join(DUMP_LOG), dump.limit, &keep)?;
    criu.run(Kind::Dump, &options, Some(dump.pid), |notice| match notice.script {
        "post-dump" => hold(&dump.asked.hold),
        _ => Ok(()),
    })
    .map(drop)
}

fn by_binary(dump: &Dump, binary: &Binary) -> Result<(), Failure> {
    if !dump.paused {
        cgroup::freeze(&dump.cgroups, true)
            .map_err(|error| Failure::doing("freezing the container", &error))?;
    }
    let result = binary.checkpoint(dump).and_then(|()| hold(&dump.asked.hold));
    if !dump.paused {
        let thawed = cgroup::freeze(&dump.cgroups, false);
        if !dump.asked.exit {
            thawed.map_err(|error| Failure::doing("thawing the container", &error))?;
        }
    }
    result
}

/// Lets the other side look at the container that stands still, until it has enough.
fn hold(socket: &str) -> Result<(), Failure> {
    if socket.is_empty() {
        return Ok(());
    }
    let socket = Path::new(socket);
    let wait = || -> io::Result<()> {
        // A socket's name is short; the directory's may not be.
        let directory = File::open(socket.parent().unwrap_or(Path::new("/")))?;
        let name = socket.file_name().unwrap_or_default().to_string_lossy();
        let mut stream = UnixStream::connect(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
        stream.set_read_timeout(Some(HOLD_MAX))?;
        // The connection says it all; its end, or an answer, lets the container go on.
        match stream.read(&mut [0; 1]) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error),
        }
    };
    wait().map_err(|error| Failure::doing("holding the container for its files", &error))
}

/// What the container's descriptors 0 to 2 are, as their links say.
fn keep_descriptors(dump: &Dump) -> io::Result<()> {
    let links: Vec<String> = (0..3)
        .map(|fd| {
            fs::read_link(format!("/proc/{}/fd/{fd}", dump.pid))
                .map_or_else(|_| "/dev/null".to_owned(), |link| link.to_string_lossy().into_owned())
        })
        .collect();
    fs::write(dump.images.join(DESCRIPTORS), serde_json::to_vec(&links)?)
}

/// One line of a mount table: device, root within it, mount point.
struct Mounted<'a> {
    device: &'a str,
    point: String,
}

fn table(text: &str) -> impl Iterator<Item = Mounted<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (device, _root, point) = (fields.next()?, fields.next()?, fields.next()?);
        let unescaped = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
            .iter()
            .fold(point.to_owned(), |text, (from, to)| text.replace(from, to));
        Some(Mounted { device, point: unescaped })
    })
}

/// Mount points whose content comes from outside, which criu is not to dump but to expect at the restore: bind mounts of the
/// specification, and whatever else shows a file system that the host has mounted as well (masks of files, cgroups).
fn external_mounts(spec: &Spec, pid: i32) -> io::Result<Vec<String>> {
    let host = fs::read_to_string("/proc/self/mountinfo")?;
    let there: std::collections::HashSet<&str> = table(&host).map(|mount| mount.device).collect();
    let inside = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let binds: Vec<&Path> = spec
        .mounts()
        .iter()
        .flatten()
        .filter(|mount| is_bind(mount))
        .map(|mount| mount.destination().as_path())
        .collect();
    let mut list = Vec::new();
    for mount in table(&inside).filter(|mount| mount.point != "/") {
        let asked_for = binds.iter().any(|bind| *bind == Path::new(&mount.point));
        if (asked_for || there.contains(mount.device)) && !list.contains(&mount.point) {
            list.push(mount.point);
        }
    }
    Ok(list)
}

pub(crate) fn is_bind(mount: &Mount) -> bool {
    // What has layers is mounted beforehand and bound.
    matches!(mount.typ().as_deref(), Some("bind" | "overlay"))
        || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

/// The name that criu, runc and crun know a namespace from outside by.
pub(crate) fn namespace_key(kind: LinuxNamespaceType) -> Option<(&'static str, &'static str)> {
    match kind {
        LinuxNamespaceType::Network => Some(("net", "extRootNetNS")),
        LinuxNamespaceType::Pid => Some(("pid", "extRootPidNS")),
        _ => None,
    }
}

/// Namespaces that the pod brings: they are not dumped.
fn external_namespaces(spec: &Spec, pid: i32) -> io::Result<Vec<String>> {
    let mut list = Vec::new();
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    for namespace in namespaces.into_iter().flatten() {
        let Some((name, key)) = namespace_key(namespace.typ()) else { continue };
        if namespace.path().is_none() {
            continue;
        }
        let inode = fs::metadata(format!("/proc/{pid}/ns/{name}"))?.ino();
        list.push(format!("{name}[{inode}]:{key}"));
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mount_table_is_read() {
        let text = "38 35 0:33 / /dev/shm rw shared:12 - tmpfs tmpfs rw\n40 35 8:1 /a\\040b /mnt/a\\040b rw - ext4 /dev/x rw\n";
        let mounts: Vec<(String, String)> =
            table(text).map(|mount| (mount.device.to_owned(), mount.point)).collect();
        assert_eq!(
            mounts,
            [("0:33".to_owned(), "/dev/shm".to_owned()), ("8:1".to_owned(), "/mnt/a b".to_owned())]
        );
    }

    #[test]
    fn a_hold_ends_with_the_connection() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hold");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let other = std::thread::spawn(move || {
            listener.accept().unwrap();
        });
        hold(path.to_str().unwrap()).unwrap();
        other.join().unwrap();
        assert!(hold(directory.path().join("none").to_str().unwrap()).is_err());
    }
}
