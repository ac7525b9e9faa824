//! Making a tree from a stream, below a destination.
//!
//! ```text
//!  Entry of the root ──► destination found, root made ──► Entry: made in its parent ──► End: answered
//!                                                          └ a directory gets its mode and time when it is left
//! ```
//!
//! Each entry's directory is looked up from the destination without following a link (openat2(2), `RESOLVE_BENEATH`
//! and `RESOLVE_NO_SYMLINKS`), so nothing is made outside of it, whatever the stream says and whoever moves directories
//! meanwhile. What is in the way of an entry is replaced, but a directory never by something else nor the other way
//! round. A file that could not be written whole is taken away.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::attributes::{self, Class};
use super::destination::{self, Target};
use super::error::shown;
use super::root::Place;
use super::step::{Item, StepReader, StepWriter};
use super::{FilesError, Meter, Root, Tally, Watch};
use crate::kata::{End, Entry, entry::Kind, omission::What};

/// What an entry counts against the limit, in bytes, beside its contents.
const ENTRY_BYTES: u64 = 512;

/// What may be made of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Whether entries get the owners that the stream names; else they are this process's.
    pub owners: bool,
    /// Whether device nodes, set-id bits of files and file capabilities are made.
    pub privileges: bool,
    /// The most that is taken, in bytes of files; each entry counts as 512 bytes more.
    pub limit_bytes: Option<u64>,
}

/// Makes what comes on the stream at `path`, an absolute path below `root`, and answers. `name` is what the source is
/// called; where it is none, only its contents are copied into a directory that is there. Directories that are there
/// keep what is in them.
///
/// # Errors
/// A [`FilesError`]; what was made before stays.
pub fn receive<S>(
    root: &Root,
    path: &Path,
    name: Option<&[u8]>,
    policy: Policy,
    stream: &S,
    watch: Watch<'_>,
) -> Result<Tally, FilesError>
where
    for<'a> &'a S: Read + Write,
{
    let mut input = StepReader::new(stream);
    let Item::Entry(first) = input.next_item()? else {
        return Err(FilesError::Malformed(
            "a stream that does not begin with its root",
        ));
    };
    let is_directory = first.kind.enum_value() == Ok(Kind::DIRECTORY);
    let target = destination::find(root, path, name, is_directory)?;
    let mut receiving = Receiving {
        base: PathBuf::new(),
        top: None,
        policy,
        tally: Tally::default(),
        meter: Meter::new(watch),
        left: Vec::new(),
        near: None,
        file: None,
    };
    let made = receiving.all(target, first, &mut input);
    receiving.take_away();
    let end = made?;
    let mut tally = receiving.tally;
    StepWriter::new(stream)
        .end(tally.end())
        .map_err(FilesError::Stream)?;
    tally.add(end);
    Ok(tally)
}

/// A directory whose mode and time are set when everything in it is made.
struct Directory {
    path: Vec<u8>,
    mode: Mode,
    times: Timestamps,
}

/// A file whose pieces are coming.
struct Open {
    file: File,
    place: Place,
    path: PathBuf,
    entry: Entry,
    end: u64,
}

struct Receiving<'a> {
    /// What paths are shown below.
    base: PathBuf,
    /// The directory that everything but the root is below.
    top: Option<OwnedFd>,
    policy: Policy,
    tally: Tally,
    meter: Meter<'a>,
    /// Directories that are not left yet, each in the one before.
    left: Vec<Directory>,
    /// The directory of the last entry: most have the same as the one before.
    near: Option<(Vec<u8>, OwnedFd)>,
    file: Option<Open>,
}

