//! The integration tests: the real daemon, kernel and registry, through a CRI client made by others.
//!
//! `cargo test --test integration [FILTER] [-- --test-threads N]`. One file a topic; each has a `trials`
//! function that lists its tests. How the tests are shut off from the machine: `tests/support`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/support.rs"]
#[allow(dead_code, reason = "the benchmark uses other parts of it")]
mod support;

mod apparmor;
mod bad_input;
mod cdi;
mod checkpoint;
mod client;
mod client_interactive;
mod cluster;
mod cni;
mod commit;
mod containerd;
mod containers;
mod cp;
mod daemon;
mod docs;
mod doctor;
mod events;
mod exec_sync;
mod full_disk;
mod fuzz;
mod idempotence;
mod images;
mod logs;
mod many_pods;
mod metrics;
mod mounts;
mod names;
mod namespaces;
mod network;
mod networks;
mod nri;
mod overlay;
mod overlay_backup;
mod overlay_churn;
mod overlay_encrypted;
mod overlay_plugin;
mod overlay_pods;
mod pod_cidr;
mod pods;
mod push;
mod push_broken;
mod registries;
mod resources;
mod restart;
mod runtimes;
mod security;
mod selinux;
mod shims;
mod soak;
mod stats;
mod streaming_attach;
mod streaming_bad_input;
mod streaming_exec;
mod streaming_forward;
mod streaming_idle;
mod streaming_peers;
mod streaming_tls;
mod stuck;
mod system;
mod traces;
mod userns;
mod volumes;
mod watchdog;

use libtest_mimic::{Arguments, Trial};
use support::World;
use support::runtime::Options;

fn main() {
    if support::plugin::launched() {
        return;
    }
    let arguments = Arguments::from_args();
    let trials = || {
        [
            apparmor::trials(),
            bad_input::trials(),
            cdi::trials(),
            checkpoint::trials(),
            client::trials(),
            client_interactive::trials(),
            commit::trials(),
            cni::trials(),
            containerd::trials(),
            containers::trials(),
            cp::trials(),
            daemon::trials(),
            docs::trials(),
            doctor::trials(),
            events::trials(),
            exec_sync::trials(),
            full_disk::trials(),
            fuzz::trials(),
            idempotence::trials(),
            images::trials(),
            logs::trials(),
            many_pods::trials(),
            metrics::trials(),
            mounts::trials(),
            names::trials(),
            namespaces::trials(),
            network::trials(),
            networks::trials(),
            nri::trials(),
            overlay::trials(),
            overlay_backup::trials(),
            overlay_churn::trials(),
            overlay_encrypted::trials(),
            overlay_plugin::trials(),
            pod_cidr::trials(),
            pods::trials(),
            push::trials(),
            push_broken::trials(),
            registries::trials(),
            resources::trials(),
            restart::trials(),
            runtimes::trials(),
            security::trials(),
            selinux::trials(),
            shims::trials(),
            soak::trials(),
            stats::trials(),
            streaming_attach::trials(),
            streaming_bad_input::trials(),
            streaming_exec::trials(),
            streaming_forward::trials(),
            streaming_idle::trials(),
            streaming_peers::trials(),
            streaming_tls::trials(),
            stuck::trials(),
            traces::trials(),
            system::trials(),
            userns::trials(),
            volumes::trials(),
            watchdog::trials(),
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
            tokio::time::timeout(support::patience(options.limit), work)
                .await
                .expect("the test takes too long");
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
