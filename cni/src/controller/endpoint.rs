//! Joining and leaving, on a worker thread: record first, kernel second, and back in the opposite order.

use nix::errno::Errno;
use redb::WriteTransaction;

use super::{Active, Inner};
use crate::{
    conntrack,
    driver::Assigned,
    error::{Error, Result},
    firewall::endpoint_elements,
    ipam::Lease,
    model::{Endpoint, EndpointOptions, Sandbox},
    names::{check_interface, check_name},
    ports::{check_address, check_host, hosts, published},
    store::{self, commit},
    worker::Kernel,
};
use ipnetwork::IpNetwork;

#[cfg(test)]
mod tests;

/// One pod does not need more, and each is a set element.
const PORTS_MAX: usize = 4_096;
/// Endpoints of one sandbox; each has a default route of a metric of its own.
const ENDPOINTS_MAX: usize = 16;
/// The same for names.
const ALIASES_MAX: usize = 64;
const PRIORITIES: std::ops::RangeInclusive<i8> = -50..=50;

impl Inner {
    pub(super) fn join(
        &self,
        kernel: &mut Kernel,
        id: &str,
        network: &str,
        options: &EndpointOptions,
    ) -> Result<Endpoint> {
        let active = self.active(network)?;
        check(options)?;
        let sandbox = self.store.sandbox(id)?.ok_or_else(|| Error::SandboxNotFound(id.to_owned()))?;
        if let Some(endpoint) = sandbox.endpoints.iter().find(|endpoint| endpoint.network == network) {
            if !same(endpoint, options, active.network.internal()) {
                return Err(Error::EndpointExists { sandbox: id.to_owned(), network: network.to_owned() });
            }
            self.attach(kernel, &active, &sandbox, endpoint)?;
            self.align_names(&sandbox)?;
            return Ok(endpoint.clone());
        }
        let (sandbox, endpoint) = self.record(kernel, &active, id, options)?;
        let attached = self.attach(kernel, &active, &sandbox, &endpoint);
        if let Err(error) = attached.and_then(|()| self.align_names(&sandbox)) {
            for leftover in self.leave(kernel, id, network).err().into_iter().flatten() {
                tracing::warn!(sandbox = id, network, error = %leftover, "undoing a failed join");
            }
            return Err(error);
        }
        Ok(endpoint)
    }

    /// Decides on the endpoint and records it with its leases and ports: one commit. What the kernel has to say is asked before:
    /// whoever begins to write keeps everybody else on the node from it.
    fn record(
        &self,
        kernel: &mut Kernel,
        active: &Active,
        id: &str,
        options: &EndpointOptions,
    ) -> Result<(Sandbox, Endpoint)> {
        let ground = match active.driver.survey(&mut self.context(kernel)) {
            // Somebody deleted the bridge.
            Err(error) if is_no_device(&error) => {
                self.serve(kernel, active)?;
                active.driver.survey(&mut self.context(kernel))?
            }
            ground => ground?,
        };
        let has = |v4: bool| active.pools.iter().any(|pool| pool.subnet.is_ipv4() == v4);
        let addresses =
            options.ports.iter().filter(|mapping| mapping.host_port != 0).filter_map(|m| m.host_ip);
        let lacking = |host: &std::net::IpAddr| !host.is_unspecified() && !has(host.is_ipv4());
        if let Some(host) = addresses.filter(|_| !active.pools.is_empty()).find(lacking) {
            let family = if host.is_ipv4() { "IPv4" } else { "IPv6" };
            let reason = format!("network {:?} has no {family} addresses to lead to", active.network.name);
            return Err(Error::invalid("host address", host, reason));
        }
        for (mapping, host) in hosts(&options.ports, (has(true), has(false))) {
            check_host(mapping, host)?;
        }
        let tx = self.store.write()?;
        let mut sandbox = store::sandbox(&tx, id)?.ok_or_else(|| Error::SandboxNotFound(id.to_owned()))?;
        let assigned = self.assign(&tx, active, id, options)?;
        let network = &active.network;
        let mut endpoint = active.driver.create_endpoint(ground, network, &sandbox, options, &assigned)?;
        let clash = sandbox.endpoints.iter().any(|other| other.interface == endpoint.interface);
        if clash && endpoint.has_link() {
            let (interface, netns) = (endpoint.interface, sandbox.netns);
            return Err(Error::InterfaceTaken { interface, netns });
        }
        if sandbox.endpoints.len() >= ENDPOINTS_MAX {
            let reason = format!("it has joined {ENDPOINTS_MAX} networks, which is all it may");
            return Err(Error::invalid("sandbox", id, reason));
        }
        if endpoint.default_route {
            endpoint.metric = metric(&sandbox, endpoint.priority);
        }
        store::claim_ports(&tx, id, published(&endpoint))?;
        sandbox.endpoints.push(endpoint.clone());
        store::put_sandbox(&tx, &sandbox)?;
        commit(tx)?;
        Ok((sandbox, endpoint))
    }

