//! As much of a Kubernetes API server as `kubectl exec`, `attach`, `cp` and `port-forward` need: it shows one pod, and
//! proxies upgraded connections to the URLs that the runtime gives, as API server and kubelet do together.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;

use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;
use url::Url;

use crate::support::World;
use crate::support::netns::Netns;

/// The pod it shows.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) name: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) stdin: bool,
    pub(crate) tty: bool,
}

/// The server. Ends when dropped.
pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

struct Shared {
    runtime: RuntimeServiceClient<Channel>,
    netns: Netns,
    shown: Vec<Shown>,
}

impl ApiServer {
    /// Listens on a free port of the world's loopback.
    pub(crate) fn start(world: &World, shown: Vec<Shown>) -> Self {
        let listener = world.netns.run(|| StdListener::bind("127.0.0.1:0")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let shared = Arc::new(Shared { runtime: world.runtime(), netns: world.netns.clone(), shown });
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(Arc::clone(&shared), stream));
            }
        });
        Self { address, _serving: AbortOnDropHandle::new(serving) }
    }
}

/// Requests on one connection, until one is upgraded.
async fn serve(shared: Arc<Shared>, mut client: TcpStream) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if client.read(&mut byte).await.unwrap_or(0) == 0 {
                return;
            }
            head.push(byte[0]);
        }
        let (first, headers) = crate::support::http::read_head(&mut &head[..]).unwrap();
        let target = first.split(' ').nth(1).unwrap_or("/");
        let url = Url::parse(&format!("http://api{target}")).unwrap();
        if let Some(upstream) = shared.session(&url).await {
            return proxy(&shared.netns, client, &first, &head, &upstream).await;
        }
        let (status, body) = shared.answer(&url, &headers);
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if client.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Sends the request on under the other URL, and copies both ways from then on.
async fn proxy(netns: &Netns, mut client: TcpStream, first: &str, head: &[u8], upstream: &str) {
    let url: Url = upstream.parse().unwrap();
    let address = url.socket_addrs(|| None).unwrap()[0];
    let stream = netns.run(|| std::net::TcpStream::connect(address)).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut server = TcpStream::from_std(stream).unwrap();
    let method = first.split(' ').next().unwrap();
    let rest = &head[first.len()..];
    let request = [format!("{method} {} HTTP/1.1", url.path()).as_bytes(), rest].concat();
    if server.write_all(&request).await.is_ok() {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}

impl Shared {
    /// The streaming URL for a request that asks for one.
    async fn session(&self, url: &Url) -> Option<String> {
        let (path, call) = url.path().rsplit_once('/')?;
        let shown = self.shown.iter().find(|shown| path.ends_with(&format!("/pods/{}", shown.name)))?;
        let flag =
            |name| url.query_pairs().any(|(key, value)| key == name && (value == "true" || value == "1"));
        let (stdin, stdout, tty) = (flag("stdin"), flag("stdout"), flag("tty"));
        let stderr = flag("stderr") && !tty;
        let container_id = shown.container.clone();
        let mut runtime = self.runtime.clone();
        let url = match call {
            "exec" => {
                let words = url.query_pairs().filter(|(key, _)| key == "command");
                let cmd = words.map(|(_, word)| word.into_owned()).collect();
                let request = ExecRequest { container_id, cmd, stdin, stdout, stderr, tty };
                runtime.exec(request).await.unwrap().into_inner().url
            }
            "attach" => {
                let request = AttachRequest { container_id, stdin, stdout, stderr, tty };
                runtime.attach(request).await.unwrap().into_inner().url
            }
            "portforward" => {
                let request = PortForwardRequest { pod_sandbox_id: shown.pod.clone(), port: Vec::new() };
                runtime.port_forward(request).await.unwrap().into_inner().url
            }
            _ => return None,
        };
        Some(url)
    }

    fn answer(&self, url: &Url, _headers: &BTreeMap<String, String>) -> (u16, Value) {
        let path = url.path();
        match path {
            "/version" => return (200, json!({"major": "1", "minor": "37", "gitVersion": "v1.37.0"})),
            "/api" => return (200, json!({"kind": "APIVersions", "versions": ["v1"]})),
            "/apis" => return (200, json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})),
            "/api/v1" => {
                let pods = json!({"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod",
                                  "verbs": ["get", "list"], "shortNames": ["po"]});
                let list = json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [pods]});
                return (200, list);
            }
            _ => {}
        }
        let found =
            self.shown.iter().find(|shown| path == format!("/api/v1/namespaces/default/pods/{}", shown.name));
        let Some(Shown { name, stdin, tty, container, .. }) = found else {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                                "reason": "NotFound", "message": format!("{path} is not found")});
            return (404, status);
        };
        let pod = json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"containers": [{"name": "main", "image": "test", "stdin": stdin, "tty": tty}]},
            "status": {"phase": "Running", "containerStatuses": [
                {"name": "main", "ready": true, "containerID": format!("berth://{container}"), "state": {"running": {}}}
            ]}
        });
        (200, pod)
    }
}
