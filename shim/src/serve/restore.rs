//! Containers made from a checkpoint: Create keeps what is needed, Start restores.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api;

use crate::create::{self, Creation};
use crate::criu::request::Source;
use crate::criu::wire;
use crate::job;
use crate::restore;
use crate::status::{Code, Failure};
use crate::stream::Sink;

use super::Shim;
use super::answer::{Outcome, refused};
use super::container::{Phase, Reply};
use super::jobs::{Purpose, Running};

/// A container that waits for its start to be restored.
#[derive(Debug)]
pub(super) struct Pending {
    source: Source,
    creation: Creation,
    copies: Vec<(OwnedFd, Sink)>,
    terminal: Option<Sink>,
    stdin: Option<OwnedFd>,
}

/// What a Create request wants to be restored, if it does.
pub(super) fn source(request: &api::CreateTaskRequest) -> Result<Option<Source>, Failure> {
    if request.checkpoint.is_empty() {
        return Ok(None);
    }
    let images = PathBuf::from(&request.checkpoint);
    if !images.is_absolute() || !images.join("inventory.img").is_file() {
        let message = format!("{}: no images of criu are there", request.checkpoint);
        return Err(Failure::new(Code::InvalidArgument, message));
    }
    let asked = wire::asked(&request.options).map_err(|error| {
        Failure::new(Code::InvalidArgument, format!("options of the checkpoint: {error}"))
    })?;
    let work = if asked.work.is_empty() {
        Path::new(&request.bundle).join("criu")
    } else {
        PathBuf::from(&asked.work)
    };
    let limit = (asked.limit > 0).then(|| Duration::from_nanos(asked.limit));
    Ok(Some(Source { images, work, criu: asked.criu, limit }))
}

impl Shim {
    pub(super) fn create_later(
        &mut self,
        reply: Reply,
        source: Source,
        creation: Creation,
        purpose: Purpose,
    ) -> Outcome {
        let Purpose::Create { process, copies, terminal, stdin } = purpose else {
            return Err(refused("there is nothing to create"));
        };
        self.pending = Some(Pending { source, creation, copies, terminal, stdin });
        self.container = Some(process);
        self.had_container = true;
        self.tell_created(0);
        self.answer(reply, &api::CreateTaskResponse::default());
        self.answer_early();
        Ok(())
    }

    pub(super) fn restore(&mut self, reply: Reply, pending: Pending) -> Outcome {
        let Pending { source, creation, copies, terminal, stdin } = pending;
        let keep = create::descriptors(&creation);
        let binary = self.binary.clone();
        let job = job::spawn(&keep, move |reporter| {
            let mut creation = creation;
            if let Err(failure) = creation.start_logger(reporter) {
                return reporter.failed(&failure);
            }
            restore::run(creation, &source, binary.as_ref(), reporter);
        })?;
        if let Some(container) = self.container.as_mut() {
            container.phase = Phase::Starting;
        }
        self.jobs.push(Running::new(job, Purpose::Restore { copies, terminal, stdin }, reply));
        Ok(())
    }
}
