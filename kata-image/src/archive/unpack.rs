//! Decompression, on a thread of its own: while one part of an archive is unpacked, the one before it is hashed,
//! looked at and written. Owns how an archive is packed; knows nothing of its members.
//!
//! ```text
//!  packed bytes ─► decoder thread ── full parts ──► Unpacked: hash, count ─► members
//!                        ▲                              │
//!                        └──────── spent parts ─────────┘
//! ```
//!
//! The decoder reads at most three parts ahead. It ends with the archive, with an error, or when nobody takes parts
//! any more; a read of the packed bytes that hangs keeps it, so a source must have time limits of its own.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use sha2::{Digest as _, Sha256};

use super::{ArchiveError, Compression, Recognized, members, recognize};

const BUFFER_BYTES: usize = 256 << 10;
const PART_BYTES: usize = 256 << 10;
const PARTS_AHEAD: usize = 2;
const EMPTY_HEAD: [u8; 512] = [0; 512];

/// How many bytes of the archive, as stored, have been read; shared with the reader.
#[derive(Debug, Clone, Default)]
pub(crate) struct BytesRead(Arc<AtomicU64>);

impl BytesRead {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Counted<R> {
    input: R,
    count: BytesRead,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count.0.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

type Whole<R> = io::Chain<io::Cursor<Vec<u8>>, BufReader<Counted<R>>>;

/// An archive whose first bytes were looked at.
pub(crate) struct Packed<R> {
    whole: Whole<R>,
    compression: Compression,
    bytes_read: BytesRead,
    limit: u64,
}

impl<R: Read + Send> Packed<R> {
    /// `None` when the first bytes are not those of a readable archive.
    pub(crate) fn new(input: R) -> io::Result<Option<Self>> {
        Self::recognized_by(input, recognize)
    }

    /// [`new`](Self::new), but an archive may be its end marker alone: a layer may change nothing.
    pub(crate) fn maybe_empty(input: R) -> io::Result<Option<Self>> {
        let is_end_marker = |head: &[u8]| head.len() == EMPTY_HEAD.len() && *head == EMPTY_HEAD;
        Self::recognized_by(input, |head| {
            if is_end_marker(head) {
                Recognized::Readable(Compression::None)
            } else {
                recognize(head)
            }
        })
    }

    fn recognized_by(input: R, recognize: impl Fn(&[u8]) -> Recognized) -> io::Result<Option<Self>> {
        let bytes_read = BytesRead::default();
        let input = Counted {
            input,
            count: bytes_read.clone(),
        };
        let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
        let mut head = Vec::new();
        input.by_ref().take(members::BLOCK_BYTES).read_to_end(&mut head)?;
        let Recognized::Readable(compression) = recognize(&head) else {
            return Ok(None);
        };
        Ok(Some(Self {
            whole: io::Cursor::new(head).chain(input),
            compression,
            bytes_read,
            limit: u64::MAX,
        }))
    }

    /// Sets the most bytes that it may unpack to, if it is compressed.
    pub(crate) fn limit(self, limit: u64) -> Self {
        let limit = if self.compression == Compression::None {
            u64::MAX
        } else {
            limit
        };
        Self { limit, ..self }
    }

    /// Unpacks it while `read` reads, and returns what that returns. The outer error is that of making a thread or a
    /// decoder; what is wrong with the archive comes to `read`.
    pub(crate) fn unpack<T>(self, read: impl FnOnce(Unpacked, &BytesRead) -> T) -> io::Result<T> {
        let (full_sender, full) = sync_channel(PARTS_AHEAD);
        let (spent, spent_receiver) = channel();
        let unpacked = Unpacked {
            full,
            spent,
            part: Vec::new(),
            position: 0,
            unpacked_bytes: 0,
            limit: self.limit,
            hasher: Sha256::new(),
            bytes_read: self.bytes_read.clone(),
        };
        let (whole, compression) = (self.whole, self.compression);
        std::thread::scope(|scope| {
            let decode = move || decode(whole, compression, &full_sender, &spent_receiver);
            std::thread::Builder::new()
                .name("unpack".into())
                .spawn_scoped(scope, decode)?;
            Ok(read(unpacked, &self.bytes_read))
        })
    }
}

/// Unpacks everything and sends it part by part, the last thing an error or an empty part.
fn decode<R: Read>(
    whole: Whole<R>,
    compression: Compression,
    full: &SyncSender<io::Result<Vec<u8>>>,
    spent: &Receiver<Vec<u8>>,
) {
    let sent = match compression {
        Compression::None => send_parts(whole, full, spent),
        Compression::Gzip => send_parts(flate2::bufread::MultiGzDecoder::new(whole), full, spent),
        Compression::Zstd => match zstd::Decoder::with_buffer(whole) {
            Ok(decoder) => send_parts(decoder, full, spent),
            Err(error) => Err(error),
        },
    };
    if let Err(error) = sent {
        // Nobody to tell is nobody who wants to know.
        let _ = full.send(Err(error));
    }
}

fn send_parts(
    mut unpacked: impl Read,
    full: &SyncSender<io::Result<Vec<u8>>>,
    spent: &Receiver<Vec<u8>>,
) -> io::Result<()> {
    loop {
        let mut part = spent.try_recv().unwrap_or_default();
        part.resize(PART_BYTES, 0);
        let (count, end) = fill(&mut unpacked, &mut part);
        part.truncate(count);
        let was_sent = full.send(Ok(part)).is_ok();
        if count == 0 || !was_sent {
            return end;
        }
        end?;
    }
}

/// Reads until the buffer is full, the input ends, or an error comes, which is told beside what came before it.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> (usize, io::Result<()>) {
    let mut count = 0;
    while count < buffer.len() {
        match input.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (count, Err(error)),
        }
    }
    (count, Ok(()))
}

/// The unpacked bytes of an archive, counted and hashed as they come.
pub(crate) struct Unpacked {
    full: Receiver<io::Result<Vec<u8>>>,
    spent: Sender<Vec<u8>>,
    part: Vec<u8>,
    position: usize,
    unpacked_bytes: u64,
    limit: u64,
    hasher: Sha256,
    bytes_read: BytesRead,
}

impl Unpacked {
    /// Has seen every byte that came; that this was the whole archive is for the caller to know.
    pub(crate) fn into_hasher(self) -> Sha256 {
        self.hasher
    }

    fn next_part(&mut self) -> io::Result<()> {
        let spent = std::mem::take(&mut self.part);
        self.position = 0;
        // The decoder that ended needs no parts.
        let _ = self.spent.send(spent);
        // A decoder that ended without a word has sent its last part.
        self.part = self.full.recv().unwrap_or_else(|_| Ok(Vec::new()))?;
        self.hasher.update(&self.part);
        self.unpacked_bytes += self.part.len() as u64;
        if self.unpacked_bytes > self.limit {
            self.part.clear();
            return Err(io::Error::other(ArchiveError::Bomb {
                packed_bytes: self.bytes_read.get(),
                limit: self.limit,
            }));
        }
        Ok(())
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.part.len() {
            self.next_part()?;
        }
        let count = buffer.len().min(self.part.len() - self.position);
        buffer[..count].copy_from_slice(&self.part[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}
