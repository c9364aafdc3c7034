//! The files of a pod that its containers see: resolver, hosts, host name, shared memory.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_cni::resolver;
use nix::mount::{MsFlags, mount};

use super::error::Error;
use crate::container::{self, spec};
use crate::proto::runtime::v1::PodSandboxConfig;
use crate::selinux::Labels;

/// Size of a pod's `/dev/shm`, as other runtimes give it.
const SHM_SIZE: &str = "64m";

/// The state directory of one pod: `ns/`, `shm/`, `hosts`, `hostname`, `resolv.conf`. What containers see of it has the SELinux
/// label of the pod's files, where there is one; the files without its categories.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new(state: &Path, id: &str) -> Self {
        Self(state.join("pods").join(id))
    }

    pub(super) fn namespaces(&self) -> PathBuf {
        self.0.join("ns")
    }

    pub(super) fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    pub(super) fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    pub(super) fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    /// The resolver configuration as it was asked for, while the pod has another.
    fn asked_resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf.asked")
    }

    pub(super) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// Makes the directory, the resolver's file, and shared memory where the pod has its own. Blocks.
    pub(super) fn make(&self, config: &PodSandboxConfig, shm: bool, labels: &Labels) -> Result<(), Error> {
        fs::create_dir_all(&self.0).map_err(file("making the directory", &self.0))?;
        let path = self.resolv_conf();
        // A host without a resolver configuration has none to give.
        let of_host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let text =
            spec::render_resolv_conf(config.dns_config.as_ref(), &of_host).map_err(container::Error::Spec)?;
        fs::write(&path, text).map_err(file("writing", &path))?;
        give(labels, &path)?;
        if shm {
            let path = self.shm();
            fs::create_dir_all(&path).map_err(file("making the directory", &path))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let mut options = format!("mode=1777,size={SHM_SIZE}");
            if let Some(label) = &labels.files {
                // Quoted, as a label has commas.
                options.push_str(&format!(",context=\"{label}\""));
            }
            mount(Some("shm"), &path, Some("tmpfs"), flags, Some(options.as_str()))
                .map_err(|errno| file("mounting shared memory on", &path)(errno.into()))?;
        }
        Ok(())
    }

    /// Writes what depends on the pod's name and addresses. Blocks.
    pub(super) fn name(&self, hostname: &str, addresses: &[IpAddr], labels: &Labels) -> Result<(), Error> {
        let hosts = self.hosts();
        fs::write(&hosts, spec::render_hosts(hostname, addresses)).map_err(file("writing", &hosts))?;
        give(labels, &hosts)?;
        let path = self.hostname();
        fs::write(&path, spec::render_hostname(hostname)).map_err(file("writing", &path))?;
        give(labels, &path)
    }

    /// The resolver configuration that was asked for. Blocks.
    pub(super) fn resolver_configuration(&self) -> Result<String, Error> {
        let read = |path: PathBuf| fs::read_to_string(&path).map_err(file("reading", &path));
        let asked = self.asked_resolv_conf();
        read(if asked.exists() { asked } else { self.resolv_conf() })
    }

    /// Makes the resolver configuration name the pod's own resolver, or again what was asked for. Containers see the same file
    /// by a bind mount: it is written anew, not replaced, and only when something changes. Blocks.
    pub(super) fn resolve(&self, own: bool) -> Result<(), Error> {
        let (path, asked) = (self.resolv_conf(), self.asked_resolv_conf());
        if own == asked.exists() {
            return Ok(());
        }
        let text = self.resolver_configuration()?;
        if own {
            // Kept before it is overwritten.
            fs::write(&asked, &text).map_err(file("writing", &asked))?;
            let ours = spec::render_own_resolver(&text, resolver::ADDRESS.into());
            return fs::write(&path, ours).map_err(file("writing", &path));
        }
        fs::write(&path, text).map_err(file("writing", &path))?;
        fs::remove_file(&asked).map_err(file("removing", &asked))
    }

    /// Removes all of it; what is not there is fine. The namespaces' pins must be gone. Blocks.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let shm = self.shm();
        if shm.exists() {
            unmount(&shm)?;
        }
        container::delete_tree(&self.0).map_err(Error::Container)
    }
}

/// Labels a file that all containers of the pod are to read, also one that has categories of its own. It holds nothing that another
/// pod might not know, and no other pod's container sees it.
fn give(labels: &Labels, path: &Path) -> Result<(), Error> {
    labels.files_for_all().map_or(Ok(()), |label| container::relabel(path, &label).map_err(Error::Container))
}

fn unmount(path: &Path) -> Result<(), Error> {
    use nix::mount::{MntFlags, umount2};
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(errno) => Err(file("unmounting", path)(errno.into())),
    }
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}
