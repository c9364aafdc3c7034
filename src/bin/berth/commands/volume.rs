//! `berth volume`: directories with names, kept when what used them goes.

use anyhow::{Context, Result, bail};
use berth::proto::berth::v1::{
    CreateVolumeRequest, InspectVolumeRequest, ListVolumesRequest, RemoveVolumeRequest, Volume as Message,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::Client;
use crate::failure::{self, Answer};
use crate::options::env;
use crate::options::listing::Format;
use crate::output::table::{Cell, Table, Tone};
use crate::output::{self, human, path::Template};

/// What can be done with volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Make a volume
    Create(Create),
    /// List volumes
    #[command(alias = "list")]
    Ls(Ls),
    /// Show all there is to know of volumes, as JSON
    Inspect(Inspect),
    /// Remove volumes that nothing uses, with all that is in them
    #[command(alias = "remove")]
    Rm(Rm),
    /// Remove all volumes that nothing uses, with all that is in them
    Prune(Prune),
}

/// Options of `volume create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Its name (1 to 128 letters, digits, `.`, `_`, `-`)
    name: String,
    /// Put a label on it
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
}

/// Options of `volume ls`.
#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Print names only
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
}

/// Options of `volume inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Volumes by name
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Print parts only, as `berth inspect` has it
    #[arg(short, long, value_name = "PATH")]
    format: Option<String>,
}

/// Options of `volume rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Volumes by name
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Options of `volume prune`.
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Say what would be removed, and leave it
    #[arg(long)]
    dry_run: bool,
    /// Remove them: what is in them is lost
    #[arg(short, long)]
    force: bool,
}

impl Volume {
    /// Carries it out.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        match self {
            Self::Create(create) => create.execute(&mut client).await,
            Self::Ls(ls) => ls.execute(&mut client).await,
            Self::Inspect(inspect) => inspect.execute(&mut client).await,
            Self::Rm(rm) => rm.execute(&mut client).await,
            Self::Prune(prune) => prune.execute(&mut client).await,
        }
    }
}

impl Create {
    async fn execute(self, client: &mut Client) -> Result<u8> {
        let labels = env::pairs(&self.label).context("--label")?;
        let request = CreateVolumeRequest { name: self.name.clone(), labels };
        client
            .volumes
            .create_volume(request)
            .await
            .answer()
            .with_context(|| format!("making {}", self.name))?;
        output::print_line(&self.name)?;
        Ok(0)
    }
}

impl Ls {
    async fn execute(self, client: &mut Client) -> Result<u8> {
        let volumes = all(client).await?;
        if self.quiet {
            output::print(&volumes.iter().map(|volume| format!("{}\n", volume.name)).collect::<String>())?;
        } else if self.output == Format::Json {
            output::print_json(&volumes.iter().map(view).collect::<Vec<_>>())?;
        } else {
            let now = human::now_nanos();
            let mut table = Table::new(&["NAME", "CREATED", "USED BY", "PATH"]);
            for volume in &volumes {
                let users: Vec<String> = volume.users.iter().map(|id| human::short_id(id, false)).collect();
                let tone = if users.is_empty() { Tone::Dim } else { Tone::Plain };
                table.row([
                    Cell::toned(&volume.name, tone),
                    human::ago(volume.created_at, now).into(),
                    users.join(", ").into(),
                    volume.path.as_str().into(),
                ]);
            }
            output::print(&table.render(output::colours()))?;
        }
        Ok(0)
    }
}

impl Inspect {
    async fn execute(self, client: &mut Client) -> Result<u8> {
        let format = self.format.as_deref().map(Template::parse).transpose().context("--format")?;
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        for name in &self.names {
            let request = InspectVolumeRequest { name: name.clone() };
            match client.volumes.inspect_volume(request).await.answer() {
                Ok(answer) => found.push(view(&answer.volume.unwrap_or_default())),
                Err(refusal) => {
                    let error = anyhow::Error::from(refusal);
                    failed.push(error.context(format!("inspecting {name} (`berth volume ls` lists them)")));
                }
            }
        }
        match format {
            None => output::print_json(&found)?,
            Some(format) => {
                for volume in &found {
                    output::print_line(&format.apply(volume).context("--format")?)?;
                }
            }
        }
        failure::summary(failed)
    }
}

impl Rm {
    async fn execute(self, client: &mut Client) -> Result<u8> {
        let mut failed = Vec::new();
        for name in &self.names {
            match remove(client, name).await {
                Ok(()) => output::print_line(name)?,
                Err(error) => failed.push(error),
            }
        }
        failure::summary(failed)
    }
}

impl Prune {
    async fn execute(self, client: &mut Client) -> Result<u8> {
        if !self.force && !self.dry_run {
            bail!(
                "this removes all volumes that nothing uses, with all that is in them: say --force, or --dry-run to see them"
            );
        }
        let mut failed = Vec::new();
        prune(client, self.dry_run, &mut failed).await?;
        failure::summary(failed)
    }
}

/// Removes, or names, the volumes that nothing uses.
pub(crate) async fn prune(client: &mut Client, dry_run: bool, failed: &mut Vec<anyhow::Error>) -> Result<()> {
    for volume in all(client).await?.into_iter().filter(|volume| volume.users.is_empty()) {
        let name = &volume.name;
        if dry_run {
            output::print_line(&format!("would remove volume {name}"))?;
            continue;
        }
        match remove(client, name).await {
            Ok(()) => output::print_line(&format!("removed volume {name}"))?,
            Err(error) => failed.push(error),
        }
    }
    Ok(())
}

async fn all(client: &mut Client) -> Result<Vec<Message>> {
    let answer = client.volumes.list_volumes(ListVolumesRequest {}).await.answer();
    Ok(answer.context("listing volumes")?.volumes)
}

async fn remove(client: &mut Client, name: &str) -> Result<()> {
    let request = RemoveVolumeRequest { name: name.to_owned() };
    let answer = client.volumes.remove_volume(request).await.answer();
    answer.map(drop).with_context(|| format!("removing volume {name}"))
}

fn view(volume: &Message) -> Value {
    let labels: std::collections::BTreeMap<_, _> = volume.labels.iter().collect();
    json!({
        "name": volume.name,
        "path": volume.path,
        "createdAt": human::timestamp(volume.created_at),
        "labels": labels,
        "users": volume.users,
    })
}
