//! Which of an index's manifests runs on this machine.

use super::manifest::{Descriptor, PlatformEntry};

/// What an image must be made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Operating system, `linux` here.
    pub os: String,
    /// Architecture in Go's words (`amd64`, `arm64`).
    pub architecture: String,
    /// Variant of the architecture (`v7`, `v8`, `v3`), empty for the base one.
    pub variant: String,
}

impl Default for Platform {
    fn default() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl Platform {
    /// How well an entry fits: `None` not at all, else higher is better.
    ///
    /// A variant may be lower than ours (arm v7 runs v6 and v5), never higher; an entry without one is the base.
    fn rank(&self, entry: &PlatformEntry) -> Option<u32> {
        if entry.os != self.os || entry.architecture != self.architecture {
            return None;
        }
        let level = |variant: &str| match (self.architecture.as_str(), variant) {
            ("arm64", "") => Some(8),
            ("arm", "") => Some(7),
            ("amd64", "") => Some(1),
            (_, "") => Some(0),
            (_, text) => text.strip_prefix('v').and_then(|number| number.parse::<u32>().ok()),
        };
        let (ours, theirs) = (level(&self.variant)?, level(&entry.variant)?);
        (theirs <= ours).then_some(theirs)
    }

    /// The manifest that fits best; among equals the first.
    pub(crate) fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let mut best: Option<(u32, &Descriptor)> = None;
        for descriptor in manifests {
            let Some(rank) = descriptor.platform.as_ref().and_then(|entry| self.rank(entry)) else {
                continue;
            };
            if best.is_none_or(|(top, _)| rank > top) {
                best = Some((rank, descriptor));
            }
        }
        // An index of a single entry without a platform means it for everybody.
        best.map(|(_, descriptor)| descriptor).or(match manifests {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::image::digest::Digest;

    fn entry(architecture: &str, variant: &str) -> Descriptor {
        Descriptor {
            digest: Digest::of(format!("{architecture}{variant}").as_bytes()),
            platform: Some(PlatformEntry {
                os: "linux".into(),
                architecture: architecture.into(),
                variant: variant.into(),
            }),
            ..Descriptor::default()
        }
    }

    fn pick(platform: (&str, &str), entries: &[Descriptor]) -> Option<Digest> {
        let platform =
            Platform { os: "linux".into(), architecture: platform.0.into(), variant: platform.1.into() };
        platform.choose(entries).map(|d| d.digest)
    }

    #[test]
    fn the_best_variant_wins_and_a_higher_one_never_does() {
        let entries = [entry("arm", "v5"), entry("arm", "v6"), entry("arm", "v7"), entry("arm64", "v8")];
        assert_eq!(pick(("arm", "v6"), &entries), Some(entries[1].digest));
        assert_eq!(pick(("arm", "v7"), &entries), Some(entries[2].digest));
        assert_eq!(pick(("arm64", "v8"), &entries), Some(entries[3].digest));
        assert_eq!(pick(("amd64", ""), &entries), None);
        let entries = [entry("amd64", "v3"), entry("amd64", "")];
        assert_eq!(pick(("amd64", ""), &entries), Some(entries[1].digest));
        assert_eq!(pick(("amd64", "v3"), &entries), Some(entries[0].digest));
        assert_eq!(pick(("arm64", "v8"), &[entry("arm64", "")]), Some(entry("arm64", "").digest));
    }
}
