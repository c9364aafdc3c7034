//! Frames as they stand on the wire (SPDY protocol, draft 3.1, 2.2).
//!
//! ```text
//! control  |1| version (15) | type (16)    | flags (8) | length (24) | payload
//! data     |0| stream id (31)              | flags (8) | length (24) | payload
//! ```

use super::Malformed;

/// Bytes of every frame's head.
pub(super) const HEAD: usize = 8;
/// Nothing follows on the stream from this side.
pub(super) const FIN: u8 = 1;

const VERSION: u16 = 3;
const UNIDIRECTIONAL: u8 = 2;
/// Largest payload a frame can have.
pub(super) const PAYLOAD_MAX: usize = (1 << 24) - 1;

/// What a frame's first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Control { kind: u16, flags: u8, length: usize },
    Data { stream: u32, fin: bool, length: usize },
}

/// Types of control frames.
pub(super) mod kind {
    pub(in super::super) const SYN_STREAM: u16 = 1;
    pub(in super::super) const SYN_REPLY: u16 = 2;
    pub(in super::super) const RST_STREAM: u16 = 3;
    pub(in super::super) const SETTINGS: u16 = 4;
    pub(in super::super) const PING: u16 = 6;
    pub(in super::super) const GOAWAY: u16 = 7;
    pub(in super::super) const HEADERS: u16 = 8;
    pub(in super::super) const WINDOW_UPDATE: u16 = 9;
}

/// Why a stream is reset.
pub(super) mod reset {
    pub(in super::super) const REFUSED_STREAM: u32 = 3;
    pub(in super::super) const FLOW_CONTROL_ERROR: u32 = 7;
}

impl Head {
    pub(super) fn parse(bytes: [u8; HEAD]) -> Result<Self, Malformed> {
        let [a, b, c, d, flags, length @ ..] = bytes;
        let length = usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            if stream == 0 {
                return Err(Malformed("data for stream 0"));
            }
            return Ok(Self::Data { stream, fin: flags & FIN != 0, length });
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(Malformed("a control frame is not of SPDY/3"));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

/// Reads the `index`th big-endian word of a payload, its first bit cleared as it is reserved in ids.
pub(super) fn word(payload: &[u8], index: usize) -> Result<u32, Malformed> {
    payload
        .get(index * 4..)
        .and_then(|rest| rest.first_chunk::<4>())
        .map(|bytes| u32::from_be_bytes(*bytes))
        .ok_or(Malformed("a control frame is too short"))
}

/// What a SYN_STREAM opens: its id and its compressed headers.
pub(super) fn syn_stream(flags: u8, payload: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let id = word(payload, 0)? & 0x7fff_ffff;
    let block = payload.get(10..).ok_or(Malformed("a SYN_STREAM is too short"))?;
    if id.is_multiple_of(2) {
        return Err(Malformed("a stream of the client has an even id"));
    }
    if flags & UNIDIRECTIONAL != 0 {
        return Err(Malformed("a stream is unidirectional"));
    }
    Ok((id, block))
}

/// The head of a data frame.
pub(super) fn data_head(stream: u32, fin: bool, length: usize) -> [u8; HEAD] {
    let [a, b, c, d] = stream.to_be_bytes();
    let [_, e, f, g] = u32::try_from(length).unwrap_or(0).to_be_bytes();
    [a & 0x7f, b, c, d, u8::from(fin), e, f, g]
}

/// A control frame of big-endian words.
pub(super) fn control(kind: u16, words: &[u32], tail: &[u8]) -> Vec<u8> {
    let [a, b] = VERSION.to_be_bytes();
    let [c, d] = kind.to_be_bytes();
    let [_, e, f, g] = u32::try_from(words.len() * 4 + tail.len()).unwrap_or(0).to_be_bytes();
    let mut frame = vec![a | 0x80, b, c, d, 0, e, f, g];
    frame.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    frame.extend_from_slice(tail);
    frame
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn heads_read_back() {
        let parse = |bytes: &[u8]| Head::parse(*bytes.first_chunk().unwrap());
        assert_eq!(
            parse(&data_head(0x7fff_fff1, true, 0x012345)).unwrap(),
            Head::Data { stream: 0x7fff_fff1, fin: true, length: 0x012345 }
        );
        assert_eq!(
            parse(&control(kind::PING, &[7], b"ab")).unwrap(),
            Head::Control { kind: kind::PING, flags: 0, length: 6 }
        );
        assert!(parse(&data_head(0, false, 1)).is_err());
        assert!(parse(&[0x80, 2, 0, 1, 0, 0, 0, 0]).is_err());
        assert!(parse(b"GET / HT").is_ok(), "looks like data of a strange stream, which nobody opened");
    }

    #[test]
    fn streams_of_the_client_are_odd_and_go_both_ways() {
        let payload = |id: u32| [&id.to_be_bytes()[..], &[0; 6], b"block"].concat();
        assert_eq!(syn_stream(0, &payload(5)).unwrap(), (5, &b"block"[..]));
        assert!(syn_stream(0, &payload(4)).is_err());
        assert!(syn_stream(2, &payload(5)).is_err());
        assert!(syn_stream(0, &payload(5)[..9]).is_err());
    }
}
