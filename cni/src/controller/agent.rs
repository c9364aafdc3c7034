//! The agent: keeps this host's place among the others.
//!
//! ```text
//!   connect ─► lease, host record ─► list all, or go on from what was heard ─► watch ──event──► converge ─┐
//!      ▲                                                                         ▲ └──────────────────────┘
//!      │ backoff                                                                 │ a tick, a change of this host
//!      └──────────────── connection or lease lost, history compacted (list) ─────┘
//! ```
//!
//! To converge is always the same, whatever happened: networks that etcd has and this host has not are made, blocks are held
//! against the allocation, this host's endpoints are written, and the kernel is told of the others'. Each step compares what is
//! with what should be, so that nothing has to be remembered over a lost connection.
//!
//! When etcd comes back with other data (`history`), what is there is listed, and what this host has is put back: its endpoints as ever,
//! rights to addresses that nobody knows of, and the networks that its sandboxes are on.

mod converge;
mod heart;
mod history;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::Controller;
use crate::{
    error::{Error, Result},
    overlay::{
        EtcdError, Plane, Session, UnderlayState,
        etcd::{self, Etcd},
        records::{HostRecord, TunnelRecord},
        view::{Change, Heard, View},
    },
    store::{decode, encode},
};
use heart::Heart;
use history::History;

use etcd_client::{EventType, KeyValue, LeaseKeepAliveStream, LeaseKeeper, ResponseHeader};

/// Between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How a session ended that did not fail.
struct Again;

