//! Identifiers of pods and containers, and how a person may shorten them.

/// Length of an identifier in characters.
pub const LENGTH: usize = 64;

/// Returns a new identifier: 64 lower-case hexadecimal digits, 256 bits from the kernel's random source. The kubelet
/// expects this form when it reads ids out of cgroup names.
///
/// # Errors
/// Fails when the kernel has no random bytes to give.
pub fn generate() -> Result<String, getrandom::Error> {
    let mut bytes = [0u8; LENGTH / 2];
    getrandom::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

/// Finds the one key that equals `wanted` or, when none does, the only one that starts with it. `None` when nothing or
/// more than one thing fits, and for an empty `wanted`.
pub fn resolve<'a>(wanted: &str, keys: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    if wanted.is_empty() {
        return None;
    }
    let mut found = None;
    for key in keys {
        if key == wanted {
            return Some(key);
        }
        if key.starts_with(wanted) {
            if found.is_some() {
                // Another key may still be the exact one, but exact ids have the full length: no prefix of theirs fits.
                return None;
            }
            found = Some(key);
        }
    }
    found
}

/// Whether `wanted` is no whole identifier, and the beginning of more than one of `keys`.
pub fn is_ambiguous<'a>(wanted: &str, keys: impl Iterator<Item = &'a String>) -> bool {
    !wanted.is_empty() && wanted.len() < LENGTH && keys.filter(|key| key.starts_with(wanted)).nth(1).is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ids_are_long_hexadecimal_and_differ() {
        let (a, b) = (generate().unwrap(), generate().unwrap());
        assert_eq!(a.len(), LENGTH);
        assert!(a.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()));
        assert_ne!(a, b);
    }

    #[test]
    fn a_prefix_resolves_only_when_it_is_unique() {
        let keys = ["abc1".to_owned(), "abd2".to_owned()];
        assert_eq!(resolve("abc", keys.iter()), Some(&keys[0]));
        assert_eq!(resolve("abd2", keys.iter()), Some(&keys[1]));
        assert_eq!(resolve("ab", keys.iter()), None);
        assert_eq!(resolve("x", keys.iter()), None);
        assert_eq!(resolve("", keys.iter()), None);
        assert!(is_ambiguous("ab", keys.iter()));
        for one in ["abc", "abd2", "x", ""] {
            assert!(!is_ambiguous(one, keys.iter()), "{one}");
        }
    }
}
