//! The resident part: one thread, one `poll` loop over clients, children, jobs and streams.

mod answer;
mod attach;
mod calls;
mod checkpoint;
mod clients;
mod container;
mod execs;
mod forward;
mod jobs;
mod loggers;
mod parting;
mod peer;
mod publish;
mod readers;
mod removal;
mod restore;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::audience::Audience;
use crate::foreign::Program;
use crate::frame::Connection;
use crate::job::Timing;
use crate::logger::Logger;
use crate::null::null;
use crate::oci::Binary;
use crate::oom::Kills;
use crate::stream::{Input, Stream};
use crate::sys;
use crate::warm::Warm;

use container::Process;
use jobs::Running;
use peer::Foreign;
use publish::Publisher;
use readers::Unread;
use restore::Pending;

/// Clients at once.
const CONNECTIONS_MAX: usize = 64;
/// Ends when there was nothing to do and nobody connected for so long.
const ORPHANED_MAX: Duration = Duration::from_secs(120);

/// How long a Kill of everything waits for everybody to be dead.
const KILL_WAIT: Duration = Duration::from_millis(50);
/// Milliseconds without anything to do after which memory is given back: no call waits for that.
const TIDY_AFTER: i32 = 50;

/// How the shim was called.
#[derive(Debug)]
pub(crate) struct Options {
    id: String,
    bundle: PathBuf,
    runtime: Option<PathBuf>,
    runtime_root: Option<PathBuf>,
    seccomp_cache: Option<PathBuf>,
    foreign: Option<Program>,
    events: Option<(PathBuf, String)>,
    socket_path: Option<PathBuf>,
    socket: i32,
}

impl Options {
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let id = crate::option(arguments, "--id")?.ok_or("serve: --id is missing")?;
        if !crate::bundle::valid_id(&id) {
            return Err(format!("serve: {id:?} is no container id"));
        }
        let bundle = crate::option(arguments, "--bundle")?.ok_or("serve: --bundle is missing")?;
        let bundle = PathBuf::from(&bundle)
            .canonicalize()
            .map_err(|error| format!("serve: bundle {bundle}: {error}"))?;
        let path = |name| crate::option(arguments, name).map(|value| value.map(PathBuf::from));
        let socket = crate::option(arguments, "--socket-fd")?.unwrap_or_else(|| "3".to_owned());
        let socket = socket.parse().map_err(|_| format!("serve: {socket:?} is no descriptor"))?;
        Ok(Self {
            id,
            bundle,
            runtime: path("--runtime")?,
            runtime_root: path("--runtime-root")?,
            seccomp_cache: path("--seccomp-cache")?,
            foreign: foreign(arguments)?,
            events: events(arguments)?,
            socket_path: path("--socket-path")?,
            socket,
        })
    }
}

/// The other shim that this one is to call, if any.
fn foreign(arguments: &[String]) -> Result<Option<Program>, String> {
    let Some(path) = crate::option(arguments, "--shim")? else { return Ok(None) };
    let needed =
        |name| crate::option(arguments, name)?.ok_or_else(|| format!("serve: --shim needs {name} beside it"));
    Ok(Some(Program {
        path: PathBuf::from(path),
        namespace: needed("--namespace")?,
        address: needed("--address")?,
        config: crate::option(arguments, "--shim-config")?,
    }))
}

/// Where containerd takes events, and its namespace.
fn events(arguments: &[String]) -> Result<Option<(PathBuf, String)>, String> {
    let Some(address) = crate::option(arguments, "--events")? else { return Ok(None) };
    let namespace = crate::option(arguments, "--namespace")?;
    let namespace = namespace.ok_or("serve: --events needs --namespace beside it")?;
    Ok(Some((PathBuf::from(address.strip_prefix("unix://").unwrap_or(&address)), namespace)))
}

