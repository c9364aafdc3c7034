//! Alerts and dashboard: read by Prometheus' own promtool, and held against the metrics that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

use crate::chart::{chart, repository, tool};
use crate::host::text;

/// A group of rules, as Prometheus has it.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(default, rename = "for")]
    lasting: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// The groups of the chart's rule file.
pub(crate) fn rules() -> Vec<Group> {
    let text = std::fs::read_to_string(chart().join("files/alerts.yaml")).unwrap();
    let file: BTreeMap<String, Vec<Group>> = serde_saphyr::from_str(&text).unwrap();
    file.into_iter().next().unwrap().1
}

/// The chart's dashboard.
pub(crate) fn dashboard() -> Value {
    let text = std::fs::read_to_string(chart().join("files/dashboard.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn promtool_reads_the_rules_and_they_do_what_their_tests_say() {
    static PROMTOOL: OnceLock<Result<std::path::PathBuf, String>> = OnceLock::new();
    let Some(promtool) = tool(&PROMTOOL, "promtool", &["--version"]) else { return };
    for arguments in [
        ["check", "rules", "charts/berth/files/alerts.yaml"],
        ["test", "rules", "tests/node/alerts_test.yaml"],
    ] {
        let output = Command::new(promtool).args(arguments).current_dir(repository()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }
}

#[test]
fn every_alert_is_tested_and_says_what_to_do() {
    #[derive(Deserialize)]
    struct Tests {
        tests: Vec<Test>,
    }
    #[derive(Deserialize)]
    struct Test {
        alert_rule_test: Vec<Expected>,
    }
    #[derive(Deserialize)]
    struct Expected {
        alertname: String,
        exp_alerts: Vec<Value>,
    }
    let text = std::fs::read_to_string(repository().join("tests/node/alerts_test.yaml")).unwrap();
    let tests: Tests = serde_saphyr::from_str(&text).unwrap();
    let expected = tests.tests.into_iter().flat_map(|test| test.alert_rule_test);
    let seen: BTreeSet<String> =
        expected.filter(|one| !one.exp_alerts.is_empty()).map(|one| one.alertname).collect();
    let all: BTreeSet<String> =
        rules().into_iter().flat_map(|group| group.rules).map(|rule| rule.alert).collect();
    assert_eq!(seen, all);
    for rule in rules().into_iter().flat_map(|group| group.rules) {
        assert!(
            ["critical", "warning", "info"].contains(&rule.labels["severity"].as_str()),
            "{}",
            rule.alert
        );
        assert!(
            rule.annotations["summary"].len() > 20 && rule.annotations["description"].len() > 40,
            "{}",
            rule.alert
        );
    }
}

/// Names of metrics in an expression, without what a histogram adds to them.
fn metrics(expression: &str, found: &mut BTreeSet<String>) {
    for word in expression.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_')) {
        if word.starts_with("berth_") || word.starts_with("process_") {
            let histogram = ["_bucket", "_count", "_sum"].into_iter().find_map(|end| word.strip_suffix(end));
            // A counter's own name may end so as well.
            let name = if documented().contains(word) { word } else { histogram.unwrap_or(word) };
            found.insert(name.to_owned());
        }
    }
}

/// The metrics of the page that a test of the daemon holds against the code.
fn documented() -> BTreeSet<String> {
    let page = std::fs::read_to_string(repository().join("docs/metrics.md")).unwrap();
    let names = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next());
    names.filter(|name| !name.starts_with('/')).map(str::to_owned).collect()
}

#[test]
fn rules_and_dashboard_ask_for_metrics_that_are_there() {
    let mut asked = BTreeSet::new();
    for rule in rules().into_iter().flat_map(|group| group.rules) {
        metrics(&rule.expr, &mut asked);
    }
    let mut panels = 0;
    for panel in dashboard()["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            metrics(target["expr"].as_str().unwrap(), &mut asked);
            panels += 1;
        }
    }
    assert!(panels > 30 && asked.len() > 30, "{panels} queries, {} metrics", asked.len());
    let unknown: Vec<_> = asked.difference(&documented()).cloned().collect();
    assert!(unknown.is_empty(), "there is no {unknown:?}");
}

#[test]
fn panels_have_places_of_their_own() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels have one number");
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
    }
    let variables: Vec<_> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "node"]);
}
