//! Names of pods that `run` makes.

use anyhow::{Result, bail};

/// Longest name: it becomes the pod's host name too.
const LONGEST: usize = 63;

/// Refuses what can't be a name: it becomes part of a path and, where it can, a host name.
pub(crate) fn check(name: &str) -> Result<()> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
    let starts_well = name.starts_with(|char: char| char.is_ascii_alphanumeric());
    if !starts_well || !name.chars().all(allowed) || name.len() > LONGEST {
        bail!(
            "`{name}` can't be a name: up to {LONGEST} letters, digits, `-`, `_` and `.`, the first a letter or a digit"
        );
    }
    Ok(())
}

/// A name nobody has yet, of an adjective and a thing of the harbour.
pub(crate) fn generate(random: u32, taken: impl Fn(&str) -> bool) -> String {
    const ADJECTIVES: [&str; 32] = [
        "able", "amber", "bold", "brave", "brisk", "calm", "clear", "cool", "deep", "eager", "fair", "fleet",
        "fond", "gentle", "glad", "grand", "keen", "kind", "light", "lively", "merry", "mild", "neat",
        "noble", "proud", "quick", "quiet", "rapid", "steady", "sunny", "swift", "warm",
    ];
    const THINGS: [&str; 32] = [
        "anchor", "barge", "beacon", "bollard", "buoy", "cable", "canal", "capstan", "cargo", "cove",
        "crane", "current", "deck", "dock", "ferry", "galley", "gull", "harbour", "heron", "hull", "jetty",
        "keel", "lagoon", "mast", "mooring", "oar", "pier", "quay", "rudder", "sail", "tide", "wharf",
    ];
    let pick = |words: &[&'static str; 32], bits: u32| {
        usize::try_from(bits % 32).ok().and_then(|index| words.get(index)).copied().unwrap_or("berth")
    };
    let base = format!("{}-{}", pick(&ADJECTIVES, random), pick(&THINGS, random >> 5));
    if !taken(&base) {
        return base;
    }
    (2..u32::MAX).map(|number| format!("{base}-{number}")).find(|name| !taken(name)).unwrap_or(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["web", "a", "Web_1.x-y", &"a".repeat(63)] {
            assert!(check(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "-a", "a/b", "a b", "ä", "../x", &"a".repeat(64)] {
            assert!(check(name).is_err(), "{name}");
        }
    }

    #[test]
    fn generated_names_are_names_and_free() {
        for random in [0, 31, 1023, u32::MAX, 0x5a5a_5a5a] {
            assert!(check(&generate(random, |_| false)).is_ok());
        }
        assert_eq!(generate(0, |_| false), "able-anchor");
        assert_eq!(generate(0, |name| name == "able-anchor" || name == "able-anchor-2"), "able-anchor-3");
    }
}
