//! A directory as a tar archive (POSIX.1-2017 pax), the same whenever and wherever it is read: entries in the order of
//! their names, nothing of access times, inode numbers or names of users.
//!
//! Links are taken as links and never followed. Holes of sparse files become zeros, which pack well.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tar::{EntryType, Header};

use super::BuildError;
use super::packing::CopyError;
use crate::file_xattrs;

const BLOCK_BYTES: u64 = 512;
/// The end marker: two blocks of zeros.
const END: [u8; 1024] = [0; 1024];
/// What a header's fields hold (`ustar`): a name, a link's target, an id of 7 octal digits, a size or time of 11.
const NAME_BYTES_MAX: usize = 100;
const ID_MAX: u64 = 0o777_7777;
const NUMBER_MAX: u64 = 0o777_7777_7777;

/// Attributes that are no part of a file but of the machine it is on: labels of SELinux.
const HOST_XATTRS: [&[u8]; 1] = [b"security.selinux"];
/// Namespaces that other filesystems know.
const XATTR_NAMESPACES: [&[u8]; 4] = [b"user.", b"security.", b"trusted.", b"system.posix_acl_"];

/// Writes everything in the directory `root`, without itself.
pub(super) fn write(
    root: &Path,
    owner: Option<(u32, u32)>,
    output: &mut dyn Write,
    report: &mut dyn FnMut(u64),
) -> Result<(), BuildError> {
    let mut walk = Walk {
        output,
        owner,
        hard_links: HashMap::new(),
        done_bytes: 0,
        report,
    };
    let mut pending = walk.children(root, &[])?;
    while let Some((path, name)) = pending.pop() {
        let status = std::fs::symlink_metadata(&path).map_err(read_error(&path))?;
        walk.entry(&path, &name, &status)?;
        if status.is_dir() {
            pending.extend(walk.children(&path, &name)?);
        }
    }
    walk.write(&END)
}

struct Walk<'a> {
    output: &'a mut dyn Write,
    owner: Option<(u32, u32)>,
    /// The first name of files with several, by device and inode.
    hard_links: HashMap<(u64, u64), Vec<u8>>,
    done_bytes: u64,
    report: &'a mut dyn FnMut(u64),
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> BuildError + '_ {
    move |source| BuildError::Read {
        path: path.to_path_buf(),
        source,
    }
}

impl Walk<'_> {
    /// Paths and names in the archive, last first.
    fn children(&self, path: &Path, name: &[u8]) -> Result<Vec<(PathBuf, Vec<u8>)>, BuildError> {
        let mut children = Vec::new();
        for entry in std::fs::read_dir(path).map_err(read_error(path))? {
            let child = entry.map_err(read_error(path))?.file_name();
            let separator: &[u8] = if name.is_empty() { b"" } else { b"/" };
            children.push((path.join(&child), [name, separator, child.as_bytes()].concat()));
        }
        children.sort_unstable_by(|(_, one), (_, other)| other.cmp(one));
        Ok(children)
    }

    fn entry(&mut self, path: &Path, name: &[u8], status: &Metadata) -> Result<(), BuildError> {
        let kind = status.file_type();
        if kind.is_socket() {
            log::debug!("{} is a socket, which no archive holds", path.display());
            return Ok(());
        }
        let mut entry = self.describe(path, name, status)?;
        let key = (status.dev(), status.ino());
        if !kind.is_dir() && status.nlink() > 1 {
            if let Some(first) = self.hard_links.get(&key) {
                entry.link = first.clone();
                return self.write_header(path, entry, EntryType::Link, 0);
            }
            self.hard_links.insert(key, name.to_vec());
        }
        if kind.is_dir() {
            entry.name.push(b'/');
            return self.write_header(path, entry, EntryType::Directory, 0);
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(read_error(path))?;
            entry.link = target.into_os_string().into_vec();
            return self.write_header(path, entry, EntryType::Symlink, 0);
        }
        if kind.is_file() {
            return self.file(path, entry, status);
        }
        let device = status.rdev();
        entry.device = Some((rustix::fs::major(device), rustix::fs::minor(device)));
        let kind = if kind.is_char_device() {
            EntryType::Char
        } else if kind.is_block_device() {
            EntryType::Block
        } else {
            entry.device = None;
            EntryType::Fifo
        };
        self.write_header(path, entry, kind, 0)
    }

    fn describe(&self, path: &Path, name: &[u8], status: &Metadata) -> Result<Entry, BuildError> {
        let (uid, gid) = self.owner.unwrap_or((status.uid(), status.gid()));
        Ok(Entry {
            name: name.to_vec(),
            link: Vec::new(),
            mode: status.mode() & 0o7777,
            owner: (uid.into(), gid.into()),
            mtime: status.mtime(),
            device: None,
            xattrs: xattrs(path).map_err(read_error(path))?,
        })
    }

    fn file(&mut self, path: &Path, entry: Entry, status: &Metadata) -> Result<(), BuildError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        let file = File::from(opened.map_err(read_error(path))?);
        let changed = || BuildError::Changed {
            path: path.to_path_buf(),
        };
        let now = file.metadata().map_err(read_error(path))?;
        if (now.dev(), now.ino(), now.len()) != (status.dev(), status.ino(), status.len()) {
            return Err(changed());
        }
        let size = now.len();
        self.write_header(path, entry, EntryType::Regular, size)?;
        let before = self.done_bytes;
        let report = &mut *self.report;
        let mut input = (&file).take(size);
        let copied = super::packing::copy(&mut input, self.output, &mut |bytes| report(before + bytes));
        copied.map_err(|error| match error {
            CopyError::Read(source) => read_error(path)(source),
            CopyError::Write(source) => BuildError::Write {
                path: "the layer".into(),
                source,
            },
        })?;
        if input.limit() > 0 || (&file).read(&mut [0]).map_err(read_error(path))? > 0 {
            return Err(changed());
        }
        self.done_bytes += size;
        self.pad(size)
    }

    fn write_header(
        &mut self,
        path: &Path,
        entry: Entry,
        kind: EntryType,
        size: u64,
    ) -> Result<(), BuildError> {
        let records = entry.records(size);
        if !records.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_size(records.len() as u64);
            header.set_mode(0o644);
            set_bytes(&mut header.as_old_mut().name, b"pax");
            header.set_cksum();
            self.write(header.as_bytes())?;
            self.write(&records)?;
            self.pad(records.len() as u64)?;
        }
        let header = entry.header(kind, size).map_err(read_error(path))?;
        self.write(header.as_bytes())
    }

    fn pad(&mut self, bytes: u64) -> Result<(), BuildError> {
        let padding = usize::try_from(bytes.wrapping_neg() % BLOCK_BYTES).unwrap_or_default();
        self.write(&END[..padding])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.output.write_all(bytes).map_err(|source| BuildError::Write {
            path: "the layer".into(),
            source,
        })
    }
}

