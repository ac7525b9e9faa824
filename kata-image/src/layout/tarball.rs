//! A tar archive whose members are read where they lie. One walk over its headers finds them.
//!
//! Only what images' archives have is understood: files, links, long names and PAX headers of a few kinds. What is
//! else in it is passed over; a missing member is noticed when it is asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tar::{EntryType, Header};

use super::{Files, LayoutError};
use crate::archive::{self, Compression, Recognized};

/// Everything in a tar archive comes in blocks of this size.
pub(super) const BLOCK_BYTES: u64 = 512;
const BLOCK: usize = 512;
/// The most that is read of a long name or a PAX header.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;
/// The most members: far more than the layers that any engine accepts, with three files each.
const MEMBERS_MAX: usize = 10_000;
/// The longest name, as Linux has it (PATH_MAX without its NUL).
const NAME_BYTES_MAX: usize = 4095;
/// The most bytes of all names and the targets of links: what this index may take of memory.
const NAMES_BYTES_MAX: usize = 8 << 20;
/// The most links that are followed to a file.
const LINKS_MAX: usize = 8;

/// An archive and what is in it.
pub(super) struct Tarball {
    file: Arc<File>,
    members: HashMap<String, Member>,
}

enum Member {
    File {
        offset: u64,
        bytes: u64,
    },
    /// To another member, by its name from the archive's root.
    Link(String),
}

impl Member {
    fn target(&self) -> &str {
        match self {
            Self::File { .. } => "",
            Self::Link(target) => target,
        }
    }
}

