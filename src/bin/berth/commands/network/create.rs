//! `berth network create`.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, bail};
use berth::proto::berth::v1::{CreateNetworkRequest, Network, Subnet};
use clap::Args;
use ipnetwork::IpNetwork;

use crate::client::Client;
use crate::failure::Answer;
use crate::options::env;
use crate::output;

/// Options of `network create`.
#[derive(Debug, Default, Args)]
pub(crate) struct Create {
    /// bridge, overlay, macvlan or ipvlan
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    driver: String,
    /// Subnet, one for each family (else a bridge gets one that nobody has)
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<String>,
    /// Gateway of the subnet it lies in (else that subnet's first address)
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<String>,
    /// Give out addresses of this part of the subnet only
    #[arg(long, value_name = "SUBNET")]
    ip_range: Vec<String>,
    /// Never give out this address
    #[arg(long, value_name = "NAME=ADDRESS")]
    aux_address: Vec<String>,
    /// Give it an IPv6 subnet too
    #[arg(long)]
    ipv6: bool,
    /// Nothing leaves it, nothing comes in from elsewhere
    #[arg(long)]
    internal: bool,
    /// Let any pod join (they all may: kept for compatibility)
    #[arg(long)]
    attachable: bool,
    /// Option of the driver: bridge, mode, icc, hairpin, mtu; vni, block, mtu; or parent, mode, mtu
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Put a label on it
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Its name
    #[arg(value_name = "NETWORK")]
    name: String,
}

impl Create {
    /// Makes it and prints its name.
    pub(crate) async fn execute(self, address: &str) -> Result<u8> {
        let request = self.request()?;
        let mut client = Client::connect(address).await?;
        let made = client.networks.create_network(request).await.answer();
        made.with_context(|| format!("making network {}", self.name))?;
        output::print_line(&self.name)?;
        Ok(0)
    }

    fn request(&self) -> Result<CreateNetworkRequest> {
        let network = Network {
            name: self.name.clone(),
            driver: self.driver.clone(),
            subnets: self.subnets()?,
            internal: self.internal,
            attachable: self.attachable,
            labels: env::pairs(&self.label).context("--label")?,
            options: env::pairs(&self.opt).context("--opt")?,
            built_in: false,
        };
        Ok(CreateNetworkRequest { network: Some(network), ipv6: self.ipv6 })
    }

    /// Each gateway, range and auxiliary address belongs to the subnet it lies in.
    fn subnets(&self) -> Result<Vec<Subnet>> {
        let mut subnets = Vec::new();
        for text in &self.subnet {
            let parsed: IpNetwork = text.parse().map_err(|error| anyhow!("--subnet {text}: {error}"))?;
            subnets.push((parsed, Subnet { subnet: text.clone(), ..Subnet::default() }));
        }
        for text in &self.gateway {
            let subnet = place(&mut subnets, "--gateway", text, text)?;
            if !std::mem::replace(&mut subnet.gateway, text.clone()).is_empty() {
                bail!("--gateway {text}: its subnet has one already");
            }
        }
        for text in &self.ip_range {
            let start = text.split('/').next().unwrap_or(text);
            let subnet = place(&mut subnets, "--ip-range", text, start)?;
            if !std::mem::replace(&mut subnet.ip_range, text.clone()).is_empty() {
                bail!("--ip-range {text}: its subnet has one already");
            }
        }
        for text in &self.aux_address {
            let Some((name, address)) = text.split_once('=') else {
                bail!("--aux-address {text}: a name and an address, as in router=10.1.0.2");
            };
            let subnet = place(&mut subnets, "--aux-address", text, address)?;
            let others: &mut HashMap<_, _> = &mut subnet.aux_addresses;
            if others.insert(name.to_owned(), address.to_owned()).is_some() {
                bail!("--aux-address {text}: the name is given twice");
            }
        }
        Ok(subnets.into_iter().map(|(_, subnet)| subnet).collect())
    }
}

fn place<'a>(
    subnets: &'a mut [(IpNetwork, Subnet)],
    option: &str,
    text: &str,
    address: &str,
) -> Result<&'a mut Subnet> {
    let address: IpAddr =
        address.parse().map_err(|_| anyhow!("{option} {text}: {address:?} is no IP address"))?;
    let found = subnets.iter_mut().find(|(subnet, _)| subnet.contains(address));
    found.map(|(_, subnet)| subnet).with_context(|| format!("{option} {text}: it lies in no --subnet"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn request(line: &str) -> Result<Network> {
        let words = std::iter::once("create").chain(line.split_whitespace());
        Ok(Line::try_parse_from(words)?.create.request()?.network.unwrap_or_default())
    }

    #[test]
    fn everything_finds_its_subnet() {
        let network = request(
            "--subnet 10.1.0.0/16 --subnet fd00::/64 --gateway fd00::9 --gateway 10.1.0.9 --ip-range 10.1.7.0/24 \
             --aux-address a=10.1.0.5 --aux-address b=fd00::5 -o mtu=1400 --label x=y --internal blue",
        )
        .unwrap();
        assert_eq!(
            (network.subnets[0].gateway.as_str(), network.subnets[1].gateway.as_str()),
            ("10.1.0.9", "fd00::9")
        );
        assert_eq!(network.subnets[0].ip_range, "10.1.7.0/24");
        assert_eq!(network.subnets[1].aux_addresses["b"], "fd00::5");
        assert_eq!((network.options["mtu"].as_str(), network.labels["x"].as_str()), ("1400", "y"));
        assert!(network.internal);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, words) in [
            ("--subnet 10.1.0.0/99 blue", "--subnet 10.1.0.0/99"),
            ("--gateway 10.1.0.1 blue", "in no --subnet"),
            ("--subnet 10.1.0.0/16 --gateway 10.1.0.1 --gateway 10.1.0.2 blue", "has one already"),
            ("--subnet 10.1.0.0/16 --aux-address 10.1.0.1 blue", "router=10.1.0.2"),
            ("--subnet 10.1.0.0/16 --gateway ten blue", "no IP address"),
        ] {
            let error = format!("{:#}", request(line).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
