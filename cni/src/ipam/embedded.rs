//! The embedded IPAM driver: pools and leases in redb.
//!
//! ```text
//!            lowest address at or after the cursor          (no free range left)
//!   FREE ranges ───────────────────────────────► LEASED ◄───────────────────────── QUEUE
//!        ▲                                          │                          oldest first ▲
//!        └── the queue's oldest, when it is too long └──────────── released ────────────────┘
//! ```
//!
//! An address that was never used comes first, then the one released longest ago: reuse is as late as it can be. The queue is
//! bounded, so that a /64 does not remember every address it ever gave out. Each step is a fixed number of look-ups in ordered
//! tables (free ranges by start, queue by number): an empty and a full pool cost the same.

mod blocks;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::{Block, IpamDriver, Lease, Pool};
use crate::{
    address::{address, bits, limits, overlap},
    error::{Error, Result},
    model::SubnetOptions,
    store::{decode, encode, failed},
};

/// Pool id → [`Pool`] as JSON.
const POOLS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ipam.pools");
/// Pool id → cursor, next queue number, queue length, leases.
const STATE: TableDefinition<'_, u64, (u128, u64, u64, u64)> = TableDefinition::new("ipam.state");
/// Pool id, first address → last address.
const FREE: TableDefinition<'_, (u64, u128), u128> = TableDefinition::new("ipam.free");
/// Pool id, queue number → address.
const QUEUE: TableDefinition<'_, (u64, u64), u128> = TableDefinition::new("ipam.queue");
/// Pool id, address → queue number.
const QUEUED: TableDefinition<'_, (u64, u128), u64> = TableDefinition::new("ipam.queued");
/// Pool id, address → [`Lease`] as JSON.
const LEASES: TableDefinition<'_, (u64, u128), &[u8]> = TableDefinition::new("ipam.leases");

/// A pool this large or smaller remembers the order of all its addresses.
const WHOLE_QUEUE: u128 = 65_536;
/// A larger pool remembers so many.
const SHORT_QUEUE: u64 = 4_096;
/// More reserved addresses than this is a mistake: they are a list.
const RESERVED_MAX: usize = 4_096;

/// The driver; all its state is in the transaction's store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Embedded;

#[derive(Clone, Copy, Debug)]
struct State {
    cursor: u128,
    next: u64,
    queued: u64,
    leased: u64,
}

impl State {
    fn load(tx: &WriteTransaction, pool: u64) -> Result<Self> {
        let table = tx.open_table(STATE).map_err(failed("opening pool state"))?;
        let (cursor, next, queued, leased) = table
            .get(pool)
            .map_err(failed("reading pool state"))?
            .map(|state| state.value())
            .unwrap_or_default();
        Ok(Self { cursor, next, queued, leased })
    }

    fn save(self, tx: &WriteTransaction, pool: u64) -> Result<()> {
        let mut table = tx.open_table(STATE).map_err(failed("opening pool state"))?;
        let state = (self.cursor, self.next, self.queued, self.leased);
        table.insert(pool, state).map_err(failed("writing pool state"))?;
        Ok(())
    }
}

impl IpamDriver for Embedded {
    fn prepare(&self, tx: &WriteTransaction) -> Result<()> {
        tx.open_table(POOLS).map_err(failed("opening pools"))?;
        tx.open_table(STATE).map_err(failed("opening pool state"))?;
        tx.open_table(FREE).map_err(failed("opening free ranges"))?;
        tx.open_table(QUEUE).map_err(failed("opening the queue"))?;
        tx.open_table(QUEUED).map_err(failed("opening the queue"))?;
        tx.open_table(LEASES).map_err(failed("opening leases"))?;
        tx.open_table(blocks::BLOCKS).map_err(failed("opening blocks"))?;
        Ok(())
    }

    fn pools(&self, tx: &WriteTransaction) -> Result<Vec<Pool>> {
        pools(tx)
    }

    fn request_pool(&self, tx: &WriteTransaction, network: &str, options: &SubnetOptions) -> Result<Pool> {
        self.record_pool(tx, describe(network, options)?)
    }

    fn request_shared_pool(
        &self,
        tx: &WriteTransaction,
        network: &str,
        options: &SubnetOptions,
    ) -> Result<Pool> {
        self.record_pool(tx, Pool { shared: true, ..describe(network, options)? })
    }

