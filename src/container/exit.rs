//! A container's end: noticing it, and freeing what it had.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::shim::{ExitRecord, Shim, read_exit_record};

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) exit_code: i32,
    /// Nanoseconds since the Unix epoch.
    pub(crate) finished_at: i64,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    /// Its shim is gone and left no exit status.
    pub(crate) shim_lost: bool,
}

/// Exit code of a container whose real one nobody knows, as containerd gives it.
const UNKNOWN_EXIT: i32 = 255;
/// Its reason, so that it is not taken for a command that returned 255.
const UNKNOWN_REASON: &str = "Unknown";

/// Waits until the container of `shim` has ended.
pub(crate) async fn watch(shim: &Shim) -> Ended {
    let answer = shim.wait("").await;
    if let Some(record) = read_exit_record(shim.bundle()) {
        return ended(&record);
    }
    match answer {
        Ok(status) => ended(&ExitRecord {
            pid: 0,
            exit_code: i32::try_from(status).unwrap_or(UNKNOWN_EXIT),
            signal: 0,
            exited_at_ns: now(),
            oom_killed: false,
        }),
        Err(error) => Ended {
            exit_code: UNKNOWN_EXIT,
            finished_at: now(),
            reason: UNKNOWN_REASON,
            message: format!("the container's shim ended without leaving an exit status: {error}"),
            shim_lost: true,
        },
    }
}

/// How a container ended whose shim is gone: from what it left, or as unknown.
pub(crate) fn ended_unseen(bundle: &Path) -> Ended {
    read_exit_record(bundle).map_or_else(
        || Ended {
            exit_code: UNKNOWN_EXIT,
            finished_at: now(),
            reason: UNKNOWN_REASON,
            message: "the container ended while nobody watched: its shim is gone and left no exit status"
                .to_owned(),
            shim_lost: true,
        },
        |record| ended(&record),
    )
}

fn ended(record: &ExitRecord) -> Ended {
    let (reason, message) = if record.oom_killed {
        ("OOMKilled", "the container used more memory than its limit".to_owned())
    } else if record.exit_code == 0 {
        ("Completed", String::new())
    } else {
        ("Error", String::new())
    };
    Ended { exit_code: record.exit_code, finished_at: record.exited_at_ns, reason, message, shim_lost: false }
}

/// Frees what an ended container still has: its cgroup, the shim's state, the shim.
pub(crate) async fn clean_up(id: &str, shim: &Shim) {
    if let Err(error) = shim.delete("").await
        && !error.is_gone()
    {
        tracing::warn!(container = id, error = %error, "freeing an ended container");
    }
    if let Err(error) = shim.shutdown().await {
        tracing::warn!(container = id, error = %error, "ending the shim");
    }
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(exit_code: i32, oom_killed: bool) -> ExitRecord {
        ExitRecord { pid: 1, exit_code, signal: 0, exited_at_ns: 9, oom_killed }
    }

    #[test]
    fn reasons_are_those_the_kubelet_knows() {
        assert_eq!(ended(&record(0, false)).reason, "Completed");
        assert_eq!(ended(&record(3, false)).reason, "Error");
        assert_eq!(ended(&record(137, true)).reason, "OOMKilled");
        // A process of the container may be killed for memory and the first one still end well.
        assert_eq!(ended(&record(0, true)).reason, "OOMKilled");
    }

    #[test]
    fn an_end_nobody_saw_is_unknown() {
        let ended = ended_unseen(Path::new("/nonexistent"));
        assert_eq!((ended.exit_code, ended.reason, ended.shim_lost), (255, "Unknown", true));
    }
}
