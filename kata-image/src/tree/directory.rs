//! From a directory of the host to a tree. Contents go into the image while they are read. Links are taken as links
//! and never followed. Nothing guards against directories that others move during the walk: the source belongs to
//! the caller.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata as Status};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::host_file::HostFile;
use super::{Body, EntryError, Metadata, NodeId, Time, Tree, XattrPair, Xattrs, xattr};
use crate::erofs::{Error, Image, StoreFileError};
use crate::file_xattrs;

/// Reads everything in the directory `root`.
pub(crate) fn read(root: &Path, image: &mut Image<'_>) -> Result<Tree, Error> {
    let mut walk = Walk {
        tree: Tree::new(),
        image,
        hard_links: HashMap::new(),
        pending: Vec::new(),
        pending_bytes: 0,
        read_bytes: 0,
    };
    let status = std::fs::metadata(root).map_err(read_error(root))?;
    let metadata = walk.metadata(root, &status)?;
    walk.tree.set_root(metadata);
    walk.pending_bytes = root.as_os_str().len();
    walk.pending.push((root.to_path_buf(), NodeId::ROOT));
    while let Some((path, id)) = walk.pending.pop() {
        walk.pending_bytes -= path.as_os_str().len();
        walk.directory(&path, id)?;
    }
    Ok(walk.tree)
}

struct Walk<'a, 'b> {
    tree: Tree,
    image: &'a mut Image<'b>,
    /// Files with several names, by device and inode.
    hard_links: HashMap<(u64, u64), NodeId>,
    pending: Vec<(PathBuf, NodeId)>,
    /// Of the paths in `pending`.
    pending_bytes: usize,
    read_bytes: u64,
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Read {
        path: path.to_path_buf(),
        source,
    }
}

impl Walk<'_, '_> {
    fn directory(&mut self, path: &Path, id: NodeId) -> Result<(), Error> {
        let names = self.names(path)?;
        let first_pending = self.pending.len();
        for name in names {
            self.entry(&path.join(&name), &name, id)?;
        }
        // The first directory is visited first, so that file contents lie in the order of their paths.
        self.pending[first_pending..].reverse();
        Ok(())
    }

    /// The names in a directory, in order: no more of them than may be added.
    fn names(&self, path: &Path) -> Result<Vec<OsString>, Error> {
        let mut names = Vec::new();
        let mut names_bytes = 0;
        for entry in std::fs::read_dir(path).map_err(read_error(path))? {
            let name = entry.map_err(read_error(path))?.file_name();
            names_bytes += size_of::<OsString>() + name.len();
            self.check_limits(names_bytes)?;
            names.push(name);
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Checks what is held, with bytes that are yet to be added.
    fn check_limits(&self, more_bytes: usize) -> Result<(), Error> {
        let metadata_bytes = self.tree.metadata_bytes() + self.pending_bytes + more_bytes;
        self.image.check_limits(self.tree.len(), metadata_bytes)
    }

    fn entry(&mut self, path: &Path, name: &OsStr, parent: NodeId) -> Result<(), Error> {
        let status = std::fs::symlink_metadata(path).map_err(read_error(path))?;
        let key = (status.dev(), status.ino());
        if let Some(id) = self.hard_links.get(&key) {
            self.tree.link_node(parent, name.as_bytes(), *id);
            return self.check_limits(0);
        }
        let metadata = self.metadata(path, &status)?;
        let body = self.body(path, &status, &metadata)?;
        let is_directory = status.is_dir();
        let id = self.tree.add(parent, name.as_bytes(), metadata, body);
        if is_directory {
            self.pending_bytes += path.as_os_str().len();
            self.pending.push((path.to_path_buf(), id));
        } else if status.nlink() > 1 {
            self.hard_links.insert(key, id);
        }
        self.check_limits(0)?;
        self.image.report(self.read_bytes, self.tree.len());
        Ok(())
    }

    fn body(&mut self, path: &Path, status: &Status, metadata: &Metadata) -> Result<Body, Error> {
        let kind = status.file_type();
        if kind.is_dir() {
            return Ok(Body::directory());
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(read_error(path))?;
            return Ok(Body::Symlink(target.into_os_string().into_vec().into()));
        }
        if kind.is_file() {
            return self.file(path, status, metadata);
        }
        let device = status.rdev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        Ok(if kind.is_char_device() {
            Body::Character { major, minor }
        } else if kind.is_block_device() {
            Body::Block { major, minor }
        } else if kind.is_fifo() {
            Body::Fifo
        } else {
            Body::Socket
        })
    }

    fn file(&mut self, path: &Path, status: &Status, metadata: &Metadata) -> Result<Body, Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        let file = File::from(opened.map_err(read_error(path))?);
        let now = file.metadata().map_err(read_error(path))?;
        if (now.dev(), now.ino(), now.len()) != (status.dev(), status.ino(), status.len()) {
            return Err(Error::Changed {
                path: path.to_path_buf(),
            });
        }
        let stored = self.image.store(
            &mut HostFile::new(file),
            now.len(),
            metadata.xattrs.stored_bytes(),
        );
        let content = stored.map_err(|error| match error {
            StoreFileError::Read(error) if error.kind() == io::ErrorKind::UnexpectedEof => Error::Changed {
                path: path.to_path_buf(),
            },
            StoreFileError::Read(source) => read_error(path)(source),
            StoreFileError::Write(source) => Error::Write(source),
            StoreFileError::TooLarge { limit } => Error::TooLarge {
                path: path.to_path_buf(),
                limit,
            },
        })?;
        self.read_bytes += now.len();
        Ok(Body::File(content))
    }

    fn metadata(&mut self, path: &Path, status: &Status) -> Result<Metadata, Error> {
        let xattrs = self.xattrs(path)?;
        let entry_error = |source: EntryError| Error::Entry {
            path: path.to_path_buf(),
            source,
        };
        Ok(Metadata {
            mode: u16::try_from(status.mode() & 0o7777).unwrap_or_default(),
            uid: status.uid(),
            gid: status.gid(),
            mtime: Time {
                seconds: status.mtime(),
                nanoseconds: u32::try_from(status.mtime_nsec()).unwrap_or_default(),
            },
            xattrs: Xattrs::new(path, xattrs).map_err(entry_error)?,
        })
    }

    /// All attributes that an image can hold; the others belong to the host's filesystem (`btrfs.`, `system.`)
    /// and are counted.
    fn xattrs(&mut self, path: &Path) -> Result<Vec<XattrPair>, Error> {
        let image = &mut self.image;
        file_xattrs::read(path, |name| {
            let is_supported = xattr::is_supported(name);
            if !is_supported {
                image.skip_xattr(path, OsStr::from_bytes(name));
            }
            is_supported
        })
        .map_err(read_error(path))
    }
}
