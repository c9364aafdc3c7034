#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    thread,
    time::Instant,
};

use proptest::prelude::*;

use super::{Block, Embedded, IpamDriver, Lease, Pool};
use crate::{
    error::{Error, Kind},
    model::SubnetOptions,
    store::{Store, backend::counted, commit},
};

fn subnet(text: &str) -> SubnetOptions {
    SubnetOptions::new(text.parse().unwrap())
}

fn lease(sandbox: &str) -> Lease {
    Lease { sandbox: sandbox.to_owned(), boot: "boot".to_owned() }
}

fn pool(store: &Store, options: &SubnetOptions) -> Pool {
    let tx = store.write().unwrap();
    let pool = Embedded.request_pool(&tx, "net", options).unwrap();
    commit(tx).unwrap();
    pool
}

fn take(store: &Store, pool: &Pool, wanted: Option<IpAddr>, sandbox: &str) -> Result<IpAddr, Error> {
    let tx = store.write().unwrap();
    let address = Embedded.request_address(&tx, pool, wanted, &lease(sandbox))?;
    commit(tx).unwrap();
    Ok(address)
}

fn give(store: &Store, pool: &Pool, address: IpAddr, sandbox: &str) {
    let tx = store.write().unwrap();
    Embedded.release_address(&tx, pool.id, address, sandbox).unwrap();
    commit(tx).unwrap();
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir_in("/run").unwrap();
    let store = open(&dir.path().join("leases.redb"));
    (dir, store)
}

fn block(first: &str, last: &str, epoch: u64) -> Block {
    Block { range: (first.parse().unwrap(), last.parse().unwrap()), epoch }
}

#[test]
fn a_shared_pool_gives_out_of_its_blocks_only() {
    let (_dir, store) = store();
    let change = |work: &dyn Fn(&redb::WriteTransaction)| {
        let tx = store.write().unwrap();
        work(&tx);
        commit(tx).unwrap();
    };
    let tx = store.write().unwrap();
    let pool = Embedded.request_shared_pool(&tx, "net", &subnet("10.9.0.0/24")).unwrap();
    commit(tx).unwrap();
    assert_eq!(take(&store, &pool, None, "s").unwrap_err().kind(), Kind::ResourceExhausted);
    let low = block("10.9.0.0", "10.9.0.3", 5);
    change(&|tx| Embedded.add_block(tx, &pool, &low).unwrap());
    change(&|tx| Embedded.add_block(tx, &pool, &block("10.9.0.4", "10.9.0.7", 6)).unwrap());
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(take(&store, &pool, None, "a").unwrap(), address("10.9.0.2"), "neither network nor gateway");
    assert_eq!(take(&store, &pool, None, "b").unwrap(), address("10.9.0.3"));
    let elsewhere = take(&store, &pool, Some(address("10.9.0.9")), "c").unwrap_err();
    assert!(matches!(elsewhere, Error::AddressElsewhere { .. }), "{elsewhere}");
    // A claim is leased when it is asked for, and at no other time.
    change(&|tx| Embedded.add_block(tx, &pool, &block("10.9.0.9", "10.9.0.9", 7)).unwrap());
    assert_eq!(take(&store, &pool, Some(address("10.9.0.9")), "c").unwrap(), address("10.9.0.9"));
    give(&store, &pool, address("10.9.0.9"), "c");
    give(&store, &pool, address("10.9.0.3"), "b");
    // What passed to another host is not given out, what is leased stays.
    change(&|tx| Embedded.withhold(tx, &pool, address("10.9.0.5")).unwrap());
    let mut rest = Vec::new();
    while let Ok(address) = take(&store, &pool, None, "d") {
        rest.push(address.to_string());
    }
    assert_eq!(rest, ["10.9.0.4", "10.9.0.6", "10.9.0.7", "10.9.0.3"]);
    give(&store, &pool, address("10.9.0.3"), "d");
    give(&store, &pool, address("10.9.0.6"), "d");
    change(&|tx| Embedded.remove_block(tx, &pool, address("10.9.0.0")).unwrap());
    assert_eq!(take(&store, &pool, None, "e").unwrap(), address("10.9.0.6"));
    assert!(take(&store, &pool, None, "e").is_err());
    // It comes back without what is leased of it.
    change(&|tx| Embedded.add_block(tx, &pool, &low).unwrap());
    assert_eq!(take(&store, &pool, None, "f").unwrap(), address("10.9.0.3"));
    assert!(take(&store, &pool, None, "f").is_err());
    let tx = store.write().unwrap();
    assert!(!Embedded.has_free(&tx, &pool).unwrap());
    assert_eq!(Embedded.blocks(&tx, &pool).unwrap().len(), 3);
}

