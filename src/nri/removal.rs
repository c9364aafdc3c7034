//! The mark by which a plugin takes something away: a `-` before the thing's key.

/// The key, if it is marked.
pub(super) fn unmarked(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}

/// The key with the mark.
pub(super) fn marked(key: &str) -> String {
    format!("-{key}")
}
