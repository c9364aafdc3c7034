//! The bounds of a layer.

/// What one layer may be. Reaching a bound fails the pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a layer as it comes over the network.
    pub compressed_bytes: u64,
    /// Most bytes of a layer's archive once decompressed.
    pub layer_bytes: u64,
    /// Most entries of a layer.
    pub layer_entries: u64,
    /// Most decompressed bytes for one compressed byte, looked at beyond [`Limits::ratio_from`].
    pub decompression_ratio: u64,
    /// From how many decompressed bytes on the ratio counts: small layers may be of zeros only.
    pub ratio_from: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            compressed_bytes: 64 << 30,
            layer_bytes: 256 << 30,
            layer_entries: 5_000_000,
            decompression_ratio: 200,
            ratio_from: 256 << 20,
        }
    }
}

/// A bound that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Too many decompressed bytes.
    #[error("the layer unpacks to more than {0} bytes")]
    Bytes(u64),
    /// Too many entries.
    #[error("the layer has more than {0} entries")]
    Entries(u64),
    /// Too good a compression.
    #[error("the layer decompresses to more than {0} times its size")]
    Ratio(u64),
    /// A header that describes an entry is too long.
    #[error("an entry is described by more than {0} bytes")]
    Description(u64),
}

impl Limits {
    /// Holds what was read against the bounds.
    pub(crate) fn check(&self, compressed: u64, decompressed: u64) -> Result<(), Exceeded> {
        if decompressed > self.layer_bytes {
            return Err(Exceeded::Bytes(self.layer_bytes));
        }
        if decompressed > self.ratio_from && decompressed / compressed.max(1) > self.decompression_ratio {
            return Err(Exceeded::Ratio(self.decompression_ratio));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_counts_for_large_layers_only() {
        let limits =
            Limits { layer_bytes: 1000, decompression_ratio: 10, ratio_from: 100, ..Limits::default() };
        assert_eq!(limits.check(1, 100), Ok(()));
        assert_eq!(limits.check(1, 101), Err(Exceeded::Ratio(10)));
        assert_eq!(limits.check(100, 1000), Ok(()));
        assert_eq!(limits.check(100, 1001), Err(Exceeded::Bytes(1000)));
    }
}
