//! The integration tests: the real daemon, kernel and registry, through a CRI client made by others.
//!
//! `cargo test --test integration [FILTER] [-- --test-threads N]`. One file a topic; each has a `trials`
//! function that lists its tests. How the tests are shut off from the machine: `tests/support`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/support.rs"]
#[allow(dead_code, reason = "the benchmark uses other parts of it")]
mod support;

mod bad_input;
mod client;
mod cni;
mod containers;
mod daemon;
mod exec_sync;
mod idempotence;
mod images;
mod logs;
mod many_pods;
mod mounts;
mod namespaces;
mod network;
mod networks;
mod pods;
mod registries;
mod resources;
mod restart;
mod runtimes;
mod security;
mod stats;

use libtest_mimic::{Arguments, Trial};
use support::World;
use support::runtime::Options;

/// No test takes longer: seconds.
const LIMIT: u64 = 180;

fn main() {
    let arguments = Arguments::from_args();
    let trials = || {
        [
            bad_input::trials(),
            client::trials(),
            cni::trials(),
            containers::trials(),
            daemon::trials(),
            exec_sync::trials(),
            idempotence::trials(),
            images::trials(),
            logs::trials(),
            many_pods::trials(),
            mounts::trials(),
            namespaces::trials(),
            network::trials(),
            networks::trials(),
            pods::trials(),
            registries::trials(),
            resources::trials(),
            restart::trials(),
            runtimes::trials(),
            security::trials(),
            stats::trials(),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
    };
    if arguments.list {
        libtest_mimic::run(&arguments, trials()).exit();
    }
    support::sandbox::run(|name| {
        support::world::prepare(name);
        let conclusion = libtest_mimic::run(&arguments, trials());
        i32::from(conclusion.has_failed())
    });
}

/// A trial that gives `test` a world and holds it against leaks afterwards.
fn trial<F>(name: &str, options: Options, test: F) -> Trial
where
    F: for<'a> AsyncTest<'a> + Send + 'static,
{
    Trial::test(name.to_owned(), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let work = async {
                let mut world = World::start(&options).await;
                test.call(&mut world).await;
                world.finish().await;
            };
            tokio::time::timeout(support::patience(LIMIT), work).await.expect("the test takes too long");
        });
        Ok(())
    })
}

/// `async fn(&mut World)`.
trait AsyncTest<'a> {
    type Future: Future<Output = ()>;
    fn call(self, world: &'a mut World) -> Self::Future;
}

impl<'a, F, Fut> AsyncTest<'a> for F
where
    F: FnOnce(&'a mut World) -> Fut,
    Fut: Future<Output = ()> + 'a,
{
    type Future = Fut;
    fn call(self, world: &'a mut World) -> Fut {
        self(world)
    }
}

/// Lists tests by their names: `trials![first, second]`, each `async fn(&mut World)`.
macro_rules! trials {
    ($($test:ident),* $(,)?) => {
        trials!(options = $crate::support::runtime::Options::default(); $($test),*)
    };
    (options = $options:expr; $($test:ident),* $(,)?) => {
        vec![$($crate::trial(
            concat!(module_path!(), "::", stringify!($test)).trim_start_matches("integration::"),
            $options,
            $test,
        )),*]
    };
}
use trials;
