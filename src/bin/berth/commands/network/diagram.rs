//! `berth network diagram`: the node as a picture.
//!
//! Networks stand in the left column, pods in the right one; a line is an endpoint, with its interface and addresses. Plain
//! SVG 1.1 with its own style, so that it shows anywhere and is read by other tools.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use berth::proto::berth::v1::{Endpoint, Network};
use clap::Args;

use crate::client::Client;
use crate::output;

/// Options of `network diagram`.
#[derive(Debug, Args)]
pub(crate) struct Diagram {
    /// File to write (else standard output)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Diagram {
    /// Draws what is there now.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let mut client = Client::connect(address).await?;
        let mut networks = Vec::new();
        for network in super::all(&mut client).await? {
            networks.push(super::one(&mut client, &network.name).await?);
        }
        let node =
            nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let picture = draw(&node, &networks);
        match &self.output {
            Some(path) => {
                std::fs::write(path, picture).with_context(|| format!("writing {}", path.display()))?;
            }
            None => output::print(&picture)?,
        }
        Ok(0)
    }
}

const ROW: usize = 64;
const TOP: usize = 72;
const BOX: (usize, usize) = (280, 48);
const LEFT: usize = 32;
const RIGHT: usize = 620;

/// The middle of the box of a row.
fn middle(row: usize) -> usize {
    TOP + row * ROW + BOX.1 / 2
}

