//! docker-registry, a process in the test's network namespace, and a client that pushes to it.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::http;
use super::image::Image;
use super::netns::Netns;

/// Who may read, and how: everybody over plain HTTP, unless it says otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// A password file: users must show one of its passwords.
    pub(crate) htpasswd: Option<PathBuf>,
    /// Certificate and key: HTTPS.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// With that: clients must show a certificate that this authority signed.
    pub(crate) clients: Option<PathBuf>,
}

/// A running registry. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Registry {
    netns: Netns,
    process: Child,
    port: u16,
}

impl Registry {
    /// Starts one on `127.0.0.1:port` of `netns`. Many may serve the same `storage`.
    pub(crate) fn start(netns: &Netns, port: u16, storage: &Path, scratch: &Path, access: &Access) -> Self {
        std::fs::create_dir_all(storage).unwrap();
        let auth = access
            .htpasswd
            .as_ref()
            .map(|path| format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display()))
            .unwrap_or_default();
        let tls = access
            .tls
            .as_ref()
            .map(|(certificate, key)| {
                let (certificate, key) = (certificate.display(), key.display());
                let clients = access
                    .clients
                    .as_ref()
                    .map(|path| format!("    clientcas:\n      - {}\n", path.display()));
                format!(
                    "  tls:\n    certificate: {certificate}\n    key: {key}\n{}",
                    clients.unwrap_or_default()
                )
            })
            .unwrap_or_default();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
             rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{tls}{auth}",
            storage.display()
        );
        let path: PathBuf = scratch.join(format!("registry-{port}.yml"));
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(scratch.join(format!("registry-{port}.log"))).unwrap();
        let process = netns
            .run(|| {
                Command::new("docker-registry")
                    .arg("serve")
                    .arg(&path)
                    .env_remove("CARGO_MANIFEST_DIR")
                    .stdin(Stdio::null())
                    .stdout(log.try_clone().unwrap())
                    .stderr(log)
                    .spawn()
            })
            .expect("docker-registry (apt-get install docker-registry)");
        let registry = Self { netns: netns.clone(), process, port };
        let deadline = super::within(20);
        while netns.run(|| TcpStream::connect(registry.host())).is_err() {
            assert!(Instant::now() < deadline, "the registry does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        registry
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The registry's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// One request from inside the namespace.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<http::Answer> {
        self.netns.run(|| http::request(method, self.host().as_str(), path, headers, body))
    }

    /// Pushes an image as `name:tag` and returns the reference that pulls it.
    pub(crate) fn push(&self, name: &str, tag: &str, image: &Image) -> String {
        for blob in image.blobs() {
            let start = self.request("POST", &format!("/v2/{name}/blobs/uploads/"), &[], &[]).unwrap();
            assert_eq!(start.status, 202, "{}", start.text());
            let location = &start.headers["location"];
            let path = location.strip_prefix(&format!("http://{}", self.host())).unwrap_or(location);
            let path = format!("{path}&digest={}", blob.digest);
            let put = self
                .request("PUT", &path, &[("Content-Type", "application/octet-stream")], &blob.bytes)
                .unwrap();
            assert_eq!(put.status, 201, "{}", put.text());
        }
        let manifest = image.manifest();
        let put = self
            .request(
                "PUT",
                &format!("/v2/{name}/manifests/{tag}"),
                &[("Content-Type", &manifest.media_type)],
                &manifest.bytes,
            )
            .unwrap();
        assert_eq!(put.status, 201, "{}", put.text());
        format!("{}/{name}:{tag}", self.host())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
