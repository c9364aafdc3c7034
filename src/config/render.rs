//! Writes configurations: the commented default file, the effective settings, and the reference.

use std::fmt::Write as _;

use super::schema::{self, Key};
use super::settings::{Settings, Value};

/// The default file: every key with its meaning and its default.
pub fn default_file() -> String {
    let mut text = String::from(
        "# Configuration of berthd. Every key is optional; the values here are the defaults.\n\
         # Files in conf.d beside this one are read after it, in lexical order; the later wins, key by key.\n",
    );
    for (section, doc) in schema::SECTIONS {
        text.push('\n');
        comment(&mut text, doc);
        // Handlers are examples: an [runtimes.NAME] that stands here would be one handler more.
        let example = section.contains('*');
        let mark = if example { "# " } else { "" };
        if !section.is_empty() {
            let _ = writeln!(text, "{mark}[{}]", section.replace('*', "runc"));
        }
        for key in keys_of(section) {
            comment(&mut text, key.doc);
            comment(&mut text, &format!("Type: {}.", key.kind.describe()));
            let _ = writeln!(text, "{mark}{} = {}", leaf(key), example_value(key));
        }
    }
    text
}

/// The effective settings as TOML, each with its origin.
pub fn dump(settings: &Settings) -> String {
    let mut text = String::new();
    let mut section = "";
    let scalars = settings.entries.iter().filter(|(_, entry)| entry.value != Value::Table);
    let mut rows: Vec<_> =
        scalars.map(|(path, entry)| (path.rsplit_once('.').unwrap_or(("", path)), entry)).collect();
    rows.sort_by_key(|(place, _)| *place);
    for ((table, name), entry) in rows {
        if table != section {
            let _ = writeln!(text, "\n[{table}]");
            section = table;
        }
        let _ = writeln!(text, "{name} = {}  # {}", entry.value.to_toml(), entry.origin);
    }
    text
}

/// The reference of all keys as Markdown, the body of `docs/configuration.md`.
pub fn reference() -> String {
    let mut text = String::new();
    for (section, doc) in schema::SECTIONS {
        let title = match *section {
            "" => "Top level".to_owned(),
            section => format!("`[{}]`", section.replace('*', "NAME")),
        };
        let _ = writeln!(
            text,
            "## {title}\n\n{doc}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |"
        );
        for key in keys_of(section) {
            let kind = key.kind.describe();
            let _ = writeln!(text, "| `{}` | {kind} | `{}` | {} |", leaf(key), key.default, key.doc);
        }
        text.push('\n');
    }
    text
}

fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    schema::KEYS.iter().filter(move |key| key.path.rsplit_once('.').map_or("", |(table, _)| table) == section)
}

fn leaf(key: &Key) -> &'static str {
    key.path.rsplit_once('.').map_or(key.path, |(_, name)| name)
}

fn example_value(key: &Key) -> &'static str {
    if key.path == "runtimes.*.path" { "\"/usr/bin/runc\"" } else { key.default }
}

/// Comment lines of at most 100 columns.
fn comment(text: &mut String, doc: &str) {
    let mut line = String::from("#");
    for word in doc.split_whitespace() {
        if line.len() + word.len() >= 100 {
            let _ = writeln!(text, "{line}");
            line = String::from("#");
        }
        let _ = write!(line, " {word}");
    }
    let _ = writeln!(text, "{line}");
}