#[test]
fn a_pool_gives_hosts_only_and_says_when_it_is_full() {
    let (_dir, store) = store();
    let pool = pool(&store, &subnet("10.9.0.0/29"));
    let all: Vec<_> =
        (0..5).map(|n| take(&store, &pool, None, &format!("s{n}")).unwrap().to_string()).collect();
    assert_eq!(all, ["10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6"]);
    let error = take(&store, &pool, None, "late").unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    assert_eq!(error.to_string(), "no free address in 10.9.0.0/29 of network \"net\": all 5 are leased");
}

#[test]
fn range_reserved_gateway_and_static_addresses_are_kept() {
    let (_dir, store) = store();
    let options = SubnetOptions {
        range: Some("10.9.0.128/29".parse().unwrap()),
        gateway: Some("10.9.0.129".parse().unwrap()),
        reserved: vec!["10.9.0.130".parse().unwrap()],
        ..subnet("10.9.0.0/24")
    };
    let pool = pool(&store, &options);
    assert_eq!(take(&store, &pool, None, "a").unwrap().to_string(), "10.9.0.128");
    assert_eq!(take(&store, &pool, None, "b").unwrap().to_string(), "10.9.0.131");
    let outside: IpAddr = "10.9.0.7".parse().unwrap();
    assert_eq!(take(&store, &pool, Some(outside), "c").unwrap(), outside);
    let error = take(&store, &pool, Some(outside), "d").unwrap_err();
    assert_eq!(error.to_string(), "address 10.9.0.7 is leased to sandbox \"c\"");
    for bad in ["10.9.0.129", "10.9.0.130", "10.9.0.255", "10.9.0.0", "10.8.0.1"] {
        let error = take(&store, &pool, Some(bad.parse().unwrap()), "e").unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{bad}");
    }
    give(&store, &pool, outside, "not the holder");
    assert!(take(&store, &pool, Some(outside), "d").is_err());
    give(&store, &pool, outside, "c");
    assert_eq!(take(&store, &pool, Some(outside), "d").unwrap(), outside);
}

#[test]
fn leases_of_another_boot_are_gone_whatever_the_file_looks_like() {
    let dir = tempfile::tempdir_in("/run").unwrap();
    let path = dir.path().join("leases.redb");
    let store = open(&path);
    let first = take(&store, &pool(&store, &subnet("10.9.0.0/29")), None, "a").unwrap();
    assert!(Store::open(&path).is_err(), "one process at a time");
    drop(store);
    std::fs::write(dir.path().join("leases.boot"), "another").unwrap();
    std::fs::write(&path, b"torn").unwrap();
    let store = open(&path);
    assert_eq!(take(&store, &pool(&store, &subnet("10.9.0.0/29")), None, "b").unwrap(), first);
}

#[test]
fn ipv6_leaves_the_anycast_address_and_bounds_the_queue() {
    let (_dir, store) = store();
    let pool = pool(&store, &subnet("fd00:9::/64"));
    assert_eq!(pool.gateway.to_string(), "fd00:9::1");
    let tx = store.write().unwrap();
    for turn in 0..5000_u32 {
        let address = Embedded.request_address(&tx, &pool, None, &lease("s")).unwrap();
        assert_eq!(crate::address::bits(address), crate::address::bits(pool.gateway) + 1 + u128::from(turn));
        Embedded.release_address(&tx, pool.id, address, "s").unwrap();
    }
    commit(tx).unwrap();
}

#[test]
fn bad_subnets_and_overlaps_are_refused() {
    let (_dir, store) = store();
    pool(&store, &subnet("10.9.0.0/24"));
    let tx = store.write().unwrap();
    for (bad, text) in [
        (
            subnet("10.9.1.7/24"),
            "subnet \"10.9.1.7/24\" is not valid: has host bits set; 10.9.1.0/24 is meant",
        ),
        (subnet("10.9.1.0/31"), "subnet \"10.9.1.0/31\" is not valid: the prefix length is 1 to 30"),
        (
            SubnetOptions { gateway: Some("10.9.2.1".parse().unwrap()), ..subnet("10.9.1.0/24") },
            "gateway \"10.9.2.1\" is not valid: not a host's address in 10.9.1.0/24",
        ),
        (
            SubnetOptions { range: Some("10.9.0.0/16".parse().unwrap()), ..subnet("10.9.1.0/24") },
            "range \"10.9.0.0/16\" is not valid: outside 10.9.1.0/24",
        ),
    ] {
        assert_eq!(Embedded.request_pool(&tx, "other", &bad).unwrap_err().to_string(), text);
    }
    let error = Embedded.request_pool(&tx, "other", &subnet("10.0.0.0/8")).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
}

