//! Sizes of a client's terminal: JSON objects that follow each other, `{"Width":80,"Height":24}`.

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

/// Most bytes of an object that has not come whole yet.
const PARTIAL_MAX: usize = 1 << 10;

/// A terminal's size.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Size {
    #[serde(alias = "width")]
    pub(super) width: u32,
    #[serde(alias = "height")]
    pub(super) height: u32,
}

/// Reads sizes off a channel.
#[derive(Debug)]
pub(super) struct Sizes {
    input: mpsc::Receiver<Bytes>,
    pending: Vec<u8>,
}

impl Sizes {
    pub(super) fn new(input: mpsc::Receiver<Bytes>) -> Self {
        Self { input, pending: Vec::new() }
    }

    /// The latest size; `None` when the channel has ended, or what comes is no size.
    pub(super) async fn next(&mut self) -> Option<Size> {
        loop {
            let data = self.input.recv().await?;
            self.pending.extend_from_slice(&data);
            let mut sizes = serde_json::Deserializer::from_slice(&self.pending).into_iter::<Size>();
            let mut latest = None;
            let whole = loop {
                match sizes.next() {
                    Some(Ok(size)) => latest = Some(size),
                    Some(Err(error)) if error.is_eof() => break true,
                    Some(Err(_)) => break false,
                    None => break true,
                }
            };
            let used = sizes.byte_offset();
            self.pending.drain(..used.min(self.pending.len()));
            if !whole || self.pending.len() > PARTIAL_MAX {
                return None;
            }
            if latest.is_some() {
                return latest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn sizes_come_whole_or_in_pieces() {
        let (sender, input) = mpsc::channel(8);
        let mut sizes = Sizes::new(input);
        for piece in ["{\"Width\":80,\"Height\":24}\n{\"Wid", "th\":100,", "\"Height\":30}\n", "nonsense"] {
            sender.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        }
        assert_eq!(sizes.next().await, Some(Size { width: 80, height: 24 }));
        assert_eq!(sizes.next().await, Some(Size { width: 100, height: 30 }));
        assert_eq!(sizes.next().await, None);
    }
}
