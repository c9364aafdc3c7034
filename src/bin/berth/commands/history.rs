//! `berth history`.

use anyhow::{Context, Result};
use berth::proto::runtime::v1::ImageStatusResponse;
use clap::Args;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::client::Client;
use crate::options::listing::Format;
use crate::output::table::Table;
use crate::output::{self, human};
use crate::view::details;

/// Characters of an instruction that a table shows.
const SHOWN: usize = 60;

/// Options of `history`.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// The image: name, id, or a prefix of one
    #[arg(value_name = "IMAGE")]
    image: String,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Print instructions and digests in full
    #[arg(long)]
    no_trunc: bool,
}

/// The part of an image's configuration that is read (OCI image-spec, config.md).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    history: Vec<Entry>,
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    created: Option<String>,
    created_by: String,
    author: String,
    comment: String,
    empty_layer: bool,
}

/// What `-o json` prints of a step.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    /// Digest of the layer as it is unpacked; absent for a step that made none.
    diff_id: Option<String>,
    created: Option<String>,
    created_by: String,
    author: String,
    comment: String,
}

impl History {
    /// Shows how an image was made, the last step first.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let answer = client.image_status(&self.image, true).await;
        let answer = answer.with_context(|| format!("looking for image {}", self.image))?;
        answer.image.as_ref().with_context(|| {
            format!("no image is called {}: `berth images` lists them, `berth pull` fetches one", self.image)
        })?;
        let steps = steps(answer);
        match self.output {
            Format::Json => output::print_json(&steps)?,
            Format::Table => {
                output::print(&self.table(&steps, human::now_nanos()).render(output::colours()))?
            }
        }
        Ok(0)
    }

    fn table(&self, steps: &[Step], now: i64) -> Table {
        let mut table = Table::new(&["LAYER", "CREATED", "CREATED BY", "COMMENT"]);
        for step in steps {
            let layer =
                step.diff_id.as_deref().map_or("-".to_owned(), |id| human::short_id(id, self.no_trunc));
            let created = step.created.as_deref().and_then(nanos).unwrap_or_default();
            table.row([
                layer.into(),
                human::ago(created, now).into(),
                self.shown(&step.created_by).into(),
                self.shown(&step.comment).into(),
            ]);
        }
        table
    }

    /// In one line, and not too long.
    fn shown(&self, text: &str) -> String {
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if self.no_trunc || line.chars().count() <= SHOWN {
            return line;
        }
        line.chars().take(SHOWN - 1).chain(['…']).collect()
    }
}

/// The last one first. Where the history has fewer steps than there are layers (it may be missing, and commits go on from there), it
/// tells of the upper ones.
fn steps(response: ImageStatusResponse) -> Vec<Step> {
    let mut info = details::info(response.info);
    let config = info.get_mut("info").map(|info| info["imageSpec"].take()).unwrap_or_default();
    let Config { history, rootfs } = serde_json::from_value(config).unwrap_or_default();
    let told = history.iter().filter(|entry| !entry.empty_layer).count();
    let mut layers = rootfs.diff_ids.into_iter();
    let untold = layers.len().saturating_sub(told);
    let mut steps: Vec<Step> =
        layers.by_ref().take(untold).map(|layer| Step::new(Some(layer), Entry::default())).collect();
    for entry in history {
        let layer = if entry.empty_layer { None } else { layers.next() };
        steps.push(Step::new(layer, entry));
    }
    steps.reverse();
    steps
}

impl Step {
    fn new(diff_id: Option<String>, entry: Entry) -> Self {
        let Entry { created, created_by, author, comment, empty_layer: _ } = entry;
        Self { diff_id, created, created_by, author, comment }
    }
}

/// Nanoseconds since 1970.
fn nanos(text: &str) -> Option<i64> {
    i64::try_from(OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn steps_of(config: &str) -> Vec<Step> {
        let info = format!(r#"{{"imageSpec":{config}}}"#);
        steps(ImageStatusResponse { info: [("info".to_owned(), info)].into(), ..Default::default() })
    }

    #[test]
    fn layers_belong_to_the_steps_that_made_them() {
        let steps = steps_of(
            r#"{"rootfs":{"diff_ids":["sha256:aa","sha256:bb"]},"history":[
                {"created":"2026-01-01T00:00:00Z","created_by":"ADD rootfs.tar /"},
                {"created_by":"ENV A=b","empty_layer":true},
                {"created_by":"RUN  make \n install","comment":"buildkit"}]}"#,
        );
        let ids: Vec<_> = steps.iter().map(|step| step.diff_id.as_deref()).collect();
        assert_eq!(ids, [Some("sha256:bb"), None, Some("sha256:aa")]);
        let history = History { image: String::new(), output: Format::Table, no_trunc: false };
        let day = 86_400 * 1_000_000_000;
        let table = history.table(&steps, nanos("2026-01-01T00:00:00Z").unwrap() + 2 * day).render(false);
        assert_eq!(
            table,
            "LAYER  CREATED     CREATED BY        COMMENT\n\
             bb     -           RUN make install  buildkit\n\
             -      -           ENV A=b           \n\
             aa     2 days ago  ADD rootfs.tar /  \n"
        );
    }

    #[test]
    fn a_history_that_began_late_tells_of_the_upper_layers() {
        let steps = steps_of(
            r#"{"rootfs":{"diff_ids":["sha256:aa","sha256:bb"]},"history":[{"comment":"committed"}]}"#,
        );
        assert_eq!(
            (steps[0].diff_id.as_deref(), steps[0].comment.as_str()),
            (Some("sha256:bb"), "committed")
        );
        assert_eq!((steps[1].diff_id.as_deref(), steps.len()), (Some("sha256:aa"), 2));
    }

    #[test]
    fn an_image_without_history_has_its_layers() {
        let steps = steps_of(r#"{"rootfs":{"diff_ids":["sha256:aa","sha256:bb"]}}"#);
        assert_eq!(steps[0].diff_id.as_deref(), Some("sha256:bb"));
        assert_eq!(steps.len(), 2);
        assert!(steps_of("{}").is_empty());
    }

    #[test]
    fn long_instructions_are_cut() {
        let history = History { image: String::new(), output: Format::Table, no_trunc: false };
        let shown = history.shown(&"ä".repeat(200));
        assert_eq!(shown.chars().count(), SHOWN);
        assert!(shown.ends_with('…'));
    }
}