/// Everything the shim knows.
#[derive(Debug)]
struct Shim {
    id: String,
    bundle: PathBuf,
    binary: Option<Binary>,
    foreign: Option<Foreign>,
    publisher: Option<Publisher>,
    /// containerd's, where it is containerd that the shim works for.
    namespace: String,
    loggers: Vec<Logger>,
    /// Since when the shim would end, were there no loggers.
    leaving_since: Option<Instant>,
    unread: Vec<Unread>,
    seccomp_cache: Option<PathBuf>,
    connections: Vec<Connection>,
    next_connection: u64,
    /// Clients are let in again then.
    closed_until: Option<Instant>,
    told_closed: bool,
    container: Option<Process>,
    cgroups: Vec<PathBuf>,
    /// Who was killed there for want of memory.
    kills: Option<Kills>,
    told_out_of_memory: bool,
    paused: bool,
    /// A container made from a checkpoint, which its start restores.
    pending: Option<Pending>,
    /// Where the checkpoint under way goes.
    told_checkpoint: String,
    execs: BTreeMap<String, Process>,
    jobs: Vec<Running>,
    warm: Option<Warm>,
    streams: Vec<Stream>,
    inputs: Vec<Input>,
    audience: Rc<RefCell<Audience>>,
    /// Children that ended before anybody said whose they are.
    strays: Vec<sys::Reaped>,
    had_container: bool,
    /// Who asked to be attached before that, and whether he types.
    early: Vec<(container::Reply, bool)>,
    shutdown: bool,
    /// The shim was asked to end while a container was being created.
    unwanted: bool,
    lonely_since: Instant,
    heap_dirty: bool,
    /// When the call under way came, where somebody traces it.
    traced: Option<u64>,
    timings: Timings,
}

/// What took how long, until somebody asks.
#[derive(Debug, Default)]
struct Timings {
    created: Vec<Timing>,
    started: Vec<Timing>,
}

enum Token {
    Signals,
    Kills,
    Listener,
    Connection(u64),
    Job(i32),
    Stream(usize),
    Input(usize),
    Member(u64),
    Keyboard,
    Peer,
    Publisher,
}

/// The inherited listening socket. One that came as a standard stream makes room for `/dev/null` there: whoever starts the shim
/// can pass descriptors 0 to 2 without running code of its own between fork and exec.
fn take_socket(descriptor: i32) -> std::io::Result<std::os::fd::OwnedFd> {
    if descriptor > 2 {
        return sys::inherited(descriptor);
    }
    let socket = sys::dup_high(descriptor)?;
    sys::dup_onto(std::os::fd::AsRawFd::as_raw_fd(&null()?), descriptor)?;
    Ok(socket)
}

/// Serves until the container is gone.
pub(crate) fn run(options: Options) -> Result<(), String> {
    let failed = |what: &'static str| move |error: std::io::Error| format!("serve: {what}: {error}");
    let listener = take_socket(options.socket).map_err(failed("taking over the listening socket"))?;
    let _ = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    nix::unistd::chdir("/").map_err(|error| format!("serve: {error}"))?;
    for stream in 0..=2 {
        if let Err(error) = sys::ensure_open(stream) {
            return Err(format!("serve: opening standard streams: {error}"));
        }
    }
    for signal in [libc::SIGPIPE, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGTTOU] {
        sys::ignore_signal(signal);
    }
    sys::become_subreaper().map_err(failed("becoming a subreaper"))?;
    let signals = sys::child_signals().map_err(failed("watching children"))?;
    prime_cgroups();
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true).map_err(failed("preparing the socket"))?;
    let binary = options.runtime.map(|path| Binary {
        path,
        root: options.runtime_root,
        bundle: options.bundle.clone(),
    });
    let mut shim = Shim {
        id: options.id,
        bundle: options.bundle,
        binary,
        foreign: options.foreign.map(Foreign::new),
        unread: Vec::new(),
        namespace: options.events.as_ref().map(|(_, namespace)| namespace.clone()).unwrap_or_default(),
        loggers: Vec::new(),
        leaving_since: None,
        publisher: options.events.map(|(address, namespace)| Publisher::new(address, namespace)),
        seccomp_cache: options.seccomp_cache,
        connections: Vec::new(),
        next_connection: 0,
        closed_until: None,
        told_closed: false,
        container: None,
        cgroups: Vec::new(),
        kills: None,
        told_out_of_memory: false,
        paused: false,
        pending: None,
        told_checkpoint: String::new(),
        execs: BTreeMap::new(),
        jobs: Vec::new(),
        warm: None,
        streams: Vec::new(),
        inputs: Vec::new(),
        audience: Rc::default(),
        strays: Vec::new(),
        had_container: false,
        early: Vec::new(),
        shutdown: false,
        unwanted: false,
        lonely_since: Instant::now(),
        heap_dirty: false,
        traced: None,
        timings: Timings::default(),
    };
    shim.adopt().map_err(|failure| format!("serve: {failure}"))?;
    let result = shim.serve(&listener, &signals);
    shim.end_loggers();
    if let Some(path) = options.socket_path {
        let _ = std::fs::remove_file(path);
    }
    result
}