/// What an allocation reads and writes in an empty and in a full /16: a few pages of ordered tables in both, where a walk over
/// the leases would read hundreds. Prints the times as well.
#[test]
fn a_full_pool_costs_what_an_empty_one_does() {
    let (_dir, store) = store();
    let pool = pool(&store, &subnet("10.128.0.0/16"));
    let probe = |turns: u32| {
        let mut seen: Vec<_> = (0..turns)
            .map(|_| {
                let start = Instant::now();
                counted::take();
                let address = take(&store, &pool, None, "probe").unwrap();
                let (took, cost) = (start.elapsed(), counted::take());
                give(&store, &pool, address, "probe");
                (cost, took)
            })
            .collect();
        seen.sort_unstable();
        seen[seen.len() / 2]
    };
    let (empty, empty_time) = probe(51);
    let tx = store.write().unwrap();
    for _ in 0..65_533 - 2 {
        Embedded.request_address(&tx, &pool, None, &lease("fill")).unwrap();
    }
    commit(tx).unwrap();
    let (full, full_time) = probe(51);
    println!("allocation and commit: empty /16 {empty_time:?}, full /16 {full_time:?}");
    println!("reads and writes, bytes: empty /16 {empty:?}, full /16 {full:?}");
    assert!(full.0 <= 2 * empty.0 && full.1 <= 4 * empty.1, "empty {empty:?}, full {full:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Take,
    TakeStatic(u8),
    Give(usize),
    /// The process dies in the middle of a transaction.
    Lost,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Take),
        1 => any::<u8>().prop_map(Step::TakeStatic),
        5 => any::<usize>().prop_map(Step::Give),
        1 => Just(Step::Lost),
        1 => Just(Step::Reopen),
    ]
}

fn open(path: &Path) -> Store {
    let store = Store::open(path).unwrap();
    let tx = store.write().unwrap();
    Embedded.prepare(&tx).unwrap();
    commit(tx).unwrap();
    store
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a model: never twice, never lost, unused addresses first, then the longest free.
    #[test]
    fn any_interleaving_follows_the_model(steps in prop::collection::vec(step(), 1..80)) {
        let dir = tempfile::tempdir_in("/run").unwrap();
        let path = dir.path().join("leases.redb");
        let options = subnet("10.9.0.0/28");
        let mut store = open(&path);
        let mut ours = pool(&store, &options);
        let mut unused: VecDeque<u32> = (2..15).collect();
        let mut queue: VecDeque<u32> = VecDeque::new();
        let mut held: BTreeMap<u32, String> = BTreeMap::new();
        let base = u32::from(Ipv4Addr::new(10, 9, 0, 0));
        let mut cursor = 0;
        for (turn, step) in steps.into_iter().enumerate() {
            let sandbox = format!("s{turn}");
            match step {
                Step::Take => {
                    let next = unused.iter().position(|n| *n >= cursor).or((!unused.is_empty()).then_some(0));
                    let expected = match next {
                        Some(at) => {
                            let n = unused.remove(at).unwrap();
                            cursor = n + 1;
                            Some(n)
                        }
                        None => queue.pop_front(),
                    };
                    match (expected, take(&store, &ours, None, &sandbox)) {
                        (Some(n), Ok(address)) => {
                            prop_assert_eq!(address, IpAddr::from(Ipv4Addr::from(base + n)));
                            prop_assert!(held.insert(n, sandbox).is_none());
                        }
                        (None, Err(Error::PoolExhausted { .. })) => {}
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::TakeStatic(n) => {
                    let n = u32::from(n % 16);
                    let got = take(&store, &ours, Some(Ipv4Addr::from(base + n).into()), &sandbox);
                    let free = (2..15).contains(&n) && !held.contains_key(&n);
                    prop_assert_eq!(got.is_ok(), free);
                    if free {
                        unused.retain(|other| *other != n);
                        queue.retain(|other| *other != n);
                        held.insert(n, sandbox);
                    }
                }
                Step::Give(at) => {
                    if let Some((n, holder)) = held.iter().nth(at % held.len().max(1)).map(|(n, s)| (*n, s.clone())) {
                        let address = Ipv4Addr::from(base + n).into();
                        give(&store, &ours, address, &holder);
                        give(&store, &ours, address, &holder);
                        held.remove(&n);
                        queue.push_back(n);
                    }
                }
                Step::Lost => {
                    let tx = store.write().unwrap();
                    let _ = Embedded.request_address(&tx, &ours, None, &lease("lost"));
                    drop(tx);
                }
                Step::Reopen => {
                    drop(store);
                    store = open(&path);
                    ours = pool(&store, &options);
                }
            }
            let tx = store.write().unwrap();
            let leases = Embedded.leases(&tx).unwrap();
            prop_assert_eq!(leases.len(), held.len());
            for (_, address, lease) in leases {
                let IpAddr::V4(address) = address else { unreachable!() };
                prop_assert_eq!(Some(&lease.sandbox), held.get(&(u32::from(address) - base)));
            }
        }
    }
}

/// A pod's way through the store, as the steps of a daemon that may die between any two of them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Absent,
    Holds(IpAddr),
}

/// Random interleavings of several sandboxes that take, keep and give addresses while the process dies in the middle of
/// transactions, after a commit whose answer nobody hears, and starts again: never one address twice, never one lost.
/// `BERTH_INTERLEAVINGS` sets how many; 100,000 take some minutes.
#[test]
fn interleavings_of_many_sandboxes_with_deaths_between() {
    const THREADS: u64 = 2;
    let count: u64 = std::env::var("BERTH_INTERLEAVINGS").map_or(4_000, |text| text.parse().unwrap());
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || interleave(number, count / THREADS));
        }
    });
}

