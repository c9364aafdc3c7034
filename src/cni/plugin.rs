//! Runs one plugin: parameters in the environment, configuration on its standard input, the result on its standard output
//! (CNI specification 1.1, "Section 2").

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::statfs::{FsType, statfs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::result::{Failure, excerpt, refusal};
use crate::proto::berth::v1::AttachmentRecord;

/// Results are some hundred bytes.
const OUTPUT_MAX: u64 = 1 << 20;
/// One run.
#[derive(Debug)]
pub(super) struct Invocation<'a> {
    pub(super) program: &'a Path,
    pub(super) command: &'static str,
    /// Whom it is about; empty for STATUS and GC.
    pub(super) record: &'a AttachmentRecord,
    pub(super) directories: &'a [PathBuf],
    pub(super) input: String,
    pub(super) timeout: Duration,
}

/// Finds a plugin's program. `kind` has been checked to be a file name.
pub(super) fn find(kind: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    directories.iter().map(|directory| directory.join(kind)).find(|path| path.is_file())
}

/// Runs it and returns what it printed. All it started is killed when its time is over.
pub(super) async fn run(invocation: Invocation<'_>) -> Result<Vec<u8>, Failure> {
    let start = |source| Failure::Start { program: invocation.program.to_owned(), source };
    let record = invocation.record;
    let path = std::env::join_paths(invocation.directories).unwrap_or_default();
    let mut command = Command::new(invocation.program);
    command.env("CNI_COMMAND", invocation.command).env("CNI_PATH", path);
    if !record.pod_id.is_empty() {
        // A namespace that is gone is no namespace: plugins then delete what they find without it.
        let netns = if is_there(&record.netns, invocation.command) { record.netns.as_str() } else { "" };
        command
            .env("CNI_CONTAINERID", &record.pod_id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", &record.interface)
            .env("CNI_ARGS", &record.arguments);
    }
    let mut child = command
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: a plugin that is a script does not leave its children behind.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let group = child.id();
    let talk = talk(&mut child, &invocation.input);
    let Ok(said) = tokio::time::timeout(invocation.timeout, talk).await else {
        kill_group(group);
        let _ = child.wait().await;
        return Err(Failure::Timeout(invocation.timeout));
    };
    let (status, output, errors) = said.map_err(start)?;
    if status.success() {
        if !errors.is_empty() {
            tracing::debug!(plugin = %invocation.program.display(), said = excerpt(&errors), "a CNI plugin's remarks");
        }
        return Ok(output);
    }
    Err(refusal(&output).unwrap_or_else(|| Failure::Broken {
        status,
        said: excerpt(if output.is_empty() { &errors } else { &output }),
    }))
}

fn is_there(netns: &str, command: &str) -> bool {
    /// `NSFS_MAGIC` of linux/magic.h: the filesystem that namespace files live on.
    const NAMESPACES: FsType = FsType(0x6e73_6673);
    command != "DEL" || statfs(Path::new(netns)).is_ok_and(|found| found.filesystem_type() == NAMESPACES)
}

async fn talk(child: &mut Child, input: &str) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its configuration has something to say, or nothing.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let read = async {
        if let Some(stdout) = stdout {
            stdout.take(OUTPUT_MAX).read_to_end(&mut output).await?;
        }
        io::Result::Ok(())
    };
    let listen = async {
        if let Some(stderr) = stderr {
            stderr.take(OUTPUT_MAX).read_to_end(&mut errors).await?;
        }
        io::Result::Ok(())
    };
    let ((), read, listened) = tokio::join!(write, read, listen);
    read?;
    listened?;
    let status = child.wait().await?;
    Ok((status, output, errors))
}

fn kill_group(leader: Option<u32>) {
    if let Some(pid) = leader.and_then(|pid| i32::try_from(pid).ok()) {
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}
