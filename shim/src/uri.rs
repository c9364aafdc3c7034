//! Streams that containerd's clients give as URIs, when neither they nor containerd are to copy the output: `file:///path` for a file
//! that it is appended to, `binary:///path?name=value` for a program that takes it (containerd, `core/runtime/v2/README.md`,
//! "Logging"; see `logger`). The scheme of standard output decides for both streams.

use std::path::PathBuf;

use crate::status::{Code, Failure};

/// Words of a command line, from a request.
const ARGUMENTS_MAX: usize = 128;

/// Where a URI says that output goes.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Destination {
    File(PathBuf),
    Program(Command),
}

/// A program, and how it is called.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Command {
    pub(crate) path: PathBuf,
    /// Names and values in turn.
    pub(crate) arguments: Vec<String>,
    /// It says with a byte that it is ready: that it closes the pipe is not enough (`binary-v2`).
    pub(crate) says_ready: bool,
}

impl Destination {
    /// `None` for what is no such URI.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, Failure> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(None) };
        if !matches!(scheme, "file" | "binary" | "binary-v2") {
            return Ok(None);
        }
        let wrong = |what: &str| Failure::new(Code::InvalidArgument, format!("{text}: {what}"));
        let rest = rest.split('#').next().unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if !path.starts_with('/') {
            return Err(wrong("the path is not absolute: three slashes go before it"));
        }
        let decoded = |word: &str, plus: bool| {
            decode(word, plus).ok_or_else(|| wrong("a percent sign without two hexadecimal digits"))
        };
        let path = PathBuf::from(decoded(path, false)?);
        if scheme == "file" {
            return Ok(Some(Self::File(path)));
        }
        let mut arguments: Vec<String> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name, true)?;
            // Of a name that comes again containerd passes the first value.
            if arguments.iter().step_by(2).any(|known| *known == name) {
                continue;
            }
            if arguments.len() >= ARGUMENTS_MAX {
                return Err(wrong("too many arguments"));
            }
            arguments.extend([name, decoded(value, true)?]);
        }
        let says_ready = scheme == "binary-v2";
        Ok(Some(Self::Program(Command { path, arguments, says_ready })))
    }
}

/// Percent-decoding; in a query `+` is a blank. `None` for what is malformed, or no text.
fn decode(text: &str, plus: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let value = digit()? * 16 + digit()?;
                u8::try_from(value).ok()?
            }
            b'+' if plus => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parsed(text: &str) -> Option<Destination> {
        Destination::parse(text).unwrap()
    }

    fn program(text: &str) -> Command {
        match parsed(text) {
            Some(Destination::Program(command)) => command,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn names_and_values_are_arguments_in_turn() {
        let found =
            program("binary:///usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib%2Fnerdctl&a=b+c");
        assert_eq!(found.path, PathBuf::from("/usr/bin/nerdctl"));
        assert_eq!(found.arguments, ["_NERDCTL_INTERNAL_LOGGING", "/var/lib/nerdctl", "a", "b c"]);
        assert!(!found.says_ready && program("binary-v2:///l").says_ready);
        assert_eq!(program("binary:///l?a=1&a=2&b").arguments, ["a", "1", "b", ""]);
        assert_eq!(program("binary:///l?#part").arguments, [""; 0]);
        assert_eq!(parsed("file:///a%20b+c.log"), Some(Destination::File("/a b+c.log".into())));
    }

    #[test]
    fn what_is_no_uri_of_ours_is_left_to_others() {
        for text in ["", "/run/fifo", "cri-log:///x", "attach:", "https://x/y", "fifo:///x"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let many = format!("binary:///l?{}", (0..200).map(|n| format!("a{n}=1&")).collect::<String>());
        for text in
            ["file://relative", "binary://", "file:///a%2", "binary:///l?%zz=1", "file:///a%00", &many]
        {
            assert_eq!(Destination::parse(text).unwrap_err().code, Code::InvalidArgument, "{text}");
        }
    }
}
