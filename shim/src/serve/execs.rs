//! Calls on further processes in the container.

use std::os::fd::OwnedFd;

use containerd_shim_protos::api;
use containerd_shim_protos::events::task::TaskExecAdded;
use containerd_shim_protos::topics::TASK_EXEC_ADDED_EVENT_TOPIC;

use crate::cgroup;
use crate::create;
use crate::exec::{self, Execution};
use crate::job::{self, Job};
use crate::logger::{Client, Feed};
use crate::status::{Code, Failure};
use crate::stdio::{self, Stdio};
use crate::stream::{Fifo, Sink};
use crate::sys;
use crate::uri::Destination;

use super::answer::{Outcome, not_found, refused};
use super::container::{Phase, Process, Reply};
use super::jobs::{Purpose, Running};
use super::{KILL_WAIT, Shim};

/// Execs at once.
const EXECS_MAX: usize = 1024;

/// The standard streams of an exec that is about to start.
struct Streams {
    handed: [Option<OwnedFd>; 3],
    /// What the shim copies into its terminal.
    stdin: Option<OwnedFd>,
    /// Where the shim copies the terminal's output, or that of pipes.
    sink: Option<Sink>,
    copies: Vec<(OwnedFd, Sink)>,
    feed: Option<Feed>,
}

fn open(process: &mut Process) -> Result<Streams, Failure> {
    if Destination::parse(&process.stdout)?.is_some() {
        let opened = Stdio::open(process.terminal, &process.stdin, &process.stdout, &process.stderr)?;
        let Stdio { stdin, stdout, stderr, stdin_holder, keyboard: _, copies, terminal, feed } = opened;
        process.stdin_holder = stdin_holder;
        let (own, handed) = if process.terminal { (stdin, None) } else { (None, stdin) };
        return Ok(Streams { handed: [handed, stdout, stderr], stdin: own, sink: terminal, copies, feed });
    }
    let (mut sink, mut own_stdin, mut handed) = (None, None, [None, None, None]);
    if !process.stdin.is_empty() {
        let (reader, writer) = stdio::open_stdin(&process.stdin)?;
        process.stdin_holder = Some(writer);
        if process.terminal { own_stdin = Some(reader) } else { handed[0] = Some(reader) }
    }
    if process.terminal {
        if !process.stdout.is_empty() {
            sink = Some(Sink::Fifo(Fifo::new(stdio::open_terminal_sink(&process.stdout)?)));
        }
    } else {
        for (path, slot) in [(&process.stdout, 1), (&process.stderr, 2)] {
            if !path.is_empty() {
                handed[slot] = Some(stdio::open_direct(path)?);
            }
        }
    }
    Ok(Streams { handed, stdin: own_stdin, sink, copies: Vec::new(), feed: None })
}

