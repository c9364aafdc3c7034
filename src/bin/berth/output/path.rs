//! Parts of JSON by paths: what `--format` takes.
//!
//! `.status.state`, `.mounts[0].hostPath`, `.labels["io.kubernetes.pod.name"]`, `.mounts[*].containerPath`; a `$` before it is
//! fine. With braces, text around paths stays: `{.id} {.status.state}`; `\n` and `\t` are what they are in C. Text is printed bare,
//! everything else as JSON; what `[*]` finds several times is parted by blanks.

use std::io::IsTerminal;

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

/// A format, ready to be applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Path(Vec<Step>),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    /// Counted from the end when negative.
    Index(i64),
    All,
}

impl Template {
    /// Reads a format.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if !text.contains('{') {
            return Ok(Self(vec![Piece::Path(path(text)?)]));
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                pieces.push(Piece::Text(unescaped(before)));
            }
            let end = closing(after).ok_or_else(|| anyhow!("a brace is not closed in `{text}`"))?;
            let (inner, next) =
                (after.get(..end).unwrap_or_default(), after.get(end + 1..).unwrap_or_default());
            let inner = inner.trim();
            match inner.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')) {
                // kubectl's way to write a line's end.
                Some(text) => pieces.push(Piece::Text(unescaped(text))),
                None => pieces.push(Piece::Path(path(inner)?)),
            }
            rest = next;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(unescaped(rest)));
        }
        Ok(Self(pieces))
    }

    /// The format with a value's parts in it; on a terminal fit for one.
    pub(crate) fn apply(&self, value: &Value) -> Result<String> {
        self.fill(value, std::io::stdout().is_terminal())
    }

    /// `for_terminal`: text of the value does not speak to the terminal. What the format itself says does.
    fn fill(&self, value: &Value, for_terminal: bool) -> Result<String> {
        let shown = |value: &Value| match shown(value) {
            text if for_terminal => super::plain(&text),
            text => text,
        };
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Path(steps) => {
                    let found: Vec<String> = find(value, steps)?.into_iter().map(shown).collect();
                    text.push_str(&found.join(" "));
                }
            }
        }
        Ok(text)
    }
}

/// Where the brace is that closes, past quoted keys.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, char) in text.char_indices() {
        match (quote, char) {
            (None, '}') => return Some(at),
            (None, '"' | '\'') => quote = Some(char),
            (Some(open), close) if open == close => quote = None,
            _ => {}
        }
    }
    None
}

fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t")
}

fn path(text: &str) -> Result<Vec<Step>> {
    let wrong = || {
        anyhow!("`{text}` is no path: write one as in .status.state, .mounts[0].hostPath or .labels[\"a.b\"]")
    };
    let mut rest = text.strip_prefix('$').unwrap_or(text);
    let mut steps = Vec::new();
    if rest.is_empty() && text.is_empty() {
        return Err(wrong());
    }
    // The first name needs no dot.
    if !rest.is_empty() && !rest.starts_with(['.', '[']) {
        let (name, next) = name(rest);
        // Doubled braces are Go's.
        if name.contains(['{', '}']) {
            return Err(wrong());
        }
        steps.push(Step::Key(name.to_owned()));
        rest = next;
    }
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (step, next) = bracket(after).ok_or_else(wrong)?;
            steps.push(step);
            rest = next;
        } else if let Some(after) = rest.strip_prefix('.') {
            if after.is_empty() && steps.is_empty() {
                return Ok(steps);
            }
            if after.starts_with('[') {
                rest = after;
                continue;
            }
            let (found, next) = name(after);
            if found.is_empty() {
                return Err(wrong());
            }
            steps.push(if found == "*" { Step::All } else { Step::Key(found.to_owned()) });
            rest = next;
        } else {
            return Err(wrong());
        }
    }
    Ok(steps)
}

fn name(text: &str) -> (&str, &str) {
    text.split_at(text.find(['.', '[']).unwrap_or(text.len()))
}

fn bracket(text: &str) -> Option<(Step, &str)> {
    for quote in ['"', '\''] {
        if let Some(inner) = text.strip_prefix(quote) {
            let (key, rest) = inner.split_once(quote)?;
            return Some((Step::Key(key.to_owned()), rest.strip_prefix(']')?));
        }
    }
    let (inner, rest) = text.split_once(']')?;
    let step = if inner == "*" { Step::All } else { Step::Index(inner.trim().parse().ok()?) };
    Some((step, rest))
}

