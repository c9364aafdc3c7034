//! The streaming server by TLS, against OpenSSL, curl and rustls.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use libtest_mimic::Trial;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::runtime::{Options, Runtime, find};
use crate::support::streaming::{ALL, Forward, OUTPUT, Session, Wire};
use crate::support::{World, streaming, within};
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    let tls = |client: &str| {
        let streaming = settings(client);
        Options { streaming, prepare: Some(certificates), ..Options::default() }
    };
    let client_ca = client_authority();
    let mut list = trials![options = tls(""); sessions_of_every_kind, a_renewed_certificate];
    list.extend(trials![options = tls(&client_ca); clients_show_certificates]);
    list.extend(trials![unusable_files]);
    list
}

/// The `[streaming]` section: TLS, and more.
pub(crate) fn settings(more: &str) -> String {
    format!(
        "tls_cert_file = \"{CERTIFICATES}/server.pem\"\ntls_key_file = \"{CERTIFICATES}/server.key\"\n{more}"
    )
}

/// More for it: clients show certificates.
pub(crate) fn client_authority() -> String {
    format!("tls_client_ca_file = \"{CERTIFICATES}/ca.pem\"")
}

/// One of the files, for command lines.
pub(crate) fn path(name: &str) -> String {
    file(name).display().to_string()
}

/// In the tests' own `/run`.
const CERTIFICATES: &str = "/run/streaming-certificates";

fn openssl(arguments: &str) {
    let output =
        Command::new("openssl").args(arguments.split(' ')).current_dir(CERTIFICATES).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority, a server's certificate for the loopback, and a client's; once.
pub(crate) fn certificates() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::fs::create_dir_all(CERTIFICATES).unwrap();
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        openssl(&format!("req -x509 {key} -subj /CN=authority -keyout ca.key -out ca.pem"));
        let name = "-addext subjectAltName=IP:127.0.0.1,DNS:node";
        let signed = "-CA ca.pem -CAkey ca.key";
        let leaf = "-addext basicConstraints=critical,CA:FALSE";
        openssl(&format!(
            "req -x509 {key} {leaf} {signed} -subj /CN=node {name} -keyout server.key -out server.pem"
        ));
        openssl(&format!(
            "req -x509 {key} {leaf} {signed} -subj /CN=kubelet -keyout client.key -out client.pem"
        ));
        openssl(&format!("req -x509 {key} -subj /CN=stranger -keyout stranger.key -out stranger.pem"));
    });
}

fn file(name: &str) -> std::path::PathBuf {
    Path::new(CERTIFICATES).join(name)
}

/// A TLS client that trusts `authority`, and shows the certificate of `identity`.
fn connector(authority: &str, identity: Option<&str>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(file(authority)).unwrap()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let chain = vec![CertificateDer::from_pem_file(file(&format!("{name}.pem"))).unwrap()];
            let key = PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    Arc::new(config).into()
}

async fn secured(
    world: &World,
    url: &str,
    connector: &TlsConnector,
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    connector.connect(ServerName::try_from("127.0.0.1").unwrap(), world.dial(url)).await
}

async fn sessions_of_every_kind(world: &mut World) {
    let (pod, id) = world.pod_with_sleeper("tls").await;
    let connector = connector("ca.pem", None);
    for wire in Wire::EVERY {
        let url = world.exec_url(&id, &["sh", "-c", "wc -c; echo err >&2; exit 7"], ALL).await.unwrap();
        let session = Session::over(secured(world, &url, &connector).await.unwrap(), &url, wire, ALL).await;
        session.stdin.write(&vec![b'x'; 1_000_000]).await;
        if !wire.half_closes() {
            continue;
        }
        session.stdin.close().await;
        let ended = session.end().await;
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("1000000\n", "err\n"), "{wire:?}");
        assert_eq!(ended.exit_code(), 7);
    }
    super::streaming_forward::server(world, Some(&pod), "127.0.0.1:4000", super::streaming_forward::echo);
    for tunnel in [false, true] {
        let url = world.forward_url(&pod).await.unwrap();
        let mut forward = Forward::over(secured(world, &url, &connector).await.unwrap(), &url, tunnel).await;
        let mut pipe = forward.connect(4000).await;
        pipe.input.write(b"hello.").await.unwrap();
        pipe.output.until("hello.").await;
    }
    // In the clear nothing is served.
    let url = world.exec_url(&id, &["true"], OUTPUT).await.unwrap();
    let plain = url.replacen("https", "http", 1);
    let answer =
        streaming::upgrade(world.dial(&url), &plain, &streaming::spdy_headers("v4.channel.k8s.io")).await;
    assert_ne!(answer.err().expect("no upgrade").status, 101);
    curl(world, &id).await;
    openssl_client(world, &url);
}

