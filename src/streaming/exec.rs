//! An exec session: a command, and a client at its streams.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Wants};
use super::link::{CHUNK, Output};
use super::resize::{Size, Sizes};
use super::status::Outcome;
use crate::container::{self, ContainerState, Interactive, Streams};
use crate::error::chain;
use crate::pod::Pods;

/// After the command ended, somebody it left behind may hold its output open: how long to wait for more from him.
const DRAIN: Duration = Duration::from_millis(250);
/// However much he goes on to print.
const DRAIN_MAX: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };
/// A client with a terminal tells its size at once; a command that asks for it at once is not to find none.
const FIRST_SIZE: Duration = Duration::from_millis(50);
/// What a command has to end by itself when its client is gone.
const HANG_UP: Duration = Duration::from_secs(2);

/// A command to run for a client.
#[derive(Clone, Debug)]
pub(super) struct Exec {
    pub(super) container: String,
    pub(super) command: Vec<String>,
    pub(super) wants: Wants,
}

/// Runs the command until it ends, or the client is gone: then all of it is ended.
pub(super) async fn run(pods: &Pods, exec: Exec, client: &mut Client) -> Outcome {
    // At once: clients that wait for it have their terminal's size to say.
    client.greet().await;
    let mut sizes = client.resize.take().map(Sizes::new);
    let first = match &mut sizes {
        Some(sizes) => tokio::time::timeout(FIRST_SIZE, sizes.next()).await.ok().flatten(),
        None => None,
    };
    let command = match start(pods, exec, first).await {
        Ok(command) => command,
        Err(message) => return Outcome::Failed(message),
    };
    let gone = client.link.gone.clone();
    let stdin = client.stdin.take();
    match with_client(command, stdin, sizes, client, &gone).await {
        Ok(0) => Outcome::Success,
        Ok(code) => Outcome::Exit(code),
        Err(Broken::Gone) => match client.link.cut.get() {
            Some(cut) => Outcome::Cut(format!("{cut}: the session ends, and the command with it")),
            None => Outcome::Failed("the client is gone".to_owned()),
        },
        Err(Broken::Shim(message)) => Outcome::Failed(message),
    }
}

/// Why a command's end was not seen.
enum Broken {
    /// The client is gone, or we let it go.
    Gone,
    Shim(String),
}

async fn start(pods: &Pods, exec: Exec, size: Option<Size>) -> Result<Interactive, String> {
    let Exec { container, command, wants } = exec;
    let found = pods.container(&container).ok_or_else(|| format!("container {container} is gone"))?;
    let running = matches!(found.1.state, ContainerState::Running { .. });
    let shim = found.1.shim.as_ref().filter(|_| running);
    let shim = shim.ok_or_else(|| format!("container {container} is not running"))?;
    let id = crate::id::generate().map_err(|error| error.to_string())?;
    let Wants { stdin, stdout, stderr, tty } = wants;
    let size = size.map(|size| (size.width, size.height));
    let streams = Streams { stdin, stdout, stderr, tty, size };
    container::exec_start(&found.1, shim, id, command, streams).await.map_err(|error| chain(&error))
}

async fn with_client(
    mut command: Interactive,
    stdin: Option<mpsc::Receiver<Bytes>>,
    sizes: Option<Sizes>,
    client: &Client,
    gone: &CancellationToken,
) -> Result<i32, Broken> {
    let ended = CancellationToken::new();
    let (input, stdout, stderr) = (command.stdin.take(), command.stdout.take(), command.stderr.take());
    let waiting = async {
        let code = command.wait().await;
        ended.cancel();
        code
    };
    let outputs = async {
        tokio::join!(
            print(stdout, client.stdout.as_ref(), &ended),
            print(stderr, client.stderr.as_ref(), &ended)
        );
    };
    let inputs = async {
        tokio::join!(feed(&command, stdin, input), size(&command, sizes));
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        (code, ()) = async { tokio::join!(waiting, outputs) } => Some(code),
        () = inputs => None,
        () = gone.cancelled() => None,
    };
    match result {
        Some(Ok(code)) => {
            command.ended();
            Ok(code)
        }
        Some(Err(error)) => Err(Broken::Shim(chain(&error))),
        None => {
            command.hang_up(HANG_UP).await;
            Err(Broken::Gone)
        }
    }
}

