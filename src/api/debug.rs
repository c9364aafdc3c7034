//! `berth.v1.Debug`: how the daemon itself is. A file for each call that is more than a few lines.

mod leftovers;

use std::sync::Arc;
use std::time::Duration;

use berth_cni::Controller;
use tonic::{Request, Response, Status};

use crate::events::Recent;
use crate::pod::{EventKind, Pods};
use crate::progress;
use crate::proto::berth::v1::{
    Hang, HealthRequest, HealthResponse, LeftoversRequest, LeftoversResponse, MetricsRequest,
    MetricsResponse, RecentEvent, RecentEventsRequest, RecentEventsResponse, Work, debug_server,
};
use crate::streaming::Streaming;
use crate::watchdog::Watchdog;

/// Writes the metrics as text.
pub type Scrape = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// The service.
#[derive(Clone)]
pub struct DebugFace {
    pub(super) pods: Pods,
    pub(super) networks: Controller,
    pub(super) streaming: Streaming,
    pub(super) watchdog: Watchdog,
    pub(super) recent: Recent,
    pub(super) scrape: Scrape,
}

impl std::fmt::Debug for DebugFace {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("DebugFace").field("watchdog", &self.watchdog).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl debug_server::Debug for DebugFace {
    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        let sessions: i64 = self.streaming.sessions().iter().map(|(_, count)| count).sum();
        Ok(Response::new(HealthResponse {
            hangs: self.watchdog.hangs().iter().map(hang).collect(),
            under_way: self.watchdog.under_way().iter().map(work).collect(),
            network: self.pods.network_ready().err().unwrap_or_default(),
            sessions: u32::try_from(sessions).unwrap_or_default(),
        }))
    }

    async fn metrics(&self, _: Request<MetricsRequest>) -> Result<Response<MetricsResponse>, Status> {
        let text = (self.scrape)().map_err(Status::internal)?;
        Ok(Response::new(MetricsResponse { text }))
    }

    async fn leftovers(&self, _: Request<LeftoversRequest>) -> Result<Response<LeftoversResponse>, Status> {
        leftovers::call(self).await.map(Response::new)
    }

    async fn recent_events(
        &self,
        _: Request<RecentEventsRequest>,
    ) -> Result<Response<RecentEventsResponse>, Status> {
        let events = self.recent.list().into_iter().map(|happened| RecentEvent {
            at: happened.at,
            kind: word(happened.kind).to_owned(),
            pod_id: happened.pod,
            container_id: happened.container.unwrap_or_default(),
        });
        Ok(Response::new(RecentEventsResponse { events: events.collect() }))
    }
}

fn hang(hang: &crate::watchdog::Hang) -> Hang {
    Hang {
        part: hang.part.word().to_owned(),
        milliseconds: milliseconds(hang.duration),
        work: hang.work.as_ref().map(work),
    }
}

fn work(work: &progress::Work) -> Work {
    Work {
        kind: work.kind.word().to_owned(),
        operation: work.operation.to_owned(),
        stage: work.stage.to_owned(),
        object: work.object.clone(),
        milliseconds: milliseconds(work.age()),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Created => "created",
        EventKind::Started => "started",
        EventKind::Stopped => "stopped",
        EventKind::Deleted => "deleted",
    }
}
