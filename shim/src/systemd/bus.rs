//! A connection to systemd's own D-Bus socket, which is there without a bus daemon and open to root alone.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::wire::{self, Answer, Writer};

/// Where systemd listens, for `systemctl` and others of root.
const SOCKET: &str = "/run/systemd/private";
/// How long an answer is waited for: it comes at once, but for a machine that is overloaded. systemd tells everybody on this socket of
/// all that happens to its units (`bus_foreach_bus` in its `dbus.c`), so on a busy machine any number of messages comes before it.
const PATIENCE: Duration = Duration::from_secs(20);
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
    patience: Duration,
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
        Ok(Self { socket, serial: 0, patience: PATIENCE })
    }

    /// Calls a method of systemd's manager and waits for its answer.
    pub(super) fn call(&mut self, member: &str, signature: &str, body: Writer) -> Result<(), Error> {
        self.serial += 1;
        let deadline = Instant::now() + self.patience;
        self.socket.write_all(&wire::call(self.serial, member, signature, body))?;
        loop {
            let message = self.message(deadline)?;
            match wire::answer(&message, self.serial).ok_or(Error::Malformed)? {
                Answer::Done => return Ok(()),
                Answer::Refused { name, text } => return Err(Error::Refused { name, text }),
                Answer::Other => {}
            }
        }
    }

    fn message(&mut self, deadline: Instant) -> Result<Vec<u8>, Error> {
        let mut message = vec![0; wire::PREAMBLE];
        self.fill(&mut message, deadline)?;
        let total = wire::total(&message).ok_or(Error::Malformed)?;
        message.resize(total, 0);
        self.fill(message.get_mut(wire::PREAMBLE..).unwrap_or_default(), deadline)?;
        Ok(message)
    }

    /// Reads as much as there is room for, however small the pieces come in.
    fn fill(&mut self, mut room: &mut [u8], deadline: Instant) -> Result<(), Error> {
        while !room.is_empty() {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            self.socket.set_read_timeout(Some(rest))?;
            match self.socket.read(room) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => room = room.get_mut(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixListener;
    use std::thread::{JoinHandle, spawn};

    use super::*;

    /// A systemd that takes one call and then says `pieces`, each in a write of its own.
    fn manager(listener: UnixListener, pieces: Vec<Vec<u8>>) -> JoinHandle<()> {
        spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            assert!(line(&mut socket).unwrap().ends_with("AUTH EXTERNAL 30\r\n"));
            socket.write_all(b"OK 0123456789abcdef\r\n").unwrap();
            assert_eq!(line(&mut socket).unwrap(), "BEGIN\r\n");
            let mut preamble = [0; wire::PREAMBLE];
            socket.read_exact(&mut preamble).unwrap();
            let mut rest = vec![0; wire::total(&preamble).unwrap() - wire::PREAMBLE];
            socket.read_exact(&mut rest).unwrap();
            // The other side may have had enough.
            let _ = pieces.iter().try_for_each(|piece| socket.write_all(piece));
            let _ = socket.read(&mut [0]);
        })
    }

    fn call(pieces: Vec<Vec<u8>>, patience: Duration) -> Result<(), Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("private");
        let manager = manager(UnixListener::bind(&path).unwrap(), pieces);
        let mut bus = Bus::connect_to(&path).unwrap();
        bus.patience = patience;
        let mut body = Writer::default();
        body.text("a.scope");
        let result = bus.call("ResetFailedUnit", "s", body);
        drop(bus);
        manager.join().unwrap();
        result
    }

    #[test]
    fn what_a_busy_machine_says_before_its_answer_is_passed_over() {
        let signal = wire::testing::message(4, &[(1, "o", "/"), (2, "s", "x.y"), (3, "s", "UnitNew")], &[]);
        let answer = wire::testing::message(2, &[(5, "u", "1")], &[]);
        let mut pieces = vec![signal; 1000];
        pieces.push(answer);
        call(pieces, PATIENCE).unwrap();
    }

    #[test]
    fn one_that_never_comes_to_its_answer_is_left() {
        let signal = wire::testing::message(4, &[(1, "o", "/"), (2, "s", "x.y"), (3, "s", "UnitNew")], &[]);
        let late = call(vec![signal; 3], Duration::from_millis(50)).unwrap_err();
        assert!(matches!(&late, Error::Talk(error) if error.kind() == io::ErrorKind::TimedOut), "{late}");
        let ended = call(vec![b"l\x02\x00\x01".to_vec()], Duration::from_millis(50)).unwrap_err();
        assert!(matches!(&ended, Error::Talk(_)), "{ended}");
    }
}