    fn assign(
        &self,
        tx: &WriteTransaction,
        active: &Active,
        id: &str,
        options: &EndpointOptions,
    ) -> Result<Vec<Assigned>> {
        let lease = Lease { sandbox: id.to_owned(), boot: self.store.boot_id().to_owned() };
        let outside = options
            .addresses
            .iter()
            .find(|wanted| !active.pools.iter().any(|pool| pool.subnet.contains(**wanted)));
        if let Some(outside) = outside {
            let reason = format!("in no subnet of network {:?}", active.network.name);
            return Err(Error::invalid("address", outside, reason));
        }
        let assign = |pool: &crate::ipam::Pool| {
            let mut wanted = options.addresses.iter().filter(|wanted| pool.subnet.contains(**wanted));
            let first = wanted.next().copied();
            if let Some(second) = wanted.next() {
                return Err(Error::invalid("address", second, format!("a second one in {}", pool.subnet)));
            }
            let address = self.ipam.request_address(tx, pool, first, &lease)?;
            let address = IpNetwork::new(address, pool.subnet.prefix())
                .map_err(|error| Error::invalid("address", address, error.to_string()))?;
            Ok(Assigned { address, gateway: pool.gateway, pool: pool.id })
        };
        active.pools.iter().map(assign).collect()
    }

    /// Makes in the kernel what the record says.
    pub(super) fn attach(
        &self,
        kernel: &mut Kernel,
        active: &Active,
        sandbox: &Sandbox,
        endpoint: &Endpoint,
    ) -> Result<()> {
        let elements = endpoint_elements(endpoint);
        if !elements.is_empty() {
            match self.firewall.add(&mut kernel.filter, &elements) {
                // Somebody flushed the ruleset: put back all of ours.
                Err(Error::Kernel { source, .. }) if crate::firewall::is_missing(&source) => {
                    self.firewall.align(&mut kernel.filter, &self.desired_elements()?)?;
                }
                done => done?,
            }
            self.forget_connections(kernel, sandbox, endpoint);
        }
        match active.driver.join(&mut self.context(kernel), &active.network, sandbox, endpoint) {
            Err(error) if is_no_device(&error) => {
                self.serve(kernel, active)?;
                active.driver.join(&mut self.context(kernel), &active.network, sandbox, endpoint)
            }
            done => done,
        }
    }

    /// Undoes [`Inner::attach`]; `now` says whether the interface has to be gone as well.
    fn detach(&self, kernel: &mut Kernel, sandbox: &Sandbox, endpoint: &Endpoint, now: bool) -> Vec<Error> {
        let mut errors = Vec::new();
        let elements = endpoint_elements(endpoint);
        if !elements.is_empty() {
            errors.extend(self.firewall.remove(&mut kernel.filter, &elements).err());
            self.forget_connections(kernel, sandbox, endpoint);
        }
        // A network that is defined no longer has left nothing that only its driver could remove, but the interface.
        match self.active(&endpoint.network) {
            Ok(active) => {
                let mut context = self.context(kernel);
                if now {
                    errors.extend(active.driver.leave(&mut context, sandbox, endpoint).err());
                }
                errors.extend(active.driver.delete_endpoint(&mut context, sandbox, endpoint).err());
            }
            Err(_) if now => {
                let gone = endpoint.host_interface.as_ref().map(|name| {
                    crate::link::delete(&mut kernel.route, name)
                        .map_err(Error::kernel(format!("deleting {name}")))
                });
                errors.extend(gone.and_then(Result::err));
            }
            Err(_) => {}
        }
        errors
    }

    fn forget_connections(&self, kernel: &mut Kernel, sandbox: &Sandbox, endpoint: &Endpoint) {
        if let Err(error) = conntrack::forget(&mut kernel.filter, endpoint) {
            // Clients that keep sending from the same port are served late; no reason to refuse.
            tracing::warn!(sandbox = sandbox.id, %error, "stale UDP connections could not be forgotten");
        }
    }

    fn release(&self, tx: &WriteTransaction, sandbox: &str, endpoint: &Endpoint) -> Result<()> {
        for (address, pool) in endpoint.addresses.iter().zip(&endpoint.pools) {
            self.ipam.release_address(tx, *pool, address.ip(), sandbox)?;
        }
        store::release_ports(tx, sandbox, published(endpoint))
    }