    fn add_block(&self, tx: &WriteTransaction, pool: &Pool, block: &Block) -> Result<()> {
        blocks::add(tx, pool, block)
    }

    fn remove_block(&self, tx: &WriteTransaction, pool: &Pool, first: IpAddr) -> Result<()> {
        blocks::remove(tx, pool, first)
    }

    fn blocks(&self, tx: &WriteTransaction, pool: &Pool) -> Result<Vec<Block>> {
        blocks::list(tx, pool)
    }

    fn withhold(&self, tx: &WriteTransaction, pool: &Pool, address: IpAddr) -> Result<()> {
        blocks::withhold(tx, pool, address)
    }

    fn has_free(&self, tx: &WriteTransaction, pool: &Pool) -> Result<bool> {
        let free = tx.open_table(FREE).map_err(failed("opening free ranges"))?;
        let first = first_in(&free, (pool.id, 0)..=(pool.id, u128::MAX))?;
        Ok(first.is_some() || State::load(tx, pool.id)?.queued > 0)
    }

    fn release_pool(&self, tx: &WriteTransaction, pool: u64) -> Result<()> {
        tx.open_table(POOLS)
            .map_err(failed("opening pools"))?
            .remove(pool)
            .map_err(failed("removing a pool"))?;
        tx.open_table(STATE)
            .map_err(failed("opening pool state"))?
            .remove(pool)
            .map_err(failed("removing pool state"))?;
        let wide = (pool, 0_u128)..=(pool, u128::MAX);
        let narrow = (pool, 0_u64)..=(pool, u64::MAX);
        let mut free = tx.open_table(FREE).map_err(failed("opening free ranges"))?;
        free.retain_in(wide.clone(), |_, _| false).map_err(failed("removing free ranges"))?;
        let mut queue = tx.open_table(QUEUE).map_err(failed("opening the queue"))?;
        queue.retain_in(narrow, |_, _| false).map_err(failed("removing the queue"))?;
        let mut queued = tx.open_table(QUEUED).map_err(failed("opening the queue"))?;
        queued.retain_in(wide.clone(), |_, _| false).map_err(failed("removing the queue"))?;
        let mut leases = tx.open_table(LEASES).map_err(failed("opening leases"))?;
        leases.retain_in(wide.clone(), |_, _| false).map_err(failed("removing leases"))?;
        let mut blocks = tx.open_table(blocks::BLOCKS).map_err(failed("opening blocks"))?;
        blocks.retain_in(wide, |_, _| false).map_err(failed("removing blocks"))?;
        Ok(())
    }

    fn request_address(
        &self,
        tx: &WriteTransaction,
        pool: &Pool,
        wanted: Option<IpAddr>,
        lease: &Lease,
    ) -> Result<IpAddr> {
        let mut state = State::load(tx, pool.id)?;
        let chosen = match wanted {
            Some(wanted) => take_static(tx, pool, &mut state, wanted)?,
            None => match take_unused(tx, pool.id, &mut state)? {
                Some(address) => address,
                None => take_oldest(tx, pool.id, &mut state)?.ok_or_else(|| Error::PoolExhausted {
                    subnet: pool.subnet,
                    network: pool.network.clone(),
                    size: state.leased,
                })?,
            },
        };
        let mut leases = tx.open_table(LEASES).map_err(failed("opening leases"))?;
        let record = encode(&lease.sandbox, lease)?;
        leases.insert((pool.id, chosen), record.as_slice()).map_err(failed("writing a lease"))?;
        state.leased += 1;
        state.save(tx, pool.id)?;
        Ok(address(pool.subnet, chosen))
    }

