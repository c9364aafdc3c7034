//! One container's shim, as the daemon speaks to it.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use containerd_shim_protos::shim_async::TaskClient;
use tracing::{Instrument as _, Span};
use ttrpc::asynchronous::Client;
use ttrpc::context::{self, Context};

use super::criu::Restore;
use super::error::Error;
use super::socket;
use super::timing;
use crate::telemetry::{Place, TRACEPARENT, traceparent};

/// A shim answers what is not a wait within this time, or it is stuck: creating a container on a machine under load takes
/// seconds at worst, and the kubelet's own deadline is two minutes.
const ANSWER: Duration = Duration::from_secs(60);

/// A filesystem that makes up the container's root, in the words of mount(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimMount {
    /// Filesystem type.
    pub kind: String,
    /// Source.
    pub source: String,
    /// Options, as in fstab.
    pub options: Vec<String>,
}

/// Where an exec's standard streams go: paths of pipes that the shim opens, "" for none.
#[derive(Clone, Debug, Default)]
pub struct ExecStdio {
    /// Read by the process.
    pub stdin: String,
    /// Written by the process.
    pub stdout: String,
    /// Written by the process.
    pub stderr: String,
    /// Whether it gets a terminal.
    pub terminal: bool,
}

/// What a shim says of its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Created, not started.
    Created,
    /// Running, or frozen.
    Running {
        /// Its first process.
        pid: u32,
    },
    /// Ended.
    Stopped {
        /// As a shell would report it.
        exit_code: u32,
    },
}

/// A connection to the shim of one container. Clones share it.
#[derive(Clone)]
pub struct Shim {
    pub(super) id: String,
    bundle: PathBuf,
    pub(super) task: TaskClient,
    raw: Client,
}

impl std::fmt::Debug for Shim {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shim")
            .field("id", &self.id)
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}

impl Shim {
    /// Connects to the shim of container `id` that listens in `bundle`.
    ///
    /// # Errors
    /// [`Error::Gone`] when nobody listens there.
    pub fn connect(id: &str, bundle: &Path) -> Result<Self, Error> {
        let gone = |source| Error::Gone { id: id.to_owned(), source };
        let stream = socket::connect(bundle).map_err(gone)?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(gone)?;
        let raw = Client::new(stream.into());
        Ok(Self { id: id.to_owned(), bundle: bundle.to_owned(), task: TaskClient::new(raw.clone()), raw })
    }

    /// The container's bundle directory.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Creates the container of the bundle's `config.json`: everything but running its command. `stdout` and `stderr`
    /// are `cri-log://PATH` or "" (discarded), `stdin` the path of a FIFO or "". Returns the process id. A container that is
    /// to be restored has none before its start.
    ///
    /// # Errors
    /// [`Error::Refused`] with the shim's reason: a command that is not there, a mount source that is missing.
    pub async fn create(
        &self,
        rootfs: Vec<ShimMount>,
        stdin: String,
        stdout: String,
        stderr: String,
        terminal: bool,
        restore: Option<&Restore>,
    ) -> Result<u32, Error> {
        let (checkpoint, options) = restore.map(Restore::message).unzip();
        let request = api::CreateTaskRequest {
            checkpoint: checkpoint.unwrap_or_default(),
            options: options.into(),
            id: self.id.clone(),
            bundle: self.bundle.to_string_lossy().into_owned(),
            rootfs: rootfs
                .into_iter()
                .map(|mount| api::Mount {
                    type_: mount.kind,
                    source: mount.source,
                    options: mount.options,
                    ..Default::default()
                })
                .collect(),
            terminal,
            stdin,
            stdout,
            stderr,
            ..Default::default()
        };
        Ok(self.call("Create", ANSWER, |context| self.task.create(context, &request)).await?.pid)
    }

    /// Starts the created container, or the exec `exec` of it. Returns the process id.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason, [`Error::Lost`] when the shim ended.
    pub async fn start(&self, exec: &str) -> Result<u32, Error> {
        self.start_within(exec, ANSWER).await
    }

    /// The same of what may take longer, as a restore does.
    pub(crate) async fn start_within(&self, exec: &str, limit: Duration) -> Result<u32, Error> {
        let request =
            api::StartRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        Ok(self.call("Start", limit, |context| self.task.start(context, &request)).await?.pid)
    }

    /// Waits until the container, or its exec `exec`, has ended. Returns its exit status. No time limit.
    ///
    /// # Errors
    /// [`Error::Lost`] when the shim ended first.
    pub async fn wait(&self, exec: &str) -> Result<u32, Error> {
        let request =
            api::WaitRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        let reply = self.task.wait(Context::default(), &request).await;
        Ok(reply.map_err(|error| self.failed("Wait", error))?.exit_status)
    }