impl Receiving<'_> {
    fn all<R: Read>(
        &mut self,
        target: Target,
        first: Entry,
        input: &mut StepReader<R>,
    ) -> Result<End, FilesError> {
        self.root(target, first)?;
        loop {
            match input.next_item()? {
                Item::Entry(entry) => self.entry(entry)?,
                Item::Piece(offset) => self.piece(offset, input.bytes())?,
                Item::End(end) => {
                    self.close()?;
                    self.leave(None)?;
                    self.meter.tell_now(&self.tally);
                    return Ok(end);
                }
            }
        }
    }

    /// Takes away a file that is not whole.
    fn take_away(&mut self) {
        if let Some(Open { place, .. }) = self.file.take() {
            // What cannot be taken away is told by the failure that led here.
            let _ = rustix::fs::unlinkat(&place, &place.name, AtFlags::empty());
        }
    }

    fn root(&mut self, target: Target, entry: Entry) -> Result<(), FilesError> {
        self.count()?;
        match target {
            Target::Into(directory, shown) => {
                self.base = shown;
                self.top = Some(directory);
                Ok(())
            }
            Target::Named(place, shown) => {
                self.base = shown;
                self.top = self.make(place, entry)?;
                Ok(())
            }
        }
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        shown(&self.base, path)
    }

    fn count(&mut self) -> Result<(), FilesError> {
        self.tally.entries += 1;
        self.check_limit()?;
        self.meter.tell(&self.tally);
        Ok(())
    }

    fn check_limit(&self) -> Result<(), FilesError> {
        let taken = self
            .tally
            .entries
            .saturating_mul(ENTRY_BYTES)
            .saturating_add(self.tally.bytes);
        match self.policy.limit_bytes {
            Some(limit) if taken > limit => Err(FilesError::TooMuch(limit)),
            _ => Ok(()),
        }
    }

    fn entry(&mut self, entry: Entry) -> Result<(), FilesError> {
        self.close()?;
        self.leave(Some(&entry.path))?;
        self.count()?;
        let place = self.place(&entry.path)?;
        self.make(place, entry).map(drop)
    }

    /// The place of a path below the top.
    fn place(&mut self, path: &[u8]) -> Result<Place, FilesError> {
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        if self.near.as_ref().is_none_or(|(near, _)| near != above) {
            let directory = self.below(above, OFlags::PATH | OFlags::DIRECTORY);
            let directory = directory.map_err(|errno| self.lost(above, errno))?;
            self.near = Some((above.to_vec(), directory));
        }
        let directory = self.near.as_ref().map(|(_, directory)| directory.try_clone());
        let directory = directory.unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into()));
        let directory = directory.map_err(|source| FilesError::File {
            path: self.shown(path),
            operation: "make it",
            source,
        })?;
        Ok(Place {
            directory,
            name: OsStr::from_bytes(name).to_owned(),
        })
    }

    /// A link on the way is what no honest stream has, unless somebody put it there meanwhile.
    fn lost(&self, path: &[u8], errno: Errno) -> FilesError {
        match errno {
            Errno::LOOP | Errno::XDEV => FilesError::NotADirectory(self.shown(path)),
            errno => FilesError::of(self.shown(path), "open the directory")(errno),
        }
    }

    fn below(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let top = self.top.as_ref().ok_or(Errno::NOTDIR)?;
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(top, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Makes an entry; answers the descriptor of a directory.
    fn make(&mut self, place: Place, entry: Entry) -> Result<Option<OwnedFd>, FilesError> {
        let shown = self.shown(&entry.path);
        let kind = entry.kind.enum_value().unwrap_or(Kind::UNSPECIFIED);
        match kind {
            Kind::DIRECTORY => return self.directory(&place, &entry, &shown).map(Some),
            Kind::CHARACTER | Kind::BLOCK if !self.policy.privileges => {
                self.tally.omit(&entry.path, What::DEVICE);
                return Ok(None);
            }
            _ => {}
        }
        // Before what is there is taken away: it may be the same file.
        let original = match kind {
            Kind::HARD_LINK => Some(self.original(&entry)?),
            _ => None,
        };
        clear(&place).map_err(FilesError::of(&shown, "replace it"))?;
        let failed = |operation| FilesError::of(&shown, operation);
        match (kind, original) {
            (Kind::FILE, _) => self.open(place, entry, shown)?,
            (Kind::SYMBOLIC_LINK, _) => {
                rustix::fs::symlinkat(entry.target.as_slice(), &place, &place.name)
                    .map_err(failed("make the link"))?;
                self.describe(&place, &entry, &shown)?;
            }
            (_, Some(original)) => {
                let original = (&original.directory, &original.name);
                rustix::fs::linkat(original.0, original.1, &place, &place.name, AtFlags::empty())
                    .map_err(failed("make the hard link"))?;
            }
            _ => self.node(kind, &place, &entry, &shown)?,
        }
        Ok(None)
    }

    /// The file that a hard link is another name of.
    fn original(&mut self, entry: &Entry) -> Result<Place, FilesError> {
        self.place(&entry.target)
    }

    fn directory(&mut self, place: &Place, entry: &Entry, shown: &Path) -> Result<OwnedFd, FilesError> {
        match rustix::fs::mkdirat(place, &place.name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(FilesError::of(shown, "make the directory")(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(place, &place.name, flags, Mode::empty());
        let opened = opened.map_err(|errno| match errno {
            Errno::LOOP => FilesError::NotADirectory(shown.to_path_buf()),
            errno => FilesError::of(shown, "open the directory")(errno),
        })?;
        self.own(opened.as_fd(), entry, shown)?;
        self.attributes(opened.as_fd(), entry);
        self.left.push(Directory {
            path: entry.path.clone(),
            mode: mode(entry.mode),
            times: times(entry),
        });
        Ok(opened)
    }

    fn own(&self, fd: BorrowedFd<'_>, entry: &Entry, shown: &Path) -> Result<(), FilesError> {
        if !self.policy.owners {
            return Ok(());
        }
        rustix::fs::fchown(fd, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(not_owned(entry, shown))
    }

    fn attributes(&mut self, fd: BorrowedFd<'_>, entry: &Entry) {
        for attribute in &entry.attributes {
            let allowed = match attributes::class(&attribute.name) {
                Class::Kept => true,
                Class::Privilege => self.policy.privileges,
                Class::NotCopied => false,
            };
            if !allowed || !attributes::write(fd, attribute) {
                self.tally.omit(&entry.path, What::ATTRIBUTE);
            }
        }
    }

    fn open(&mut self, place: Place, entry: Entry, path: PathBuf) -> Result<(), FilesError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&place, &place.name, flags, Mode::RUSR | Mode::WUSR);
        self.file = Some(Open {
            file: opened.map_err(FilesError::of(&path, "make it"))?.into(),
            place,
            path,
            entry,
            end: 0,
        });
        Ok(())
    }

    fn piece(&mut self, offset: u64, bytes: &[u8]) -> Result<(), FilesError> {
        let length = bytes.len() as u64;
        self.tally.bytes = self.tally.bytes.saturating_add(length);
        self.check_limit()?;
        if let Some(open) = &mut self.file {
            open.end = offset.saturating_add(length);
            open.file
                .write_all_at(bytes, offset)
                .map_err(|error| written(&open.path, error))?;
        }
        self.meter.tell(&self.tally);
        Ok(())
    }

    /// Finishes the file whose pieces came.
    fn close(&mut self) -> Result<(), FilesError> {
        let Some(open) = self.file.take() else {
            return Ok(());
        };
        let completed = self.complete(&open);
        if completed.is_err() {
            self.file = Some(open);
            self.take_away();
        }
        completed
    }

    fn complete(&mut self, open: &Open) -> Result<(), FilesError> {
        let Open {
            file,
            path,
            entry,
            end,
            ..
        } = open;
        if entry.size_bytes > *end {
            file.set_len(entry.size_bytes)
                .map_err(|error| written(path, error))?;
        }
        self.own(file.as_fd(), entry, path)?;
        let mode = self.allowed_mode(entry);
        rustix::fs::fchmod(file, mode).map_err(FilesError::of(path, "set its mode"))?;
        self.attributes(file.as_fd(), entry);
        rustix::fs::futimens(file, &times(entry)).map_err(FilesError::of(path, "set its time"))
    }

    fn allowed_mode(&mut self, entry: &Entry) -> Mode {
        let set_id = Mode::SUID | Mode::SGID;
        let wanted = mode(entry.mode);
        if self.policy.privileges || !wanted.intersects(set_id) {
            return wanted;
        }
        self.tally.omit(&entry.path, What::SET_ID);
        wanted - set_id
    }

    fn node(&mut self, kind: Kind, place: &Place, entry: &Entry, shown: &Path) -> Result<(), FilesError> {
        let file_type = match kind {
            Kind::CHARACTER => FileType::CharacterDevice,
            Kind::BLOCK => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.major, entry.minor);
        match rustix::fs::mknodat(place, &place.name, file_type, Mode::RUSR | Mode::WUSR, device) {
            Ok(()) => {}
            // Nobody in a user namespace may.
            Err(Errno::PERM) if kind != Kind::FIFO => {
                self.tally.omit(&entry.path, What::DEVICE);
                return Ok(());
            }
            Err(errno) => return Err(FilesError::of(shown, "make it")(errno)),
        }
        let mode = self.allowed_mode(entry);
        set_node_mode(place, mode).map_err(FilesError::of(shown, "set its mode"))?;
        self.describe(place, entry, shown)
    }

    /// Owner and time of what is not opened.
    fn describe(&self, place: &Place, entry: &Entry, shown: &Path) -> Result<(), FilesError> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if self.policy.owners {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            rustix::fs::chownat(place, &place.name, Some(uid), Some(gid), flags)
                .map_err(not_owned(entry, shown))?;
        }
        rustix::fs::utimensat(place, &place.name, &times(entry), flags)
            .map_err(FilesError::of(shown, "set its time"))
    }

    /// Sets mode and time of the directories that `next` is not in, or of all.
    fn leave(&mut self, next: Option<&[u8]>) -> Result<(), FilesError> {
        while let Some(directory) = self
            .left
            .pop_if(|last| !next.is_some_and(|next| is_in(next, &last.path)))
        {
            let failed = |operation| FilesError::of(shown(&self.base, &directory.path), operation);
            match self.below(
                &directory.path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            ) {
                Ok(opened) => {
                    rustix::fs::fchmod(&opened, directory.mode).map_err(failed("set its mode"))?;
                    rustix::fs::futimens(&opened, &directory.times).map_err(failed("set its time"))?;
                }
                // Somebody took it away meanwhile.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.lost(&directory.path, errno)),
            }
        }
        Ok(())
    }
}

fn is_in(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty()
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with(b"/"))
}

fn written(path: &Path, error: std::io::Error) -> FilesError {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(errno) => FilesError::of(path, "write it")(errno),
        None => FilesError::File {
            path: path.to_path_buf(),
            operation: "write it",
            source: error,
        },
    }
}