/// Copies what the command prints. Ends with it, or some time after the command ended. What lies in the pipe by then is the
/// command's own, and reaches the client however slowly it reads.
async fn print(pipe: Option<pipe::Receiver>, output: Option<&Output>, ended: &CancellationToken) {
    let (Some(mut pipe), Some(output)) = (pipe, output) else { return };
    let mut buffer = BytesMut::new();
    // Once the command has ended: how much of the pipe is owed to the client, and until when others may add to it.
    let mut last: Option<(u64, Instant)> = None;
    loop {
        if last.is_none() && ended.is_cancelled() {
            last = Some((rustix::io::ioctl_fionread(&pipe).unwrap_or(0), Instant::now() + DRAIN_MAX));
        }
        if last.is_some_and(|(owed, end)| owed == 0 && Instant::now() >= end) {
            return;
        }
        buffer.reserve(CHUNK);
        let quiet = async {
            ended.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        let count = tokio::select! {
            biased;
            read = pipe.read_buf(&mut buffer) => match read {
                Ok(count @ 1..) => count,
                _ => return,
            },
            () = quiet => return,
        };
        if output.send(buffer.split().freeze()).await.is_err() {
            return;
        }
        if let Some((owed, _)) = &mut last {
            *owed = owed.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
}

/// Copies what the client types, and ends the command's standard input where the client does.
async fn feed(command: &Interactive, stdin: Option<mpsc::Receiver<Bytes>>, pipe: Option<pipe::Sender>) {
    let (Some(mut stdin), Some(mut pipe)) = (stdin, pipe) else { return };
    while let Some(data) = stdin.recv().await {
        // Nobody reads it any more: the rest goes nowhere.
        if pipe.write_all(&data).await.is_err() {
            return;
        }
    }
    drop(pipe);
    if let Err(error) = command.close_stdin().await {
        tracing::debug!(%error, "ending the standard input of an exec");
    }
}

async fn size(command: &Interactive, sizes: Option<Sizes>) {
    let Some(mut sizes) = sizes else { return };
    while let Some(size) = sizes.next().await {
        if let Err(error) = command.resize(size.width, size.height).await {
            tracing::debug!(%error, "resizing the terminal of an exec");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write as _;

    use super::super::link::Frame;
    use super::*;

    fn pipe() -> (pipe::Receiver, std::fs::File) {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        (pipe::Receiver::from_owned_fd(reader).unwrap(), std::fs::File::from(writer))
    }

    async fn received(mut frames: mpsc::Receiver<Frame>) -> usize {
        let mut total = 0;
        while let Some(frame) = frames.recv().await {
            if let Frame::Data { data, .. } = frame {
                total += data.len();
            }
        }
        total
    }

    #[tokio::test]
    async fn a_client_that_reads_late_gets_all_that_the_command_printed() {
        let (reader, mut writer) = pipe();
        // As much as a pipe holds; the command has ended, and somebody it left behind keeps the pipe open.
        writer.write_all(&vec![b'x'; 64 << 10]).unwrap();
        let ended = CancellationToken::new();
        ended.cancel();
        let (sender, frames) = mpsc::channel(1);
        let printing = tokio::spawn(async move {
            let output = Output::new(1, sender, CancellationToken::new(), None);
            print(Some(reader), Some(&output), &ended).await;
        });
        tokio::time::sleep(DRAIN_MAX * 3).await;
        assert_eq!(received(frames).await, 64 << 10);
        printing.await.unwrap();
        drop(writer);
    }

    #[tokio::test]
    async fn who_is_left_behind_may_not_print_for_ever() {
        let (reader, mut writer) = pipe();
        let chatting = std::thread::spawn(move || while writer.write_all(b"chat").is_ok() {});
        let ended = CancellationToken::new();
        ended.cancel();
        let (sender, frames) = mpsc::channel(1);
        let reading = tokio::spawn(received(frames));
        let output = Output::new(1, sender, CancellationToken::new(), None);
        print(Some(reader), Some(&output), &ended).await;
        drop(output);
        assert!(reading.await.unwrap() > 0);
        chatting.join().unwrap();
    }
}
