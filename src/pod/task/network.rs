//! Requests and jobs that change which networks the pod is on.
//!
//! They may run beside a stop: the network room takes one change of a sandbox after the other, and a sandbox that is
//! deleted has nothing that could be joined.

use std::sync::Arc;

use berth_cni::EndpointOptions;

use super::{Done, Phase, Task};
use crate::pod::error::Error;
use crate::pod::network;
use crate::pod::request::Reply;

impl Task {
    pub(super) fn connect(&mut self, network: String, options: EndpointOptions, reply: Reply<()>) {
        if self.phase != Phase::Ready {
            let _ = reply.send(Err(self.pod_state("Connect")));
            return;
        }
        let (shared, id) = (Arc::clone(&self.shared), self.record.id.clone());
        let config = Arc::clone(&self.config);
        self.job(async move {
            let result = network::connect(&shared, &config, &id, &network, options).await;
            Done::Networked { result, reply }
        });
    }

    pub(super) fn disconnect(&mut self, network: String, reply: Reply<()>) {
        if self.phase != Phase::Ready {
            let _ = reply.send(Err(self.pod_state("Disconnect")));
            return;
        }
        let (shared, id) = (Arc::clone(&self.shared), self.record.id.clone());
        self.job(async move {
            let result = network::disconnect(&shared, &id, &network).await;
            Done::Networked { result, reply }
        });
    }

    /// The pod's addresses may be others now: when it left the network it joined first.
    pub(super) fn networked(&mut self, result: Result<(), Error>, reply: Reply<()>) {
        let addresses = network::addresses(&self.shared, &self.record.id);
        let addresses: Option<Vec<_>> = addresses.map(|all| all.iter().map(ToString::to_string).collect());
        if let (Phase::Ready, Ok(()), Some(addresses)) = (self.phase, &result, addresses)
            && addresses != self.record.addresses
        {
            self.record.addresses = addresses;
            self.publish();
            let (file, id) = (self.file.clone(), self.record.id.clone());
            file.change(|record| record.addresses.clone_from(&self.record.addresses));
            self.job(async move {
                if let Err(error) = file.write().await {
                    tracing::error!(pod = id, error = crate::error::chain(&error), "writing the record");
                }
                let _ = reply.send(result);
                Done::Recorded
            });
            return;
        }
        let _ = reply.send(result);
    }
}