/// What a header says.
struct Entry {
    name: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    /// In seconds since 1970.
    mtime: i64,
    device: Option<(u32, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// What does not fit into a header, as PAX records.
    fn records(&self, size: u64) -> Vec<u8> {
        let mut records = Vec::new();
        if self.name.len() > NAME_BYTES_MAX {
            push(&mut records, b"path", &self.name);
        }
        if self.link.len() > NAME_BYTES_MAX {
            push(&mut records, b"linkpath", &self.link);
        }
        for (key, value) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if value > ID_MAX {
                push(&mut records, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        if size > NUMBER_MAX {
            push(&mut records, b"size", size.to_string().as_bytes());
        }
        if !u64::try_from(self.mtime).is_ok_and(|mtime| mtime <= NUMBER_MAX) {
            push(&mut records, b"mtime", self.mtime.to_string().as_bytes());
        }
        for (name, value) in &self.xattrs {
            push(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        records
    }

    fn header(&self, kind: EntryType, size: u64) -> io::Result<Header> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(self.mode);
        header.set_uid(if self.owner.0 > ID_MAX { 0 } else { self.owner.0 });
        header.set_gid(if self.owner.1 > ID_MAX { 0 } else { self.owner.1 });
        header.set_size(if size > NUMBER_MAX { 0 } else { size });
        let mtime = u64::try_from(self.mtime).unwrap_or_default();
        header.set_mtime(if mtime > NUMBER_MAX { 0 } else { mtime });
        if let Some((major, minor)) = self.device {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        set_bytes(&mut header.as_old_mut().name, &self.name);
        set_bytes(&mut header.as_old_mut().linkname, &self.link);
        header.set_cksum();
        Ok(header)
    }
}

/// As much of it as fits; the whole is in a record where it does not.
fn set_bytes(field: &mut [u8], bytes: &[u8]) {
    let count = bytes.len().min(field.len());
    field[..count].copy_from_slice(&bytes[..count]);
}

/// `<length> <key>=<value>\n`, in which the length counts itself.
fn push(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut pairs = file_xattrs::read(path, is_portable)?;
    pairs.sort_unstable();
    Ok(pairs)
}

fn is_portable(name: &[u8]) -> bool {
    !HOST_XATTRS.contains(&name)
        && XATTR_NAMESPACES
            .iter()
            .any(|namespace| name.starts_with(namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for (length, expected) in [(1, "9 path=x\n"), (2, "11 path=xx\n"), (3, "12 path=xxx\n")] {
            let mut records = Vec::new();
            push(&mut records, b"path", "x".repeat(length).as_bytes());
            assert_eq!(String::from_utf8(records).unwrap(), expected);
        }
        for length in 0..2000 {
            let mut records = Vec::new();
            push(&mut records, b"k", &vec![b'v'; length]);
            let text = String::from_utf8(records.clone()).unwrap();
            let said: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, records.len());
        }
    }
}
