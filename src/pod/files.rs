//! The files of a pod that its containers see: resolver, hosts, host name, shared memory.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_cni::resolver;
use nix::mount::{MsFlags, mount};

use super::error::Error;
use super::host_files::HostFiles;
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

    /// The resolver configuration as it was, while the pod's names its own resolver.
    fn asked_resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf.asked")
    }

    /// The host's resolver configuration, where the pod could not use it as it is.
    fn host_resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf.host")
    }

    pub(super) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// Makes the directory, the resolver's file, and shared memory where the pod has its own. Blocks.
    pub(super) fn make(
        &self,
        config: &PodSandboxConfig,
        host: &HostFiles,
        shm: bool,
        labels: &Labels,
    ) -> Result<(), Error> {
        fs::create_dir_all(&self.0).map_err(file("making the directory", &self.0))?;
        self.make_resolv_conf(config, host, labels)?;
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

    /// What the pod asks for, or the host's. On the host's network that is right as it is.
    fn make_resolv_conf(
        &self,
        config: &PodSandboxConfig,
        host: &HostFiles,
        labels: &Labels,
    ) -> Result<(), Error> {
        let path = self.resolv_conf();
        let asked = spec::render_resolv_conf(config.dns_config.as_ref()).map_err(container::Error::Spec)?;
        let text = match asked {
            Some(text) => text,
            None if spec::host_network(config) => host.resolv_conf(),
            None => {
                let text = host.resolv_conf();
                let reachable = spec::without_loopback(&text, &host.uplink_resolv_conf());
                if reachable.is_some() {
                    let of_host = self.host_resolv_conf();
                    fs::write(&of_host, &text).map_err(file("writing", &of_host))?;
                }
                reachable.unwrap_or(text)
            }
        };
        fs::write(&path, text).map_err(file("writing", &path))?;
        give(labels, &path)
    }

    /// Writes what depends on the pod's name and addresses. A pod on the host's network has the host's names. Blocks.
    pub(super) fn name(
        &self,
        hostname: &str,
        addresses: &[IpAddr],
        host: Option<&HostFiles>,
        labels: &Labels,
    ) -> Result<(), Error> {
        let hosts = self.hosts();
        let text = host.and_then(HostFiles::hosts);
        let text = text.unwrap_or_else(|| spec::render_hosts(hostname, addresses).into_bytes());
        fs::write(&hosts, text).map_err(file("writing", &hosts))?;
        give(labels, &hosts)?;
        let path = self.hostname();
        fs::write(&path, spec::render_hostname(hostname)).map_err(file("writing", &path))?;
        give(labels, &path)
    }

    /// The resolver configuration that was asked for, or the host's with all its servers: the pod's own resolver reaches those on
    /// its loopback as well. Blocks.
    pub(super) fn resolver_configuration(&self) -> Result<String, Error> {
        let kept = [self.host_resolv_conf(), self.asked_resolv_conf()].into_iter().find(|path| path.exists());
        let path = kept.unwrap_or_else(|| self.resolv_conf());
        fs::read_to_string(&path).map_err(file("reading", &path))
    }

    /// Makes the resolver configuration name the pod's own resolver, or again what was asked for. Containers see the same file
    /// by a bind mount: it is written anew, not replaced, and only when something changes. Blocks.
    pub(super) fn resolve(&self, own: bool) -> Result<(), Error> {
        let (path, asked) = (self.resolv_conf(), self.asked_resolv_conf());
        if own == asked.exists() {
            return Ok(());
        }
        let from = if own { &path } else { &asked };
        let text = fs::read_to_string(from).map_err(file("reading", from))?;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::proto::runtime::v1::{
        DnsConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    };

    /// A host with systemd-resolved, and the directory of a pod there.
    fn host() -> (tempfile::TempDir, HostFiles, Directory) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("etc/resolv.conf", "nameserver 127.0.0.53\noptions edns0\nsearch lan\n"),
            ("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.1\nsearch lan\n"),
            ("etc/hosts", "127.0.0.1 localhost\n192.0.2.9 printer\n"),
        ] {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let (host, pod) = (HostFiles::below(root.path()), Directory::new(root.path(), "pod"));
        (root, host, pod)
    }

    fn on_the_host() -> PodSandboxConfig {
        let namespace_options =
            Some(NamespaceOption { network: NamespaceMode::Node.into(), ..Default::default() });
        let security_context = Some(LinuxSandboxSecurityContext { namespace_options, ..Default::default() });
        let linux = Some(LinuxPodSandboxConfig { security_context, ..Default::default() });
        PodSandboxConfig { linux, ..Default::default() }
    }

    #[test]
    fn a_stub_on_the_hosts_loopback_is_for_the_host_and_for_the_pods_own_resolver() {
        let (_root, host, pod) = host();
        let seen = || fs::read_to_string(pod.resolv_conf()).unwrap();
        let make = |config: &PodSandboxConfig| pod.make(config, &host, false, &Labels::default()).unwrap();
        make(&PodSandboxConfig::default());
        assert_eq!(seen(), "nameserver 192.0.2.1\nsearch lan\n");
        // Its own resolver asks the stub from the host's namespace.
        assert!(pod.resolver_configuration().unwrap().contains("127.0.0.53"));
        for _ in 0..2 {
            pod.resolve(true).unwrap();
            assert_eq!(seen(), "search lan\nnameserver 127.0.0.11\noptions ndots:0\n");
            assert!(pod.resolver_configuration().unwrap().contains("127.0.0.53"));
        }
        pod.resolve(false).unwrap();
        assert_eq!(seen(), "nameserver 192.0.2.1\nsearch lan\n");
        pod.remove().unwrap();
        // Whoever asks for a server on loopback means the pod's.
        let servers = vec!["127.0.0.1".to_owned()];
        let dns_config = Some(DnsConfig { servers, ..Default::default() });
        make(&PodSandboxConfig { dns_config, ..Default::default() });
        assert_eq!(seen(), "nameserver 127.0.0.1\n");
        pod.remove().unwrap();
        make(&on_the_host());
        assert!(seen().contains("127.0.0.53"), "{}", seen());
    }

    #[test]
    fn on_the_hosts_network_names_are_the_hosts() {
        let (root, host, pod) = host();
        let config = on_the_host();
        pod.make(&config, &host, false, &Labels::default()).unwrap();
        let name = |host| pod.name("web", &["10.0.0.2".parse().unwrap()], host, &Labels::default()).unwrap();
        let seen = || fs::read_to_string(pod.hosts()).unwrap();
        name(Some(&host));
        assert_eq!(seen(), "127.0.0.1 localhost\n192.0.2.9 printer\n");
        name(None);
        assert!(seen().contains("10.0.0.2\tweb") && !seen().contains("printer"), "{}", seen());
        // A host without the file has no names to give.
        fs::remove_file(root.path().join("etc/hosts")).unwrap();
        name(Some(&host));
        assert!(seen().contains("localhost"), "{}", seen());
    }
}
