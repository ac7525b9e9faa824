//! The grammar of the stream: messages with their length before them, and the bytes of files behind theirs.
//!
//! Owns what a stream may look like at all; what its entries do is not known here.

use std::io::{self, BufReader, Read, Write};

use protobuf::{EnumOrUnknown, Message};

use super::FilesError;
use crate::kata::{self, End, Entry, Piece, Step, entry::Kind, step};

/// Longest message in bytes: an entry with its extended attributes.
const MESSAGE_BYTES_MAX: u64 = 512 << 10;
/// Longest piece in bytes.
pub(super) const PIECE_BYTES_MAX: usize = 1 << 20;
/// `PATH_MAX` without its terminator (linux/limits.h).
pub(super) const PATH_BYTES_MAX: usize = 4095;
/// `NAME_MAX` (linux/limits.h).
const NAME_BYTES_MAX: usize = 255;
/// Largest offset in a file.
const OFFSET_MAX: u64 = i64::MAX as u64;
/// Written at once.
const BUFFER_BYTES: usize = 128 << 10;

fn malformed(what: &'static str) -> FilesError {
    FilesError::Malformed(what)
}

/// Writes a stream.
#[derive(Debug)]
pub struct StepWriter<W> {
    output: W,
    buffer: Vec<u8>,
}

impl<W: Write> StepWriter<W> {
    /// Writes to this.
    pub fn new(output: W) -> Self {
        StepWriter {
            output,
            buffer: Vec::with_capacity(2 * BUFFER_BYTES),
        }
    }

    /// The next entry.
    ///
    /// # Errors
    /// The output's.
    pub fn entry(&mut self, entry: Entry) -> io::Result<()> {
        self.step(step::Step::Entry(entry))
    }

    /// The next piece of the last entry, of at most 1 MiB.
    ///
    /// # Errors
    /// The output's.
    pub fn piece(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.step(step::Step::Piece(Piece {
            offset,
            bytes: length,
            ..Default::default()
        }))?;
        self.buffer.extend_from_slice(bytes);
        self.flush_beyond(BUFFER_BYTES)
    }

    /// The end of the stream.
    ///
    /// # Errors
    /// The output's.
    pub fn end(&mut self, end: End) -> io::Result<()> {
        self.step(step::Step::End(end))?;
        self.flush_beyond(0)?;
        self.output.flush()
    }

    fn step(&mut self, step: step::Step) -> io::Result<()> {
        let message = Step {
            step: Some(step),
            ..Default::default()
        };
        message
            .write_length_delimited_to_vec(&mut self.buffer)
            .map_err(io::Error::other)?;
        self.flush_beyond(BUFFER_BYTES)
    }

    fn flush_beyond(&mut self, bytes: usize) -> io::Result<()> {
        if self.buffer.len() > bytes {
            self.output.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// What comes next on a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A file, directory or other.
    Entry(Entry),
    /// Where the bytes of [`StepReader::bytes`] belong in the last entry.
    Piece(u64),
    /// The stream's end.
    End(End),
}

/// Reads a stream, and holds to its grammar whoever writes it.
#[derive(Debug)]
pub struct StepReader<R> {
    input: BufReader<R>,
    message: Vec<u8>,
    piece: Vec<u8>,
    /// Where the next piece may begin; none where no piece may come.
    file: Option<u64>,
    root: Option<Kind>,
}

impl<R: Read> StepReader<R> {
    /// Reads from this.
    pub fn new(input: R) -> Self {
        StepReader {
            input: BufReader::with_capacity(BUFFER_BYTES, input),
            message: Vec::new(),
            piece: Vec::new(),
            file: None,
            root: None,
        }
    }

    /// What comes next; after an [`Item::End`] nothing does.
    ///
    /// # Errors
    /// What is malformed, or the input's.
    pub fn next_item(&mut self) -> Result<Item, FilesError> {
        let message = self.message()?;
        match message.step {
            Some(step::Step::Entry(entry)) => self.entry(entry).map(Item::Entry),
            Some(step::Step::Piece(piece)) => self.piece(&piece).map(Item::Piece),
            Some(step::Step::End(end)) if self.root.is_some() => self.end(end),
            Some(step::Step::End(_)) => Err(malformed("an end before its beginning")),
            None => Err(malformed("a step of no kind")),
        }
    }

    /// The answer to a stream.
    ///
    /// # Errors
    /// What is malformed, or the input's.
    pub fn answer(&mut self) -> Result<End, FilesError> {
        match self.message()?.step {
            Some(step::Step::End(end)) => checked_end(end),
            _ => Err(malformed("an answer that is none")),
        }
    }

    /// The bytes of the last piece.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.piece
    }

    fn message(&mut self) -> Result<Step, FilesError> {
        let length = self.length()?;
        self.message.clear();
        // What is announced is not what comes: no memory is taken for it before.
        let read = self
            .input
            .by_ref()
            .take(length)
            .read_to_end(&mut self.message)
            .map_err(FilesError::Stream)?;
        if read as u64 != length {
            return Err(FilesError::Stream(io::ErrorKind::UnexpectedEof.into()));
        }
        Step::parse_from_bytes(&self.message).map_err(|_| malformed("a step that cannot be understood"))
    }

    /// A protobuf varint.
    fn length(&mut self) -> Result<u64, FilesError> {
        let mut length = 0;
        for shift in [0, 7, 14] {
            let mut byte = [0];
            self.input.read_exact(&mut byte).map_err(FilesError::Stream)?;
            length |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return match length {
                    0..=MESSAGE_BYTES_MAX => Ok(length),
                    _ => Err(malformed("a step that is too long")),
                };
            }
        }
        Err(malformed("a step that is too long"))
    }