impl Shim {
    pub(super) fn exec(&mut self, reply: Reply, request: api::ExecProcessRequest) -> Outcome {
        let container = self.container.as_ref().ok_or_else(|| not_found(""))?;
        if container.exit().is_some() {
            return Err(refused("the container is not running"));
        }
        if !crate::bundle::valid_id(&request.exec_id) {
            return Err(Failure::new(Code::InvalidArgument, format!("{:?} is no exec id", request.exec_id)));
        }
        if self.execs.contains_key(&request.exec_id) {
            return Err(Failure::new(
                Code::AlreadyExists,
                format!("there is an exec {} already", request.exec_id),
            ));
        }
        if self.execs.len() >= EXECS_MAX {
            return Err(refused(format!("{EXECS_MAX} execs are under way")));
        }
        let mut process = Process::new(request.terminal, &request.stdin, &request.stdout, &request.stderr);
        process.spec = request.spec.into_option().map(|any| any.value).unwrap_or_default();
        let exec_id = request.exec_id.clone();
        self.execs.insert(request.exec_id, process);
        self.answer(reply, &api::Empty::default());
        let event = TaskExecAdded { container_id: self.id.clone(), exec_id, ..Default::default() };
        self.publish(TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    pub(super) fn start_exec(&mut self, reply: Reply, exec_id: &str) -> Outcome {
        let init = self.container.as_ref().ok_or_else(|| not_found(""))?;
        if !matches!(init.phase, Phase::Running) {
            return Err(refused("the container is not running"));
        }
        // In its cgroup the process would stand still as well, and its start with it.
        if self.paused {
            return Err(refused("the container is paused: resume it first"));
        }
        let init = init.pid;
        let process = self.execs.get(exec_id).ok_or_else(|| not_found(exec_id))?;
        if !matches!(process.phase, Phase::Created) {
            return Err(refused(format!("exec {exec_id} was started already")));
        }
        let (stdout, stderr) = (process.stdout.clone(), process.stderr.clone());
        // A start that failed may come again.
        self.forget_unread(exec_id);
        self.keep_open(exec_id, [&stdout, &stderr]);
        let process = self.execs.get_mut(exec_id).ok_or_else(|| not_found(exec_id))?;
        let Streams { handed, stdin: own_stdin, sink, copies, feed } = open(process)?;
        let (terminal, spec) = (process.terminal, std::mem::take(&mut process.spec));
        let (id, bundle, binary, cgroups) = (&self.id, &self.bundle, &self.binary, &self.cgroups);
        let mut keep = create::raw(&handed);
        keep.extend(feed.iter().flat_map(Feed::descriptors));
        let client = Client { id: exec_id, namespace: &self.namespace, bundle };
        let execution =
            || Execution { exec_id, init, bundle, cgroups, spec: &spec, terminal, stdio: [None, None, None] };
        // One that waits in the container's cgroup is no parent for a logger.
        let warm = match (self.warm.take_if(|_| feed.is_none()), binary) {
            (Some(warm), None) => Job::of(warm.pid).map(|(job, channel)| {
                let execution = Execution { stdio: handed, ..execution() };
                match warm.send(&channel, &execution) {
                    Ok(()) => (Some(job), [None, None, None]),
                    Err(_) => {
                        warm.give_up();
                        (None, execution.stdio)
                    }
                }
            })?,
            _ => (None, handed),
        };
        let job = match warm {
            (Some(job), _) => job,
            (None, handed) => job::spawn(&keep, |reporter| {
                if let Err(failure) = feed.map_or(Ok(()), |feed| feed.start(&client, reporter)) {
                    return reporter.failed(&failure);
                }
                match binary {
                    None => exec::run(Execution { stdio: handed, ..execution() }, reporter),
                    Some(binary) => match binary.exec(id, exec_id, &spec, terminal, handed, reporter) {
                        Ok(()) => reporter.done(),
                        Err(failure) => reporter.failed(&failure),
                    },
                }
            })?,
        };
        process.phase = Phase::Starting;
        let purpose = Purpose::Exec { exec_id: exec_id.to_owned(), copies, terminal: sink, stdin: own_stdin };
        self.jobs.push(Running::new(job, purpose, reply));
        Ok(())
    }

    /// Ends every exec with all it started, and forgets them: whoever asked for them is gone.
    pub(super) fn end_execs(&mut self, reply: Reply) -> Outcome {
        let names: Vec<String> = self.execs.keys().cloned().collect();
        for exec_id in names {
            if let Some(directory) = exec::own_directory(&self.cgroups, &exec_id) {
                cgroup::signal_all(&directory, libc::SIGKILL, KILL_WAIT);
            }
            let Some(process) = self.execs.get_mut(&exec_id) else { continue };
            if matches!(process.phase, Phase::Starting | Phase::Running) {
                process.forsaken = true;
                if process.pid > 0 {
                    let _ = sys::kill(process.pid, libc::SIGKILL);
                }
            } else {
                self.forget_exec(&exec_id);
            }
        }
        self.answer(reply, &api::Empty::default());
        Ok(())
    }
}
