//! The threads that talk to the kernel and to the store.
//!
//! Netlink requests and redb commits block for microseconds to milliseconds: they run here, never on an async worker. There are
//! few of these threads (the kernel serialises configuration anyway), each with sockets of its own in the host's namespace, the
//! one that [`Workers::start`] was called in.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::{
    error::{Error, Result},
    netlink::Socket,
};

const THREADS: usize = 4;
const QUEUE: usize = 256;
/// Longer than any sequence of netlink deadlines that makes sense.
const DEADLINE: Duration = Duration::from_secs(60);

/// A worker's sockets.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) route: Socket,
    pub(crate) filter: Socket,
}

impl Kernel {
    pub(crate) fn open() -> io::Result<Self> {
        let filter = Socket::netfilter()?;
        filter.enlarge(2 * 1024 * 1024);
        Ok(Self { route: Socket::route()?, filter })
    }
}

type Job = Box<dyn FnOnce(&mut Kernel) + Send>;

/// The pool of threads; they end when the last handle is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Workers {
    jobs: mpsc::Sender<Job>,
}

impl Workers {
    /// Starts the threads in the calling thread's namespaces.
    pub(crate) fn start() -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..THREADS {
            let mut kernel = Kernel::open().map_err(Error::kernel("opening netlink sockets"))?;
            let queue = Arc::clone(&queue);
            let work = move || {
                loop {
                    let job = queue.lock().blocking_recv();
                    let Some(job) = job else { return };
                    // A job that breaks off is its caller's matter (who gets no answer): the thread is everybody's.
                    if panic::catch_unwind(AssertUnwindSafe(|| job(&mut kernel))).is_err() {
                        tracing::error!("a network job broke off");
                    }
                }
            };
            thread::Builder::new()
                .name(format!("berth-net-{number}"))
                .spawn(work)
                .map_err(Error::kernel("starting a network worker"))?;
        }
        Ok(Self { jobs })
    }

    /// Runs a job and waits for its result. When the caller goes away the job is finished all the same.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        job: impl FnOnce(&mut Kernel) -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, result) = oneshot::channel();
        let job: Job = Box::new(move |kernel| {
            let _ = answer.send(job(kernel));
        });
        let run = async {
            self.jobs.send(job).await.map_err(|_| Error::Stopped(what))?;
            result.await.map_err(|_| Error::Stopped(what))
        };
        tokio::time::timeout(DEADLINE, run).await.unwrap_or(Err(Error::Deadline(what)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn jobs_that_break_off_leave_the_threads() {
        let workers = Workers::start().unwrap();
        for _ in 0..2 * THREADS {
            let broken = workers.run("breaking off", |_| panic!("on purpose")).await;
            assert!(matches!(broken, Err::<(), _>(Error::Stopped(_))), "{broken:?}");
        }
        assert_eq!(workers.run("counting", |_| 7).await.unwrap(), 7);
    }
}
