//! A host in small: a directory with what a node has, snapshots of it, and programs to install.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use berth::node::{Mode, Options};

/// What lies at a path, byte for byte, with owner and mode; of files also their time.
pub(crate) type Snapshot = BTreeMap<PathBuf, String>;

pub(crate) struct Host {
    directory: tempfile::TempDir,
}

pub(crate) const KUBELET: &str = "usr/lib/systemd/system/kubelet.service";
const CONTAINERD: &str =
    "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"registry.k8s.io/pause:3.8\"";

impl Host {
    /// With a kubelet, containerd and others' files.
    pub(crate) fn new() -> Self {
        let host = Self { directory: directory() };
        fs::create_dir(host.root()).unwrap();
        populate(&host.root());
        host.programs("1.0.0");
        host
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// A directory beside the root.
    pub(crate) fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    /// Programs that differ by version, in a directory of their own.
    pub(crate) fn programs(&self, version: &str) -> PathBuf {
        programs(&self.directory.path().join("programs"), version)
    }

    pub(crate) fn options(&self, mode: Mode, version: &str) -> Options {
        Options {
            root: self.root(),
            mode,
            version: Some(version.to_owned()),
            from: Some(self.programs(version)),
            ..Options::default()
        }
    }

    /// `berth node …` on this root.
    pub(crate) fn berth(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.arg("node").args(arguments).arg("--root").arg(self.root());
        command.output().unwrap()
    }

    /// `berth node install` with the programs of a version. Returns what it printed.
    pub(crate) fn install(&self, mode: &str, version: &str, more: &[&str]) -> String {
        let from = self.programs(version);
        let arguments =
            ["install", "--no-check", "--mode", mode, "--version", version, "--from", from.to_str().unwrap()];
        let output = self.berth(&[&arguments[..], more].concat());
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    pub(crate) fn uninstall(&self) -> String {
        let output = self.berth(&["uninstall"]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        snapshot(&self.root())
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        fs::write(self.path(path), text).unwrap();
    }
}

/// In memory where that can be: every file of an installation is synced, which a test has no use for.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub(crate) fn programs(directory: &Path, version: &str) -> PathBuf {
    let directory = directory.join(version);
    fs::create_dir_all(&directory).unwrap();
    for name in ["berthd", "berth", "berth-shim", "berth-cni"] {
        let file = directory.join(name);
        if !file.exists() {
            fs::write(&file, format!("#!/bin/sh\n# {name} {version}\n{}", "#".repeat(9000))).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    directory
}

/// What a node has before Berth comes.
pub(crate) fn populate(root: &Path) {
    for directory in ["etc/systemd/system", "usr/local/bin", "usr/bin", "opt/cni/bin", "var/lib"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    symlink("usr/lib", root.join("lib")).unwrap();
    let write = |path: &str, text: &str, mode: u32| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    write(KUBELET, "[Service]\nExecStart=/usr/bin/kubelet\n", 0o644);
    let kubeadm =
        "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_EXTRA_ARGS\n";
    write("usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf", kubeadm, 0o644);
    write("usr/bin/containerd", "#!/bin/sh\n", 0o755);
    write("etc/containerd/config.toml", CONTAINERD, 0o640);
    write("etc/crictl.yaml", "runtime-endpoint: unix:///run/containerd/containerd.sock\n", 0o600);
    write("etc/hostname", "node\n", 0o644);
    write("opt/cni/bin/bridge", "theirs", 0o755);
    std::os::unix::fs::chown(root.join("etc/crictl.yaml"), Some(12), Some(34)).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5000);
    for path in ["etc/crictl.yaml", "etc/containerd/config.toml"] {
        fs::File::options().append(true).open(root.join(path)).unwrap().set_modified(old).unwrap();
    }
}

pub(crate) fn snapshot(root: &Path) -> Snapshot {
    let mut found = Snapshot::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let what = if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if meta.is_dir() {
                directories.push(path.clone());
                "directory".to_owned()
            } else {
                let (content, time) = (fs::read(&path).unwrap(), (meta.mtime(), meta.mtime_nsec()));
                format!("{time:?} {} {:?}", meta.nlink(), String::from_utf8_lossy(&content))
            };
            let what = format!("{:o} {} {} {what}", meta.mode(), meta.uid(), meta.gid());
            found.insert(path.strip_prefix(root).unwrap().to_owned(), what);
        }
    }
    found
}

/// Where two snapshots differ, in words.
pub(crate) fn assert_same(before: &Snapshot, after: &Snapshot, when: &str) {
    let differing: Vec<_> = before
        .keys()
        .chain(after.keys())
        .filter(|path| before.get(*path) != after.get(*path))
        .map(|path| format!("{}: {:?} became {:?}", path.display(), before.get(path), after.get(path)))
        .collect();
    assert!(differing.is_empty(), "{when}: {differing:#?}");
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.clone(), output.stderr.clone()].concat()).into_owned()
}