    fn release_address(
        &self,
        tx: &WriteTransaction,
        pool: u64,
        address: IpAddr,
        sandbox: &str,
    ) -> Result<()> {
        let key = (pool, bits(address));
        let mut leases = tx.open_table(LEASES).map_err(failed("opening leases"))?;
        let holder = leases
            .get(key)
            .map_err(failed("reading a lease"))?
            .map(|record| decode::<Lease>(sandbox, record.value()))
            .transpose()?;
        if holder.is_none_or(|holder| holder.sandbox != sandbox) {
            return Ok(());
        }
        leases.remove(key).map_err(failed("removing a lease"))?;
        drop(leases);
        let Some(pool) = pool_by_id(tx, pool)? else { return Ok(()) };
        let mut state = State::load(tx, pool.id)?;
        state.leased = state.leased.saturating_sub(1);
        let returns = if pool.shared {
            blocks::holding(tx, pool.id, key.1)?.is_some_and(|(first, last)| first != last)
        } else {
            (bits(pool.range.0)..=bits(pool.range.1)).contains(&key.1)
        };
        if returns {
            let mut queue = tx.open_table(QUEUE).map_err(failed("opening the queue"))?;
            queue.insert((pool.id, state.next), key.1).map_err(failed("writing the queue"))?;
            let mut queued = tx.open_table(QUEUED).map_err(failed("opening the queue"))?;
            queued.insert(key, state.next).map_err(failed("writing the queue"))?;
            drop((queue, queued));
            state.next += 1;
            state.queued += 1;
            if state.queued > queue_limit(&pool)
                && let Some(oldest) = take_oldest(tx, pool.id, &mut state)?
            {
                make_free(tx, pool.id, oldest)?;
            }
        }
        state.save(tx, pool.id)
    }

    fn leases(&self, tx: &WriteTransaction) -> Result<Vec<(u64, IpAddr, Lease)>> {
        let pools = pools(tx)?;
        let table = tx.open_table(LEASES).map_err(failed("opening leases"))?;
        let mut found = Vec::new();
        for entry in table.iter().map_err(failed("listing leases"))? {
            let (key, record) = entry.map_err(failed("listing leases"))?;
            let (id, bits) = key.value();
            if let Some(pool) = pools.iter().find(|pool| pool.id == id) {
                found.push((id, address(pool.subnet, bits), decode("lease", record.value())?));
            }
        }
        Ok(found)
    }
}

impl Embedded {
    fn record_pool(&self, tx: &WriteTransaction, mut pool: Pool) -> Result<Pool> {
        let network = pool.network.clone();
        for other in pools(tx)? {
            if other.network == pool.network {
                pool.id = other.id;
                if other == pool {
                    return Ok(other);
                }
                // A network's pools of before: whose leases are the controller's matter.
                continue;
            }
            if overlap(other.subnet, pool.subnet) {
                return Err(Error::PoolOverlap {
                    subnet: pool.subnet,
                    network: pool.network,
                    other: other.subnet,
                    other_network: other.network,
                });
            }
        }
        let mut table = tx.open_table(POOLS).map_err(failed("opening pools"))?;
        let last = table.last().map_err(failed("reading pools"))?.map_or(0, |(id, _)| id.value());
        pool.id = last + 1;
        let record = encode(&network, &pool)?;
        table.insert(pool.id, record.as_slice()).map_err(failed("writing a pool"))?;
        drop(table);
        let (first, last) = (bits(pool.range.0), bits(pool.range.1));
        if !pool.shared {
            fill(tx, pool.id, (first, last), pool.withheld())?;
        }
        State { cursor: first, next: 0, queued: 0, leased: 0 }.save(tx, pool.id)?;
        Ok(pool)
    }
}

// === Pools ===

/// Checks a subnet's options and fills what they leave open.
fn describe(network: &str, options: &SubnetOptions) -> Result<Pool> {
    let subnet = options.subnet;
    if bits(subnet.ip()) != bits(subnet.network()) {
        return Err(Error::invalid(
            "subnet",
            subnet,
            format!("has host bits set; {} is meant", canonical(subnet)),
        ));
    }
    let width = if subnet.is_ipv4() { 32 } else { 128 };
    if subnet.prefix() == 0 || subnet.prefix() + 2 > width {
        return Err(Error::invalid("subnet", subnet, format!("the prefix length is 1 to {}", width - 2)));
    }
    if options.reserved.len() + options.auxiliary.len() > RESERVED_MAX {
        return Err(Error::invalid(
            "reserved",
            options.reserved.len(),
            format!("at most {RESERVED_MAX} addresses"),
        ));
    }
    let (first, last) = limits(subnet);
    let gateway = options.gateway.unwrap_or_else(|| address(subnet, first + 1));
    let broadcast = subnet.is_ipv4() && bits(gateway) == last;
    if !subnet.contains(gateway) || bits(gateway) == first || broadcast {
        return Err(Error::invalid("gateway", gateway, format!("not a host's address in {subnet}")));
    }
    let reserved: Vec<IpAddr> = options.reserved.iter().chain(options.auxiliary.values()).copied().collect();
    if let Some(outside) = reserved.iter().find(|reserved| !subnet.contains(**reserved)) {
        return Err(Error::invalid("reserved", outside, format!("outside {subnet}")));
    }
    let range = match options.range {
        None => (first, last),
        Some(range) => {
            let (low, high) = limits(range);
            if range.is_ipv4() != subnet.is_ipv4() || low < first || high > last {
                return Err(Error::invalid("range", range, format!("outside {subnet}")));
            }
            (low, high)
        }
    };
    Ok(Pool {
        id: 0,
        network: network.to_owned(),
        subnet,
        range: (address(subnet, range.0), address(subnet, range.1)),
        gateway,
        reserved,
        shared: false,
    })
}

