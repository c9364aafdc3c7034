//! `berth node check` and `berth node verify`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use berth::node::check::{self, Finding, Level};
use berth::node::{self, HostRoot, Mode};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::commands::findings;
use crate::options::listing::Format;
use crate::output;
use crate::output::table::Table;

/// What the node shall be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Use {
    /// Berth's shim under containerd
    Runtimeclass,
    /// Berth as the node's runtime
    Node,
}

/// Options of `node check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Where the host's root is; /host in a pod
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// What the node shall use Berth for
    #[arg(long, value_enum, default_value = "node")]
    mode: Use,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What a preflight finds missing, each in a few words.
pub(super) fn missing(root: &Path, mode: Mode) -> Result<Vec<String>> {
    let findings = look(root, mode)?;
    let missing = findings.iter().filter(|finding| finding.level == Level::Missing);
    Ok(missing.map(|finding| format!("{}: {} ({})", finding.check, finding.found, finding.advice)).collect())
}

fn look(root: &Path, mode: Mode) -> Result<Vec<Finding>> {
    let findings = HostRoot::open(root).and_then(|host| check::all(&host, mode));
    findings.map_err(|error| super::explain(&error)).with_context(|| format!("checking {}", root.display()))
}

impl Check {
    /// Looks and prints; 1 when something that Berth needs is missing.
    pub(super) fn execute(self) -> Result<u8> {
        let mode = match self.mode {
            Use::Runtimeclass => Mode::RuntimeClass,
            Use::Node => Mode::Node,
        };
        findings::show(&look(&self.root, mode)?, self.output)
    }
}

/// Options of `node verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Where the host's root is; /host in a pod
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct View {
    version: String,
    previous: Option<String>,
    mode: Mode,
    files: usize,
    wrong: Vec<Wrong>,
}

#[derive(Debug, Serialize)]
struct Wrong {
    path: String,
    state: &'static str,
}

impl Verify {
    /// Compares and prints; 1 when a file is not as it was installed.
    pub(super) fn execute(self) -> Result<u8> {
        let (manifest, wrong) = node::verify(&self.root).map_err(|error| super::explain(&error))?;
        let wrong: Vec<Wrong> =
            wrong.into_iter().map(|one| Wrong { path: one.path.into(), state: one.state }).collect();
        let code = u8::from(!wrong.is_empty());
        if self.output == Format::Json {
            let (version, previous, mode) = (manifest.version, manifest.previous, manifest.mode);
            output::print_json(&View { version, previous, mode, files: manifest.entries.len(), wrong })?;
            return Ok(code);
        }
        let mode = match manifest.mode {
            Mode::Node => "node",
            Mode::RuntimeClass => "runtimeclass",
        };
        let mut table = Table::new(&["STATE", "PATH"]);
        for one in &wrong {
            table.row([super::mark(one.state, false), one.path.as_str().into()]);
        }
        if !wrong.is_empty() {
            output::print(&table.render(output::colours()))?;
        }
        let state =
            if wrong.is_empty() { "all as installed" } else { "`berth node install` puts them right" };
        output::print_line(&format!(
            "berth {} (mode {mode}, {} paths): {state}",
            manifest.version,
            manifest.entries.len()
        ))?;
        Ok(code)
    }
}
