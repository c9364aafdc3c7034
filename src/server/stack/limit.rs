//! Bounds how many calls run at once, by class. One beyond the bound is answered at once: a queue would only hide it, and
//! the kubelet tries again by itself.

use std::future::Future;
use std::sync::Arc;

use http::{HeaderMap, Response};
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;

use super::call::Class;
use super::{Around, Call};

/// Places for calls.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    changes: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl Limit {
    /// `changes` is the number of places for long calls as well; they have their own.
    pub(super) fn new(changes: usize, reads: usize) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self { changes: places(changes), reads: places(reads), long: places(changes) }
    }

    fn places(&self, class: Class) -> Option<&Arc<Semaphore>> {
        match class {
            Class::Change => Some(&self.changes),
            Class::Read => Some(&self.reads),
            Class::Long => Some(&self.long),
            Class::Subscription => None,
        }
    }
}

impl Around for Limit {
    fn around<F, E>(
        &self,
        call: Call,
        _: &HeaderMap,
        inner: F,
    ) -> impl Future<Output = Result<Response<Body>, E>> + Send + 'static
    where
        F: Future<Output = Result<Response<Body>, E>> + Send + 'static,
        E: Send + 'static,
    {
        let place = self.places(call.class).map(|places| places.clone().try_acquire_owned());
        async move {
            let _place = match place.transpose() {
                Ok(place) => place,
                Err(_) => {
                    let message = format!("too many calls at once: no place for {}; try again", call.name);
                    return Ok(Status::resource_exhausted(message).into_http());
                }
            };
            inner.await
        }
    }
}
