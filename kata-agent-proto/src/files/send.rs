//! Walking a source, and writing it on the stream.
//!
//! Nothing but regular files and directories is ever opened for reading: what a name leads to is looked at first, and
//! it is that which is opened, not the name again. Memory does not grow with the tree, but for files with several
//! names, up to a bound.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::error::shown;
use super::root::asks_for_directory;
use super::step::{PATH_BYTES_MAX, StepReader, StepWriter};
use super::{FilesError, Meter, Root, Tally, Watch, attributes};
use crate::kata::{Entry, entry::Kind, omission::What};

/// Bytes read at once.
const BUFFER_BYTES: usize = 128 << 10;

/// Files with several names that are remembered; another name of any other is copied as a file of its own.
const LINKED_MAX: usize = 1 << 16;

/// File systems whose files are the kernel's (statfs(2), linux/magic.h): proc, sysfs, cgroup2, cgroup, devpts, mqueue,
/// debugfs, tracefs, securityfs, bpf, binfmt_misc, configfs, pstore, efivarfs.
const PSEUDO: [u64; 14] = [
    0x9fa0,
    0x6265_6572,
    0x6367_7270,
    0x0027_e0eb,
    0x1cd1,
    0x1980_0202,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x4249_4e4d,
    0x6265_6570,
    0x6165_676c,
    0xde5e_81e4,
];

