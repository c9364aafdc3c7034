//! Header blocks: name and value pairs, compressed with one zlib stream that goes over the whole connection.

use flate2::{Decompress, FlushDecompress, Status};

use super::Malformed;
use super::dictionary::DICTIONARY;

/// Most bytes of a header block once decompressed: what streams of this protocol say of themselves fits into a hundred.
const EXPANDED_MAX: usize = 64 << 10;
/// Most pairs in a block.
const PAIRS_MAX: u32 = 64;

/// The headers of a stream, names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of header `name`; "" when it is not there.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }
}

/// Reads header blocks. They must come in the order of the wire, none left out.
pub(super) struct Expander {
    zlib: Decompress,
}

impl Expander {
    pub(super) fn new() -> Self {
        Self { zlib: Decompress::new(true) }
    }

    /// The headers in a compressed block.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        parse(&self.expand(block)?)
    }

    fn expand(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut expanded = Vec::with_capacity(1024);
        loop {
            if expanded.len() == expanded.capacity() {
                if expanded.len() >= EXPANDED_MAX {
                    return Err(Malformed("a header block expands beyond its bound"));
                }
                expanded.reserve_exact(expanded.len().min(EXPANDED_MAX - expanded.len()));
            }
            let (taken, made) = (self.zlib.total_in(), expanded.len());
            let result = self.zlib.decompress_vec(block, &mut expanded, FlushDecompress::Sync);
            let count = usize::try_from(self.zlib.total_in() - taken).unwrap_or(usize::MAX);
            block = block.get(count..).unwrap_or_default();
            match result {
                Ok(Status::StreamEnd) => return Err(Malformed("the header compression ended")),
                // Neither input nor output moved: the block is done.
                Ok(_) if count == 0 && expanded.len() == made && expanded.len() < expanded.capacity() => {
                    return if block.is_empty() {
                        Ok(expanded)
                    } else {
                        Err(Malformed("a header block stands still"))
                    };
                }
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.zlib
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| Malformed("the header compression has another dictionary"))?;
                }
                Err(_) => return Err(Malformed("a header block is not compressed as it should be")),
            }
        }
    }
}

impl std::fmt::Debug for Expander {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Expander").finish_non_exhaustive()
    }
}

fn parse(mut bytes: &[u8]) -> Result<Headers, Malformed> {
    const SHORT: Malformed = Malformed("a header block is shorter than it says");
    let number = |bytes: &mut &[u8]| -> Result<u32, Malformed> {
        let (head, rest) = bytes.split_first_chunk::<4>().ok_or(SHORT)?;
        *bytes = rest;
        Ok(u32::from_be_bytes(*head))
    };
    let count = number(&mut bytes)?;
    if count > PAIRS_MAX {
        return Err(Malformed("a header block has too many headers"));
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let mut text = || -> Result<String, Malformed> {
            let length = usize::try_from(number(&mut bytes)?).unwrap_or(usize::MAX);
            let (text, rest) = bytes.split_at_checked(length).ok_or(SHORT)?;
            bytes = rest;
            String::from_utf8(text.to_vec()).map_err(|_| Malformed("a header is not UTF-8"))
        };
        let (name, value) = (text()?.to_ascii_lowercase(), text()?);
        if name.is_empty() {
            return Err(Malformed("a header has no name"));
        }
        if headers.0.iter().any(|(known, _)| *known == name) {
            return Err(Malformed("a header comes twice"));
        }
        headers.0.push((name, value));
    }
    if bytes.is_empty() { Ok(headers) } else { Err(Malformed("a header block is longer than it says")) }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    /// Writes header blocks as a client does.
    pub(in crate::streaming::spdy) struct Packer(Compress);

    impl Packer {
        pub(in crate::streaming::spdy) fn new() -> Self {
            let mut zlib = Compress::new(Compression::best(), true);
            zlib.set_dictionary(&DICTIONARY).unwrap();
            Self(zlib)
        }

        pub(in crate::streaming::spdy) fn pack(&mut self, raw: &[u8]) -> Vec<u8> {
            let mut block = Vec::with_capacity(raw.len() + 1024);
            self.0.compress_vec(raw, &mut block, FlushCompress::Sync).unwrap();
            block
        }
    }

    pub(in crate::streaming::spdy) fn raw(pairs: &[(&str, &str)]) -> Vec<u8> {
        let number = |number: usize| u32::try_from(number).unwrap().to_be_bytes();
        let mut raw = number(pairs.len()).to_vec();
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            raw.extend(number(text.len()));
            raw.extend(text.bytes());
        }
        raw
    }

    #[test]
    fn blocks_follow_each_other_in_one_stream() {
        let (mut packer, mut expander) = (Packer::new(), Expander::new());
        for (name, value) in [("streamtype", "error"), ("streamtype", "stdin"), ("Port", "80")] {
            let headers = expander.read(&packer.pack(&raw(&[(name, value), ("x", "")]))).unwrap();
            assert_eq!(headers.get(&name.to_lowercase()), value);
            assert_eq!(headers.get("absent"), "");
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = Packer::new().pack(&vec![0; 8 << 20]);
        assert!(bomb.len() < 20_000);
        assert!(Expander::new().read(&bomb).unwrap_err().0.contains("beyond"));
    }

    #[test]
    fn malformed_blocks_are_refused() {
        let read = |raw: &[u8]| Expander::new().read(&Packer::new().pack(raw));
        assert!(read(&raw(&[("a", "b")])[..9]).is_err());
        assert!(read(&[raw(&[("a", "b")]), vec![1]].concat()).is_err());
        assert!(read(&raw(&[("a", "b"), ("A", "c")])).is_err());
        assert!(read(&raw(&[("", "b")])).is_err());
        assert!(read(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(read(&u32::MAX.to_be_bytes()).is_err());
        assert!(Expander::new().read(b"not zlib at all").is_err());
        assert!(Expander::new().read(&[]).is_err());
    }
}
