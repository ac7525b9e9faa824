//! From a tar archive to a tree. Contents go into the image while they are read; a path of the archive never
//! touches the host's filesystem.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{Body, EntryError, EntryPath, Metadata, Tree, Xattrs};
use crate::archive::{self, ArchiveError, BytesRead, Member, MemberKind, Members, Packed};
use crate::erofs::{BLOCK_BYTES, Contents, Error, Image, StoreFileError};

/// Reads the archive at `path` to its end.
pub(crate) fn read(path: &Path, image: &mut Image<'_>) -> Result<Tree, Error> {
    let read_error = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(read_error)?;
    image.expect(Some(file.metadata().map_err(read_error)?.len()));
    let packed = Packed::new(file).map_err(read_error)?;
    let packed = packed.ok_or_else(|| Error::NotAnArchive {
        path: path.to_path_buf(),
    })?;
    let limits = image.limits();
    let read = |unpacked, bytes_read: &BytesRead| {
        let mut members = Members::new(unpacked);
        let mut reader = Reader::new(path, Tree::new(), image);
        while let Some(member) = members.next().map_err(|error| reader.archive_error(error))? {
            reader.member(member, &mut members, bytes_read)?;
        }
        Ok(reader.into_tree())
    };
    packed
        .limit(limits.image_bytes)
        .unpack(read)
        .map_err(read_error)?
}

impl<R: Read> Contents for Members<R> {
    fn skip_hole(&mut self, most: u64) -> io::Result<u64> {
        Ok(Members::skip_hole(self, most, BLOCK_BYTES))
    }
}

/// Puts members into a tree and an image.
pub(crate) struct Reader<'a, 'b> {
    path: &'a Path,
    pub(crate) tree: Tree,
    pub(crate) image: &'a mut Image<'b>,
}

impl<'a, 'b> Reader<'a, 'b> {
    /// `path` is what the archive is called in errors.
    pub(crate) fn new(path: &'a Path, tree: Tree, image: &'a mut Image<'b>) -> Self {
        Self { path, tree, image }
    }

    pub(crate) fn into_tree(self) -> Tree {
        self.tree
    }

    pub(crate) fn member(
        &mut self,
        member: Member,
        contents: &mut impl Contents,
        bytes_read: &BytesRead,
    ) -> Result<(), Error> {
        let path = EntryPath::new(&member.path).map_err(|error| self.entry_error(error))?;
        let inserted = match member.kind {
            MemberKind::HardLink(ref target) => self.link(&path, target),
            MemberKind::File { size_bytes } => {
                let metadata = metadata(&path, &member).map_err(|error| self.entry_error(error))?;
                let stored = self
                    .image
                    .store(contents, size_bytes, metadata.xattrs.stored_bytes());
                let content = stored.map_err(|error| self.store_error(&path, error))?;
                self.tree.insert(&path, metadata, Body::File(content)).map(drop)
            }
            MemberKind::Plain(ref body) => self.insert(&path, &member, body.clone()),
        };
        inserted.map_err(|error| self.entry_error(error))?;
        self.image
            .check_limits(self.tree.len(), self.tree.metadata_bytes())?;
        self.image.report(bytes_read.get(), self.tree.len());
        Ok(())
    }

    fn insert(&mut self, path: &EntryPath, member: &Member, body: Body) -> Result<(), EntryError> {
        self.tree.insert(path, metadata(path, member)?, body).map(drop)
    }

    fn link(&mut self, path: &EntryPath, target: &[u8]) -> Result<(), EntryError> {
        self.tree.link(path, &EntryPath::new(target)?)
    }

    fn store_error(&self, path: &EntryPath, error: StoreFileError) -> Error {
        match error {
            StoreFileError::Read(source) => self.archive_error(archive::read_error(source)),
            StoreFileError::Write(source) => Error::Write(source),
            StoreFileError::TooLarge { limit } => Error::TooLarge {
                path: path.to_path_buf(),
                limit,
            },
        }
    }

    pub(crate) fn archive_error(&self, source: ArchiveError) -> Error {
        Error::Archive {
            path: self.path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn entry_error(&self, source: EntryError) -> Error {
        Error::Entry {
            path: self.path.to_path_buf(),
            source,
        }
    }
}

fn metadata(path: &EntryPath, member: &Member) -> Result<Metadata, EntryError> {
    let xattrs = Xattrs::new(&path.to_path_buf(), member.xattrs.iter().cloned())?;
    Ok(Metadata {
        mode: member.mode,
        uid: member.uid,
        gid: member.gid,
        mtime: member.mtime,
        xattrs,
    })
}
