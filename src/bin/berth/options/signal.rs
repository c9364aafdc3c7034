//! A signal, by name or number.

use anyhow::{Result, bail};
use berth::proto::runtime::v1::Signal;

/// Reads TERM, SIGTERM, 15, RTMIN, RTMIN+3 or RTMAX-1.
pub(crate) fn parse(text: &str) -> Result<Signal> {
    let name = match text.parse::<i32>() {
        Ok(number) => nix::sys::signal::Signal::try_from(number).map(|signal| signal.as_str().to_owned()),
        Err(_) => Ok(text.to_ascii_uppercase().replace('+', "PLUS").replace('-', "MINUS")),
    };
    let name = name.unwrap_or_default();
    match Signal::from_str_name(&format!("SIGNAL_SIG{}", name.strip_prefix("SIG").unwrap_or(&name))) {
        Some(signal) => Ok(signal),
        None => bail!("`{text}` is no signal: write a name or a number, as in TERM, SIGQUIT, RTMIN+3 or 15"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, signal) in [
            ("TERM", Signal::Sigterm),
            ("sigquit", Signal::Sigquit),
            ("15", Signal::Sigterm),
            ("9", Signal::Sigkill),
            ("RTMIN+3", Signal::Sigrtminplus3),
            ("SIGRTMAX-1", Signal::Sigrtmaxminus1),
        ] {
            assert_eq!(parse(text).unwrap(), signal, "{text}");
        }
        for text in ["", "0", "-1", "99", "NOPE", "RUNTIME_DEFAULT", "RTMIN+99"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
