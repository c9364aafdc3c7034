//! Blocks of shared pools: the parts of a subnet that this host gives out by itself.
//!
//! A shared pool begins without a free address; a block brings its own. A block of one address is a claim: it is leased when it
//! is asked for, and does not go back among the free.

use std::net::IpAddr;

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::{FREE, LEASES, QUEUE, QUEUED, State, fill, range_around, split, unqueue};
use crate::{
    address::{address, bits},
    error::Result,
    ipam::{Block, Pool},
    store::failed,
};

/// Pool id, first address → last address, epoch.
pub(super) const BLOCKS: TableDefinition<'_, (u64, u128), (u128, u64)> = TableDefinition::new("ipam.blocks");

/// Adds a block; one that is there already gets the epoch.
pub(super) fn add(tx: &WriteTransaction, pool: &Pool, block: &Block) -> Result<()> {
    let (first, last) = (bits(block.range.0), bits(block.range.1));
    let mut blocks = tx.open_table(BLOCKS).map_err(failed("opening blocks"))?;
    let known = blocks
        .insert((pool.id, first), (last, block.epoch))
        .map_err(failed("writing blocks"))?
        .is_some_and(|old| old.value().0 == last);
    if known || block.is_claim() {
        return Ok(());
    }
    drop(blocks);
    let mut withheld = pool.withheld();
    let leases = tx.open_table(LEASES).map_err(failed("opening leases"))?;
    for lease in leases.range((pool.id, first)..=(pool.id, last)).map_err(failed("reading leases"))? {
        withheld.push(lease.map_err(failed("reading leases"))?.0.value().1);
    }
    withheld.sort_unstable();
    withheld.dedup();
    fill(tx, pool.id, (first, last), withheld)
}

/// Takes a block away with what is free of it.
pub(super) fn remove(tx: &WriteTransaction, pool: &Pool, first: IpAddr) -> Result<()> {
    let mut blocks = tx.open_table(BLOCKS).map_err(failed("opening blocks"))?;
    let removed = blocks.remove((pool.id, bits(first))).map_err(failed("writing blocks"))?;
    let Some(last) = removed.map(|value| value.value().0) else { return Ok(()) };
    let range = (pool.id, bits(first))..=(pool.id, last);
    let mut free = tx.open_table(FREE).map_err(failed("opening free ranges"))?;
    // A free range may reach over the block's ends.
    if let Some((start, end)) = range_around(&free, pool.id, bits(first))?
        && start < bits(first)
    {
        free.insert((pool.id, start), bits(first) - 1).map_err(failed("writing free ranges"))?;
        free.insert((pool.id, bits(first)), end).map_err(failed("writing free ranges"))?;
    }
    if let Some((_, end)) = range_around(&free, pool.id, last)?
        && end > last
    {
        free.insert((pool.id, last + 1), end).map_err(failed("writing free ranges"))?;
    }
    free.retain_in(range.clone(), |_, _| false).map_err(failed("writing free ranges"))?;
    let mut queued = tx.open_table(QUEUED).map_err(failed("opening the queue"))?;
    let mut queue = tx.open_table(QUEUE).map_err(failed("opening the queue"))?;
    let mut state = State::load(tx, pool.id)?;
    let mut numbers = Vec::new();
    for entry in queued.range(range.clone()).map_err(failed("reading the queue"))? {
        numbers.push(entry.map_err(failed("reading the queue"))?.1.value());
    }
    for number in &numbers {
        queue.remove((pool.id, *number)).map_err(failed("writing the queue"))?;
        state.queued = state.queued.saturating_sub(1);
    }
    queued.retain_in(range, |_, _| false).map_err(failed("writing the queue"))?;
    state.save(tx, pool.id)
}

/// All blocks of a pool.
pub(super) fn list(tx: &WriteTransaction, pool: &Pool) -> Result<Vec<Block>> {
    let blocks = tx.open_table(BLOCKS).map_err(failed("opening blocks"))?;
    let range = blocks.range((pool.id, 0)..=(pool.id, u128::MAX)).map_err(failed("reading blocks"))?;
    range
        .map(|entry| {
            let (key, value) = entry.map_err(failed("reading blocks"))?;
            let ((_, first), (last, epoch)) = (key.value(), value.value());
            let range = (address(pool.subnet, first), address(pool.subnet, last));
            Ok(Block { range, epoch })
        })
        .collect()
}

/// Takes one address out of what is free.
pub(super) fn withhold(tx: &WriteTransaction, pool: &Pool, address: IpAddr) -> Result<()> {
    let address = bits(address);
    let mut state = State::load(tx, pool.id)?;
    unqueue(tx, pool.id, &mut state, address)?;
    state.save(tx, pool.id)?;
    let mut free = tx.open_table(FREE).map_err(failed("opening free ranges"))?;
    match range_around(&free, pool.id, address)? {
        Some((start, end)) => split(&mut free, pool.id, start, end, address),
        None => Ok(()),
    }
}

/// The block of a shared pool that an address is in; a claim goes before the block around it.
pub(super) fn holding(tx: &WriteTransaction, pool: u64, address: u128) -> Result<Option<(u128, u128)>> {
    let blocks = tx.open_table(BLOCKS).map_err(failed("opening blocks"))?;
    let mut below = blocks.range((pool, 0)..=(pool, address)).map_err(failed("reading blocks"))?;
    // Claims may stand between the block's begin and the address.
    while let Some(entry) = below.next_back() {
        let (key, value) = entry.map_err(failed("reading blocks"))?;
        let (first, last) = (key.value().1, value.value().0);
        if last >= address {
            return Ok(Some((first, last)));
        }
        if first != last {
            return Ok(None);
        }
    }
    Ok(None)
}
