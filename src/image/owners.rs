//! Numbers of users and groups that are called otherwise on the other side of a copy (user_namespaces(7)).

/// So many numbers from one on are those from another one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    from: u32,
    to: u32,
    count: u32,
}

/// How users and groups are called on the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

impl Owners {
    /// Everybody is called the same.
    pub fn same() -> Self {
        let all = vec![Range { from: 0, to: 0, count: u32::MAX }];
        Self { uids: all.clone(), gids: all }
    }

    /// From inside a user namespace to outside: what `/proc/PID/uid_map` and `gid_map` say. `None`: they can't be read.
    pub fn of_maps(uids: &str, gids: &str) -> Option<Self> {
        Some(Self { uids: ranges(uids)?, gids: ranges(gids)? })
    }

    /// The other way.
    pub fn reversed(&self) -> Self {
        let turn = |ranges: &[Range]| {
            ranges.iter().map(|one| Range { from: one.to, to: one.from, count: one.count }).collect()
        };
        Self { uids: turn(&self.uids), gids: turn(&self.gids) }
    }

    /// User and group, as the other side calls them. `None`: it has no number for one of them.
    pub fn map(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        Some((find(&self.uids, uid)?, find(&self.gids, gid)?))
    }
}

fn ranges(text: &str) -> Option<Vec<Range>> {
    text.lines()
        .map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(Range { from: next()?, to: next()?, count: next()? })
        })
        .collect()
}

fn find(ranges: &[Range], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.from).filter(|offset| *offset < range.count)?;
        range.to.checked_add(offset)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_ways() {
        let owners = Owners::of_maps("         0     100000      65536\n", "0 200000 10\n10 5 1\n").unwrap();
        assert_eq!(owners.map(0, 0), Some((100_000, 200_000)));
        assert_eq!(owners.map(65_535, 10), Some((165_535, 5)));
        assert_eq!(owners.map(65_536, 0), None);
        assert_eq!(owners.reversed().map(100_001, 5), Some((1, 10)));
        assert_eq!(owners.reversed().map(0, 5), None);
        assert_eq!(Owners::same().map(7, 8), Some((7, 8)));
        assert_eq!(Owners::of_maps("0 x 1", ""), None);
    }
}