/// curl verifies the certificate, and hands out what the upgraded connection says.
async fn curl(world: &World, id: &str) {
    if !Path::new(&find("curl")).exists() {
        println!("skipped: curl is not here");
        return;
    }
    let url = world.exec_url(id, &["echo", "seen by curl"], OUTPUT).await.unwrap();
    let headers = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol: v4.channel.k8s.io",
    ];
    let mut arguments = vec!["-sS", "--http1.1", "--max-time", "20", "--cacert", "ca.pem", "-i", &url];
    headers.iter().for_each(|header| arguments.extend(["-H", header]));
    let output = world.netns.run(|| {
        Command::new("curl").args(&arguments).current_dir(CERTIFICATES).stdin(Stdio::null()).output()
    });
    let said = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
    assert!(said.starts_with("HTTP/1.1 101") && said.contains("seen by curl"), "{said:?}");
    let refused =
        world.netns.run(|| Command::new("curl").args(["-sS", "--max-time", "20", &url]).output()).unwrap();
    assert_eq!(refused.status.code(), Some(60), "curl trusts nobody it was not told to: {refused:?}");
}

/// Old versions are refused, the present ones spoken.
fn openssl_client(world: &World, url: &str) {
    let address = url.split('/').nth(2).unwrap();
    for (version, spoken) in [("-tls1_3", true), ("-tls1_2", true), ("-tls1_1", false)] {
        let arguments =
            ["s_client", "-connect", address, "-CAfile", "ca.pem", "-verify_return_error", version];
        let output = world.netns.run(|| {
            Command::new("openssl").args(arguments).current_dir(CERTIFICATES).stdin(Stdio::null()).output()
        });
        assert_eq!(output.unwrap().status.success(), spoken, "{version}");
    }
}

/// Who shows no certificate of the authority gets nowhere.
async fn clients_show_certificates(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("mutual").await;
    for (identity, welcome) in [(Some("client"), true), (Some("stranger"), false), (None, false)] {
        let url = world.exec_url(&id, &["echo", "in"], OUTPUT).await.unwrap();
        let connector = connector("ca.pem", identity);
        let answer = match secured(world, &url, &connector).await {
            Ok(io) if welcome => {
                let ended = Session::over(io, &url, Wire::SPDY, OUTPUT).await.end().await;
                assert_eq!(ended.stdout, "in\n");
                continue;
            }
            // With TLS 1.3 the client learns of it with its first read.
            Ok(mut io) => {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let _ = io.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
                io.read(&mut [0]).await
            }
            Err(error) => Err(error),
        };
        assert!(answer.is_err(), "{identity:?}: {answer:?}");
    }
}

/// New files are taken without a restart; broken ones change nothing.
async fn a_renewed_certificate(world: &mut World) {
    let (_, id) = world.pod_with_sleeper("renewed").await;
    let shown = async |connector: &TlsConnector| {
        let url = world.exec_url(&id, &["true"], OUTPUT).await.unwrap();
        let io = secured(world, &url, connector).await.unwrap();
        io.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let connector = connector("ca.pem", None);
    let before = shown(&connector).await;
    assert_eq!(shown(&connector).await, before);
    let good = std::fs::read(file("server.pem")).unwrap();
    std::fs::write(file("server.pem"), "nonsense").unwrap();
    assert_eq!(shown(&connector).await, before, "the certificate from before is kept");
    std::fs::write(file("server.pem"), good).unwrap();
    let name = "-addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    openssl(&format!(
        "req -x509 -key server.key {name} -CA ca.pem -CAkey ca.key -subj /CN=new -days 2 -out server.pem"
    ));
    let deadline = within(5);
    while shown(&connector).await == before {
        assert!(std::time::Instant::now() < deadline, "the new certificate is not shown");
    }
}

/// The daemon says at its start what is wrong, and does not serve in the clear instead.
async fn unusable_files(world: &mut World) {
    certificates();
    if world.daemon.runtime != Runtime::Berth {
        return;
    }
    let cases = [
        ("tls_cert_file = \"/nowhere.pem\"\ntls_key_file = \"/nowhere.key\"", "/nowhere.pem"),
        ("tls_cert_file = \"/run/streaming-certificates/server.pem\"", "tls_key_file"),
        ("tls_client_ca_file = \"/run/streaming-certificates/ca.pem\"", "tls_cert_file"),
        (
            "tls_cert_file = \"/run/streaming-certificates/stranger.pem\"\n\
             tls_key_file = \"/run/streaming-certificates/ca.key\"",
            "stranger.pem",
        ),
    ];
    for (streaming, expected) in cases {
        let mut other =
            World::new(Runtime::Berth, &Options { streaming: streaming.to_owned(), ..Options::default() });
        other.daemon.spawn();
        let deadline = within(20);
        while other.daemon.ended().is_none() {
            assert!(std::time::Instant::now() < deadline, "it serves with {streaming}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let log = other.daemon.log();
        assert!(log.contains(expected), "{streaming}: {log}");
    }
}
