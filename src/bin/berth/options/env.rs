//! Environment variables (`NAME=VALUE`, `NAME` for the caller's own, files of them), labels and annotations.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use anyhow::{Result, bail};
use berth::proto::runtime::v1::KeyValue;

/// Variables of `-e` and of files, in that order of strength: the later of a name wins, its place is the first's.
/// `caller` looks a name up in the caller's environment; one that is not there is left out, as Docker does.
pub(crate) fn variables<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    caller: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<KeyValue>> {
    let mut variables: Vec<KeyValue> = Vec::new();
    for text in texts {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.as_bytes().to_vec())),
            None => (text, caller(text).map(OsString::into_vec)),
        };
        if key.is_empty() {
            bail!("`{text}` is no variable: write NAME=VALUE, or NAME to pass on your own");
        }
        let Some(value) = value else { continue };
        match variables.iter_mut().find(|variable| variable.key == key) {
            Some(variable) => variable.value = value,
            None => variables.push(KeyValue { key: key.to_owned(), value }),
        }
    }
    Ok(variables)
}

/// The lines of a file of variables: empty ones and `#` comments do not count.
pub(crate) fn file_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Labels or annotations, `KEY=VALUE` or `KEY`.
pub(crate) fn pairs(texts: &[String]) -> Result<HashMap<String, String>> {
    texts
        .iter()
        .map(|text| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            if key.is_empty() {
                bail!("`{text}` is no label: write KEY=VALUE");
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(texts: &[&str]) -> Result<Vec<(String, String)>> {
        let caller = |name: &str| (name == "HOME").then(|| OsString::from("/root"));
        let variables = variables(texts.iter().copied(), caller)?;
        Ok(variables.into_iter().map(|pair| (pair.key, String::from_utf8(pair.value).unwrap())).collect())
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn values_may_be_empty_or_hold_equal_signs() {
        assert_eq!(
            read(&["A=", "B=x=y", "C= z"]).unwrap(),
            [pair("A", ""), pair("B", "x=y"), pair("C", " z")]
        );
    }

    #[test]
    fn a_bare_name_takes_the_callers_value_or_nothing() {
        assert_eq!(read(&["HOME", "NOPE"]).unwrap(), [pair("HOME", "/root")]);
    }

    #[test]
    fn the_later_wins() {
        assert_eq!(read(&["A=1", "B=2", "A=3"]).unwrap(), [pair("A", "3"), pair("B", "2")]);
    }

    #[test]
    fn a_value_without_a_name_is_refused() {
        assert!(read(&["=x"]).unwrap_err().to_string().contains("NAME=VALUE"));
        assert!(pairs(&["=x".to_owned()]).is_err());
    }

    #[test]
    fn files_have_comments() {
        let lines: Vec<&str> = file_lines("# no\n\nA=1\n  B=2 # kept\n").collect();
        assert_eq!(lines, ["A=1", "B=2 # kept"]);
    }
}
