//! `berth version`.

use anyhow::{Context, Result};
use berth::proto::runtime::v1::VersionRequest;
use clap::Args;
use serde::Serialize;

use crate::client::Client;
use crate::failure::Answer;
use crate::options::listing::Format;
use crate::output;

/// The version of the CRI this client speaks, in the words of the call.
const CALL_VERSION: &str = "0.1.0";

/// Options of `version`.
#[derive(Debug, Args)]
pub(crate) struct Version {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    /// This program's version.
    client: &'static str,
    /// The daemon's name (berth).
    runtime_name: Option<String>,
    /// The daemon's version.
    runtime_version: Option<String>,
    /// The CRI version it speaks.
    runtime_api_version: Option<String>,
}

impl Version {
    /// Prints both versions; the client's also when no daemon answers.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut view = View { client: env!("CARGO_PKG_VERSION"), ..View::default() };
        let asked = ask(address, &mut view).await;
        if self.output == Format::Json {
            output::print_json(&view)?;
        } else {
            let mut text = format!("client   berth {}\n", view.client);
            if let (Some(name), Some(version), Some(api)) =
                (&view.runtime_name, &view.runtime_version, &view.runtime_api_version)
            {
                text.push_str(&format!("daemon   {name} {version}\nCRI      {api}\n"));
            }
            output::print(&text)?;
        }
        asked.map(|()| 0)
    }
}

async fn ask(address: &str, view: &mut View) -> Result<()> {
    let mut client = Client::connect(address).await?;
    let request = VersionRequest { version: CALL_VERSION.to_owned() };
    let answer = client.runtime.version(request).await.answer().context("asking for the daemon's version")?;
    view.runtime_name = Some(answer.runtime_name);
    view.runtime_version = Some(answer.runtime_version);
    view.runtime_api_version = Some(answer.runtime_api_version);
    Ok(())
}