/// On cgroup v1 the first write to a `cgroup.procs` in a while waits for an RCU grace period (8 ms); those that follow soon do
/// not. A child pays for it now, by moving itself to where it is, while the client still connects and prepares.
fn prime_cgroups() {
    if !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        && let Ok(sys::Fork::Child) = sys::fork()
    {
        let _ = crate::cgroup::rejoin();
        sys::exit_now(0);
    }
}

impl Shim {
    fn serve(&mut self, listener: &UnixListener, signals: &OwnedFd) -> Result<(), String> {
        let (mut fds, mut tokens) = (Vec::new(), Vec::new());
        while !self.finished() {
            self.interests(listener, signals, &mut fds, &mut tokens);
            let tidies = self.heap_dirty && self.jobs.is_empty();
            let timeout = self.next_deadline().map(|at| {
                let rest = at.saturating_duration_since(Instant::now()).as_millis() + 1;
                i32::try_from(rest).unwrap_or(i32::MAX)
            });
            let timeout = if tidies { Some(timeout.unwrap_or(TIDY_AFTER).min(TIDY_AFTER)) } else { timeout };
            let ready = sys::poll(&mut fds, timeout).map_err(|error| format!("serve: poll: {error}"))?;
            if tidies && ready == 0 {
                sys::trim_heap();
                self.heap_dirty = false;
            }
            self.handle(&fds, &tokens, listener, signals);
            self.closed_until = self.closed_until.filter(|until| *until > Instant::now());
            self.give_up_streams();
            self.look_after_peer();
            self.look_after_publisher();
            self.look_for_readers();
            self.dismiss_audience();
        }
        Ok(())
    }

    fn finished(&mut self) -> bool {
        let creating = self.foreign.as_ref().is_some_and(Foreign::is_creating);
        let busy = self.container.is_some() || creating || !self.jobs.is_empty();
        let answered = self.connections.iter().all(|connection| !connection.wants_write());
        let abandoned = self.connections.is_empty()
            && (self.had_container || self.lonely_since.elapsed() >= ORPHANED_MAX);
        if busy || !((self.shutdown && answered) || abandoned) {
            // Whoever was to be waited for in the end is not any more.
            self.leaving_since = None;
            if let Some(publisher) = &mut self.publisher {
                publisher.stays();
            }
            return false;
        }
        // Both have their time, one beside the other.
        let told = self.publisher.as_mut().is_none_or(Publisher::lets_go);
        self.loggers_let_go() && told
    }

    fn next_deadline(&self) -> Option<Instant> {
        let idle = self.jobs.is_empty() && !self.foreign.as_ref().is_some_and(Foreign::is_creating);
        let lonely = (self.container.is_none() && self.connections.is_empty() && idle)
            .then(|| self.lonely_since + ORPHANED_MAX);
        let warm = self.warm.as_ref().map(|warm| warm.until);
        let attached = self.audience.borrow().deadline();
        let tail = self.foreign.as_ref().and_then(Foreign::deadline);
        let readers = self.unread.iter().filter_map(Unread::next_look).min();
        let publishing = self.publisher.as_ref().and_then(Publisher::deadline);
        self.streams
            .iter()
            .filter_map(Stream::next_look)
            .chain(lonely)
            .chain(warm)
            .chain(attached)
            .chain(tail)
            .chain(publishing)
            .chain(self.loggers_deadline())
            .chain(self.closed_until)
            .chain(readers)
            .min()
    }

