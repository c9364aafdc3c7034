//! The container's log in the CRI format: `<RFC3339Nano> <stdout|stderr> <F|P> <text>\n`.
//!
//! A line longer than 16 KiB is written in parts marked `P`; what is left without a newline when a stream ends is written as a
//! line. Everything that came with one read goes out with one write, without fsync. A write that fails or falls short (the disk is
//! full) is taken back, so that no line is torn; the lines are dropped and counted, and the log says so when there is space again:
//! the container is never held up by its log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest text of one log line, as the kubelet and containerd have it.
pub(crate) const LINE_MAX: usize = 16 << 10;
/// Composed lines are written when there are this many bytes of them.
const BATCH: usize = 32 << 10;

/// An open log file.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    dropped: u64,
    cause: String,
}

/// The stream a line came on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    Stdout,
    Stderr,
}

impl Origin {
    /// As the log has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

impl Log {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = open(&path)?;
        Ok(Self { path, file, dropped: 0, cause: String::new() })
    }

    /// Opens the path anew, after a rotation moved the old file away. The old file stays in use when that fails.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    fn write(&mut self, text: &mut Vec<u8>, lines: &mut u64) {
        if text.is_empty() {
            return;
        }
        if self.dropped > 0 {
            let mut notice = Vec::new();
            let message = format!("[berth: {} log lines dropped: {}]", self.dropped, self.cause);
            compose(&mut notice, &timestamp(SystemTime::now()), Origin::Stderr, true, message.as_bytes());
            if self.write_whole(&notice).is_ok() {
                self.dropped = 0;
            }
        }
        if self.dropped == 0 {
            match self.write_whole(text) {
                Ok(()) => *lines = 0,
                Err(error) => self.cause = error.to_string(),
            }
        }
        self.dropped += *lines;
        *lines = 0;
        text.clear();
    }

    /// Writes all of it or nothing.
    fn write_whole(&mut self, text: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while let Some(rest) = text.get(written..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(count) if count > 0 => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    if written > 0 {
                        let length = self.file.metadata()?.len();
                        self.file.set_len(length.saturating_sub(u64::try_from(written).unwrap_or(0)))?;
                    }
                    return Err(result.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into()));
                }
            }
        }
        Ok(())
    }
}

/// Cuts one stream into log lines.
#[derive(Debug)]
pub(crate) struct Lines {
    origin: Origin,
    partial: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(origin: Origin) -> Self {
        Self { origin, partial: Vec::new() }
    }

    /// Writes what `data` completes.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn push(&mut self, log: &mut Log, mut data: &[u8]) {
        let time = timestamp(SystemTime::now());
        let (mut text, mut lines) = (Vec::new(), 0);
        while !data.is_empty() {
            let room = LINE_MAX - self.partial.len();
            let window = data.get(..data.len().min(room + 1)).unwrap_or(data);
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                let (line, rest) = data.split_at(end);
                self.take(&mut text, &time, true, line);
                data = rest.get(1..).unwrap_or_default();
                lines += 1;
            } else if window.len() > room {
                let (part, rest) = data.split_at(room);
                self.take(&mut text, &time, false, part);
                data = rest;
                lines += 1;
            } else {
                self.partial.extend_from_slice(data);
                break;
            }
            if text.len() >= BATCH {
                log.write(&mut text, &mut lines);
            }
        }
        log.write(&mut text, &mut lines);
    }

    /// The stream ended: writes what is left without a newline.
    pub(crate) fn finish(&mut self, log: &mut Log) {
        if !self.partial.is_empty() {
            let (mut text, mut lines) = (Vec::new(), 1);
            self.take(&mut text, &timestamp(SystemTime::now()), true, &[]);
            log.write(&mut text, &mut lines);
        }
    }

    fn take(&mut self, text: &mut Vec<u8>, time: &str, full: bool, rest: &[u8]) {
        if self.partial.is_empty() {
            compose(text, time, self.origin, full, rest);
        } else {
            self.partial.extend_from_slice(rest);
            compose(text, time, self.origin, full, &self.partial);
            self.partial = Vec::new();
        }
    }
}

fn compose(text: &mut Vec<u8>, time: &str, origin: Origin, full: bool, line: &[u8]) {
    text.extend_from_slice(time.as_bytes());
    text.push(b' ');
    text.extend_from_slice(origin.name().as_bytes());
    text.extend_from_slice(if full { b" F " } else { b" P " });
    text.extend_from_slice(line);
    text.push(b'\n');
}

/// RFC 3339 with nanoseconds, UTC.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to a civil date, with years that begin in March (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * index + 2) / 5 + 1;
    let month = if index < 10 { index + 3 } else { index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn written(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = Log::open(path.clone()).unwrap();
        let mut lines = Lines::new(Origin::Stdout);
        for chunk in chunks {
            lines.push(&mut log, chunk);
        }
        lines.finish(&mut log);
        std::fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| {
                let mut parts = line.splitn(4, ' ').skip(1);
                assert_eq!(parts.next(), Some("stdout"));
                (parts.next().unwrap().to_owned(), parts.next().unwrap().to_owned())
            })
            .collect()
    }

    #[test]
    fn lines_that_arrive_in_pieces_are_joined() {
        let lines = written(&[b"a", b"b\nc", b"", b"d\n\n", b"end"]);
        let expected = [("F", "ab"), ("F", "cd"), ("F", ""), ("F", "end")];
        assert_eq!(lines, expected.map(|(tag, text)| (tag.to_owned(), text.to_owned())));
    }

    #[test]
    fn long_lines_are_split_at_16_kib_and_exactly_16_kib_is_not() {
        let exact = [vec![b'x'; LINE_MAX], vec![b'\n']].concat();
        assert_eq!(written(&[&exact]), [("F".to_owned(), "x".repeat(LINE_MAX))]);
        let long = [vec![b'x'; 2 * LINE_MAX + 1], vec![b'\n']].concat();
        let tags: Vec<_> = written(&[&long]).into_iter().map(|(tag, text)| (tag, text.len())).collect();
        assert_eq!(tags, [("P".into(), LINE_MAX), ("P".into(), LINE_MAX), ("F".into(), 1)]);
        let pieces: Vec<&[u8]> = long.chunks(1000).collect();
        let tags: Vec<_> = written(&pieces).into_iter().map(|(tag, text)| (tag, text.len())).collect();
        assert_eq!(tags, [("P".into(), LINE_MAX), ("P".into(), LINE_MAX), ("F".into(), 1)]);
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        let at = |seconds, nanos| timestamp(UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(1_709_210_096, 5), "2024-02-29T12:34:56.000000005Z");
        assert_eq!(at(4_107_542_399, 999_999_999), "2100-02-28T23:59:59.999999999Z");
    }

    #[test]
    fn a_full_disk_drops_whole_lines_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = Log::open(path.clone()).unwrap();
        let mut lines = Lines::new(Origin::Stderr);
        log.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        lines.push(&mut log, b"lost\nlost as well\n");
        assert_eq!(log.dropped, 2);
        log.reopen().unwrap();
        lines.push(&mut log, b"kept\n");
        let text = std::fs::read_to_string(path).unwrap();
        let texts: Vec<&str> = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap()).collect();
        assert_eq!(texts, ["[berth: 2 log lines dropped: No space left on device (os error 28)]", "kept"]);
    }
}
