//! The signal that asks a container to stop.

use oci_spec::image::ImageConfiguration;

use super::Error;
use crate::proto::runtime::v1::{ContainerConfig, Signal};

/// Real-time signals as the C library numbers them: the kernel's first two belong to its threads.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The container's stop signal (KEP-4960) over the image's `StopSignal` over SIGTERM.
pub fn stop_signal(container: &ContainerConfig, image: &ImageConfiguration) -> Result<i32, Error> {
    const FIELD: &str = "stop_signal";
    match Signal::try_from(container.stop_signal) {
        Ok(Signal::RuntimeDefault) => {}
        Ok(signal) => {
            let name = signal.as_str_name().trim_start_matches("SIGNAL_");
            return parse(name).ok_or_else(|| Error::invalid(FIELD, name, "no such signal"));
        }
        Err(_) => return Err(Error::invalid(FIELD, container.stop_signal.to_string(), "no such signal")),
    }
    match image.config().as_ref().and_then(|c| c.stop_signal().as_deref()).map(str::trim) {
        None | Some("") => Ok(libc::SIGTERM),
        Some(text) => {
            parse(text).ok_or_else(|| Error::invalid("StopSignal of the image", text, "no such signal"))
        }
    }
}

/// Parses `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, and the CRI's `SIGRTMINPLUS3`.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return Some(RTMIN + offset(rest, &["PLUS", "+"])?).filter(|n| *n <= RTMAX);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return Some(RTMAX - offset(rest, &["MINUS", "-"])?).filter(|n| *n >= RTMIN);
    }
    let number = match name {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "ILL" => libc::SIGILL,
        "TRAP" => libc::SIGTRAP,
        "ABRT" | "IOT" => libc::SIGABRT,
        "BUS" => libc::SIGBUS,
        "FPE" => libc::SIGFPE,
        "KILL" => libc::SIGKILL,
        "USR1" => libc::SIGUSR1,
        "SEGV" => libc::SIGSEGV,
        "USR2" => libc::SIGUSR2,
        "PIPE" => libc::SIGPIPE,
        "ALRM" => libc::SIGALRM,
        "TERM" => libc::SIGTERM,
        "STKFLT" => libc::SIGSTKFLT,
        "CHLD" | "CLD" => libc::SIGCHLD,
        "CONT" => libc::SIGCONT,
        "STOP" => libc::SIGSTOP,
        "TSTP" => libc::SIGTSTP,
        "TTIN" => libc::SIGTTIN,
        "TTOU" => libc::SIGTTOU,
        "URG" => libc::SIGURG,
        "XCPU" => libc::SIGXCPU,
        "XFSZ" => libc::SIGXFSZ,
        "VTALRM" => libc::SIGVTALRM,
        "PROF" => libc::SIGPROF,
        "WINCH" => libc::SIGWINCH,
        "IO" | "POLL" => libc::SIGIO,
        "PWR" => libc::SIGPWR,
        "SYS" => libc::SIGSYS,
        _ => return None,
    };
    Some(number)
}

/// The CRI's enumeration value of a signal, for a container's status.
pub fn to_cri(number: i32) -> Signal {
    // Names that share a number: the kernel's own name comes back.
    let preferred = match number {
        libc::SIGABRT => Some(Signal::Sigabrt),
        libc::SIGCHLD => Some(Signal::Sigchld),
        libc::SIGIO => Some(Signal::Sigio),
        _ => None,
    };
    let of = |value: &i32| Signal::try_from(*value).ok();
    let same = |s: &Signal| parse(s.as_str_name().trim_start_matches("SIGNAL_")) == Some(number);
    preferred.or_else(|| (1..=65).filter_map(|v| of(&v)).find(same)).unwrap_or(Signal::RuntimeDefault)
}

fn offset(rest: &str, prefixes: &[&str]) -> Option<i32> {
    if rest.is_empty() {
        return Some(0);
    }
    let digits = prefixes.iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    digits.parse::<u8>().ok().map(i32::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMINPLUS15", Some(49)),
            ("SIGRTMAXMINUS14", Some(50)),
            ("64", Some(64)),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("SIGRTMIN+31", None),
            ("RTMAX-31", None),
            ("SIG", None),
            ("SIGNOPE", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }

    #[test]
    fn every_signal_of_the_cri_has_a_number() {
        for value in 1..=65 {
            let mut fixture = Fixture::new();
            fixture.container.stop_signal = value;
            let number = stop_signal(&fixture.container, &fixture.image).unwrap();
            let back = to_cri(number);
            fixture.container.stop_signal = back as i32;
            assert_eq!(stop_signal(&fixture.container, &fixture.image).unwrap(), number);
        }
        assert_eq!(to_cri(0), Signal::RuntimeDefault);
    }

    #[test]
    fn precedence() {
        let mut fixture = Fixture::new();
        assert_eq!(stop_signal(&fixture.container, &fixture.image).unwrap(), 15);
        fixture.image_config(serde_json::json!({"StopSignal": "SIGQUIT"}));
        assert_eq!(stop_signal(&fixture.container, &fixture.image).unwrap(), 3);
        fixture.container.stop_signal = Signal::Sigusr1 as i32;
        assert_eq!(stop_signal(&fixture.container, &fixture.image).unwrap(), 10);
        fixture.container.stop_signal = 99;
        assert!(stop_signal(&fixture.container, &fixture.image).is_err());
        fixture.container.stop_signal = 0;
        fixture.image_config(serde_json::json!({"StopSignal": "SIGNOPE"}));
        assert!(stop_signal(&fixture.container, &fixture.image).is_err());
    }
}