/// The same state gives the same picture, in whatever order it came.
fn draw(node: &str, networks: &[(Network, Vec<Endpoint>)]) -> String {
    let mut networks = networks.to_vec();
    networks.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    for (_, endpoints) in &mut networks {
        endpoints.sort_by_cached_key(|endpoint| (pod_label(endpoint), endpoint.pod_id.clone()));
    }
    let mut pods: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    for endpoint in networks.iter().flat_map(|(_, endpoints)| endpoints) {
        let row = pods.len();
        pods.entry(&endpoint.pod_id).or_insert_with(|| (row, pod_label(endpoint)));
    }
    let rows = networks.len().max(pods.len()).max(1);
    let (width, height) = (RIGHT + BOX.0 + LEFT, TOP + rows * ROW + 16);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <style>.node{{fill:#f7f7f5;stroke:#888}}.network{{fill:#dcecf7;stroke:#2f6f9f}}.pod{{fill:#e4f2df;stroke:#4b8b3b}}\
         .endpoint{{stroke:#555;fill:none}}.small{{font-size:11px;fill:#444}}</style>\n"
    );
    let _ = writeln!(
        text,
        "<rect class=\"node\" x=\"8\" y=\"8\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n\
         <text x=\"{LEFT}\" y=\"40\" font-size=\"16\">node {}</text>",
        width - 16,
        height - 16,
        escape(node)
    );
    for (row, (_, endpoints)) in networks.iter().enumerate() {
        for endpoint in endpoints {
            let Some((pod, _)) = pods.get(endpoint.pod_id.as_str()) else { continue };
            let (from, to) = (middle(row), middle(*pod));
            let what: Vec<_> =
                std::iter::once(&endpoint.interface).chain(&endpoint.addresses).cloned().collect();
            let _ = writeln!(
                text,
                "<line class=\"endpoint\" x1=\"{}\" y1=\"{from}\" x2=\"{RIGHT}\" y2=\"{to}\"/>\n\
                 <text class=\"small\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
                LEFT + BOX.0,
                RIGHT - 8,
                // Near the pod's end of the line, where lines of one network have parted.
                to - 4 + (from.abs_diff(to) / 40).min(8) * usize::from(from > to),
                escape(&what.join(" ")),
            );
        }
    }
    for (row, (network, _)) in networks.iter().enumerate() {
        let subnets: Vec<_> = network.subnets.iter().map(|subnet| subnet.subnet.as_str()).collect();
        let kind = if network.internal && network.driver == "bridge" { "internal " } else { "" };
        let title = format!("{} ({kind}{})", network.name, network.driver);
        boxed(&mut text, "network", LEFT, row, &title, &subnets.join(", "));
    }
    for (id, (row, label)) in &pods {
        boxed(&mut text, "pod", RIGHT, *row, label, id.get(..12).unwrap_or(id));
    }
    text.push_str("</svg>\n");
    text
}

fn boxed(text: &mut String, class: &str, x: usize, row: usize, title: &str, below: &str) {
    let y = TOP + row * ROW;
    let (width, height) = BOX;
    let _ = writeln!(
        text,
        "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n\
         <text x=\"{}\" y=\"{}\">{}</text>\n<text class=\"small\" x=\"{}\" y=\"{}\">{}</text>",
        x + 12,
        y + 20,
        escape(title),
        x + 12,
        y + 37,
        escape(below),
    );
}

fn pod_label(endpoint: &Endpoint) -> String {
    if endpoint.pod_name.is_empty() {
        return "a pod being made or removed".to_owned();
    }
    format!("{}/{}", endpoint.pod_namespace, endpoint.pod_name)
}

/// Names come from requests: nothing in them is markup.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // Not characters of XML.
            char if char.is_control() || matches!(char, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            char => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]
    use super::*;

    fn network(name: &str) -> Network {
        Network { name: name.into(), driver: "bridge".into(), ..Network::default() }
    }

    fn endpoint(pod: &str, address: &str) -> Endpoint {
        Endpoint {
            pod_id: format!("{pod}{}", "0".repeat(20)),
            pod_name: pod.into(),
            pod_namespace: "<script>'&\u{1}\u{ffff}\"".into(),
            interface: "eth0".into(),
            addresses: vec![address.into()],
            ..Endpoint::default()
        }
    }

    #[test]
    fn every_network_pod_and_endpoint_is_drawn_and_names_are_no_markup() {
        let networks = [
            (network("blue"), vec![endpoint("a", "10.1.0.2/24"), endpoint("b", "10.1.0.3/24")]),
            (network("red"), vec![endpoint("a", "10.2.0.2/24")]),
        ];
        let picture = draw("n&1", &networks);
        let document = roxmltree::Document::parse(&picture).expect("well-formed");
        let root = document.root_element();
        assert_eq!(root.tag_name().name(), "svg");
        assert_eq!(root.tag_name().namespace(), Some("http://www.w3.org/2000/svg"));
        let of_class = |class: &str| {
            document.descendants().filter(|node| node.attribute("class") == Some(class)).collect::<Vec<_>>()
        };
        assert_eq!(of_class("node").len(), 1);
        assert_eq!(of_class("network").len(), 2);
        assert_eq!(of_class("pod").len(), 2);
        assert_eq!(of_class("endpoint").len(), 3);
        let texts: Vec<_> = document.descendants().filter_map(|node| node.text()).collect();
        for text in ["node n&1", "<script>'&??\"/a", "blue (bridge)", "eth0 10.2.0.2/24"] {
            assert!(texts.contains(&text), "{text} in {texts:?}");
        }
        // A line begins at its network's box and ends at its pod's.
        let number = |node: &roxmltree::Node<'_, '_>, name: &str| -> usize {
            node.attribute(name).and_then(|text| text.parse().ok()).expect("a number")
        };
        let boxes =
            |class: &str| of_class(class).iter().map(|node| number(node, "y") + 24).collect::<Vec<_>>();
        let lines: Vec<_> =
            of_class("endpoint").iter().map(|line| (number(line, "y1"), number(line, "y2"))).collect();
        let (networks, pods) = (boxes("network"), boxes("pod"));
        let expected = [(networks[0], pods[0]), (networks[0], pods[1]), (networks[1], pods[0])];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_order_does_not_show() {
        let (a, b) = (endpoint("a", "10.1.0.2/24"), endpoint("b", "10.1.0.3/24"));
        let one = draw("n", &[(network("blue"), vec![a.clone(), b.clone()]), (network("red"), vec![])]);
        let other = draw("n", &[(network("red"), vec![]), (network("blue"), vec![b, a])]);
        assert_eq!(one, other);
        assert!(roxmltree::Document::parse(&draw("", &[])).is_ok());
    }
}
