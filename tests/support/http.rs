//! A small blocking HTTP/1.1 client and server: no library between the test and the wire.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};

/// What a server answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// One request on a connection of its own. Must run in the network namespace that is meant.
pub(crate) fn request(
    method: &str,
    address: impl ToSocketAddrs,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let address: SocketAddr = address.to_socket_addrs()?.next().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, super::patience(3))?;
    stream.set_read_timeout(Some(super::patience(30)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut reader = BufReader::new(stream);
    let (first, headers) = read_head(&mut reader)?;
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    match headers.get("content-length").and_then(|length| length.parse::<usize>().ok()) {
        Some(length) if method != "HEAD" => {
            body.resize(length, 0);
            reader.read_exact(&mut body)?;
        }
        _ => {
            reader.read_to_end(&mut body)?;
        }
    }
    Ok(Answer { status, headers, body })
}

/// GET.
pub(crate) fn get(address: impl ToSocketAddrs, path: &str) -> std::io::Result<Answer> {
    request("GET", address, path, &[], &[])
}

/// Reads the first line and the headers (names in lower case).
pub(crate) fn read_head(reader: &mut impl BufRead) -> std::io::Result<(String, BTreeMap<String, String>)> {
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" || line == "\n" {
            return Ok((first.trim_end().to_owned(), headers));
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
}
