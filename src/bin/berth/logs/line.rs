//! One line of a CRI log.

/// Which of the container's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// When it was written, RFC 3339 as in the file.
    pub time: &'a str,
    /// Where it came from.
    pub stream: Stream,
    /// More of the container's line follows in the next one of this stream (tag `P`).
    pub partial: bool,
    /// What the container wrote, without the line's end.
    pub text: &'a [u8],
}

/// Takes a line (without its end) apart. `None`: it is none of a CRI log.
pub(crate) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let (time, rest) = word(line)?;
    let (stream, rest) = word(rest)?;
    // A line without text may end after its tags.
    let (tags, text) = word(rest).unwrap_or((rest, b""));
    let time = std::str::from_utf8(time).ok().filter(|time| looks_like_time(time))?;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags are separated by colons; the first says whether the line is whole.
    let partial = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line { time, stream, partial, text })
}

fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    Some((bytes.get(..space)?, bytes.get(space + 1..)?))
}

fn looks_like_time(text: &str) -> bool {
    text.len() >= "2026-01-31T10:00:00Z".len() && text.as_bytes().get(10) == Some(&b'T')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TIME: &str = "2026-11-21T22:57:01.123456789Z";

    fn line(rest: &str) -> Vec<u8> {
        format!("{TIME} {rest}").into_bytes()
    }

    #[test]
    fn full_and_partial_lines() {
        let full = line("stdout F hello  world ");
        let expected = Line { time: TIME, stream: Stream::Stdout, partial: false, text: b"hello  world " };
        assert_eq!(parse(&full).unwrap(), expected);
        let partial = line("stderr P x");
        let partial = parse(&partial).unwrap();
        assert!(partial.partial && partial.stream == Stream::Stderr);
    }

    #[test]
    fn empty_text_with_and_without_its_space() {
        for rest in ["stdout F ", "stdout F"] {
            assert_eq!(parse(&line(rest)).unwrap().text, b"", "{rest:?}");
        }
    }

    #[test]
    fn further_tags_and_bytes_that_are_no_text() {
        let mut bytes = line("stdout P:more ");
        bytes.extend([0xff, 0x00]);
        assert_eq!(parse(&bytes).unwrap().text, [0xff, 0x00]);
    }

    #[test]
    fn other_lines_are_none() {
        for other in ["", "hello", "a b c d", "{\"log\":\"x\"}"] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
        for rest in ["stdin F x", "stdout X x", "stdout", ""] {
            assert_eq!(parse(&line(rest)), None, "{rest}");
        }
    }
}