fn find<'a>(value: &'a Value, steps: &[Step]) -> Result<Vec<&'a Value>> {
    let mut found = vec![value];
    let mut several = false;
    for step in steps {
        let mut next = Vec::new();
        for value in found {
            match (step, value) {
                (Step::All, Value::Array(list)) => next.extend(list),
                (Step::All, Value::Object(table)) => next.extend(table.values()),
                (Step::Key(key), Value::Object(table)) if table.contains_key(key) => {
                    next.extend(table.get(key))
                }
                (Step::Index(index), Value::Array(list)) => {
                    let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
                    let at = if *index < 0 { length.saturating_add(*index) } else { *index };
                    match usize::try_from(at).ok().and_then(|at| list.get(at)) {
                        Some(value) => next.push(value),
                        None if several => {}
                        None => bail!("there is no [{index}]: the list has {length}"),
                    }
                }
                // Of several, those count that have it.
                _ if several => {}
                (Step::Key(key), Value::Object(table)) => {
                    let known: Vec<&str> = table.keys().map(String::as_str).take(24).collect();
                    bail!("there is no `{key}`; there are {}", known.join(", "))
                }
                (step, other) => bail!("{} can't be applied to {}", named(step), kind(other)),
            }
        }
        several |= *step == Step::All;
        found = next;
    }
    Ok(found)
}

fn named(step: &Step) -> String {
    match step {
        Step::Key(key) => format!("`.{key}`"),
        Step::Index(index) => format!("[{index}]"),
        Step::All => "[*]".to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "what is null",
        Value::Bool(_) | Value::Number(_) | Value::String(_) => "a single value",
        Value::Array(_) => "a list (write [0] or [*])",
        Value::Object(_) => "an object",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn of(format: &str) -> Result<String> {
        let value = json!({
            "id": "abc", "pid": 7, "none": null, "labels": {"a.b": "dotted", "plain": "x"},
            "mounts": [{"to": "/a"}, {"to": "/b", "ro": true}, {}]
        });
        Template::parse(format)?.apply(&value)
    }

    #[test]
    fn paths() {
        for (format, expected) in [
            (".id", "abc"),
            ("id", "abc"),
            ("$.id", "abc"),
            ("{.id}", "abc"),
            (".pid", "7"),
            (".none", "null"),
            (".labels[\"a.b\"]", "dotted"),
            (".labels['plain']", "x"),
            (".labels.plain", "x"),
            (".mounts[0].to", "/a"),
            (".mounts[-2].to", "/b"),
            (".mounts[*].to", "/a /b"),
            (".mounts[*].ro", "true"),
            (".labels.*", "dotted x"),
            (".mounts[0]", "{\"to\":\"/a\"}"),
            ("{.id}\\t{ .pid }{\"\\n\"}", "abc\t7\n"),
            ("pid {.pid} of {.labels[\"a.b\"]}.", "pid 7 of dotted."),
        ] {
            assert_eq!(of(format).unwrap(), expected, "{format}");
        }
        assert!(of("$").unwrap().starts_with('{') && of(".").unwrap().starts_with('{'));
    }

    #[test]
    fn values_do_not_speak_to_a_terminal() {
        let value = json!({"name": "a\u{1b}]0;title\u{7}b"});
        let format = Template::parse("{.name}\\n\u{1b}[0m").unwrap();
        assert_eq!(format.fill(&value, true).unwrap(), "a?]0;title?b\n\u{1b}[0m");
        assert_eq!(format.fill(&value, false).unwrap(), "a\u{1b}]0;title\u{7}b\n\u{1b}[0m");
    }

    #[test]
    fn mistakes_say_what_there_is() {
        for (format, word) in [
            ("", "no path"),
            (".nothing", "there are id, labels"),
            (".id.more", "single value"),
            (".mounts.to", "[*]"),
            (".mounts[9]", "the list has 3"),
            (".mounts[x]", "no path"),
            (".labels[", "no path"),
            ("a..b", "no path"),
            ("{.id", "not closed"),
            ("{{.Id}}", "no path"),
        ] {
            let error = of(format).unwrap_err().to_string();
            assert!(error.contains(word), "{format}: {error}");
        }
    }
}
