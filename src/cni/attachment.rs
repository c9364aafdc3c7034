//! An attachment: what is asked of plugins, and its record.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::config::List;
use super::error::Error;
use crate::proto::berth::v1::AttachmentRecord;

/// What a pod wants of a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Id of the pod: `CNI_CONTAINERID`.
    pub pod_id: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// Interface in it.
    pub interface: String,
    /// `CNI_ARGS`, in order.
    pub arguments: Vec<(&'static str, String)>,
    /// Capability arguments by name: each plugin gets those it declares.
    pub capabilities: Map<String, Value>,
}

impl Request {
    /// Name of its record. Interface names have no `/`.
    pub(super) fn key(&self) -> String {
        format!("{}.{}", self.pod_id, self.interface)
    }
}

/// The record of an attachment that is to be made.
pub(super) fn record(list: &List, request: &Request) -> Result<AttachmentRecord, Error> {
    let refused = |name: &'static str, value: &str, reason| {
        Err(Error::Parameter { name, value: value.to_owned(), reason })
    };
    let interface = &request.interface;
    let visible = interface.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':'));
    if interface.is_empty() || interface.len() > 15 || !visible {
        return refused("CNI_IFNAME", interface, "1 to 15 visible characters without '/' and ':'");
    }
    let Some(netns) = request.netns.to_str() else {
        return refused("CNI_NETNS", &request.netns.to_string_lossy(), "not UTF-8");
    };
    if let Some((name, value)) = request.arguments.iter().find(|(_, value)| value.contains([';', '=', '\0']))
    {
        return refused(name, value, "it can't hold ';' or '='");
    }
    let arguments: Vec<_> = request.arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(AttachmentRecord {
        pod_id: request.pod_id.clone(),
        network: list.name.clone(),
        netns: netns.to_owned(),
        interface: interface.clone(),
        arguments: arguments.join(";"),
        capabilities: Value::Object(request.capabilities.clone()).to_string(),
        list: list.to_record(),
        result: String::new(),
    })
}
