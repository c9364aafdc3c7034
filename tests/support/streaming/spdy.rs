//! A SPDY/3.1 client as `moby/spdystream` speaks it: streams without flow control.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{BoxIo, Output};

type Routes = Arc<Mutex<HashMap<u32, mpsc::Sender<Bytes>>>>;

/// A connection. Ends when it and its streams are dropped.
pub(crate) struct Spdy {
    writer: Arc<tokio::sync::Mutex<WriteHalf<BoxIo>>>,
    routes: Routes,
    zlib: Compress,
    next: u32,
    reader: Arc<AbortOnDropHandle<()>>,
}

/// Our direction of a stream.
#[derive(Clone)]
pub(crate) struct Input {
    id: u32,
    writer: Arc<tokio::sync::Mutex<WriteHalf<BoxIo>>>,
    _reader: Arc<AbortOnDropHandle<()>>,
}

impl Spdy {
    pub(crate) fn new(io: BoxIo) -> Self {
        let (reader, writer) = tokio::io::split(io);
        let routes = Routes::default();
        let reading = tokio::spawn(read(reader, Arc::clone(&routes)));
        Self {
            writer: Arc::new(tokio::sync::Mutex::new(writer)),
            routes,
            // No preset dictionary: zlib says so in its head, and the server has to cope.
            zlib: Compress::new(Compression::fast(), true),
            next: 1,
            reader: Arc::new(AbortOnDropHandle::new(reading)),
        }
    }

    /// Opens a stream.
    pub(crate) async fn open(&mut self, headers: &[(&str, &str)]) -> (Input, Output) {
        let id = self.next;
        self.next += 2;
        let (sender, receiver) = mpsc::channel(4);
        self.routes.lock().unwrap().insert(id, sender);
        let frame = syn_stream(id, &self.pack(&block(headers)));
        let input = Input { id, writer: Arc::clone(&self.writer), _reader: Arc::clone(&self.reader) };
        let _ = self.writer.lock().await.write_all(&frame).await;
        (input, Output(receiver))
    }

    /// The same; comes back when the server has taken it.
    pub(crate) async fn open_taken(&mut self, headers: &[(&str, &str)]) -> (Input, Output) {
        let (input, mut output) = self.open(headers).await;
        // The reply, or the connection's end.
        let _ = output.0.recv().await;
        (input, output)
    }

    /// The connection's own compression of a header block.
    pub(crate) fn pack(&mut self, raw: &[u8]) -> Vec<u8> {
        let mut packed = Vec::with_capacity(raw.len() + 1024);
        self.zlib.compress_vec(raw, &mut packed, FlushCompress::Sync).unwrap();
        packed
    }

    /// Bytes as they are.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.writer.lock().await.write_all(bytes).await
    }

    /// Waits until the server has closed the connection.
    pub(crate) async fn closed(&self) {
        while !self.reader.is_finished() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

impl Input {
    pub(crate) async fn write(&self, data: &[u8]) -> std::io::Result<()> {
        let mut writer = self.writer.lock().await;
        for part in data.chunks(1 << 20) {
            writer.write_all(&head(self.id, 0, part.len())).await?;
            writer.write_all(part).await?;
        }
        Ok(())
    }

    /// Nothing follows.
    pub(crate) async fn close(&self) {
        let _ = self.writer.lock().await.write_all(&head(self.id, 1, 0)).await;
    }

    /// Gives the stream up, in both directions.
    pub(crate) async fn reset(&self) {
        let frame = control(3, &[self.id.to_be_bytes(), 5u32.to_be_bytes()].concat());
        let _ = self.writer.lock().await.write_all(&frame).await;
    }
}

/// The head of a data frame.
fn head(id: u32, flags: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = id.to_be_bytes();
    let [.., e, f, g] = length.to_be_bytes();
    [a, b, c, d, flags, e, f, g]
}

/// A control frame.
pub(crate) fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let [c, d] = kind.to_be_bytes();
    let [.., e, f, g] = payload.len().to_be_bytes();
    [&[0x80, 3, c, d, 0, e, f, g], payload].concat()
}

/// A SYN_STREAM with this header block.
pub(crate) fn syn_stream(id: u32, packed: &[u8]) -> Vec<u8> {
    control(1, &[&id.to_be_bytes()[..], &[0; 6], packed].concat())
}

/// A header block before its compression.
pub(crate) fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let number = |number: usize| u32::try_from(number).unwrap().to_be_bytes();
    let mut raw = number(headers.len()).to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        raw.extend(number(text.len()));
        raw.extend(text.bytes());
    }
    raw
}

async fn read(mut io: ReadHalf<BoxIo>, routes: Routes) {
    while frame(&mut io, &routes).await.is_ok() {}
    routes.lock().unwrap().clear();
}

async fn frame(io: &mut ReadHalf<BoxIo>, routes: &Routes) -> std::io::Result<()> {
    let mut head = [0; 8];
    io.read_exact(&mut head).await?;
    let [a, b, c, d, flags, length @ ..] = head;
    let length = usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await?;
    let id = if a & 0x80 == 0 {
        u32::from_be_bytes([a, b, c, d])
    } else if [c, d] == [0, 2] {
        // SYN_REPLY: an empty message for who waits for it.
        let id = u32::from_be_bytes(*payload.first_chunk().unwrap());
        let route = routes.lock().unwrap().get(&id).cloned();
        if let Some(route) = route {
            let _ = route.send(Bytes::new()).await;
        }
        return Ok(());
    } else if [c, d] == [0, 3] {
        // RST_STREAM
        u32::from_be_bytes(*payload.first_chunk().unwrap())
    } else {
        return Ok(());
    };
    if a & 0x80 != 0 {
        routes.lock().unwrap().remove(&id);
        return Ok(());
    }
    let route = routes.lock().unwrap().get(&id).cloned();
    if let Some(route) = route
        && !payload.is_empty()
    {
        // Whoever dropped his end does not want it.
        let _ = route.send(payload.into()).await;
    }
    if flags & 1 != 0 {
        routes.lock().unwrap().remove(&id);
    }
    Ok(())
}
