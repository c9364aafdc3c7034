//! How far a pull or push is: a bar for each layer on a terminal, a line for each change elsewhere. All of it on standard
//! error: standard output is for results.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::time::Duration;

use berth::proto::berth::v1::LayerProgress;
use berth::proto::berth::v1::layer_progress::Stage;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tonic::{Status, Streaming};

use crate::output::human;

/// How often bars are redrawn when nothing arrives.
const TICK: Duration = Duration::from_millis(200);

/// Shows progress in one of its ways.
#[derive(Debug)]
enum Progress {
    /// Not at all.
    Silent,
    /// A line for each change of a layer's stage.
    Lines(HashMap<String, Stage>),
    /// A bar for each layer.
    Bars { screen: MultiProgress, bars: HashMap<String, ProgressBar> },
}

impl Progress {
    /// As it fits standard error.
    fn new(quiet: bool) -> Self {
        if quiet {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Bars { screen: MultiProgress::new(), bars: HashMap::new() }
        } else {
            Self::Lines(HashMap::new())
        }
    }

    /// Shows a report.
    fn show(&mut self, layer: &LayerProgress) {
        match self {
            Self::Silent => {}
            Self::Lines(stages) => {
                if let Some(line) = change(stages, layer) {
                    eprintln!("{line}");
                }
            }
            Self::Bars { screen, bars } => {
                let bar = bars.entry(layer.digest.clone()).or_insert_with(|| new_bar(screen, layer));
                draw(bar, layer);
            }
        }
    }

    /// Leaves the terminal as it should be when the pull is over. When it went well all layers are complete, also those
    /// whose last report was left out.
    fn finish(&mut self, well: bool) {
        let Self::Bars { bars, .. } = self else { return };
        for bar in bars.values().filter(|bar| !bar.is_finished()) {
            if well { close(bar, Stage::Verified) } else { bar.abandon() }
        }
    }
}

/// One event of a transfer.
#[derive(Debug)]
pub(crate) enum Event<T> {
    /// How far a layer is.
    Layer(LayerProgress),
    /// The outcome.
    Done(T),
    /// Nothing that this client knows.
    Unknown,
}

/// Follows a transfer to its end, and shows how far it is. `None`: it ended without an outcome.
pub(crate) async fn follow<M, T>(
    mut messages: Streaming<M>,
    quiet: bool,
    event: impl Fn(M) -> Event<T>,
) -> Result<Option<T>, Status> {
    let mut progress = Progress::new(quiet);
    let mut done = None;
    let outcome = loop {
        match messages.message().await {
            Ok(None) => break Ok(()),
            Err(status) => break Err(status),
            Ok(Some(message)) => match event(message) {
                Event::Layer(layer) => progress.show(&layer),
                Event::Done(result) => done = Some(result),
                Event::Unknown => {}
            },
        }
    };
    progress.finish(outcome.is_ok() && done.is_some());
    outcome.map(|()| done)
}

/// The line to print for a report: none when its layer's stage is the one before.
fn change(stages: &mut HashMap<String, Stage>, layer: &LayerProgress) -> Option<String> {
    let stage = layer.stage();
    if stages.insert(layer.digest.clone(), stage) == Some(stage) {
        return None;
    }
    let id = human::short_id(&layer.digest, false);
    let size = if layer.total > 0 { format!(" {}", human::size(layer.total)) } else { String::new() };
    Some(format!("{id}: {}{size}", word(stage)))
}

fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Unspecified | Stage::Waiting => "waiting",
        Stage::Downloading => "downloading",
        Stage::Unpacking => "unpacking",
        Stage::Verified => "done",
        Stage::Exists => "exists already",
        Stage::Uploading => "uploading",
        Stage::Mounted => "mounted",
    }
}

fn new_bar(screen: &MultiProgress, layer: &LayerProgress) -> ProgressBar {
    let bar = screen.add(ProgressBar::new(layer.total));
    let template =
        "{prefix} {msg:14} [{bar:30}] {decimal_bytes:>10}/{decimal_total_bytes} {decimal_bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(human::short_id(&layer.digest, false));
    bar.enable_steady_tick(TICK);
    bar
}

fn draw(bar: &ProgressBar, layer: &LayerProgress) {
    let stage = layer.stage();
    bar.set_length(layer.total.max(layer.offset));
    bar.set_message(word(stage));
    match stage {
        Stage::Verified | Stage::Exists | Stage::Mounted => close(bar, stage),
        _ => bar.set_position(layer.offset),
    }
}

/// Makes a bar a line that says how its layer ended.
fn close(bar: &ProgressBar, stage: Stage) {
    if let Ok(style) = ProgressStyle::with_template("{prefix} {msg:14} {decimal_total_bytes}") {
        bar.set_style(style);
    }
    bar.set_message(word(stage));
    bar.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(digest: &str, stage: Stage, offset: u64, total: u64) -> LayerProgress {
        LayerProgress { digest: digest.into(), stage: stage.into(), offset, total }
    }

    #[test]
    fn lines_are_printed_at_changes_only() {
        let mut stages = HashMap::new();
        let mut lines = Vec::new();
        for report in [
            report("sha256:0123456789abcdef", Stage::Downloading, 0, 2_500_000),
            report("sha256:0123456789abcdef", Stage::Downloading, 5, 2_500_000),
            report("sha256:ffffffffffffffff", Stage::Exists, 0, 0),
            report("sha256:0123456789abcdef", Stage::Verified, 2_500_000, 2_500_000),
        ] {
            lines.extend(change(&mut stages, &report));
        }
        assert_eq!(
            lines,
            ["0123456789ab: downloading 2.5MB", "ffffffffffff: exists already", "0123456789ab: done 2.5MB"]
        );
    }

    #[test]
    fn bars_follow_their_layer() {
        let screen = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let mut progress = Progress::Bars { screen, bars: HashMap::new() };
        progress.show(&report("sha256:aa", Stage::Downloading, 5, 10));
        progress.show(&report("sha256:bb", Stage::Downloading, 5, 10));
        progress.show(&report("sha256:bb", Stage::Verified, 10, 10));
        progress.finish(false);
        let Progress::Bars { bars, .. } = progress else { return };
        assert_eq!(bars.values().map(ProgressBar::position).collect::<Vec<_>>().iter().sum::<u64>(), 15);
        assert!(bars.values().all(ProgressBar::is_finished));
    }
}
