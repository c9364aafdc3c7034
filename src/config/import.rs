//! Says in Berth's words what containerd or CRI-O were configured with.
//!
//! Each of them is a table of [`Rule`]s, a line a key: which key of ours it becomes, why it needs none, or that there is none.
//! The same tables are the ones in `docs/migration.md`. Handlers have a shape of their own and are read in `handlers`.

mod containerd;
mod crio;
mod handlers;
mod rule;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use toml::{Table, Value};

use rule::{Outcome, Rule};

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// containerd's `config.toml`, versions 1 to 3.
    Containerd,
    /// CRI-O's `crio.conf` and its drop-ins.
    Crio,
}

impl Origin {
    fn rules(self) -> &'static [Rule] {
        match self {
            Self::Containerd => containerd::RULES,
            Self::Crio => crio::RULES,
        }
    }

    /// A key without what differs between versions of the file.
    fn plain(self, path: &[String]) -> String {
        match self {
            Self::Containerd => containerd::plain(path),
            Self::Crio => path.join("."),
        }
    }
}

/// Why a configuration can't be imported.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct Error {
    /// The file.
    path: String,
    /// What is wrong with its TOML.
    #[source]
    source: Box<toml::de::Error>,
}

/// What became of a key that was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The key as it stands there.
    pub key: String,
    /// What became of it.
    pub fate: Fate,
}

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is this key of ours.
    Becomes(String),
    /// Nothing is needed for it, because of this.
    Needless(&'static str),
    /// Berth has nothing of the kind; what can be done instead.
    Missing(String),
}

/// A configuration in our words.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// Our keys, with dots, and their values.
    settings: BTreeMap<String, Value>,
    /// What became of each key, in the order of the files.
    pub notes: Vec<Note>,
    /// Where programs are looked for that are named without a path.
    search: Vec<std::path::PathBuf>,
}

impl Import {
    /// An empty one. Programs that a handler names without a path are looked for in `search`.
    #[must_use]
    pub fn new(search: Vec<std::path::PathBuf>) -> Self {
        Self { search, ..Self::default() }
    }

    /// Adds what a file says; it wins over files added before it, as a drop-in does. `path` is for messages.
    ///
    /// # Errors
    /// What is not TOML.
    pub fn add(&mut self, origin: Origin, path: &Path, text: &str) -> Result<(), Error> {
        let table: Table = text
            .parse()
            .map_err(|source| Error { path: path.display().to_string(), source: Box::new(source) })?;
        let mut leaves = Vec::new();
        flatten(&table, &mut Vec::new(), &mut leaves);
        let mut handlers = handlers::Handlers::default();
        for (path, value) in &leaves {
            let (key, plain) = (path.join("."), origin.plain(path));
            if let Some(fate) = handlers.take(origin, &plain, value) {
                self.notes.extend(fate.map(|fate| Note { key, fate }));
                continue;
            }
            let found = origin.rules().iter().find(|rule| rule.matches(&plain));
            self.apply(key, &plain, value, found);
        }
        self.join_addresses(origin, &table);
        handlers.finish(origin, self);
        Ok(())
    }

    fn apply(&mut self, key: String, plain: &str, value: &Value, rule: Option<&Rule>) {
        let fate = match rule.map(|rule| &rule.outcome) {
            Some(Outcome::Becomes(ours, convert)) => match convert(value) {
                Ok(Some(value)) => {
                    self.settings.insert((*ours).to_owned(), value);
                    Fate::Becomes((*ours).to_owned())
                }
                Ok(None) => return,
                Err(why) => Fate::Missing(why),
            },
            Some(Outcome::Appends(ours)) => {
                if rule::says_nothing(value) {
                    return;
                }
                self.append(ours, value);
                Fate::Becomes((*ours).to_owned())
            }
            // Two keys there are one here: they are read together.
            Some(Outcome::Part(_)) => return,
            _ if rule::says_nothing(value) => return,
            Some(Outcome::Needless(why)) => Fate::Needless(why),
            Some(Outcome::Missing(instead)) => Fate::Missing((*instead).to_owned()),
            None => Fate::Missing(format!("{plain} is not known here")),
        };
        self.notes.push(Note { key, fate });
    }

    fn append(&mut self, ours: &str, value: &Value) {
        let list = self.settings.entry(ours.to_owned()).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = list {
            let more = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
            list.extend(more.into_iter().filter(|value| value.as_str() != Some("")));
            list.dedup();
        }
    }

    /// An address and a port are one key here.
    fn join_addresses(&mut self, origin: Origin, table: &Table) {
        let found = match origin {
            Origin::Containerd => containerd::addresses(table),
            Origin::Crio => crio::addresses(table),
        };
        for (key, ours, value) in found {
            self.settings.insert(ours.to_owned(), Value::String(value));
            self.notes.push(Note { key, fate: Fate::Becomes(ours.to_owned()) });
        }
    }

    /// The configuration as a file for `conf.d`.
    #[must_use]
    pub fn file(&self) -> String {
        let mut text = String::from("# Written by `berth config import`.\nversion = 1\n");
        let mut section = String::new();
        let mut rows: Vec<_> = self
            .settings
            .iter()
            .map(|(path, value)| (path.rsplit_once('.').unwrap_or(("", path)), value))
            .collect();
        rows.sort_by_key(|(place, _)| *place);
        for ((table, name), value) in rows {
            if table != section {
                let _ = writeln!(text, "\n[{table}]");
                table.clone_into(&mut section);
            }
            let _ = writeln!(text, "{name} = {value}");
        }
        text
    }
}

/// The patterns of files that a file of containerd's names to be read after it.
#[must_use]
pub fn imports(text: &str) -> Vec<String> {
    let table: Table = text.parse().unwrap_or_default();
    let list = table.get("imports").and_then(Value::as_array).cloned().unwrap_or_default();
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// All values that are no tables, with the keys that lead to them.
fn flatten(table: &Table, path: &mut Vec<String>, leaves: &mut Vec<(Vec<String>, Value)>) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(inner) => flatten(inner, path, leaves),
            value => leaves.push((path.clone(), value.clone())),
        }
        path.pop();
    }
}

/// The rules as rows of a Markdown table, for `docs/migration.md`.
#[must_use]
pub fn reference(origin: Origin) -> String {
    let mut text = String::from("| there | here |\n| --- | --- |\n");
    for rule in origin.rules() {
        let here = match &rule.outcome {
            Outcome::Becomes(ours, _) | Outcome::Appends(ours) | Outcome::Part(ours) => format!("`{ours}`"),
            Outcome::Needless(why) => format!("not needed: {why}"),
            Outcome::Missing(instead) => format!("none: {instead}"),
        };
        let _ = writeln!(text, "| `{}` | {here} |", rule.key);
    }
    text
}
