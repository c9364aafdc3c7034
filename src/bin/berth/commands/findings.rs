//! How findings are printed.

use anyhow::Result;
use berth::node::check::{Finding, Level};

use crate::options::listing::Format;
use crate::output;
use crate::output::table::{Cell, Table, Tone};

/// Prints findings. Returns what to exit with: 1 when somebody has to do something.
pub(crate) fn show(findings: &[Finding], format: Format) -> Result<u8> {
    if format == Format::Json {
        output::print_json(findings)?;
    } else {
        let mut table = Table::new(&["CHECK", "STATE", "FOUND", "WHAT TO DO"]);
        for finding in findings {
            let tone = match finding.level {
                Level::Ok => Tone::Good,
                Level::Warning => Tone::Plain,
                Level::Missing | Level::Wrong => Tone::Bad,
            };
            let advice = if finding.advice.is_empty() { "-" } else { &finding.advice };
            table.row([
                finding.check.into(),
                Cell::toned(finding.level.word(), tone),
                finding.found.as_str().into(),
                advice.into(),
            ]);
        }
        output::print(&table.render(output::colours()))?;
    }
    Ok(u8::from(findings.iter().any(Finding::is_bad)))
}