/// Sends what is at `path`, an absolute path below `root`, and waits for the answer. A link at its end is sent as a
/// link, unless the path is written as a directory's (`link/`).
///
/// What ends while it is looked at is not sent. Below a directory, the kernel's own file systems (`/proc`, `/sys`) are
/// sent as empty directories.
///
/// # Errors
/// A [`FilesError`]; the other side then misses the end of the stream.
pub fn send<S>(root: &Root, path: &Path, stream: &S, watch: Watch<'_>) -> Result<Tally, FilesError>
where
    for<'a> &'a S: Read + Write,
{
    let mut sending = Sending {
        base: path.to_path_buf(),
        output: StepWriter::new(stream),
        tally: Tally::default(),
        meter: Meter::new(watch),
        linked: HashMap::new(),
        buffer: vec![0; BUFFER_BYTES],
    };
    let first = if asks_for_directory(path) {
        root.directory(path)?
    } else {
        let place = root.place(path, false)?;
        look(&place.directory, &place.name).map_err(FilesError::of(path, "open it"))?
    };
    sending.tree(&first)?;
    sending.meter.tell_now(&sending.tally);
    let end = sending.tally.end();
    sending.output.end(end).map_err(FilesError::Stream)?;
    let mut tally = sending.tally;
    tally.add(StepReader::new(stream).answer()?);
    Ok(tally)
}

/// What a name in a directory is of, without reading from it.
fn look(directory: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// Opens for reading what was looked at.
fn open(looked: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", looked.as_raw_fd());
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// A directory that is being walked.
struct Level {
    entries: Dir,
    device: u64,
    /// Length of its own path.
    path_bytes: usize,
}

struct Sending<'a, W> {
    base: PathBuf,
    output: StepWriter<W>,
    tally: Tally,
    meter: Meter<'a>,
    /// Files with several names by device and number: the first name, and how many are still to come.
    linked: HashMap<(u64, u64), (Vec<u8>, u64)>,
    buffer: Vec<u8>,
}

impl<W: Write> Sending<'_, W> {
    fn tree(&mut self, first: &OwnedFd) -> Result<(), FilesError> {
        let mut path = Vec::new();
        let mut levels: Vec<Level> = self.one(first, &path, None)?.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            path.truncate(level.path_bytes);
            let Some(next) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let next = next.map_err(FilesError::of(shown(&self.base, &path), "read the directory"))?;
            if matches!(next.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let looked = level.entries.fd().and_then(|fd| look(fd, next.file_name()));
            let device = level.device;
            extend(&mut path, next.file_name());
            if path.len() > PATH_BYTES_MAX {
                let too_long = FilesError::of(shown(&self.base, &path), "copy a path of this length");
                return Err(too_long(Errno::NAMETOOLONG));
            }
            match looked {
                Ok(looked) => levels.extend(self.one(&looked, &path, Some(device))?),
                // It is not there any more.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(FilesError::of(shown(&self.base, &path), "open it")(errno)),
            }
        }
        Ok(())
    }

    /// Sends one entry; answers what is to be walked below it.
    fn one(
        &mut self,
        looked: &OwnedFd,
        path: &[u8],
        above: Option<u64>,
    ) -> Result<Option<Level>, FilesError> {
        let at = shown(&self.base, path);
        let failed = |operation| FilesError::of(&at, operation);
        let stat = rustix::fs::fstat(looked).map_err(failed("look at it"))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.directory(looked, &stat, path, above),
            FileType::RegularFile => return self.file(looked, &stat, path).map(|()| None),
            FileType::Symlink => Kind::SYMBOLIC_LINK,
            FileType::CharacterDevice => Kind::CHARACTER,
            FileType::BlockDevice => Kind::BLOCK,
            FileType::Fifo => Kind::FIFO,
            _ => {
                self.tally.omit(path, What::SOCKET);
                return match above {
                    Some(_) => Ok(None),
                    None => Err(failed("copy a socket")(Errno::OPNOTSUPP)),
                };
            }
        };
        if self.other_name(&stat, path)? {
            return Ok(None);
        }
        let mut entry = entry(kind, path, &stat);
        match kind {
            Kind::SYMBOLIC_LINK => {
                let target = rustix::fs::readlinkat(looked, c"", Vec::new());
                entry.target = target.map_err(failed("read the link"))?.into_bytes();
            }
            Kind::CHARACTER | Kind::BLOCK => {
                entry.major = rustix::fs::major(stat.st_rdev);
                entry.minor = rustix::fs::minor(stat.st_rdev);
            }
            _ => {}
        }
        self.write(entry).map(|()| None)
    }

    fn write(&mut self, entry: Entry) -> Result<(), FilesError> {
        self.output.entry(entry).map_err(FilesError::Stream)?;
        self.tally.entries += 1;
        self.meter.tell(&self.tally);
        Ok(())
    }

    fn directory(
        &mut self,
        looked: &OwnedFd,
        stat: &Stat,
        path: &[u8],
        above: Option<u64>,
    ) -> Result<Option<Level>, FilesError> {
        let at = shown(&self.base, path);
        let failed = |operation| FilesError::of(&at, operation);
        let opened = open(looked, OFlags::DIRECTORY).map_err(failed("open the directory"))?;
        let mut entry = entry(Kind::DIRECTORY, path, stat);
        entry.attributes = self.attributes(&opened, path);
        let foreign = above.is_some_and(|device| device != stat.st_dev);
        let pseudo = foreign && is_pseudo(&opened);
        let entries = Dir::new(opened).map_err(failed("read the directory"))?;
        self.write(entry)?;
        if pseudo {
            self.tally.omit(path, What::PSEUDO);
            return Ok(None);
        }
        Ok(Some(Level {
            entries,
            device: stat.st_dev,
            path_bytes: path.len(),
        }))
    }

    fn attributes(&mut self, opened: &OwnedFd, path: &[u8]) -> Vec<crate::kata::Attribute> {
        attributes::read(opened.as_fd()).unwrap_or_else(|| {
            self.tally.omit(path, What::ATTRIBUTE);
            Vec::new()
        })
    }

    fn file(&mut self, looked: &OwnedFd, stat: &Stat, path: &[u8]) -> Result<(), FilesError> {
        if self.other_name(stat, path)? {
            return Ok(());
        }
        let opened = open(looked, OFlags::empty());
        let opened = opened.map_err(FilesError::of(shown(&self.base, path), "open it"))?;
        let mut entry = entry(Kind::FILE, path, stat);
        entry.attributes = self.attributes(&opened, path);
        entry.size_bytes = stat.st_size.unsigned_abs();
        let size = entry.size_bytes;
        self.write(entry)?;
        self.contents(&File::from(opened), size)
            .map_err(|error| error.at(shown(&self.base, path)))
    }

    /// Whether it was sent under another name before; then that is sent.
    fn other_name(&mut self, stat: &Stat, path: &[u8]) -> Result<bool, FilesError> {
        if stat.st_nlink <= 1 {
            return Ok(false);
        }
        let key = (stat.st_dev, stat.st_ino);
        let Some((first, left)) = self.linked.get_mut(&key) else {
            if self.linked.len() < LINKED_MAX {
                self.linked.insert(key, (path.to_vec(), stat.st_nlink - 1));
            } else {
                self.tally.omit(path, What::HARD_LINK);
            }
            return Ok(false);
        };
        let target = first.clone();
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.linked.remove(&key);
        }
        let mut entry = entry(Kind::HARD_LINK, path, stat);
        entry.target = target;
        self.write(entry).map(|()| true)
    }

    /// Sends the parts of a file that are no holes. A file that grows is sent up to its size of before.
    fn contents(&mut self, file: &File, size: u64) -> Result<(), Failure> {
        if size == 0 {
            // Files of the kernel say so, and have contents.
            return self.range(file, 0..u64::MAX);
        }
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                // A file system that knows no holes has none.
                Err(_) => at,
            };
            let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(size);
            let end = hole.min(size);
            if end <= data {
                break;
            }
            self.range(file, data..end)?;
            at = end;
        }
        Ok(())
    }

    fn range(&mut self, file: &File, range: std::ops::Range<u64>) -> Result<(), Failure> {
        let mut at = range.start;
        while at < range.end {
            let most = usize::try_from(range.end - at)
                .unwrap_or(usize::MAX)
                .min(BUFFER_BYTES);
            let read = match file.read_at(&mut self.buffer[..most], at) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // The kernel has no more to tell now.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(Failure::Read(error)),
            };
            self.output
                .piece(at, &self.buffer[..read])
                .map_err(Failure::Write)?;
            at += read as u64;
            self.tally.bytes += read as u64;
            self.meter.tell(&self.tally);
        }
        Ok(())
    }
}

/// Which side of a copy failed.
enum Failure {
    Read(std::io::Error),
    Write(std::io::Error),
}

impl Failure {
    fn at(self, path: PathBuf) -> FilesError {
        match self {
            Failure::Write(error) => FilesError::Stream(error),
            Failure::Read(source) => FilesError::File {
                path,
                operation: "read it",
                source,
            },
        }
    }
}

fn extend(path: &mut Vec<u8>, name: &CStr) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.to_bytes());
}

fn entry(kind: Kind, path: &[u8], stat: &Stat) -> Entry {
    Entry {
        kind: kind.into(),
        path: path.to_vec(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ..Default::default()
    }
}

fn is_pseudo(directory: &OwnedFd) -> bool {
    rustix::fs::fstatfs(directory).is_ok_and(|system| PSEUDO.contains(&(system.f_type as u64 & 0xffff_ffff)))
}

/// What a source is called where it is copied to: nothing where only its contents are.
#[must_use]
pub fn name_of(path: &Path) -> Option<&[u8]> {
    if path.as_os_str().as_bytes().ends_with(b"/.") {
        return None;
    }
    path.file_name().map(OsStrExt::as_bytes)
}
