//! What a dump and a restore need to know, whoever has criu do them.

use std::path::PathBuf;
use std::time::Duration;

use super::in_path;
use super::wire::Asked;
use crate::status::{Code, Failure};

/// Where the container's standard streams led, in the directory of the images: runc's and crun's name for it.
pub(crate) const DESCRIPTORS: &str = "descriptors.json";
/// criu's log of a dump.
pub(crate) const DUMP_LOG: &str = "dump.log";
/// criu's log of a restore.
pub(crate) const RESTORE_LOG: &str = "restore.log";

/// What a dump needs to know.
#[derive(Debug)]
pub(crate) struct Dump {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) pid: i32,
    pub(crate) cgroups: Vec<PathBuf>,
    /// Somebody else froze it.
    pub(crate) paused: bool,
    pub(crate) images: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) limit: Option<Duration>,
    pub(crate) asked: Asked,
}

/// What to restore from, and by what.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) images: PathBuf,
    /// For criu's log.
    pub(crate) work: PathBuf,
    pub(crate) criu: String,
    pub(crate) limit: Option<Duration>,
}

/// The program asked for, or that in PATH.
pub(crate) fn program(asked: &str) -> Result<PathBuf, Failure> {
    if !asked.is_empty() {
        return Ok(PathBuf::from(asked));
    }
    in_path("criu").ok_or_else(|| {
        Failure::new(Code::FailedPrecondition, "there is no criu in PATH: install the package criu")
    })
}