/// What headers before a member's own say of it.
#[derive(Default)]
struct Extensions {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

/// The name of a header's member; `None` when it is no header.
pub(super) fn first_name(block: &[u8]) -> Option<String> {
    let header = header(block.get(..BLOCK)?)?;
    // The first may be a PAX header, whose own name says nothing of the member.
    String::from_utf8(header.path_bytes().into_owned()).ok()
}

fn header(block: &[u8]) -> Option<&Header> {
    let is_header = archive::recognize(block) == Recognized::Readable(Compression::None);
    let block = <&[u8; BLOCK]>::try_from(block).ok().filter(|_| is_header)?;
    Some(Header::from_byte_slice(block))
}

impl Tarball {
    pub(super) fn open(file: File, path: &Path) -> Result<Self, LayoutError> {
        let broken = |reason: String| LayoutError::Archive {
            path: path.to_path_buf(),
            reason,
        };
        let mut walk = Walk {
            length: file.metadata().map_err(read_error(path))?.len(),
            file: &file,
            position: 0,
        };
        let mut members = HashMap::new();
        let mut names_bytes = 0;
        while let Some((name, member)) = walk.next().map_err(|error| broken(error.to_string()))? {
            let Some(name) = normalize("", &name) else {
                return Err(broken(format!("{name:?} leaves it")));
            };
            names_bytes += name.len() + member.target().len();
            if names_bytes > NAMES_BYTES_MAX {
                return Err(broken(format!(
                    "the names in it have more than {NAMES_BYTES_MAX} bytes"
                )));
            }
            members.insert(name, member);
            if members.len() > MEMBERS_MAX {
                return Err(broken(format!("it has more than {MEMBERS_MAX} members")));
            }
        }
        let file = Arc::new(file);
        Ok(Self { file, members })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Where a file's bytes are.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = normalize("", name)?;
        for _ in 0..LINKS_MAX {
            match self.members.get(&name)? {
                Member::File { offset, bytes } => return Some((*offset, *bytes)),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    /// How many bytes a file has.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.find(name).map(|(_, bytes)| bytes)
    }
}

impl Files for Tarball {
    fn read(&self, name: &str, offset: u64) -> io::Result<Option<Box<dyn Read + Send>>> {
        let Some((start, bytes)) = self.find(name) else {
            return Ok(None);
        };
        let skipped = offset.min(bytes);
        Ok(Some(Box::new(Extent {
            file: Arc::clone(&self.file),
            position: start + skipped,
            left: bytes - skipped,
        })))
    }
}

/// Some bytes of the archive, read without moving anybody else's position.
struct Extent {
    file: Arc<File>,
    position: u64,
    left: u64,
}

impl Read for Extent {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.position)?;
        self.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> LayoutError {
    move |source| LayoutError::Read {
        path: path.to_path_buf(),
        source,
    }
}

struct Walk<'a> {
    file: &'a File,
    position: u64,
    length: u64,
}

impl Walk<'_> {
    /// The next file or link, or `None` at the end.
    fn next(&mut self) -> io::Result<Option<(String, Member)>> {
        let mut extensions = Extensions::default();
        while let Some(header) = self.header()? {
            let kind = header.entry_type();
            let pax_size = extensions.size.filter(|_| !is_extension(kind));
            let bytes = match pax_size {
                Some(size) => size,
                None => header.entry_size().map_err(|_| invalid("a size is no number"))?,
            };
            let offset = self.position;
            let end = offset.checked_add(bytes).filter(|end| *end <= self.length);
            let end = end.ok_or_else(|| invalid("it ends in the middle of a member"))?;
            self.position = end + end.wrapping_neg() % BLOCK_BYTES;
            if is_extension(kind) {
                self.extend(kind, offset, bytes, &mut extensions)?;
                continue;
            }
            let taken = std::mem::take(&mut extensions);
            if let Some(found) = member(&header, taken, offset, bytes)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        // Some writers leave the end marker out.
        if self.position >= self.length {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.file.read_exact_at(&mut block, self.position)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = header(&block)
            .ok_or_else(|| invalid(&format!("a header at byte {} is broken", self.position)))?;
        self.position += BLOCK_BYTES;
        Ok(Some(header.clone()))
    }

    fn extend(
        &self,
        kind: EntryType,
        offset: u64,
        bytes: u64,
        extensions: &mut Extensions,
    ) -> io::Result<()> {
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let length = usize::try_from(bytes)
            .ok()
            .filter(|_| bytes <= EXTENSION_BYTES_MAX);
        let length = length.ok_or_else(|| invalid("a name or PAX header is longer than 64 KiB"))?;
        let mut contents = vec![0; length];
        self.file.read_exact_at(&mut contents, offset)?;
        match kind {
            EntryType::GNULongName => extensions.path = Some(long_name(&contents)?),
            EntryType::GNULongLink => extensions.link = Some(long_name(&contents)?),
            _ => pax(&contents, extensions).ok_or_else(|| invalid("a PAX header is malformed"))?,
        }
        Ok(())
    }
}

fn is_extension(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader | EntryType::XGlobalHeader
    )
}

fn member(
    header: &Header,
    extensions: Extensions,
    offset: u64,
    bytes: u64,
) -> io::Result<Option<(String, Member)>> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| invalid("a name is not UTF-8"));
    let name = match extensions.path {
        Some(path) => path,
        None => text(header.path_bytes().into_owned())?,
    };
    let target = || match extensions.link {
        Some(link) if link.len() > NAME_BYTES_MAX => Err(invalid("the target of a link is too long")),
        Some(link) => Ok(link),
        None => text(header.link_name_bytes().unwrap_or_default().into_owned()),
    };
    if name.len() > NAME_BYTES_MAX {
        return Err(invalid(&format!("a name has more than {NAME_BYTES_MAX} bytes")));
    }
    let leaves = |target: &str| invalid(&format!("{name:?} is a link to {target:?}, which leaves it"));
    let member = match header.entry_type() {
        EntryType::Regular | EntryType::Continuous if !name.ends_with('/') => Member::File { offset, bytes },
        EntryType::Symlink => {
            let target = target()?;
            let directory = name.rfind('/').map_or("", |slash| &name[..slash]);
            let found = normalize(directory, &target).filter(|_| !target.starts_with('/'));
            Member::Link(found.ok_or_else(|| leaves(&target))?)
        }
        EntryType::Link => {
            let target = target()?;
            Member::Link(normalize("", &target).ok_or_else(|| leaves(&target))?)
        }
        _ => return Ok(None),
    };
    Ok(Some((name, member)))
}

