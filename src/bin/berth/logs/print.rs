//! From lines of the log back to what the container wrote: parts of a line are joined, standard error goes to ours.

use std::io::{self, Write};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::line::{self, Stream};

/// Prints lines. Remembers for each stream whether it is within a line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Printer {
    timestamps: bool,
    since: Option<OffsetDateTime>,
    within_stdout: bool,
    within_stderr: bool,
}

impl Printer {
    /// A printer that puts the time before each line of the container, or not, and leaves out what is older.
    pub(crate) fn new(timestamps: bool, since: Option<OffsetDateTime>) -> Self {
        Self { timestamps, since, ..Self::default() }
    }

    /// Prints one line of the file (without its end). A line that is no CRI log line is printed as it is: somebody put
    /// it there.
    pub(crate) fn print(&mut self, raw: &[u8], out: &mut impl Write, err: &mut impl Write) -> io::Result<()> {
        let Some(line) = line::parse(raw) else {
            out.write_all(raw)?;
            return out.write_all(b"\n");
        };
        if self.is_too_old(line.time) {
            return Ok(());
        }
        let (sink, within): (&mut dyn Write, &mut bool) = match line.stream {
            Stream::Stdout => (out, &mut self.within_stdout),
            Stream::Stderr => {
                // Both may be one terminal: what was written first stands first.
                out.flush()?;
                (err, &mut self.within_stderr)
            }
        };
        if self.timestamps && !*within {
            sink.write_all(line.time.as_bytes())?;
            sink.write_all(b" ")?;
        }
        sink.write_all(line.text)?;
        *within = line.partial;
        if line.partial { Ok(()) } else { sink.write_all(b"\n") }
    }

    fn is_too_old(&self, time: &str) -> bool {
        let Some(since) = self.since else { return false };
        OffsetDateTime::parse(time, &Rfc3339).is_ok_and(|time| time < since)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn printed(printer: &mut Printer, lines: &[&str]) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for line in lines {
            printer.print(line.as_bytes(), &mut out, &mut err).unwrap();
        }
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    const LINES: [&str; 5] = [
        "2026-01-01T00:00:01.5Z stdout P one ",
        "2026-01-01T00:00:02Z stderr F oops",
        "2026-01-01T00:00:03Z stdout F line",
        "2026-01-01T00:00:04Z stdout F ",
        "not ours",
    ];

    #[test]
    fn parts_are_joined_and_streams_kept_apart() {
        let (out, err) = printed(&mut Printer::default(), &LINES);
        assert_eq!((out.as_str(), err.as_str()), ("one line\n\nnot ours\n", "oops\n"));
    }

    #[derive(Clone, Default)]
    struct Screen(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_screen_shows_both_in_their_order() {
        let screen = Screen::default();
        let (mut out, mut err) = (io::BufWriter::new(screen.clone()), screen.clone());
        let mut printer = Printer::default();
        for (stream, text) in [("stdout", "a"), ("stderr", "b"), ("stdout", "c")] {
            let line = format!("2026-01-01T00:00:01Z {stream} F {text}");
            printer.print(line.as_bytes(), &mut out, &mut err).unwrap();
        }
        out.flush().unwrap();
        assert_eq!(screen.0.borrow().as_slice(), b"a\nb\nc\n");
    }

    #[test]
    fn times_stand_before_whole_lines_only() {
        let (out, _) = printed(&mut Printer::new(true, None), &LINES);
        assert_eq!(out, "2026-01-01T00:00:01.5Z one line\n2026-01-01T00:00:04Z \nnot ours\n");
    }

    #[test]
    fn older_lines_are_left_out() {
        let since = OffsetDateTime::parse("2026-01-01T00:00:03+00:00", &Rfc3339).unwrap();
        let (out, err) = printed(&mut Printer::new(false, Some(since)), &LINES);
        assert_eq!((out.as_str(), err.as_str()), ("line\n\nnot ours\n", ""));
    }
}
