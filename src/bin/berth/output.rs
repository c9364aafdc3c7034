//! What goes to standard output: text, JSON and tables. Colours only on a terminal, and not where `NO_COLOR` is set.

pub(crate) mod human;
pub(crate) mod path;
pub(crate) mod table;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Writes to standard output; a reader that went away is an error that ends the program silently.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes one line.
pub(crate) fn print_line(text: &str) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// Writes a value as JSON, indented.
pub(crate) fn print_json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(print(&text)?)
}

/// What comes from outside (names, messages), made fit for a terminal: it must not move the cursor or break the line.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}

/// Whether standard output takes colours.
pub(crate) fn colours() -> bool {
    // https://no-color.org: present and not empty.
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}
