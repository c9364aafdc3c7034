//! The command `berth` at the streams of containers: piped, and on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::support::World;
use crate::support::runtime::binaries;
use crate::trials;

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        exec_passes_input_on,
        exec_sends_and_prints_at_once,
        exec_prints_as_it_happens,
        run_reads_until_its_input_ends,
        a_terminal_has_a_size_and_a_prompt,
        attach_sees_and_types,
        what_outlives_the_daemon_says_so,
        two_keys_leave,
        a_signal_gives_the_terminal_back,
        a_terminal_is_asked_for_without_one,
    ]
}

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

impl World {
    fn berth_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries().join("berth"));
        command
            .args(arguments)
            .env("BERTH_ADDRESS", &self.daemon.socket)
            .env("BERTH_LOG_DIR", self.run.join("client-logs"));
        command
    }

    /// `berth` that reads `input` from a pipe.
    fn berth_reads(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.berth_command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.netns.run(|| command.spawn()).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // Beside the reading: a large input comes back while it is still written.
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        let _ = writer.join().unwrap();
        output
    }

    /// `berth` on a terminal of 132 columns and 43 rows.
    fn berth_on_terminal(&self, arguments: &[&str]) -> OnTerminal {
        let size = Winsize { ws_row: 43, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).unwrap();
        let mut command = self.berth_command(arguments);
        let slave = File::from(pair.slave);
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        let child = self.netns.run(|| command.spawn()).unwrap();
        OnTerminal { child, screen: File::from(pair.master), seen: String::new() }
    }
}

/// A person at a terminal.
struct OnTerminal {
    child: Child,
    screen: File,
    seen: String,
}

