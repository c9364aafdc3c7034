//! Whether etcd's data is still what was heard of before the connection was lost.
//!
//! A backup that was restored takes etcd back to an earlier revision, and from there on it writes another history: the same revisions
//! say other things. A watch that goes on from what was heard would miss what is different before it. So the last change that was
//! heard is looked up where it was heard, at its revision: another history has another change there.

use super::Agent;
use crate::overlay::{
    EtcdError,
    etcd::{At, Etcd},
    view::Last,
};

/// How what is there compares to what was heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum History {
    /// It goes on.
    Same,
    /// It can't be told: nothing was heard, or what was heard of is compacted.
    Untold,
    /// It is another one; what shows it.
    Another(String),
}

impl Agent {
    pub(super) async fn history(&mut self, etcd: &Etcd, at: At) -> Result<History, EtcdError> {
        let known = self.cluster.replace(at.cluster).filter(|known| *known != at.cluster);
        let (heard, last) = {
            let view = self.plane.view.lock();
            (view.revision, view.last.clone())
        };
        if heard == 0 {
            return Ok(History::Untold);
        }
        if let Some(known) = known {
            return Ok(History::Another(format!("its cluster is {:x} and was {known:x}", at.cluster)));
        }
        if at.revision < heard {
            return Ok(History::Another(format!("its revision is {} and was {heard}", at.revision)));
        }
        match last {
            None => Ok(History::Untold),
            Some(last) => is_there(etcd, &last).await,
        }
    }
}

/// Looks for a change at its revision.
async fn is_there(etcd: &Etcd, last: &Last) -> Result<History, EtcdError> {
    let Last { key, revision, deleted } = last;
    let look = async |revision| match etcd.get_at(key, revision).await {
        Ok((found, _)) => Ok(Some(found)),
        // Compacted; what else it may refuse shows again.
        Err(EtcdError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let Some(found) = look(*revision).await? else { return Ok(History::Untold) };
    let mut same = match found {
        Some(found) => !deleted && found.revision == *revision,
        None => *deleted,
    };
    if same && *deleted {
        let Some(before) = look(revision - 1).await? else { return Ok(History::Untold) };
        same = before.is_some();
    }
    Ok(match same {
        true => History::Same,
        false => History::Another(format!("its revision {revision} is another one than was heard")),
    })
}
