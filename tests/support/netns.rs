//! Network namespaces that end with their last user.

use std::fs::File;
use std::process::{Command, Output};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, kept by an open file.
#[derive(Clone, Debug)]
pub(crate) struct Netns(Arc<File>);

impl Netns {
    /// A new one, with its loopback up.
    pub(crate) fn new() -> Self {
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unsharing the network namespace");
            File::open("/proc/thread-self/ns/net").expect("opening the namespace")
        })
        .join()
        .expect("namespace thread");
        let netns = Self(Arc::new(file));
        netns.ip("link set lo up");
        netns
    }

    /// Runs `work` on a thread inside. Sockets and processes it makes stay inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a program inside and returns its standard output.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> String {
        let output: Output = self
            .run(|| Command::new(program).args(arguments).output())
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `ip` with these arguments, separated by blanks.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command("ip", &arguments.split(' ').collect::<Vec<_>>())
    }

    /// The namespace that a file stands for, such as a pod's.
    pub(crate) fn open(path: &std::path::Path) -> Self {
        Self(Arc::new(File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))))
    }

    /// Joins this namespace to `other` by a veth pair with a name on each side.
    pub(crate) fn connect_as(&self, link: &str, other: &Self, other_link: &str) {
        // `ip` takes a namespace by path; the file's path is good as long as this process lives.
        use std::os::fd::AsRawFd;
        let path = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.ip(&format!("link add {link} type veth peer name {other_link} netns {path}"));
        self.ip(&format!("link set {link} up"));
        other.ip(&format!("link set {other_link} up"));
    }

    /// Joins this namespace to `other` by a veth pair named `link` on both sides.
    pub(crate) fn connect(&self, other: &Self, link: &str) {
        self.connect_as(link, other, link);
    }
}
