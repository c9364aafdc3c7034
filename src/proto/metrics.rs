//! `PodSandboxMetrics` as it goes over the wire, in place of the message that would be generated for it.
//!
//! A container has some sixty metrics, and each repeats six labels that are the same in all of them, the image's and the cgroup's
//! long names among them. As messages of their own these are five hundred strings a container, made, measured and written one
//! by one at every scrape: most of what it cost. Here a pod's metrics are written at once, into one buffer, and the labels are
//! copied as they were first written.

use prost::bytes::{Buf, BufMut};
use prost::encoding::{
    DecodeContext, WireType, bytes, encode_key, encode_varint, encoded_len_varint, skip_field,
};
use prost::{DecodeError, Message};

/// Metrics of a pod and of its containers (`runtime.v1.PodSandboxMetrics`): fields with their keys, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
pub struct PodSandboxMetrics(Vec<u8>);

impl PodSandboxMetrics {
    /// From fields as they are written.
    pub(crate) fn written(fields: Vec<u8>) -> Self {
        Self(fields)
    }
}

impl Message for PodSandboxMetrics {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    /// All of its fields are length-delimited: they are kept as they come.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        if wire_type != WireType::LengthDelimited {
            return skip_field(wire_type, tag, buf, ctx);
        }
        let mut value = Vec::new();
        bytes::merge(wire_type, &mut value, buf, ctx)?;
        bytes_field(&mut self.0, tag, &value);
        Ok(())
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Writes a length-delimited field.
pub(crate) fn bytes_field(out: &mut Vec<u8>, tag: u32, value: &[u8]) {
    length_field(out, tag, value.len());
    out.extend_from_slice(value);
}

/// Writes a message whose length is known when it is written: nothing is copied to where it belongs. The length takes the bytes that
/// were left for it, more than it may need, which every reader of varints understands.
pub(crate) fn message_field(out: &mut Vec<u8>, tag: u32, write: impl FnOnce(&mut Vec<u8>)) {
    /// Seven bits each: 256 MiB.
    const BYTES: usize = 4;
    encode_key(tag, WireType::LengthDelimited, out);
    let place = out.len();
    out.extend_from_slice(&[0; BYTES]);
    let begin = out.len();
    write(out);
    let length = out.len() - begin;
    for (index, byte) in out[place..begin].iter_mut().enumerate() {
        let more = if index + 1 < BYTES { 0x80 } else { 0 };
        *byte = (length >> (7 * index)).to_le_bytes()[0] & 0x7f | more;
    }
}

/// Writes the beginning of a length-delimited field.
pub(crate) fn length_field(out: &mut Vec<u8>, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(u64::try_from(length).unwrap_or(u64::MAX), out);
}

/// Writes a number field; zero is left out, as proto3 has it.
pub(crate) fn number_field(out: &mut Vec<u8>, tag: u32, value: u64) {
    if value != 0 {
        encode_key(tag, WireType::Varint, out);
        encode_varint(value, out);
    }
}

/// How much [`number_field`] writes; the tag is below 16.
pub(crate) fn number_field_length(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

/// How much a length-delimited field takes; the tag is below 16.
pub(crate) fn field_length(length: usize) -> usize {
    1 + encoded_len_varint(u64::try_from(length).unwrap_or(u64::MAX)) + length
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::proto::runtime::v1::ListPodSandboxMetricsResponse;

    #[test]
    fn is_read_back_as_it_was_written() {
        let mut fields = Vec::new();
        bytes_field(&mut fields, 1, b"pod");
        bytes_field(&mut fields, 3, &[7; 300]);
        let answer = ListPodSandboxMetricsResponse { pod_metrics: vec![PodSandboxMetrics::written(fields)] };
        let read = ListPodSandboxMetricsResponse::decode(answer.encode_to_vec().as_slice()).unwrap();
        assert_eq!(read, answer);
        // A field that this version does not know, of another kind.
        let mut strange = Vec::new();
        number_field(&mut strange, 9, 5);
        assert_eq!(PodSandboxMetrics::decode(strange.as_slice()).unwrap(), PodSandboxMetrics::default());
    }

    #[test]
    fn a_message_is_written_in_place() {
        for length in [0, 1, 127, 128, 30_000] {
            let (mut copied, mut placed) = (Vec::new(), Vec::new());
            bytes_field(&mut copied, 3, &vec![7; length]);
            message_field(&mut placed, 3, |out| out.extend(vec![7; length]));
            let read = |bytes: &[u8]| PodSandboxMetrics::decode(bytes).unwrap();
            assert_eq!(read(&placed), read(&copied), "{length}");
        }
    }

    #[test]
    fn lengths_are_what_is_written() {
        for value in [0, 1, 127, 128, 1 << 40, u64::MAX] {
            let mut out = Vec::new();
            number_field(&mut out, 5, value);
            assert_eq!(out.len(), number_field_length(value));
        }
        for length in [0, 1, 127, 128, 70_000] {
            let mut out = Vec::new();
            bytes_field(&mut out, 5, &vec![1; length]);
            assert_eq!(out.len(), field_length(length));
        }
    }
}
