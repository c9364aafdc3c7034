//! Requests read, answers and refusals written.

use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::{Enum, Message, MessageDyn, MessageField};
use containerd_shim_protos::ttrpc::proto::{Response, Status};

use crate::numbers::{time, unsigned};
use crate::status::{Code, Failure};

use super::Shim;
use super::container::{Exit, Reply};

/// How a call went: what is not refused is answered, or will be.
pub(super) type Outcome = Result<(), Failure>;

pub(super) fn parse<M: Message>(payload: &[u8]) -> Result<M, Failure> {
    M::parse_from_bytes(payload)
        .map_err(|error| Failure::new(Code::InvalidArgument, format!("malformed request: {error}")))
}

pub(super) fn not_found(exec_id: &str) -> Failure {
    if exec_id.is_empty() {
        Failure::new(Code::NotFound, "the shim holds no container")
    } else {
        Failure::new(Code::NotFound, format!("no exec {exec_id}"))
    }
}

pub(super) fn refused(message: impl Into<String>) -> Failure {
    Failure::new(Code::FailedPrecondition, message)
}

/// An answer that says no.
pub(super) fn refusal(failure: &Failure) -> Response {
    let mut status = Status::new();
    status.set_code(Enum::from_i32(i32::from(failure.code as u8)).unwrap_or_default());
    status.message.clone_from(&failure.message);
    Response { status: MessageField::some(status), ..Default::default() }
}

impl Shim {
    pub(super) fn answer(&mut self, reply: Reply, message: &dyn MessageDyn) {
        match message.write_to_bytes_dyn() {
            Ok(payload) => {
                let response = Response { payload, ..Default::default() };
                self.send(reply, &response.write_to_bytes().unwrap_or_default());
            }
            Err(error) => self.refuse(reply, &Failure::doing("encoding the answer", &error)),
        }
    }

    pub(super) fn refuse(&mut self, reply: Reply, failure: &Failure) {
        self.send(reply, &refusal(failure).write_to_bytes().unwrap_or_default());
    }

    pub(super) fn answer_wait(&mut self, reply: Reply, exit: Exit) {
        let exit_status = unsigned(exit.code);
        self.answer(
            reply,
            &api::WaitResponse { exit_status, exited_at: time(exit.at), ..Default::default() },
        );
    }

    pub(super) fn answer_delete(&mut self, reply: Reply, pid: i32, exit: Option<Exit>) {
        let mut response = api::DeleteResponse { pid: unsigned(pid), ..Default::default() };
        if let Some(exit) = exit {
            response.exit_status = unsigned(exit.code);
            response.exited_at = time(exit.at);
        }
        self.answer(reply, &response);
    }
}