    /// Sends `signal` to the first process of the container or of its exec; to every process of it with `all`.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NOT_FOUND` when it has ended.
    pub async fn kill(&self, exec: &str, signal: i32, all: bool) -> Result<(), Error> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            signal: signal.unsigned_abs(),
            all,
            ..Default::default()
        };
        self.call("Kill", ANSWER, |context| self.task.kill(context, &request)).await.map(drop)
    }

    /// Frees what the ended container, or its exec, still has: cgroup, state, descriptors.
    ///
    /// # Errors
    /// [`Error::Refused`] when it still runs.
    pub async fn delete(&self, exec: &str) -> Result<u32, Error> {
        let request =
            api::DeleteRequest { id: self.id.clone(), exec_id: exec.to_owned(), ..Default::default() };
        Ok(self.call("Delete", ANSWER, |context| self.task.delete(context, &request)).await?.exit_status)
    }

    /// Asks the shim to end.
    ///
    /// # Errors
    /// [`Error::TimedOut`] when it doesn't; that it is gone is success.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let request = api::ShutdownRequest { id: self.id.clone(), ..Default::default() };
        match self.call("Shutdown", ANSWER, |context| self.task.shutdown(context, &request)).await {
            Err(error) if !error.is_gone() => Err(error),
            _ => Ok(()),
        }
    }

    /// Has the shim look at the limits in the container's cgroup, which somebody else wrote, and tell systemd. Ours alone knows how.
    ///
    /// # Errors
    /// [`Error::Refused`] when the container does not run.
    pub async fn limits_changed(&self) -> Result<(), Error> {
        // No limit to change.
        let resources = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: b"{}".to_vec(),
            ..Any::default()
        };
        let request = api::UpdateTaskRequest {
            id: self.id.clone(),
            resources: MessageField::some(resources),
            ..Default::default()
        };
        self.call("Update", ANSWER, |context| self.task.update(context, &request)).await.map(drop)
    }

    /// What the shim knows of its container.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NOT_FOUND` when it has not created one.
    pub async fn state(&self) -> Result<TaskState, Error> {
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        let reply = self.call("State", ANSWER, |context| self.task.state(context, &request)).await?;
        Ok(match reply.status.enum_value_or_default() {
            api::Status::CREATED => TaskState::Created,
            api::Status::STOPPED => TaskState::Stopped { exit_code: reply.exit_status },
            _ => TaskState::Running { pid: reply.pid },
        })
    }

    /// Prepares another process in the container; [`Shim::start`] runs it. `process` is an OCI `process` object as JSON.
    ///
    /// # Errors
    /// [`Error::Refused`] with the reason.
    pub async fn exec(&self, exec: &str, process: Vec<u8>, stdio: ExecStdio) -> Result<(), Error> {
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: process,
            ..Default::default()
        };
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal: stdio.terminal,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            spec: MessageField::some(spec),
            ..Default::default()
        };
        self.call("Exec", ANSWER, |context| self.task.exec(context, &request)).await.map(drop)
    }

    /// Sets the size of the terminal of the container or of its exec.
    ///
    /// # Errors
    /// [`Error::Refused`] when it has none.
    pub async fn resize(&self, exec: &str, columns: u32, rows: u32) -> Result<(), Error> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            width: columns,
            height: rows,
            ..Default::default()
        };
        self.call("ResizePty", ANSWER, |context| self.task.resize_pty(context, &request)).await.map(drop)
    }

    /// Lets go of the shim's own hold on the standard input of the container or of its exec.
    ///
    /// # Errors
    /// [`Error::Refused`] with `NOT_FOUND` when there is no such exec.
    pub async fn close_stdin(&self, exec: &str) -> Result<(), Error> {
        let request = api::CloseIORequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.call("CloseIO", ANSWER, |context| self.task.close_io(context, &request)).await.map(drop)
    }

    /// Makes the shim write to the log's path anew: somebody has moved the file away.
    ///
    /// # Errors
    /// [`Error::Refused`] when the file can't be opened: the shim then goes on with the one it has.
    pub async fn reopen_log(&self) -> Result<(), Error> {
        self.own_call("ReopenLog", Vec::new()).await.map(drop)
    }

    /// Ends every exec of the container with all it started: a daemon that crashed has left them.
    ///
    /// # Errors
    /// [`Error::Refused`] by a shim that is not ours.
    pub async fn end_execs(&self) -> Result<(), Error> {
        self.own_call("EndExecs", Vec::new()).await.map(drop)
    }

    /// A call of our own service. Both are encoded messages; no bytes are an empty one.
    pub(super) async fn own_call(&self, method: &'static str, payload: Vec<u8>) -> Result<Vec<u8>, Error> {
        let request = ttrpc::Request {
            service: "berth.shim.v1.Shim".to_owned(),
            method: method.to_owned(),
            timeout_nano: i64::try_from(ANSWER.as_nanos()).unwrap_or(i64::MAX),
            payload,
            ..Default::default()
        };
        let reply = tokio::time::timeout(ANSWER, self.raw.request(request)).await;
        match reply {
            Err(_) => Err(self.timed_out(method, ANSWER)),
            Ok(Err(error)) => Err(self.failed(method, error)),
            Ok(Ok(response)) => Ok(response.payload),
        }
    }

    pub(super) async fn call<T, F>(
        &self,
        call: &'static str,
        limit: Duration,
        send: impl FnOnce(Context) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        // What no call asked for is in no trace.
        let span = match Span::current() {
            none if none.is_none() => none,
            _ => tracing::debug_span!("shim", otel.name = format!("shim {call}"), container = self.id),
        };
        let mut context = context::with_duration(limit);
        if let Some(place) = span.in_scope(traceparent) {
            context.add(TRACEPARENT.to_owned(), place);
        }
        let place = span.in_scope(Place::here);
        let reply = tokio::time::timeout(limit, send(context)).instrument(span).await;
        if let Some(question) = timing::question(call, &place) {
            let shim = self.clone();
            tokio::spawn(async move {
                // One of before there were timings refuses; one that ended has none any more.
                if let Ok(answer) = shim.own_call("Timings", question).await {
                    timing::record(&answer, &place);
                }
            });
        }
        match reply {
            Err(_) => Err(self.timed_out(call, limit)),
            Ok(reply) => reply.map_err(|error| self.failed(call, error)),
        }
    }

    fn timed_out(&self, call: &'static str, limit: Duration) -> Error {
        Error::TimedOut { id: self.id.clone(), call, limit }
    }

    fn failed(&self, call: &'static str, error: ttrpc::Error) -> Error {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                Error::Refused { call, code: EnumOrUnknown::value(&status.code), message: status.message }
            }
            other => Error::Lost { id: self.id.clone(), call, reason: other.to_string() },
        }
    }
}
