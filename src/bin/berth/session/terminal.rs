//! Our own terminal while it belongs to a program elsewhere.

use std::future::Future;
use std::io::{self, IsTerminal};

use anyhow::{Context, Result, anyhow, bail};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{self, ExitCodeExt};

/// A terminal in raw mode: every key goes to the program, Ctrl-C too. Dropping it gives the terminal back as it was.
#[derive(Debug)]
pub(crate) struct Terminal {
    before: Termios,
}

impl Terminal {
    /// Takes the terminal on standard input.
    ///
    /// # Errors
    /// When standard input is none: `-t` makes no sense then.
    pub(crate) fn take() -> Result<Self> {
        check()?;
        let before = termios::tcgetattr(io::stdin()).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("setting up the terminal")?;
        Ok(Self { before })
    }

    /// Its size, now and as it changes.
    pub(super) fn sizes(&self) -> Result<Sizes> {
        let changes = signal(SignalKind::window_change()).context("listening for the terminal's size")?;
        Ok(Sizes { changes })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before) {
            failure::say(&format!("giving the terminal back: {error}; `reset` mends it"));
        }
    }
}

/// A terminal that does not show what is typed. Dropping it ends that.
#[derive(Debug)]
pub(crate) struct Quiet {
    before: Termios,
}

impl Quiet {
    /// Takes the terminal on standard input.
    pub(crate) fn new() -> Result<Self> {
        let before = termios::tcgetattr(io::stdin()).context("reading the terminal's settings")?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        // The line's end is shown, so that what follows begins on a line of its own.
        quiet.local_modes.insert(LocalModes::ECHONL);
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &quiet).context("setting up the terminal")?;
        Ok(Self { before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// What `work` comes to. A signal that would end this program drops it instead, so that a terminal that it holds is given
/// back; the error then has the exit code that shells show for the signal.
pub(crate) async fn unless_signalled<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let listen = |kind| signal(kind).context("listening for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut quit = listen(SignalKind::quit())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let (name, number) = tokio::select! {
        outcome = work => return outcome,
        _ = interrupt.recv() => ("SIGINT", 2),
        _ = quit.recv() => ("SIGQUIT", 3),
        _ = terminate.recv() => ("SIGTERM", 15),
        _ = hangup.recv() => ("SIGHUP", 1),
    };
    Err(anyhow!("ended by {name}")).or_exit(failure::SIGNALLED + number)
}

/// Whether a terminal can be had.
pub(crate) fn check() -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!(
            "-t gives the command a terminal, and standard input is none: leave it out, or run this in a terminal"
        );
    }
    Ok(())
}

/// Sizes of the terminal.
#[derive(Debug)]
pub(super) struct Sizes {
    changes: Signal,
}

impl Sizes {
    /// As client-go writes it: `{"Width":80,"Height":24}`. None where the terminal knows no size.
    pub(super) fn now(&self) -> Option<String> {
        let size =
            termios::tcgetwinsize(io::stdin()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0)?;
        Some(json!({ "Width": size.ws_col, "Height": size.ws_row }).to_string())
    }

    /// The next size.
    pub(super) async fn changed(&mut self) -> String {
        loop {
            if self.changes.recv().await.is_none() {
                return std::future::pending().await;
            }
            if let Some(size) = self.now() {
                return size;
            }
        }
    }
}