/// Stores of their own, each the same way every time: a failure can be repeated.
fn interleave(number: u64, count: u64) {
    const SANDBOXES: usize = 5;
    const STEPS: usize = 12;
    let dir = tempfile::tempdir_in("/run").unwrap();
    let path = dir.path().join("leases.redb");
    let options = subnet("10.9.0.0/29");
    let mut store = open(&path);
    let mut ours = pool(&store, &options);
    // xorshift64*
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ number.wrapping_mul(0x5851_f42d_4c95_7f2d);
    let mut random = move |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        usize::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % below
    };
    for turn in 0..count {
        let mut ways = [Way::Absent; SANDBOXES];
        for _ in 0..STEPS {
            let at = random(SANDBOXES);
            let name = format!("s{at}");
            match (ways[at], random(12)) {
                (_, 0) => {
                    // The process dies in a transaction: all it did in it is undone.
                    let tx = store.write().unwrap();
                    let _ = Embedded.request_address(&tx, &ours, None, &lease("lost"));
                    if let Way::Holds(address) = ways[at] {
                        Embedded.release_address(&tx, ours.id, address, &name).unwrap();
                    }
                    drop(tx);
                }
                (_, 1) if turn % 8 == 0 => {
                    drop(store);
                    store = open(&path);
                    ours = pool(&store, &options);
                }
                (Way::Absent, _) => match take(&store, &ours, None, &name) {
                    Ok(address) => {
                        let taken = ways.contains(&Way::Holds(address));
                        assert!(!taken, "turn {turn}: {address} was given twice");
                        ways[at] = Way::Holds(address);
                    }
                    Err(Error::PoolExhausted { .. }) => {
                        assert!(ways.iter().all(|way| *way != Way::Absent), "turn {turn}: full too early");
                    }
                    Err(error) => panic!("turn {turn}: {error}"),
                },
                (Way::Holds(address), _) => {
                    give(&store, &ours, address, &name);
                    ways[at] = Way::Absent;
                }
            }
        }
        // Nobody heard the last answers: what is on record is found and undone, as reconciliation does it.
        let tx = store.write().unwrap();
        let leases = Embedded.leases(&tx).unwrap();
        let on_record: BTreeMap<_, _> =
            leases.iter().map(|(_, address, lease)| (lease.sandbox.clone(), *address)).collect();
        assert_eq!(on_record.len(), leases.len(), "turn {turn}: one lease each");
        for (at, way) in ways.iter().enumerate() {
            let expected = if let Way::Holds(address) = way { Some(address) } else { None };
            assert_eq!(on_record.get(&format!("s{at}")), expected, "turn {turn}");
        }
        for (sandbox, address) in on_record {
            Embedded.release_address(&tx, ours.id, address, &sandbox).unwrap();
        }
        commit(tx).unwrap();
        // The whole pool can be given out: nothing leaked. Not committed.
        let tx = store.write().unwrap();
        for number in 0..5 {
            Embedded.request_address(&tx, &ours, None, &lease(&format!("all{number}"))).unwrap();
        }
        assert!(Embedded.request_address(&tx, &ours, None, &lease("more")).is_err(), "turn {turn}");
    }
}