fn canonical(subnet: IpNetwork) -> String {
    format!("{}/{}", subnet.network(), subnet.prefix())
}

fn pools(tx: &WriteTransaction) -> Result<Vec<Pool>> {
    let table = tx.open_table(POOLS).map_err(failed("opening pools"))?;
    table
        .iter()
        .map_err(failed("listing pools"))?
        .map(|entry| decode("pool", entry.map_err(failed("listing pools"))?.1.value()))
        .collect()
}

fn pool_by_id(tx: &WriteTransaction, id: u64) -> Result<Option<Pool>> {
    let table = tx.open_table(POOLS).map_err(failed("opening pools"))?;
    let record = table.get(id).map_err(failed("reading a pool"))?;
    record.map(|record| decode("pool", record.value())).transpose()
}

fn queue_limit(pool: &Pool) -> u64 {
    let size = bits(pool.range.1) - bits(pool.range.0);
    if size < WHOLE_QUEUE { u64::MAX } else { SHORT_QUEUE }
}

// === Free ranges and the queue ===

/// Takes the lowest unused address at or after the cursor, or the lowest at all.
fn take_unused(tx: &WriteTransaction, pool: u64, state: &mut State) -> Result<Option<u128>> {
    let mut free = tx.open_table(FREE).map_err(failed("opening free ranges"))?;
    let cursor = state.cursor;
    let around = range_around(&free, pool, cursor)?.map(|(start, end)| (start, end, cursor));
    let found = match around {
        Some(found) => Some(found),
        None => {
            let after = first_in(&free, (pool, cursor)..=(pool, u128::MAX))?;
            let any = match after {
                Some(range) => Some(range),
                None => first_in(&free, (pool, 0)..=(pool, u128::MAX))?,
            };
            any.map(|(start, end)| (start, end, start))
        }
    };
    let Some((start, end, chosen)) = found else { return Ok(None) };
    split(&mut free, pool, start, end, chosen)?;
    state.cursor = chosen.saturating_add(1);
    Ok(Some(chosen))
}

/// Takes the address released longest ago.
fn take_oldest(tx: &WriteTransaction, pool: u64, state: &mut State) -> Result<Option<u128>> {
    let mut queue = tx.open_table(QUEUE).map_err(failed("opening the queue"))?;
    let first = {
        let mut range = queue.range((pool, 0)..=(pool, u64::MAX)).map_err(failed("reading the queue"))?;
        range
            .next()
            .transpose()
            .map_err(failed("reading the queue"))?
            .map(|(key, value)| (key.value(), value.value()))
    };
    let Some((key, address)) = first else { return Ok(None) };
    queue.remove(key).map_err(failed("writing the queue"))?;
    let mut queued = tx.open_table(QUEUED).map_err(failed("opening the queue"))?;
    queued.remove((pool, address)).map_err(failed("writing the queue"))?;
    state.queued = state.queued.saturating_sub(1);
    Ok(Some(address))
}

