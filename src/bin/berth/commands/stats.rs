//! `berth stats`.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, Result};
use berth::proto::runtime::v1::{
    Container, ContainerState, ContainerStats, ListContainerStatsRequest, PodSandbox,
};
use clap::Args;
use serde_json::json;

use crate::client::Client;
use crate::failure::Answer;
use crate::names::{Names, container_name, pod_name};
use crate::options::listing::Format;
use crate::output::table::{Cell, Table, Tone};
use crate::output::{self, human};

/// The daemon measures once a second at most.
const PERIOD: Duration = Duration::from_secs(1);
/// A core in full use.
const CORE: f64 = 1e9;
/// Cursor home, and everything below it gone: the screen does not flicker as it would when cleared.
const HOME: &str = "\x1b[H\x1b[J";
/// A clear screen to begin with.
const CLEAR: &str = "\x1b[2J";

/// Options of `stats`.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Show them once and end, as is done where the output is no terminal
    #[arg(long)]
    no_stream: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
    /// Only these: ids, unique prefixes of them, names, or POD/NAME (else all that run)
    containers: Vec<String>,
}

/// A container and its numbers.
struct Measured {
    container: Container,
    pod: String,
    stats: ContainerStats,
}

impl Stats {
    /// Shows what containers use, every second until Ctrl-C on a terminal.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let live = !self.no_stream && self.output == Format::Table && std::io::stdout().is_terminal();
        if !live {
            let measured = self.measure(&mut client).await?;
            match self.output {
                Format::Json => output::print_json(&measured.iter().map(json).collect::<Vec<_>>())?,
                Format::Table => output::print(&self.table(&measured).render(output::colours()))?,
            }
            return Ok(0);
        }
        output::print(CLEAR)?;
        loop {
            let measured = self.measure(&mut client).await?;
            output::print(&format!("{HOME}{}", self.table(&measured).render(output::colours())))?;
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn measure(&self, client: &mut Client) -> Result<Vec<Measured>> {
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let names = Names { containers: &containers, pods: &pods };
        let mut wanted: Vec<&Container> = if self.containers.is_empty() {
            containers.iter().filter(|one| one.state() == ContainerState::ContainerRunning).collect()
        } else {
            self.containers.iter().map(|name| names.container(name)).collect::<Result<_>>()?
        };
        wanted
            .sort_by(|one, other| container_name(one).cmp(container_name(other)).then(one.id.cmp(&other.id)));
        let answer =
            client.runtime.list_container_stats(ListContainerStatsRequest { filter: None }).await.answer();
        let mut stats = answer.context("asking for statistics")?.stats;
        let mut take = |id: &str| {
            let index = stats
                .iter()
                .position(|stats| stats.attributes.as_ref().is_some_and(|whose| whose.id == id))?;
            Some(stats.swap_remove(index))
        };
        // One that ended between the two calls has none.
        let measured = wanted.into_iter().filter_map(|container| {
            let pod =
                names.pod_of(container).map(|pod: &PodSandbox| pod_name(pod).to_owned()).unwrap_or_default();
            Some(Measured { stats: take(&container.id)?, pod, container: container.clone() })
        });
        Ok(measured.collect())
    }

    fn table(&self, measured: &[Measured]) -> Table {
        let mut table = Table::new(&["CONTAINER ID", "NAME", "POD", "CPU", "MEMORY", "LIMIT", "WRITTEN"]);
        for Measured { container, pod, stats } in measured {
            let numbers = Numbers::of(stats);
            let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), human::size);
            table.row([
                human::short_id(&container.id, self.no_trunc).into(),
                container_name(container).into(),
                pod.as_str().into(),
                numbers
                    .cpu_percent
                    .map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1} %"))
                    .into(),
                Cell::toned(bytes(numbers.memory), if numbers.is_tight() { Tone::Bad } else { Tone::Plain }),
                bytes(numbers.limit).into(),
                bytes(numbers.written).into(),
            ]);
        }
        table
    }
}

/// What people look at.
struct Numbers {
    /// Of one core.
    cpu_percent: Option<f64>,
    /// The working set: what the kernel would have to kill for.
    memory: Option<u64>,
    limit: Option<u64>,
    written: Option<u64>,
}

impl Numbers {
    fn of(stats: &ContainerStats) -> Self {
        let cpu = stats.cpu.as_ref().and_then(|cpu| cpu.usage_nano_cores.as_ref());
        let memory = stats.memory.as_ref();
        let value =
            |wrapped: Option<&berth::proto::runtime::v1::UInt64Value>| wrapped.map(|number| number.value);
        let working_set = value(memory.and_then(|memory| memory.working_set_bytes.as_ref()));
        let available = value(memory.and_then(|memory| memory.available_bytes.as_ref()));
        let written = stats.writable_layer.as_ref().and_then(|layer| layer.used_bytes.as_ref());
        #[allow(clippy::cast_precision_loss)] // shown with one decimal
        let percent = |nano: u64| nano as f64 / CORE * 100.0;
        Self {
            cpu_percent: value(cpu).map(percent),
            memory: working_set,
            // Without a limit nothing says how much is left.
            limit: working_set.zip(available).map(|(used, left)| used.saturating_add(left)),
            written: value(written),
        }
    }

    /// Nine tenths of what it may use.
    fn is_tight(&self) -> bool {
        self.memory.zip(self.limit).is_some_and(|(used, limit)| used / 9 >= limit / 10)
    }
}

fn json(measured: &Measured) -> serde_json::Value {
    let Measured { container, pod, stats } = measured;
    let numbers = Numbers::of(stats);
    json!({
        "id": container.id,
        "name": container_name(container),
        "pod": pod,
        "cpuPercent": numbers.cpu_percent,
        "memoryBytes": numbers.memory,
        "memoryLimitBytes": numbers.limit,
        "writtenBytes": numbers.written,
    })
}

#[cfg(test)]
mod tests {
    use berth::proto::runtime::v1::{CpuUsage, MemoryUsage, UInt64Value};

    use super::*;

    fn numbers(working_set: u64, available: Option<u64>) -> Numbers {
        let value = |value| Some(UInt64Value { value });
        Numbers::of(&ContainerStats {
            cpu: Some(CpuUsage { usage_nano_cores: value(1_500_000_000), ..CpuUsage::default() }),
            memory: Some(MemoryUsage {
                working_set_bytes: value(working_set),
                available_bytes: available.and_then(value),
                ..MemoryUsage::default()
            }),
            ..ContainerStats::default()
        })
    }

    #[test]
    fn a_core_and_a_half_is_150_percent() {
        assert_eq!(numbers(1, Some(0)).cpu_percent, Some(150.0));
    }

    #[test]
    fn the_limit_is_what_is_used_and_what_is_left() {
        assert_eq!(numbers(60, Some(40)).limit, Some(100));
        assert_eq!(numbers(60, None).limit, None);
        // Nothing is left of it: it is there all the same, and of most interest now.
        assert_eq!(numbers(60, Some(0)).limit, Some(60));
        assert!(numbers(60, Some(0)).is_tight());
        assert!(numbers(95, Some(5)).is_tight());
        assert!(!numbers(60, Some(40)).is_tight());
    }
}
