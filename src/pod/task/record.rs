//! The pod's record on disk. Jobs that run beside each other write it: an update, the end of the sandbox, its removal.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::proto::berth::v1::{PodPhase, PodRecord};
use crate::store::{Error, Records};

/// Writes the record of one pod: one version after the other, each with all that was known when its turn came, and none after
/// its removal has begun. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct RecordFile {
    records: Records,
    latest: Arc<Mutex<PodRecord>>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl RecordFile {
    pub(super) fn new(records: Records, record: PodRecord) -> Self {
        Self { records, latest: Arc::new(Mutex::new(record)), turn: Arc::default() }
    }

    /// Changes what the next version says.
    pub(super) fn change(&self, change: impl FnOnce(&mut PodRecord)) {
        change(&mut self.latest.lock());
    }

    /// Writes what changed. Nothing of a pod that is being removed: its record would outlive it.
    pub(super) async fn write(&self) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let record = self.latest.lock().clone();
        if record.phase() == PodPhase::PodRemoving {
            return Ok(());
        }
        self.records.put(&record.id, &record).await
    }

    /// Writes that the pod is in a new phase; versions that come later say so too.
    pub(super) async fn enter(&self, phase: PodPhase) -> Result<(), Error> {
        let _turn = self.turn.lock().await;
        let record = PodRecord { phase: phase.into(), ..self.latest.lock().clone() };
        self.records.put(&record.id, &record).await?;
        self.latest.lock().phase = record.phase;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn versions_follow_each_other_and_none_follows_the_removal() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path().to_owned()).unwrap();
        let record =
            PodRecord { id: "p".to_owned(), phase: PodPhase::PodReady.into(), ..PodRecord::default() };
        let file = RecordFile::new(records.clone(), record);
        let read = || records.load::<PodRecord>().unwrap().records.pop().map(|(_, record)| record);
        let updates = |from: u32| {
            (from..from + 32).map(|number| {
                file.change(|record| record.addresses = vec![number.to_string()]);
                file.write()
            })
        };

        futures::future::try_join_all(updates(0)).await.unwrap();
        assert_eq!(read().unwrap().addresses, ["31"]);
        let (updated, entered) =
            tokio::join!(futures::future::try_join_all(updates(32)), file.enter(PodPhase::PodNotReady));
        updated.unwrap();
        entered.unwrap();
        let stopped = read().unwrap();
        assert_eq!((stopped.addresses, stopped.phase), (vec!["63".to_owned()], PodPhase::PodNotReady.into()));

        let removal = async {
            file.enter(PodPhase::PodRemoving).await?;
            records.remove("p").await
        };
        let (removed, updated) = tokio::join!(removal, futures::future::try_join_all(updates(64)));
        updated.unwrap();
        removed.unwrap();
        assert_eq!(read(), None);
    }
}