/// Takes a certain address, wherever in the subnet it stands.
fn take_static(tx: &WriteTransaction, pool: &Pool, state: &mut State, wanted: IpAddr) -> Result<u128> {
    let chosen = bits(wanted);
    if !pool.subnet.contains(wanted) {
        return Err(Error::invalid("address", wanted, format!("outside {}", pool.subnet)));
    }
    if pool.withheld().contains(&chosen) {
        return Err(Error::invalid("address", wanted, format!("reserved in {}", pool.subnet)));
    }
    let leases = tx.open_table(LEASES).map_err(failed("opening leases"))?;
    if let Some(lease) = leases.get((pool.id, chosen)).map_err(failed("reading a lease"))? {
        let lease: Lease = decode("lease", lease.value())?;
        return Err(Error::AddressTaken { address: wanted, sandbox: lease.sandbox });
    }
    if pool.shared && blocks::holding(tx, pool.id, chosen)?.is_none() {
        return Err(Error::AddressElsewhere { address: wanted, network: pool.network.clone() });
    }
    if unqueue(tx, pool.id, state, chosen)? {
        return Ok(chosen);
    }
    let mut free = tx.open_table(FREE).map_err(failed("opening free ranges"))?;
    if let Some((start, end)) = range_around(&free, pool.id, chosen)? {
        split(&mut free, pool.id, start, end, chosen)?;
    }
    Ok(chosen)
}

/// Takes an address out of the queue; says whether it was there.
fn unqueue(tx: &WriteTransaction, pool: u64, state: &mut State, address: u128) -> Result<bool> {
    let mut queued = tx.open_table(QUEUED).map_err(failed("opening the queue"))?;
    let number = queued.remove((pool, address)).map_err(failed("writing the queue"))?;
    let Some(number) = number.map(|number| number.value()) else { return Ok(false) };
    let mut queue = tx.open_table(QUEUE).map_err(failed("opening the queue"))?;
    queue.remove((pool, number)).map_err(failed("writing the queue"))?;
    state.queued = state.queued.saturating_sub(1);
    Ok(true)
}

/// Makes a range free but for some addresses in it, in order.
fn fill(tx: &WriteTransaction, pool: u64, (first, last): (u128, u128), withheld: Vec<u128>) -> Result<()> {
    let mut free = tx.open_table(FREE).map_err(failed("opening free ranges"))?;
    let mut start = first;
    for taken in withheld.into_iter().filter(|taken| (first..=last).contains(taken)) {
        if start < taken {
            free.insert((pool, start), taken - 1).map_err(failed("writing free ranges"))?;
        }
        start = taken.saturating_add(1);
    }
    if start <= last {
        free.insert((pool, start), last).map_err(failed("writing free ranges"))?;
    }
    Ok(())
}

/// Puts an address back among the unused, joined with its neighbours.
fn make_free(tx: &WriteTransaction, pool: u64, address: u128) -> Result<()> {
    let mut free = tx.open_table(FREE).map_err(failed("opening free ranges"))?;
    let (mut start, mut end) = (address, address);
    if let Some(below) = address.checked_sub(1)
        && let Some((first, _)) = range_around(&free, pool, below)?
    {
        start = first;
    }
    if let Some(above) = address.checked_add(1) {
        let joined =
            free.remove((pool, above)).map_err(failed("writing free ranges"))?.map(|last| last.value());
        end = joined.unwrap_or(end);
    }
    free.insert((pool, start), end).map_err(failed("writing free ranges"))?;
    Ok(())
}

type FreeTable<'tx> = redb::Table<'tx, (u64, u128), u128>;

/// The free range an address lies in.
fn range_around(free: &FreeTable<'_>, pool: u64, address: u128) -> Result<Option<(u128, u128)>> {
    let mut below = free.range((pool, 0)..=(pool, address)).map_err(failed("reading free ranges"))?;
    let last = below.next_back().transpose().map_err(failed("reading free ranges"))?;
    Ok(last.map(|(key, end)| (key.value().1, end.value())).filter(|(_, end)| *end >= address))
}

fn first_in(
    free: &FreeTable<'_>,
    range: std::ops::RangeInclusive<(u64, u128)>,
) -> Result<Option<(u128, u128)>> {
    let mut range = free.range(range).map_err(failed("reading free ranges"))?;
    let first = range.next().transpose().map_err(failed("reading free ranges"))?;
    Ok(first.map(|(key, end)| (key.value().1, end.value())))
}

fn split(free: &mut FreeTable<'_>, pool: u64, start: u128, end: u128, chosen: u128) -> Result<()> {
    if start < chosen {
        free.insert((pool, start), chosen - 1).map_err(failed("writing free ranges"))?;
    } else {
        free.remove((pool, start)).map_err(failed("writing free ranges"))?;
    }
    if chosen < end {
        free.insert((pool, chosen + 1), end).map_err(failed("writing free ranges"))?;
    }
    Ok(())
}