/// Runs for as long as the process.
pub(super) async fn run(controller: Controller, plane: Arc<Plane>) {
    let mut agent = Agent {
        controller,
        plane,
        lease: None,
        tunnel: None,
        complaints: HashMap::new(),
        connected: false,
        list: true,
        cluster: None,
        replaced: false,
    };
    let mut pause = BACKOFF.0;
    loop {
        let ended = agent.session().await;
        if std::mem::take(&mut agent.connected) {
            pause = BACKOFF.0;
        }
        match ended {
            Ok(Again) => continue,
            Err(error) => {
                if agent.plane.lost(crate::error::chain(&error)) {
                    tracing::warn!(
                        error = crate::error::chain(&error),
                        "no part in overlays now; what runs goes on"
                    );
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}

struct Agent {
    controller: Controller,
    plane: Arc<Plane>,
    /// The lease of the last session: it may live still.
    lease: Option<i64>,
    /// What the others have to know of this end of the tunnel.
    tunnel: Option<TunnelRecord>,
    /// What was complained of last, by network; `None` stands for the tunnel.
    complaints: HashMap<Option<String>, String>,
    connected: bool,
    /// What was heard is not enough to go on from.
    list: bool,
    /// Of the etcd of the last session.
    cluster: Option<u64>,
    /// Its data is another than was heard: what this host has may have to be put back.
    replaced: bool,
}

impl Agent {
    async fn session(&mut self) -> Result<Again> {
        const CONNECTING: &str = "taking part in overlays";
        let plane = Arc::clone(&self.plane);
        let etcd = Etcd::connect(&plane.options).await.map_err(Error::etcd(CONNECTING))?;
        let host_key = plane.keys.host(&plane.host);
        let (mine, at) = etcd.get(&host_key).await.map_err(Error::etcd(CONNECTING))?;
        match self.history(&etcd, at).await.map_err(Error::etcd(CONNECTING))? {
            History::Same => {}
            History::Untold => self.list = true,
            History::Another(shown) => self.begin_anew(&etcd, &shown),
        }
        let (keeper, alive) = self.keep(&etcd).await.map_err(Error::etcd(CONNECTING))?;
        let lease = keeper.id();
        let mut heart = Heart::start(etcd.clone(), (keeper, alive), plane.options.lease);
        self.sync_tunnel().await;
        let before = mine.as_ref().map(|mine| mine.lease);
        let (address, tunnel) = self.register(&etcd, lease, mine, at.revision).await?;
        if self.list {
            let mut view = View::default();
            let listed = etcd.list(plane.keys.all(), |change| view.hear(&plane.keys, change));
            view.revision = listed.await.map_err(Error::etcd(CONNECTING))?;
            *plane.view.lock() = view;
            self.list = false;
        }
        let (from, old) = {
            let view = plane.view.lock();
            let mut old = old_leases(&view, &plane.host);
            old.extend(before);
            old.retain(|id| *id != lease && *id != 0);
            // That revision again: a part of it may be all that came. What is known already changes nothing.
            (view.revision, old)
        };
        let session = Session { etcd: etcd.clone(), lease };
        plane.connected(session.clone());
        self.connected = true;
        tracing::info!(endpoints = etcd.endpoints(), %address, host = plane.host, "taking part in overlays");
        self.converge(&session, true).await?;
        if self.tunnel != tunnel {
            return Ok(Again);
        }
        for lease in old {
            // What is left under it are endpoints of an earlier life.
            if let Err(error) = etcd.revoke(lease).await {
                tracing::debug!(%error, "an old lease ends by itself");
            }
        }
        let watching = etcd.watch(plane.keys.all(), from).await.map_err(Error::etcd(CONNECTING))?;
        let (_sender, mut events) = watching.split();
        let period = plane.options.lease / 3;
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let broken = |doing: &str, error| Error::etcd(CONNECTING)(etcd.broken(doing, error));
        loop {
            let mut ticked = false;
            tokio::select! {
                stopped = heart.stopped() => {
                    stopped.map_err(Error::etcd(CONNECTING))?;
                    tracing::warn!("this host's lease ended: registering again");
                    self.lease = None;
                    return Ok(Again);
                }
                _ = tick.tick() => {
                    if self.underlay().await? != address {
                        tracing::info!("this host's underlay address changed: registering again");
                        return Ok(Again);
                    }
                    ticked = true;
                }
                event = events.message() => {
                    let event = event.map_err(|error| broken("watching", Some(error)))?;
                    let event = event.ok_or_else(|| broken("watching", None))?;
                    if event.compact_revision() > 0 {
                        tracing::info!(compacted = event.compact_revision(), "history is compacted: listing anew");
                        self.list = true;
                        return Ok(Again);
                    }
                    if event.canceled() {
                        let reason = etcd_client::Error::WatchError(event.cancel_reason().to_owned());
                        return Err(broken("watching", Some(reason)));
                    }
                    self.take_in(&event);
                    if event.events().is_empty() {
                        continue;
                    }
                }
                () = plane.woken() => {}
            }
            self.converge(&session, ticked).await?;
            if self.tunnel != tunnel {
                tracing::info!("this host's end of the tunnel is another: registering again");
                return Ok(Again);
            }
        }
    }

    /// Nothing of what was heard holds any more.
    fn begin_anew(&mut self, etcd: &Etcd, shown: &str) {
        if !self.replaced {
            tracing::warn!(
                endpoints = etcd.endpoints(),
                shown,
                "etcd's data was replaced, as by a backup: taking over what is there, and putting back what this host has"
            );
        }
        (self.list, self.replaced) = (true, true);
        // Revisions of the other history say nothing in this one.
        self.plane.created.lock().clear();
    }

    /// The lease of before if it lives, else a new one.
    async fn keep(&mut self, etcd: &Etcd) -> Result<(LeaseKeeper, LeaseKeepAliveStream), EtcdError> {
        if let Some(id) = self.lease {
            match etcd.keep_alive(id).await {
                Ok(kept) => return Ok(kept),
                Err(EtcdError::Refused { .. }) => self.lease = None,
                Err(error) => return Err(error),
            }
        }
        let id = etcd.grant(self.plane.options.lease).await?;
        self.lease = Some(id);
        etcd.keep_alive(id).await
    }

    async fn underlay(&self) -> Result<std::net::IpAddr> {
        let plane = Arc::clone(&self.plane);
        let look = move |kernel: &mut crate::worker::Kernel| {
            plane.look_below(&mut kernel.route);
            plane.underlay.lock().clone()
        };
        match self.controller.workers.run("looking for the underlay", look).await? {
            UnderlayState::Known(underlay) => Ok(underlay.address),
            UnderlayState::Unknown(reason) => Err(Error::NoUnderlay(reason)),
            UnderlayState::Unconfigured => Err(Error::NoControlPlane),
        }
    }

    /// Writes this host's record; what it says.
    async fn register(
        &self,
        etcd: &Etcd,
        lease: i64,
        mine: Option<etcd::Found>,
        revision: i64,
    ) -> Result<(std::net::IpAddr, Option<TunnelRecord>)> {
        const WHAT: &str = "registering this host";
        let plane = &self.plane;
        let address = self.underlay().await?;
        let key = plane.keys.host(&plane.host);
        let compare = match &mine {
            Some(found) => {
                let known: HostRecord = decode(&key, &found.value)?;
                let same =
                    known.address == address && known.name == plane.host_name && known.tunnel == self.tunnel;
                if found.lease == lease && same {
                    return Ok((address, known.tunnel));
                }
                if found.lease != lease && known.address != address {
                    let (host, other) = (plane.host.clone(), known.address);
                    return Err(Error::etcd(WHAT)(EtcdError::HostTaken { host, other, ours: address }));
                }
                etcd::unchanged(&key, found.revision)
            }
            None => etcd::absent(&key),
        };
        let tunnel = self.tunnel.clone();
        let record = HostRecord {
            name: plane.host_name.clone(),
            address,
            epoch: revision + 1,
            tunnel: tunnel.clone(),
        };
        let value = encode(&key, &record)?;
        let write = vec![etcd::put_leased(&key, value, lease)];
        let answer = etcd.commit(WHAT, vec![compare], write).await.map_err(Error::etcd(WHAT))?;
        if !answer.succeeded() {
            return Err(Error::etcd(WHAT)(EtcdError::Contended { action: "writing its record".to_owned() }));
        }
        Ok((address, tunnel))
    }

    fn take_in(&self, event: &etcd_client::WatchResponse) {
        let mut view = self.plane.view.lock();
        for event in event.events() {
            let Some(kv) = event.kv() else { continue };
            let Ok(key) = kv.key_str() else { continue };
            let value = (event.event_type() == EventType::Put).then(|| kv.value());
            view.hear(
                &self.plane.keys,
                Change { key, value, revision: kv.mod_revision(), lease: kv.lease() },
            );
        }
        view.heard(Heard {
            created: event.created(),
            last: event.events().last().and_then(|event| event.kv()).map(KeyValue::mod_revision),
            etcd: event.header().map(ResponseHeader::revision).unwrap_or_default(),
        });
    }
}

/// Leases that endpoints of this host are under.
fn old_leases(view: &View, host: &str) -> BTreeSet<i64> {
    let endpoints = view.endpoints.values().flatten().filter(|((owner, _), _)| owner == host);
    endpoints.map(|(_, endpoint)| endpoint.lease).collect()
}