fn not_owned(entry: &Entry, shown: &Path) -> impl FnOnce(Errno) -> FilesError {
    let (path, uid, gid) = (shown.to_path_buf(), entry.uid, entry.gid);
    move |errno| match errno {
        // All that chown(2) refuses so is a user or group that the user namespace has not.
        Errno::INVAL => FilesError::NoSuchOwner { path, uid, gid },
        errno => FilesError::of(path, "give it its owner")(errno),
    }
}

/// Takes away what has the name, unless it is a directory.
fn clear(place: &Place) -> Result<(), Errno> {
    match rustix::fs::unlinkat(place, &place.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // Both are how a directory is refused (unlink(2)).
        Err(Errno::ISDIR) => Err(Errno::NOTDIR),
        Err(errno) => Err(errno),
    }
}

/// By its descriptor, so that a link that took its place is not followed.
fn set_node_mode(place: &Place, mode: Mode) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(place, &place.name, flags, Mode::empty())?;
    if super::root::kind(&node)? == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), mode)
}

fn mode(bits: u32) -> Mode {
    Mode::from_raw_mode(bits & 0o7777)
}

fn times(entry: &Entry) -> Timestamps {
    let modified = Timespec {
        tv_sec: entry.seconds,
        tv_nsec: entry.nanoseconds.into(),
    };
    let unchanged = Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_OMIT,
    };
    Timestamps {
        last_access: unchanged,
        last_modification: modified,
    }
}