    fn entry(&mut self, entry: Entry) -> Result<Entry, FilesError> {
        let kind = known(entry.kind)?;
        match (self.root, entry.path.is_empty()) {
            (None, true) if kind != Kind::HARD_LINK => self.root = Some(kind),
            (Some(Kind::DIRECTORY), false) => check_path(&entry.path)?,
            (None, _) => return Err(malformed("a stream that does not begin with its root")),
            (Some(_), _) => return Err(malformed("an entry that can be below nothing")),
        }
        check_entry(kind, &entry)?;
        self.file = (kind == Kind::FILE).then_some(0);
        Ok(entry)
    }

    fn piece(&mut self, piece: &Piece) -> Result<u64, FilesError> {
        let begin = self.file.ok_or(malformed("a piece of no file"))?;
        let length = usize::try_from(piece.bytes)
            .ok()
            .filter(|length| (1..=PIECE_BYTES_MAX).contains(length))
            .ok_or(malformed("a piece of a length that none has"))?;
        let end = piece
            .offset
            .checked_add(length as u64)
            .filter(|end| *end <= OFFSET_MAX);
        let end = end
            .filter(|_| piece.offset >= begin)
            .ok_or(malformed("a piece out of its order"))?;
        self.file = Some(end);
        self.piece.resize(length, 0);
        self.input
            .read_exact(&mut self.piece)
            .map_err(FilesError::Stream)?;
        Ok(piece.offset)
    }

    fn end(&mut self, end: End) -> Result<Item, FilesError> {
        self.root = None;
        self.file = None;
        checked_end(end).map(Item::End)
    }
}

fn known(kind: EnumOrUnknown<Kind>) -> Result<Kind, FilesError> {
    match kind.enum_value() {
        Ok(Kind::UNSPECIFIED) | Err(_) => Err(malformed("an entry of no known kind")),
        Ok(kind) => Ok(kind),
    }
}

fn checked_end(end: End) -> Result<End, FilesError> {
    let named = |omission: &kata::Omission| omission.path.len() <= PATH_BYTES_MAX;
    if end.omitted.iter().all(named) {
        Ok(end)
    } else {
        Err(malformed("a path that is too long"))
    }
}

/// A path from the root, each part of which is a name.
pub(super) fn check_path(path: &[u8]) -> Result<(), FilesError> {
    let is_name = |part: &[u8]| {
        (1..=NAME_BYTES_MAX).contains(&part.len()) && part != b"." && part != b".." && !part.contains(&0)
    };
    if path.len() <= PATH_BYTES_MAX && path.split(|byte| *byte == b'/').all(is_name) {
        Ok(())
    } else {
        Err(malformed("a path that is none"))
    }
}

fn check_entry(kind: Kind, entry: &Entry) -> Result<(), FilesError> {
    if entry.mode > 0o7777 || entry.nanoseconds >= 1_000_000_000 || entry.size_bytes > OFFSET_MAX {
        return Err(malformed("an entry with a number that none has"));
    }
    match kind {
        Kind::SYMBOLIC_LINK => {
            let length = entry.target.len();
            if (1..=PATH_BYTES_MAX).contains(&length) && !entry.target.contains(&0) {
                return Ok(());
            }
            Err(malformed("a symbolic link to nothing"))
        }
        Kind::HARD_LINK if entry.target == entry.path => Err(malformed("a hard link to itself")),
        Kind::HARD_LINK => check_path(&entry.target),
        _ => Ok(()),
    }
}
