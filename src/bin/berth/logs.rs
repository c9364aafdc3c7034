//! CRI log files: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`, a line each. [`line`] reads one, [`follow`] reads a
//! file that grows and is rotated, [`print`] makes of the lines what the container wrote.

pub(crate) mod follow;
pub(crate) mod line;
pub(crate) mod print;
pub(crate) mod tail;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth::proto::runtime::v1::{ContainerState, ContainerStatus, ContainerStatusRequest};
use tonic::Code;

use crate::client::Client;
use crate::failure::{Answer, Refusal};

/// How often the file is looked at for new lines. A poll of one file costs a read and a stat; inotify instances are
/// scarce on nodes (128 by default), and silent on some file systems.
const POLL: Duration = Duration::from_millis(50);
/// Bytes that are written at once.
const BUFFER: usize = 64 << 10;
/// How long the daemon may be away (it restarts; containers do not notice) before that is an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prints a container's log from where the follower stands until the container has ended; then returns its status.
/// A container that is removed meanwhile ends it too, without a status.
pub(crate) async fn until_ended(
    client: &mut Client,
    id: &str,
    path: Option<PathBuf>,
    start: follow::Start,
    printer: &mut print::Printer,
) -> Result<Option<ContainerStatus>> {
    let mut follower = path.map(|path| follow::Follower::new(path, start));
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let mut away = Duration::ZERO;
    let mut pause = POLL;
    loop {
        // The status is asked for first: what is in the file after the answer "exited" is all there will be.
        let status = client.runtime.container_status(request.clone()).await.answer();
        let status = match status {
            Ok(response) => {
                away = Duration::ZERO;
                response.status.filter(|status| status.state() == ContainerState::ContainerExited).map(Some)
            }
            Err(Refusal { code: Code::NotFound, .. }) => Some(None),
            Err(Refusal { code: Code::Unavailable, .. }) if away < PATIENCE => {
                away += pause;
                None
            }
            Err(Refusal { code: Code::Unavailable, .. }) => bail!(
                "berthd has been away for {PATIENCE:?}; the container does not need it and goes on, its log too: ask again when \
                 berthd is back"
            ),
            Err(refusal) => return Err(refusal).context("asking for the container's state"),
        };
        let mut moved = false;
        if let Some(follower) = &mut follower {
            moved = print_new(follower, printer, status.is_some())?;
        }
        if let Some(ended) = status {
            return Ok(ended);
        }
        // Quick after output, slower when there is none.
        pause = if moved { POLL } else { (pause + POLL / 5).min(POLL * 4) };
        tokio::time::sleep(pause).await;
    }
}

/// Prints what is there now, and whether that was anything.
pub(crate) fn print_new(
    follower: &mut follow::Follower,
    printer: &mut print::Printer,
    last: bool,
) -> Result<bool> {
    // By itself standard output makes a system call of every line.
    let mut out = BufWriter::with_capacity(BUFFER, io::stdout().lock());
    let mut err = io::stderr().lock();
    let mut moved = false;
    let mut write = |line: &[u8]| -> io::Result<()> {
        moved = true;
        printer.print(line, &mut out, &mut err)
    };
    follower.poll(last, &mut write)?;
    out.flush()?;
    Ok(moved)
}