    pub(super) fn leave(&self, kernel: &mut Kernel, id: &str, network: &str) -> Result<(), Vec<Error>> {
        let Some(mut sandbox) = self.store.sandbox(id).map_err(|error| vec![error])? else { return Ok(()) };
        let Some(at) = sandbox.endpoints.iter().position(|endpoint| endpoint.network == network) else {
            return Ok(());
        };
        self.resolvers.withdraw(id, network);
        let errors = self.detach(kernel, &sandbox, &sandbox.endpoints[at], true);
        if !errors.is_empty() {
            return Err(errors);
        }
        let endpoint = sandbox.endpoints.remove(at);
        let forget = || {
            let tx = self.store.write()?;
            self.release(&tx, id, &endpoint)?;
            store::put_sandbox(&tx, &sandbox)?;
            commit(tx)?;
            self.align_names(&sandbox)
        };
        forget().map_err(|error| vec![error])
    }

    /// Returns the host's interfaces that may still be there.
    pub(super) fn delete_sandbox(
        &self,
        kernel: &mut Kernel,
        id: &str,
        now: bool,
    ) -> Result<Vec<String>, Vec<Error>> {
        let Some(sandbox) = self.store.sandbox(id).map_err(|error| vec![error])? else {
            self.resolvers.forget(id);
            return Ok(Vec::new());
        };
        self.resolvers.forget(id);
        let errors: Vec<_> = sandbox
            .endpoints
            .iter()
            .flat_map(|endpoint| self.detach(kernel, &sandbox, endpoint, now))
            .collect();
        if !errors.is_empty() {
            return Err(errors);
        }
        let forget = || {
            let tx = self.store.write()?;
            for endpoint in &sandbox.endpoints {
                self.release(&tx, id, endpoint)?;
            }
            store::remove_sandbox(&tx, id)?;
            commit(tx)
        };
        forget().map_err(|error| vec![error])?;
        Ok(sandbox.endpoints.into_iter().filter_map(|endpoint| endpoint.host_interface).collect())
    }
}

fn is_no_device(error: &Error) -> bool {
    matches!(error, Error::Kernel { source, .. } if source.raw_os_error() == Some(Errno::ENODEV as i32))
}

/// The metric of an endpoint's default routes: each priority has room for all endpoints of a sandbox, in the order they came.
fn metric(sandbox: &Sandbox, priority: i8) -> u32 {
    // What IPv6 routes have that name none.
    const USUAL: u32 = 1024;
    const STEP: u32 = 16;
    let above = STEP * u32::from(priority.unsigned_abs());
    let first = if priority > 0 { USUAL - above } else { USUAL + above };
    let taken = |metric: &u32| sandbox.endpoints.iter().any(|other| other.metric == *metric);
    (first..first + STEP).find(|metric| !taken(metric)).unwrap_or(first)
}

fn check(options: &EndpointOptions) -> Result<()> {
    if !PRIORITIES.contains(&options.priority) {
        return Err(Error::invalid("priority", options.priority, "-50 to 50"));
    }
    if options.aliases.len() > ALIASES_MAX {
        return Err(Error::invalid("aliases", options.aliases.len(), format!("at most {ALIASES_MAX}")));
    }
    options.aliases.iter().try_for_each(|alias| check_name("alias", alias))?;
    check_interface("interface", &options.interface)?;
    if options.interface == "lo" {
        return Err(Error::invalid("interface", "lo", "that is the loopback interface"));
    }
    if let Some(mac) = options.mac.filter(|mac| mac[0] & 1 != 0 || *mac == [0; 6]) {
        return Err(Error::invalid("mac", format!("{mac:02x?}"), "not a unicast address"));
    }
    if options.ports.len() > PORTS_MAX {
        return Err(Error::invalid("ports", options.ports.len(), format!("at most {PORTS_MAX}")));
    }
    let zero = options.ports.iter().find(|mapping| mapping.host_port != 0 && mapping.container_port == 0);
    if let Some(zero) = zero {
        return Err(Error::invalid("container port", 0, format!("host port {} leads to it", zero.host_port)));
    }
    options.ports.iter().filter(|mapping| mapping.host_port != 0).try_for_each(check_address)
}

/// Whether an endpoint is what these options ask for.
fn same(endpoint: &Endpoint, options: &EndpointOptions, internal: bool) -> bool {
    !endpoint.has_link()
        || (endpoint.interface == options.interface
            && endpoint.ports == options.ports
            && endpoint.default_route == (options.default_route && !internal)
            && endpoint.priority == options.priority
            && endpoint.aliases == options.aliases
            && endpoint.bandwidth == options.bandwidth
            && options.mac.is_none_or(|mac| endpoint.mac == Some(mac))
            && options
                .addresses
                .iter()
                .all(|wanted| endpoint.addresses.iter().any(|address| address.ip() == *wanted)))
}
