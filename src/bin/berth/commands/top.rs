//! `berth top`.

use anyhow::{Context, Result};
use berth::proto::berth::v1::{Process, TopRequest};
use clap::Args;
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::Answer;
use crate::names::Names;
use crate::options::listing::Format;
use crate::output::table::{Cell, Table, Tone};
use crate::output::{self, human};

/// Options of `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// The container: id, unique prefix of it, name, or POD/NAME
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Top {
    /// Lists them once.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let (containers, pods) = (client.containers().await?, client.pods().await?);
        let container = Names { containers: &containers, pods: &pods }.container(&self.container)?;
        let request = TopRequest { container_id: container.id.clone() };
        let answer = client.own_containers.top(request).await.answer();
        let processes = answer.with_context(|| format!("listing processes of {}", self.container))?.processes;
        match self.output {
            Format::Json => output::print_json(&processes.iter().map(json).collect::<Vec<_>>())?,
            Format::Table => output::print(&table(&processes).render(output::colours()))?,
        }
        Ok(0)
    }
}

fn table(processes: &[Process]) -> Table {
    let mut table = Table::new(&["UID", "PID", "PPID", "INNER PID", "STATE", "TIME", "MEMORY", "COMMAND"]);
    for process in processes {
        table.row([
            process.uid.to_string().into(),
            process.pid.to_string().into(),
            process.parent_pid.to_string().into(),
            process.container_pid.to_string().into(),
            Cell::toned(process.state.clone(), tone(&process.state)),
            time(process.cpu_nanos).into(),
            human::size(process.resident_bytes).into(),
            process.command.clone().into(),
        ]);
    }
    table
}

fn tone(state: &str) -> Tone {
    match state {
        "R" => Tone::Good,
        "D" | "Z" => Tone::Bad,
        _ => Tone::Plain,
    }
}

/// Processor time as `ps` has it: `1:02:03`.
fn time(nanos: u64) -> String {
    let seconds = nanos / 1_000_000_000;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn json(process: &Process) -> Value {
    json!({
        "pid": process.pid,
        "parentPid": process.parent_pid,
        "containerPid": process.container_pid,
        "uid": process.uid,
        "state": process.state,
        "threads": process.threads,
        "residentBytes": process.resident_bytes,
        "cpuNanos": process.cpu_nanos,
        "startedAt": human::timestamp(process.started_at),
        "command": process.command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_hours_minutes_seconds() {
        assert_eq!(time(999_999_999), "0:00:00");
        assert_eq!(time(3_723_000_000_000), "1:02:03");
    }
}