/// A name from the archive's root; `None` when it leaves it.
fn normalize(directory: &str, name: &str) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(names.pop()?),
            part => names.push(part),
        }
    }
    Some(names.join("/"))
}

fn long_name(bytes: &[u8]) -> io::Result<String> {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8(name.to_vec()).map_err(|_| invalid("a name is not UTF-8"))
}

/// `<length> <key>=<value>\n`, again and again.
fn pax(mut bytes: &[u8], extensions: &mut Extensions) -> Option<()> {
    while !bytes.is_empty() {
        let space = bytes.iter().take(8).position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let value = || String::from_utf8(record[equals + 1..].to_vec()).ok();
        match &record[..equals] {
            b"path" => extensions.path = Some(value()?),
            b"linkpath" => extensions.link = Some(value()?),
            b"size" => extensions.size = Some(value()?.parse().ok()?),
            _ => {}
        }
        bytes = bytes.get(length..)?;
    }
    Some(())
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_lead_out() {
        for (directory, name, expected) in [
            ("", "a/b", Some("a/b")),
            ("", "./a//b/", Some("a/b")),
            ("", "/etc/passwd", Some("etc/passwd")),
            ("x", "../y/layer.tar", Some("y/layer.tar")),
            ("x", "../../y", None),
            ("", "..", None),
        ] {
            assert_eq!(
                normalize(directory, name).as_deref(),
                expected,
                "{directory} {name}"
            );
        }
    }

    /// An archive of empty files with long names, as GNU's tar writes them.
    fn archive_of(names: impl Iterator<Item = String>) -> File {
        use std::io::Write;
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for name in names {
            let mut header = Header::new_gnu();
            header.set_size(name.len() as u64 + 1);
            header.set_entry_type(EntryType::GNULongName);
            header.set_cksum();
            builder.append(&header, format!("{name}\0").as_bytes()).unwrap();
            let mut header = Header::new_gnu();
            header.set_path("cut").unwrap();
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, io::empty()).unwrap();
        }
        let mut file = builder.into_inner().unwrap();
        file.flush().unwrap();
        file
    }

    #[test]
    fn an_index_takes_no_more_memory_than_names_may() {
        let named = |length: usize, count: usize| {
            let names = (0..count).map(move |number| format!("{number:0length$}"));
            Tarball::open(archive_of(names), Path::new("an.tar"))
        };
        assert_eq!(named(NAME_BYTES_MAX, 2).unwrap().members.len(), 2);
        for (length, count, reason) in [
            (NAME_BYTES_MAX + 1, 1, "a name has more than 4095 bytes"),
            (
                NAME_BYTES_MAX,
                NAMES_BYTES_MAX / NAME_BYTES_MAX + 1,
                "the names in it have more than 8388608 bytes",
            ),
        ] {
            match named(length, count) {
                Err(LayoutError::Archive { reason: said, .. }) => assert_eq!(said, reason),
                Err(error) => panic!("{error}"),
                Ok(_) => panic!("{length} bytes, {count} times"),
            }
        }
    }

    #[test]
    fn pax_records_are_read_to_their_length() {
        let mut extensions = Extensions::default();
        pax(b"12 path=a/b\n10 size=7\n13 mtime=1.5\n", &mut extensions).unwrap();
        assert_eq!(
            (extensions.path.as_deref(), extensions.size),
            (Some("a/b"), Some(7))
        );
        for bytes in [&b"x"[..], b"99 path=a\n", b"0 path=a\n", b"9 path=a ", b"3 \n"] {
            assert!(pax(bytes, &mut Extensions::default()).is_none(), "{bytes:?}");
        }
    }
}