impl OnTerminal {
    fn types(&mut self, text: &str) {
        self.screen.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the screen shows it.
    fn sees(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        while !self.seen.contains(text) {
            assert!(Instant::now() < end, "{text:?} is not on the screen: {:?}", self.seen);
            let mut fds = [nix::poll::PollFd::new(
                std::os::fd::AsFd::as_fd(&self.screen),
                nix::poll::PollFlags::POLLIN,
            )];
            if nix::poll::poll(&mut fds, 100u16).unwrap() == 0 {
                continue;
            }
            // The other side's end is an error of input and output here.
            let read = self.screen.read(&mut buffer).unwrap_or(0);
            assert!(read > 0, "it ended before {text:?} was on the screen: {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        self.seen = self.seen.split_once(text).unwrap().1.to_owned();
    }

    fn is_sent(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// What the terminal does by itself: shows what is typed, hands it on by the line.
    fn does(&self) -> LocalFlags {
        tcgetattr(&self.screen).unwrap().local_flags & (LocalFlags::ECHO | LocalFlags::ICANON)
    }

    fn ends_with(self, code: i32) {
        self.ended_with(code);
    }

    /// The same, and the terminal is still there to look at.
    fn ended_with(mut self, code: i32) -> Self {
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "it does not end: {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.code(), Some(code), "{:?}", self.seen);
        self
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn exec_passes_input_on(world: &mut World) {
    let (_, _) = world.pod_with_sleeper("input").await;
    let output =
        world.berth_reads(&["exec", "-i", "sleeper", "sh", "-c", "cat; echo end >&2; exit 3"], b"one\ntwo\n");
    assert_eq!((text(&output.stdout), output.status.code()), ("one\ntwo\n".into(), Some(3)));
    assert_eq!(text(&output.stderr), "end\n");
    let megabytes = crate::support::image::noise(3 << 20, 7);
    let output = world.berth_reads(&["exec", "-i", "sleeper", "cat"], &megabytes);
    assert!(output.stdout == megabytes, "{} of {} bytes came back", output.stdout.len(), megabytes.len());
    // Without -i nothing of ours is its input.
    let output = world.berth_reads(&["exec", "sleeper", "cat"], b"not this\n");
    assert_eq!((text(&output.stdout), output.status.code()), (String::new(), Some(0)));
    let output = world.berth_reads(&["exec", "sleeper", "no-such-command"], b"");
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
}

/// A command that prints more than any buffer takes before it reads, and input of that size: who waits for the one while it
/// does the other waits for ever.
async fn exec_sends_and_prints_at_once(world: &mut World) {
    const INPUT: usize = 24 << 20;
    world.pod_with_sleeper("both").await;
    let script = "head -c 64000000 /dev/zero; wc -c >&2";
    let output = world.berth_reads(&["exec", "-i", "sleeper", "sh", "-c", script], &vec![b'x'; INPUT]);
    assert_eq!((output.stdout.len(), output.status.code()), (64_000_000, Some(0)));
    assert_eq!(text(&output.stderr).trim(), INPUT.to_string());
}

async fn exec_prints_as_it_happens(world: &mut World) {
    world.pod_with_sleeper("live").await;
    let mut command = world.berth_command(&["exec", "sleeper", "sh", "-c", "echo now; sleep 1000"]);
    let mut child = world.netns.run(|| command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()).unwrap();
    let mut line = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"now\n");
    child.kill().unwrap();
    child.wait().unwrap();
}

async fn run_reads_until_its_input_ends(world: &mut World) {
    let image = world.image("busybox").await;
    let output =
        world.berth_reads(&["run", "-i", "--rm", &image, "sh", "-c", "echo first; cat; exit 4"], b"second\n");
    assert_eq!((text(&output.stdout), output.status.code()), ("first\nsecond\n".into(), Some(4)));
    let output = world.berth_reads(&["run", "-i", "--rm", &image, "no-such-command"], b"x");
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
    world.no_leaks();
}

async fn a_terminal_has_a_size_and_a_prompt(world: &mut World) {
    let image = world.image("busybox").await;
    let mut person = world.berth_on_terminal(&["run", "-it", "--rm", &image, "sh"]);
    person.sees("# ");
    person.types("stty size\n");
    person.sees("43 132");
    // Ctrl-C is the program's.
    // The shell reads keys by itself until it runs something.
    person.types("echo re''ady; cat\n");
    person.sees("ready");
    person.types("\x03");
    person.sees("# ");
    person.types("exit 6\n");
    person.ends_with(6);
    world.no_leaks();

    world.pod_with_sleeper("terminal").await;
    let mut person = world.berth_on_terminal(&["exec", "-it", "sleeper", "sh"]);
    person.sees("# ");
    person.types("test -t 0 && echo on a term''inal\n");
    person.sees("on a terminal");
    person.types("exit 7\n");
    person.ends_with(7);
}

async fn attach_sees_and_types(world: &mut World) {
    let image = world.image("busybox").await;
    let id = world.berth_reads(&["run", "-d", "-i", "--name", "typed", &image, "cat"], b"");
    world.remember(text(&id.stdout).trim());
    let output = world.berth_reads(&["attach", "--no-stdin", "nobody"], b"");
    assert!(!output.status.success() && text(&output.stderr).contains("nobody"), "{}", text(&output.stderr));
    let mut command = world.berth_command(&["attach", "typed"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = world.netns.run(|| command.spawn()).unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    stdin.write_all(b"hello\n").unwrap();
    let mut line = [0; 6];
    stdout.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"hello\n");
    // It was started detached: its input outlives who types, and a second one finds it.
    drop(stdin);
    world.restart().await;
    child.kill().unwrap();
    child.wait().unwrap();
    let mut command = world.berth_command(&["attach", "typed"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = world.netns.run(|| command.spawn()).unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    stdin.write_all(b"again\n").unwrap();
    stdout.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"again\n");
    let stopped = world.berth_reads(&["rm", "--force", "typed"], b"");
    assert!(stopped.status.success(), "{}", text(&stopped.stderr));
    child.wait().unwrap();
    world.no_leaks();
}

/// Clients whose daemon is stopped, and is killed: they say what became of what they were at, and what to do.
async fn what_outlives_the_daemon_says_so(world: &mut World) {
    let image = world.image("busybox").await;
    let id = world.berth_reads(&["run", "-d", "-i", "--name", "kept", &image, "cat"], b"");
    world.remember(text(&id.stdout).trim());
    let begin = |world: &World, arguments: &[&str]| {
        let mut command = world.berth_command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = world.netns.run(|| command.spawn()).unwrap();
        // It is there when what it is told comes back.
        child.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
        let mut line = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        assert_eq!(&line, b"hello\n");
        child
    };
    let says = |child: Child, code: i32, words: &[&str]| {
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    };
    for stopped in [true, false] {
        let attached = begin(world, &["attach", "kept"]);
        let executed = begin(world, &["exec", "-i", "kept", "cat"]);
        // Its input ends with the session, and with it the container: that end is waited for.
        let ran = begin(world, &["run", "-i", "--rm", &image, "sh", "-c", "cat; exit 7"]);
        if stopped {
            world.restart().await;
            says(attached, 125, &["attached to kept", "being stopped", "runs on; attach again"]);
            says(executed, 125, &["executing cat in kept", "being stopped", "the command with it"]);
        } else {
            world.crash_and_restart().await;
            says(attached, 125, &["kept", "runs on: attach again"]);
            says(executed, 125, &["executing cat in kept", "connection to berthd was lost"]);
        }
        says(ran, 7, &["attaches again"]);
    }
    let removed = world.berth_reads(&["rm", "--force", "kept"], b"");
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    world.no_leaks();
}

async fn two_keys_leave(world: &mut World) {
    let image = world.image("busybox").await;
    let mut person = world.berth_on_terminal(&["run", "-it", "--name", "left", &image, "sh"]);
    person.sees("# ");
    person.types("\x10\x11");
    person.ends_with(0);
    let mut person = world.berth_on_terminal(&["attach", "left"]);
    person.types("echo still h''ere\n");
    person.sees("still here");
    person.types("exit\n");
    person.ends_with(0);
    let removed = world.berth_reads(&["rm", "--force", "left"], b"");
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    world.no_leaks();
}

async fn a_signal_gives_the_terminal_back(world: &mut World) {
    let usual = LocalFlags::ECHO | LocalFlags::ICANON;
    world.pod_with_sleeper("restored").await;
    let mut person = world.berth_on_terminal(&["exec", "-it", "sleeper", "sh"]);
    person.sees("# ");
    assert_eq!(person.does(), LocalFlags::empty());
    person.is_sent(Signal::SIGTERM);
    assert_eq!(person.ended_with(143).does(), usual);
    // A password that somebody begins to type, and thinks better of it.
    let mut person = world.berth_on_terminal(&["login", "--username", "somebody", "registry.example"]);
    person.sees("Password: ");
    assert_eq!(person.does(), LocalFlags::ICANON);
    person.is_sent(Signal::SIGINT);
    assert_eq!(person.ended_with(130).does(), usual);
}

async fn a_terminal_is_asked_for_without_one(world: &mut World) {
    let image = world.image("busybox").await;
    for arguments in [&["run", "-it", "--rm", &image, "sh"][..], &["exec", "-it", "nobody", "sh"]] {
        let output = world.berth_reads(arguments, b"");
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains("terminal"), "{}", text(&output.stderr));
    }
    world.no_leaks();
}
