//! The walk over an archive's members: header, what extends it, contents, next.
//!
//! ```text
//!   next() ── extension headers (long name, long link, PAX) ──► header ──► Member
//!     ▲                                                                      │
//!     └──────────── skips what is left of the contents ◄─── read() ◄─────────┘
//! ```

use std::borrow::Cow;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::ArchiveError;
use super::decoder::Decoder;
use super::pax::{self, Records};
use super::sparse::{FrontMap, Map, Segment};
use crate::tree::{Body, Time, XattrPair};

/// Everything in a tar archive comes in blocks of this size.
pub(super) const BLOCK_BYTES: u64 = 512;
const BLOCK: usize = 512;

/// The most that is read of a long name: longer than any path that Linux accepts.
const MAX_NAME_BYTES: u64 = 8 << 10;
/// The most that is read of a PAX header, and kept of several: some of the largest extended attributes.
const MAX_PAX_BYTES: u64 = 1 << 20;
/// The most that may follow the end marker: tape blocks are padded, but not by more.
const MAX_TRAILING_BYTES: u64 = 16 << 20;

/// One member without its contents.
#[derive(Debug)]
pub(crate) struct Member {
    /// As the archive has it: nothing is normalized or checked.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: MemberKind,
    /// Permission bits with set-id and sticky bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Full name and value.
    pub(crate) xattrs: Vec<XattrPair>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MemberKind {
    /// The contents, `size_bytes` of them, are read from [`Members`].
    File { size_bytes: u64 },
    /// Another name of the file at this path of the archive.
    HardLink(Vec<u8>),
    /// Everything that the header tells whole.
    Plain(Body),
}

/// Reads members one after another; between two calls of [`next`](Self::next) it reads as the contents of the
/// member that was returned last.
pub(crate) struct Members<R> {
    input: R,
    /// Bytes of the unpacked archive that were read.
    offset: u64,
    globals: Records,
    contents: Contents,
}

/// What is left of a member's contents.
#[derive(Debug, Default)]
struct Contents {
    size_bytes: u64,
    position: u64,
    segments: std::vec::IntoIter<Segment>,
    /// The piece that comes next or is being read.
    segment: Segment,
    /// Bytes left in the archive, stored data and padding.
    stored_bytes: u64,
}

/// Headers that extend the next one.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pax: Option<Records>,
}

/// Whether these bytes begin with a header of any tar format: its checksum is right.
pub(super) fn is_header(head: &[u8]) -> bool {
    let block = head
        .get(..BLOCK)
        .and_then(|block| <&[u8; BLOCK]>::try_from(block).ok());
    block.is_some_and(checksum_matches)
}

fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let checksum = block.iter().enumerate().fold(0, |sum: u32, (index, byte)| {
        sum + if (148..156).contains(&index) {
            32
        } else {
            u32::from(*byte)
        }
    });
    Header::from_byte_slice(block)
        .cksum()
        .is_ok_and(|stored| stored == checksum)
}

/// Writes a zero into every number that was left out: some writers leave out what is 0, and all readers take it so.
fn fill_in_blanks(header: &mut Header) {
    let fill = |field: &mut [u8]| {
        if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
            field[0] = b'0';
        }
    };
    let old = header.as_old_mut();
    fill(&mut old.mode);
    fill(&mut old.uid);
    fill(&mut old.gid);
    fill(&mut old.size);
    fill(&mut old.mtime);
    if let Some(ustar) = header.as_ustar_mut() {
        fill(&mut ustar.dev_major);
        fill(&mut ustar.dev_minor);
    } else if let Some(gnu) = header.as_gnu_mut() {
        fill(&mut gnu.dev_major);
        fill(&mut gnu.dev_minor);
    }
}

pub(super) fn path_of(bytes: &[u8]) -> PathBuf {
    std::ffi::OsString::from_vec(bytes.to_vec()).into()
}