    fn interests(
        &self,
        listener: &UnixListener,
        signals: &OwnedFd,
        fds: &mut Vec<libc::pollfd>,
        tokens: &mut Vec<Token>,
    ) {
        fds.clear();
        tokens.clear();
        let mut add = |fd, events, token| {
            fds.push(libc::pollfd { fd, events, revents: 0 });
            tokens.push(token);
        };
        // Before the signals: a process is killed before it ends.
        let runs = self.container.as_ref().is_some_and(|container| container.exit().is_none());
        if let Some((fd, events)) = self.kills.as_ref().filter(|_| runs).and_then(Kills::interest) {
            add(fd, events, Token::Kills);
        }
        add(signals.as_raw_fd(), libc::POLLIN, Token::Signals);
        if self.connections.len() < CONNECTIONS_MAX && self.closed_until.is_none() {
            add(listener.as_raw_fd(), libc::POLLIN, Token::Listener);
        }
        for connection in &self.connections {
            let events = if connection.wants_write() { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
            add(connection.fd(), events, Token::Connection(connection.id));
        }
        if let Some((fd, events)) = self.foreign.as_ref().and_then(Foreign::interest) {
            add(fd, events, Token::Peer);
        }
        if let Some((fd, events)) = self.publisher.as_ref().and_then(Publisher::interest) {
            add(fd, events, Token::Publisher);
        }
        for running in &self.jobs {
            if !running.stream_ended {
                add(running.job.fd(), libc::POLLIN, Token::Job(running.job.pid));
            }
        }
        for (index, stream) in self.streams.iter().enumerate() {
            let (fd, events) = stream.interest();
            add(fd, events, Token::Stream(index));
        }
        for (index, input) in self.inputs.iter().enumerate() {
            let (fd, events) = input.interest();
            add(fd, events, Token::Input(index));
        }
        for (fd, events, member) in self.audience.borrow().interests() {
            add(fd, events, member.map_or(Token::Keyboard, Token::Member));
        }
    }

    fn handle(&mut self, fds: &[libc::pollfd], tokens: &[Token], listener: &UnixListener, signals: &OwnedFd) {
        let (mut over, mut inputs_over) = (Vec::new(), Vec::new());
        let ready = || fds.iter().zip(tokens).filter(|(fd, _)| fd.revents != 0);
        // Streams first: their indices are those of this round, and what a process wrote is in its log before its end is told.
        for (fd, token) in ready() {
            let is_over = match token {
                Token::Stream(index) => self.streams.get_mut(*index).is_some_and(|stream| !stream.pump(8)),
                // A FIFO without any writer reports a hang-up for good: CloseIO ended it.
                Token::Input(index) => {
                    self.inputs.get_mut(*index).is_some_and(|input| !input.pump())
                        || fd.revents & libc::POLLNVAL != 0
                }
                _ => false,
            };
            match token {
                Token::Stream(index) if is_over => over.push(*index),
                Token::Input(index) if is_over => inputs_over.push(*index),
                _ => {}
            }
        }
        for index in over.into_iter().rev() {
            self.streams.remove(index).finish();
        }
        for index in inputs_over.into_iter().rev() {
            self.inputs.remove(index);
        }
        for (fd, token) in ready() {
            match token {
                Token::Kills => self.look_for_kills(),
                Token::Signals => self.reap(signals),
                Token::Listener => self.accept(listener),
                Token::Connection(id) => self.serve_connection(*id),
                Token::Job(pid) => self.read_job(*pid),
                Token::Member(id) => self.audience.borrow_mut().serve(*id, fd.revents),
                Token::Peer => self.serve_peer(),
                Token::Publisher => self.serve_publisher(),
                Token::Keyboard => self.audience.borrow_mut().type_on(),
                Token::Stream(_) | Token::Input(_) => {}
            }
        }
    }

    /// The container is in these cgroups from now on.
    fn settle_in(&mut self, cgroups: Vec<PathBuf>) {
        self.kills = Kills::watch(&cgroups, self.publisher.is_some());
        self.cgroups = cgroups;
    }

    /// The container's cgroup has something to say.
    fn look_for_kills(&mut self) {
        if self.kills.as_mut().is_some_and(Kills::happened) {
            self.tell_out_of_memory();
        }
    }

    /// Ends the streams of processes that are gone when others kept them open for too long.
    fn give_up_streams(&mut self) {
        let now = Instant::now();
        if self.warm.as_ref().is_some_and(|warm| warm.until <= now) {
            self.cool_down();
        }
        let mut index = 0;
        while let Some(stream) = self.streams.get_mut(index) {
            let over = stream.deadline.is_some_and(|deadline| deadline <= now);
            // Of a FIFO that takes nothing nothing is heard: its stream is looked at all the same, to go on without it.
            let ended = (over || stream.is_overdue(now)) && !stream.pump(64);
            if over || ended {
                self.streams.remove(index).finish();
            } else {
                index += 1;
            }
        }
    }

    /// After an exec: a process for the next one.
    fn warm_up(&mut self) {
        let runs = self.container.as_ref().is_some_and(|container| container.exit().is_none());
        // One that was just told what to run still has the directory that the next one would make.
        let starting = self.jobs.iter().any(|running| matches!(running.purpose, jobs::Purpose::Exec { .. }));
        let ours = self.binary.is_none() && self.foreign.is_none();
        if runs && ours && !starting && !self.paused && self.warm.is_none() {
            self.warm = Warm::spawn(&self.bundle, &self.cgroups);
        }
    }

    fn cool_down(&mut self) {
        if let Some(warm) = self.warm.take() {
            warm.give_up();
        }
    }
}
