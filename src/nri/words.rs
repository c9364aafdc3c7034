//! Words of the OCI runtime specification, from its types and back: NRI carries them as text.

use oci_spec::runtime as oci;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The word for a value.
pub(super) fn of<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// The value of a word.
pub(super) fn parse<T: DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
}

/// Scheduler flags in both languages, by number of NRI's. Not by word: the library's words for two of them are not the
/// specification's.
pub(super) const SCHEDULER_FLAGS: [oci::LinuxSchedulerFlag; 7] = [
    oci::LinuxSchedulerFlag::SchedResetOnFork,
    oci::LinuxSchedulerFlag::SchedFlagReclaim,
    oci::LinuxSchedulerFlag::SchedFlagDLOverrun,
    oci::LinuxSchedulerFlag::SchedFlagKeepPolicy,
    oci::LinuxSchedulerFlag::SchedFlagKeepParams,
    oci::LinuxSchedulerFlag::SchedFlagUtilClampMin,
    oci::LinuxSchedulerFlag::SchedFlagUtilClampMax,
];

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxDeviceType, LinuxNamespaceType, PosixRlimitType};

    use super::*;

    #[test]
    fn words_are_the_specifications() {
        assert_eq!(of(&LinuxNamespaceType::Network), "network");
        assert_eq!(of(&LinuxNamespaceType::Mount), "mount");
        assert_eq!(of(&LinuxDeviceType::C), "c");
        assert_eq!(of(&PosixRlimitType::RlimitNofile), "RLIMIT_NOFILE");
        assert_eq!(parse("RLIMIT_NOFILE"), Some(PosixRlimitType::RlimitNofile));
        assert_eq!(parse::<LinuxNamespaceType>("nonsense"), None);
    }
}
