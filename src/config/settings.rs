//! Raw settings: a flat map from dotted key to value and origin, laid in layers (defaults, files, command line).
//!
//! A later layer replaces single keys; lists are replaced as a whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Origin, Problem, suggestion};
use super::schema::{self, Type};

/// A value with its origin.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// A value as TOML knows it; tables are only noted to be there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Entry>),
    Table,
}

impl Value {
    fn type_name(&self) -> &'static str {
        match self {
            Value::Text(_) => "a string",
            Value::Integer(_) => "a number",
            Value::Boolean(_) => "a boolean",
            Value::List(_) => "a list",
            Value::Table => "a table",
        }
    }

    /// As TOML writes it.
    pub(crate) fn to_toml(&self) -> String {
        match self {
            Value::Text(text) => toml::Value::String(text.clone()).to_string(),
            Value::Integer(number) => number.to_string(),
            Value::Boolean(boolean) => boolean.to_string(),
            Value::List(entries) => {
                format!("[{}]", entries.iter().map(|e| e.value.to_toml()).collect::<Vec<_>>().join(", "))
            }
            Value::Table => "{}".into(),
        }
    }

    fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Text(text) => text.clone().into(),
            Value::Integer(number) => (*number).into(),
            Value::Boolean(boolean) => (*boolean).into(),
            Value::List(entries) => entries.iter().map(|e| e.value.to_json()).collect::<Vec<_>>().into(),
            Value::Table => serde_json::json!({}),
        }
    }
}

/// All settings that hold, each with its origin.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub(crate) entries: BTreeMap<String, Entry>,
}

impl Settings {
    /// The defaults alone.
    pub(crate) fn defaults() -> (Self, Vec<Problem>) {
        let mut settings = Self::default();
        let mut problems = Vec::new();
        for key in schema::KEYS.iter().filter(|key| !key.path.contains('*')) {
            match DeValue::parse(key.default) {
                Ok(value) => {
                    let at = |_: usize| Origin::Default;
                    if let Some(entry) = leaf(key.path, &value, &at, &mut problems) {
                        settings.entries.insert(key.path.to_owned(), entry);
                    }
                }
                Err(error) => problems.push(Problem {
                    origin: Origin::Default,
                    message: format!("default of {}: {}", key.path, error.message()),
                }),
            }
        }
        (settings, problems)
    }

    /// Lays the text of a file over what is there.
    pub(crate) fn overlay(&mut self, path: &Path, text: &str, problems: &mut Vec<Problem>) {
        let path: Arc<Path> = path.into();
        let at = |offset: usize| {
            let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
            Origin::File { path: path.clone(), line }
        };
        match DeTable::parse(text) {
            Ok(table) => self.walk("", table.get_ref(), &at, problems),
            Err(error) => {
                let offset = error.span().map_or(0, |span| span.start);
                problems.push(Problem {
                    origin: at(offset),
                    message: error.message().trim().replace('\n', ", "),
                });
            }
        }
    }

    /// Sets one key from the command line.
    pub(crate) fn set(&mut self, key: &str, option: &'static str, value: &str) {
        let entry = Entry { value: Value::Text(value.to_owned()), origin: Origin::CommandLine(option) };
        self.entries.insert(key.to_owned(), entry);
    }

    fn walk(
        &mut self,
        prefix: &str,
        table: &DeTable<'_>,
        at: &dyn Fn(usize) -> Origin,
        problems: &mut Vec<Problem>,
    ) {
        for (name, value) in table {
            let origin = at(name.span().start);
            let name = name.get_ref().as_ref();
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            let known = !name.contains('.') && !name.is_empty();
            match value.get_ref() {
                DeValue::Table(below) if known && schema::is_table(&path) => {
                    self.entries.entry(path.clone()).or_insert(Entry { value: Value::Table, origin });
                    self.walk(&path, below, at, problems);
                }
                _ if known && schema::find(&path).is_some() => {
                    if let Some(entry) = leaf(&path, value, at, problems) {
                        self.entries.insert(path, entry);
                    }
                }
                _ if known && schema::is_table(&path) => problems.push(Problem {
                    origin,
                    message: format!("`{path}` is a table: write [{path}] and its keys below"),
                }),
                _ => {
                    let hint = suggestion(name, &schema::names_in(prefix));
                    let place = if prefix.is_empty() { String::new() } else { format!(" in [{prefix}]") };
                    problems.push(Problem { origin, message: format!("unknown key `{name}`{place}{hint}") });
                }
            }
        }
    }

    /// Names below a table, such as the runtimes in `runtimes`.
    pub(crate) fn names_below(&self, table: &str) -> Vec<&str> {
        let prefix = format!("{table}.");
        let mut names: Vec<&str> =
            self.entries.keys().filter_map(|key| key.strip_prefix(&prefix)?.split('.').next()).collect();
        names.dedup();
        names
    }

    /// The settings as nested JSON, for `Status` and programs.
    pub fn to_json(&self) -> serde_json::Value {
        let mut root = serde_json::Map::new();
        for (path, entry) in self.entries.iter().filter(|(_, entry)| entry.value != Value::Table) {
            let mut table = &mut root;
            let mut parts = path.split('.').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    table.insert(part.to_owned(), entry.value.to_json());
                    break;
                }
                let below = table.entry(part).or_insert_with(|| serde_json::json!({}));
                match below.as_object_mut() {
                    Some(object) => table = object,
                    None => break,
                }
            }
        }
        root.into()
    }
}

/// Reads one value and holds it against the type of its key.
fn leaf(
    path: &str,
    value: &Spanned<DeValue<'_>>,
    at: &dyn Fn(usize) -> Origin,
    problems: &mut Vec<Problem>,
) -> Option<Entry> {
    let kind = schema::find(path)?.kind;
    let entry = convert(value, at).map_err(|problem| problems.push(problem)).ok()?;
    let fits = match (kind, &entry.value) {
        (Type::Text | Type::Path | Type::Duration | Type::Choice(_), Value::Text(_))
        | (Type::Integer | Type::Size, Value::Integer(_))
        | (Type::Size, Value::Text(_))
        | (Type::Boolean, Value::Boolean(_)) => true,
        (Type::TextList | Type::PathList, Value::List(entries)) => {
            entries.iter().all(|entry| matches!(entry.value, Value::Text(_)))
        }
        _ => false,
    };
    if fits {
        return Some(entry);
    }
    let message = format!("`{path}` is {}, not {}", kind.describe(), entry.value.type_name());
    problems.push(Problem { origin: entry.origin, message });
    None
}

fn convert(value: &Spanned<DeValue<'_>>, at: &dyn Fn(usize) -> Origin) -> Result<Entry, Problem> {
    let origin = at(value.span().start);
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                return Err(Problem { origin, message: format!("{} is out of range", number.as_str()) });
            }
        },
        DeValue::Array(items) => {
            Value::List(items.iter().map(|item| convert(item, at)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(_) => Value::Table,
        DeValue::Float(_) | DeValue::Datetime(_) => {
            let message = "neither fractions nor dates are known here".to_owned();
            return Err(Problem { origin, message });
        }
    };
    Ok(Entry { value, origin })
}
