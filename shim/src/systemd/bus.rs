//! A connection to systemd's own D-Bus socket, which is there without a bus daemon and open to root alone.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::wire::{self, Answer, Writer};

/// Where systemd listens, for `systemctl` and others of root.
const SOCKET: &str = "/run/systemd/private";
/// How long it is waited for: it answers at once, but for a machine that is overloaded.
const PATIENCE: Duration = Duration::from_secs(20);
/// Messages that may come before the answer.
const OTHERS_MAX: usize = 64;
/// Longest line of the handshake, in bytes.
const LINE_MAX: usize = 512;

/// Why systemd did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The socket can't be reached.
    #[error("connecting to systemd at {}: {source}; with cgroup.driver = \"cgroupfs\" it is not asked", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection ended, or no answer came in time.
    #[error("talking to systemd: {0}")]
    Talk(#[from] io::Error),
    /// It does not speak as it should.
    #[error("systemd's answer can't be understood")]
    Malformed,
    /// It said no.
    #[error("systemd: {text} ({name})")]
    Refused {
        /// D-Bus name of the error.
        name: String,
        /// Its text.
        text: String,
    },
}

impl Error {
    /// Whether there is a unit of that name already.
    pub(super) fn exists(&self) -> bool {
        matches!(self, Self::Refused { name, .. } if name == "org.freedesktop.systemd1.UnitExists")
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    socket: UnixStream,
    serial: u32,
}

impl Bus {
    pub(super) fn connect() -> Result<Self, Error> {
        Self::connect_to(Path::new(SOCKET))
    }

    fn connect_to(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Connect { path: path.to_owned(), source };
        let mut socket = UnixStream::connect(path).map_err(failed)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        socket.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        // D-Bus Specification, "Authentication Protocol": who we are is what the kernel says; 30 is "0" in hexadecimal.
        socket.write_all(b"\0AUTH EXTERNAL 30\r\n")?;
        if !line(&mut socket)?.starts_with("OK ") {
            return Err(Error::Malformed);
        }
        socket.write_all(b"BEGIN\r\n")?;
        Ok(Self { socket, serial: 0 })
    }

    /// Calls a method of systemd's manager and waits for its answer.
    pub(super) fn call(&mut self, member: &str, signature: &str, body: Writer) -> Result<(), Error> {
        self.serial += 1;
        self.socket.write_all(&wire::call(self.serial, member, signature, body))?;
        for _ in 0..OTHERS_MAX {
            let message = self.message()?;
            match wire::answer(&message, self.serial).ok_or(Error::Malformed)? {
                Answer::Done => return Ok(()),
                Answer::Refused { name, text } => return Err(Error::Refused { name, text }),
                Answer::Other => {}
            }
        }
        Err(Error::Malformed)
    }

    fn message(&mut self) -> Result<Vec<u8>, Error> {
        let mut message = vec![0; wire::PREAMBLE];
        self.socket.read_exact(&mut message)?;
        let total = wire::total(&message).ok_or(Error::Malformed)?;
        message.resize(total, 0);
        self.socket.read_exact(message.get_mut(wire::PREAMBLE..).unwrap_or_default())?;
        Ok(message)
    }
}

/// A line of the handshake. Byte by byte: what follows it is no line any more.
fn line(socket: &mut UnixStream) -> Result<String, Error> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n") {
        if bytes.len() >= LINE_MAX {
            return Err(Error::Malformed);
        }
        let mut next = [0];
        socket.read_exact(&mut next)?;
        bytes.extend(next);
    }
    String::from_utf8(bytes).map_err(|_| Error::Malformed)
}
