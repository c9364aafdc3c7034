//! Which of a list are shown: `--filter FIELD=VALUE`, over what `-o json` prints.
//!
//! Words of docker are understood: `status` is the state, `ancestor` the image, `exited` the exit code, `reference` a tag, `dangling`
//! an image without a tag.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters(Vec<(String, String)>);

impl Filters {
    /// Reads them.
    pub(crate) fn parse(texts: &[String]) -> Result<Self> {
        let read = |text: &String| {
            let (field, value) = text.split_once('=').with_context(|| {
                format!("--filter {text}: write FIELD=VALUE, as in state=exited or label=app=web")
            })?;
            let field = match field {
                "status" => "state",
                "ancestor" => "image",
                "exited" => "exitCode",
                "reference" => "repoTags",
                "pod" => "podName",
                other => other,
            };
            Ok((field.to_owned(), value.to_owned()))
        };
        texts.iter().map(read).collect::<Result<_>>().map(Self)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one is about what the thing is doing.
    pub(crate) fn asks_for_state(&self) -> bool {
        self.0.iter().any(|(field, _)| field == "state" || field == "exitCode")
    }

    /// Whether a thing is shown.
    ///
    /// # Errors
    /// It has no such field.
    pub(crate) fn keep(&self, view: &impl Serialize) -> Result<bool> {
        if self.0.is_empty() {
            return Ok(true);
        }
        let view = serde_json::to_value(view)?;
        for (field, value) in &self.0 {
            if !holds(&view, field, value)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn holds(view: &Value, field: &str, wanted: &str) -> Result<bool> {
    match field {
        "label" | "annotation" => {
            let (key, value) =
                wanted.split_once('=').map_or((wanted, None), |(key, value)| (key, Some(value)));
            let found = view.get(format!("{field}s")).and_then(|labels| labels.get(key));
            return Ok(found.is_some_and(|found| value.is_none_or(|value| found.as_str() == Some(value))));
        }
        "dangling" => {
            let tags = view.get("repoTags").and_then(Value::as_array).is_some_and(|tags| !tags.is_empty());
            return Ok(tags == (wanted == "false"));
        }
        _ => {}
    }
    Ok(match view.get(field) {
        None => {
            let known: Vec<&String> = view.as_object().into_iter().flat_map(|fields| fields.keys()).collect();
            let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
            bail!("--filter {field}=…: there are {} and label", known.join(", "))
        }
        Some(Value::String(text)) => match field {
            "id" | "podId" | "imageId" => {
                text.trim_start_matches("sha256:").starts_with(wanted.trim_start_matches("sha256:"))
            }
            "name" | "podName" | "image" => text.contains(wanted),
            _ => text.eq_ignore_ascii_case(wanted),
        },
        Some(Value::Array(items)) => {
            items.iter().any(|item| item.as_str().is_some_and(|item| item.contains(wanted)))
        }
        Some(other) => {
            // As JSON has it: a number, true, false.
            let written = other.to_string();
            written == wanted
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn keeps(filters: &[&str]) -> Result<bool> {
        let filters: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
        let view = json!({"id": "abcdef", "name": "web-1", "state": "exited", "exitCode": 3, "image": "nginx:1",
            "repoTags": ["a/b:1"], "labels": {"app": "web"}, "podName": "p", "reason": ""});
        Filters::parse(&filters)?.keep(&view)
    }

    #[test]
    fn all_must_hold() {
        for yes in [
            &["status=exited"][..],
            &["state=Exited", "name=web"],
            &["id=abc"],
            &["exited=3"],
            &["ancestor=nginx"],
            &["label=app"],
            &["label=app=web", "pod=p"],
            &["reference=a/b"],
            &["dangling=false"],
            &[],
        ] {
            assert!(keeps(yes).unwrap(), "{yes:?}");
        }
        for no in [
            &["status=running"][..],
            &["name=web", "id=bc"],
            &["label=app=x"],
            &["label=b"],
            &["dangling=true"],
        ] {
            assert!(!keeps(no).unwrap(), "{no:?}");
        }
        assert!(keeps(&["colour=red"]).unwrap_err().to_string().contains("there are exitCode, id"));
        assert!(keeps(&["web"]).unwrap_err().to_string().contains("FIELD=VALUE"));
    }
}