impl<R: Read> Members<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            offset: 0,
            globals: Records::default(),
            contents: Contents::default(),
        }
    }

    /// What the archive is read from.
    pub(crate) fn into_input(self) -> R {
        self.input
    }

    /// The next member, or `None` after the end marker.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        self.skip(self.contents.stored_bytes)?;
        self.contents = Contents::default();
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else {
                return self.finish(&extensions);
            };
            if !self.extend(&header, &mut extensions)? {
                return self.member(&header, &extensions).map(Some);
            }
        }
    }

    /// Reads to the end, so that a compressed archive's own checksum is checked.
    fn finish(&mut self, extensions: &Extensions) -> Result<Option<Member>, ArchiveError> {
        if extensions.path.is_some() || extensions.link.is_some() || extensions.pax.is_some() {
            return Err(ArchiveError::Truncated);
        }
        let rest = self.input.by_ref().take(MAX_TRAILING_BYTES + 1);
        let trailing = io::copy(&mut { rest }, &mut io::sink()).map_err(read_error)?;
        if trailing > MAX_TRAILING_BYTES {
            return Err(ArchiveError::Trailing {
                limit: MAX_TRAILING_BYTES,
            });
        }
        Ok(None)
    }

    /// `None` for the end marker.
    fn header(&mut self) -> Result<Option<Header>, ArchiveError> {
        let offset = self.offset;
        let mut header = Header::new_old();
        self.fill(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !checksum_matches(header.as_bytes()) {
            return Err(ArchiveError::Checksum { offset });
        }
        fill_in_blanks(&mut header);
        Ok(Some(header))
    }

    /// Takes in a header that extends the next one; `false` when this is the next one.
    fn extend(&mut self, header: &Header, extensions: &mut Extensions) -> Result<bool, ArchiveError> {
        match header.entry_type() {
            EntryType::GNULongName => {
                extensions.path = Some(self.extension(header, "a long name", MAX_NAME_BYTES)?);
            }
            EntryType::GNULongLink => {
                extensions.link = Some(self.extension(header, "a long link", MAX_NAME_BYTES)?);
            }
            EntryType::XGlobalHeader => {
                let mut globals = std::mem::take(&mut self.globals);
                self.extend_records(header, &mut globals)?;
                globals.keep_what_may_be_common();
                self.globals = globals;
            }
            EntryType::XHeader => {
                let mut records = extensions.pax.take().unwrap_or_else(|| self.globals.clone());
                self.extend_records(header, &mut records)?;
                extensions.pax = Some(records);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn extend_records(&mut self, header: &Header, records: &mut Records) -> Result<(), ArchiveError> {
        let offset = self.offset;
        let bytes = self.extension(header, "a PAX header", MAX_PAX_BYTES)?;
        records.extend(&bytes).ok_or(ArchiveError::Pax { offset })?;
        if records.bytes() > MAX_PAX_BYTES {
            return Err(ArchiveError::TooLong {
                what: "a run of PAX headers",
                bytes: records.bytes(),
                offset,
                limit: MAX_PAX_BYTES,
            });
        }
        Ok(())
    }

    fn extension(
        &mut self,
        header: &Header,
        what: &'static str,
        limit: u64,
    ) -> Result<Vec<u8>, ArchiveError> {
        let offset = self.offset;
        let bytes = header.entry_size().map_err(|_| field(header, "size"))?;
        let size = usize::try_from(bytes).ok().filter(|_| bytes <= limit);
        let size = size.ok_or(ArchiveError::TooLong {
            what,
            bytes,
            offset,
            limit,
        })?;
        let mut contents = vec![0; size];
        self.fill(&mut contents)?;
        self.skip(padding(bytes))?;
        Ok(contents)
    }

    fn member(&mut self, header: &Header, extensions: &Extensions) -> Result<Member, ArchiveError> {
        let pax = match &extensions.pax {
            Some(records) => Cow::Borrowed(records),
            // Few and short, and reading what the header says of the contents needs `self`.
            None => Cow::Owned(self.globals.clone()),
        };
        let decoder = Decoder {
            header,
            extensions,
            pax: &pax,
        };
        let path = decoder.path();
        let kind = self.kind(&decoder, &path)?;
        decoder.member(path, kind)
    }

    fn kind(&mut self, decoder: &Decoder<'_>, path: &[u8]) -> Result<MemberKind, ArchiveError> {
        let entry_type = decoder.header.entry_type();
        // Archives older than POSIX mark a directory only by its name.
        let is_old_directory = entry_type.is_file() && path.ends_with(b"/");
        match entry_type {
            _ if is_old_directory => self.directory(decoder),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(decoder, path),
            EntryType::Link => Ok(MemberKind::HardLink(decoder.link())),
            EntryType::Symlink => Ok(MemberKind::Plain(Body::Symlink(decoder.link().into()))),
            EntryType::Directory => self.directory(decoder),
            EntryType::Char => decoder.device(|major, minor| Body::Character { major, minor }),
            EntryType::Block => decoder.device(|major, minor| Body::Block { major, minor }),
            EntryType::Fifo => Ok(MemberKind::Plain(Body::Fifo)),
            other => Err(ArchiveError::Kind {
                entry: path_of(path),
                kind: char::from(other.as_byte()),
            }),
        }
    }

    /// Some writers give directories a size; whatever it holds is skipped.
    fn directory(&mut self, decoder: &Decoder<'_>) -> Result<MemberKind, ArchiveError> {
        self.contents.stored_bytes = padded(decoder.size()?).ok_or_else(|| decoder.field("size"))?;
        Ok(MemberKind::Plain(Body::directory()))
    }

    fn file(&mut self, decoder: &Decoder<'_>, path: &[u8]) -> Result<MemberKind, ArchiveError> {
        let stored_bytes = decoder.size()?;
        let sparse_error = || ArchiveError::Sparse { entry: path_of(path) };
        let (size_bytes, map, stored_bytes) = if decoder.header.entry_type().is_gnu_sparse() {
            let map = self.gnu_map(decoder.header)?.ok_or_else(sparse_error)?;
            let size = decoder
                .header
                .as_gnu()
                .and_then(|gnu| gnu.real_size().ok())
                .ok_or_else(sparse_error)?;
            (size, map, stored_bytes)
        } else if decoder.pax.get("GNU.sparse.major") == Some(b"1") {
            let size = decoder
                .pax
                .get("GNU.sparse.realsize")
                .and_then(pax::decimal)
                .ok_or_else(sparse_error)?;
            let (map, map_bytes) = self.front_map(stored_bytes)?.ok_or_else(sparse_error)?;
            (size, map, stored_bytes - map_bytes)
        } else if decoder.pax.with_prefix("GNU.sparse.").next().is_some() {
            return Err(sparse_error());
        } else {
            (stored_bytes, Map::whole(stored_bytes), stored_bytes)
        };
        if !map.fits(size_bytes, stored_bytes) {
            return Err(sparse_error());
        }
        let stored_bytes = padded(stored_bytes).ok_or_else(|| decoder.field("size"))?;
        let segments = map.into_segments();
        self.contents = Contents {
            size_bytes,
            position: 0,
            segments,
            segment: Segment::default(),
            stored_bytes,
        };
        Ok(MemberKind::File { size_bytes })
    }

    /// The old GNU form: four pieces in the header, more in blocks after it.
    fn gnu_map(&mut self, header: &Header) -> Result<Option<Map>, ArchiveError> {
        let Some(gnu) = header.as_gnu() else {
            return Ok(None);
        };
        let mut map = Map::default();
        if map.push_headers(&gnu.sparse).is_none() {
            return Ok(None);
        }
        let mut extended = gnu.is_extended();
        while extended {
            let mut block = GnuExtSparseHeader::new();
            self.fill(block.as_mut_bytes())?;
            if map.push_headers(block.sparse()).is_none() {
                return Ok(None);
            }
            extended = block.is_extended();
        }
        Ok(Some(map))
    }

    /// PAX form 1.0, and how many of the stored bytes the map takes.
    fn front_map(&mut self, stored_bytes: u64) -> Result<Option<(Map, u64)>, ArchiveError> {
        let mut front = FrontMap::default();
        let mut map_bytes = 0;
        while map_bytes + BLOCK_BYTES <= stored_bytes {
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            map_bytes += BLOCK_BYTES;
            match front.feed(&block) {
                Some(true) => return Ok(Some((front.into_map(), map_bytes))),
                Some(false) => {}
                None => return Ok(None),
            }
        }
        Ok(None)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        self.input.read_exact(buffer).map_err(read_error)?;
        self.offset += buffer.len() as u64;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        let mut skipped = self.input.by_ref().take(bytes);
        let count = io::copy(&mut skipped, &mut io::sink()).map_err(read_error)?;
        self.offset += count;
        if count < bytes {
            Err(ArchiveError::Truncated)
        } else {
            Ok(())
        }
    }

    fn read_stored(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.contents.stored_bytes -= count as u64;
        Ok(count)
    }
}

/// Reads the contents of the current member, with the holes of a sparse file as zeros.
impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let hole = self.contents.hole();
        let most = if hole > 0 {
            hole
        } else {
            self.contents.segment.bytes
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        if hole > 0 {
            buffer.fill(0);
            self.contents.position += most as u64;
            return Ok(most);
        }
        let count = self.read_stored(buffer)?;
        self.contents.advance(count as u64);
        Ok(count)
    }
}

impl<R: Read> Members<R> {
    /// Skips zeros of a hole that come next: at most `most` bytes, and a multiple of `unit`.
    pub(crate) fn skip_hole(&mut self, most: u64, unit: u64) -> u64 {
        let skipped = self.contents.hole().min(most) / unit * unit;
        self.contents.position += skipped;
        skipped
    }
}

impl Contents {
    /// How many zeros come next that are not stored.
    fn hole(&mut self) -> u64 {
        while self.segment.bytes == 0 {
            let Some(next) = self.segments.next() else {
                return self.size_bytes - self.position;
            };
            self.segment = next;
        }
        self.segment.offset - self.position
    }

    /// Notes that stored bytes of the current piece were read.
    fn advance(&mut self, bytes: u64) {
        self.position += bytes;
        self.segment.offset += bytes;
        self.segment.bytes -= bytes;
    }
}

fn field(header: &Header, field: &'static str) -> ArchiveError {
    ArchiveError::Field {
        entry: path_of(&header.path_bytes()),
        field,
    }
}

pub(super) fn without_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// What a failed read means: an end of the input is a truncated archive.
pub(crate) fn read_error(error: io::Error) -> ArchiveError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return ArchiveError::Truncated;
    }
    // What unpacks the archive has its own words for some of what is wrong with it.
    match error.downcast::<ArchiveError>() {
        Ok(error) => error,
        Err(error) => ArchiveError::Read(error),
    }
}

fn padding(bytes: u64) -> u64 {
    bytes.wrapping_neg() % BLOCK_BYTES
}

fn padded(bytes: u64) -> Option<u64> {
    bytes.checked_add(padding(bytes))
}
