//! A filesystem tree in memory: names and metadata, with contents that are already in the image. Owns what
//! may stand where; knows neither tar nor EROFS, and never looks at the host's filesystem except in
//! [`directory`], which reads one.
//!
//! Nodes live in one vector and name each other by index, so neither walking nor dropping a deep tree recurses.

pub(crate) mod archive;
pub(crate) mod directory;
mod entry_error;
mod host_file;
mod path;
mod xattr;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

pub use entry_error::EntryError;
pub(crate) use path::EntryPath;
pub(crate) use xattr::{HEADER_BYTES as XATTR_HEADER_BYTES, Xattr, XattrPair, Xattrs, is_supported};

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// Permission bits with set-id and sticky bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Xattrs,
}

impl Metadata {
    /// A directory that no entry describes.
    pub(crate) fn implied() -> Self {
        Self {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Xattrs::default(),
        }
    }
}

/// Where a file's bytes are in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Content {
    pub(crate) size_bytes: u64,
    /// First block of the part that is stored in whole blocks.
    pub(crate) first_block: u32,
    /// Where among all tails the rest begins, when it is to be stored beside the inode.
    pub(crate) tail: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Directory(BTreeMap<Box<[u8]>, NodeId>),
    File(Content),
    Symlink(Box<[u8]>),
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
    Socket,
}

impl Body {
    pub(crate) fn directory() -> Self {
        Self::Directory(BTreeMap::new())
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Self::Directory(_) => DIRECTORY_BYTES,
            Self::Symlink(target) => target.len(),
            _ => 0,
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    fn check(&self, path: &EntryPath) -> Result<(), EntryError> {
        match self {
            Self::Symlink(target)
                if !(1..=MAX_TARGET_BYTES).contains(&target.len()) || target.contains(&0) =>
            {
                Err(EntryError::Target {
                    path: path.to_path_buf(),
                })
            }
            Self::Character { major, minor } | Self::Block { major, minor }
                if *major > MAX_MAJOR || *minor > MAX_MINOR =>
            {
                Err(EntryError::Device {
                    path: path.to_path_buf(),
                    major: *major,
                    minor: *minor,
                })
            }
            _ => Ok(()),
        }
    }
}

/// `PATH_MAX` without its terminator (linux/limits.h).
const MAX_TARGET_BYTES: usize = 4095;
/// `MINORBITS` is 20, majors have the other 12 bits (linux/kdev_t.h).
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;

/// Index of a node in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(usize);

impl NodeId {
    pub(crate) const ROOT: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    pub(crate) body: Body,
    /// The directory it was first put into; the root is its own parent.
    pub(crate) parent: NodeId,
    /// Names that lead to it; for a directory also its own `.` and the `..` of those in it.
    pub(crate) links: u32,
}

/// What a node costs besides what it points to, here and where its inode is planned.
const NODE_BYTES: usize = 192;
/// What a directory's entry costs besides its name, and what a directory costs that has any.
const NAME_BYTES: usize = 144;
const DIRECTORY_BYTES: usize = 160;

/// The tree. Nodes that were replaced stay in the vector, unreachable from the root.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    metadata_bytes: usize,
    /// What directories get that no entry describes.
    implied: Metadata,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self::with_implied(Metadata::implied())
    }

    /// A tree whose directories have this metadata until an entry says otherwise.
    pub(crate) fn with_implied(implied: Metadata) -> Self {
        let root = Node {
            metadata: implied.clone(),
            body: Body::directory(),
            parent: NodeId::ROOT,
            links: 2,
        };
        Self {
            nodes: vec![root],
            metadata_bytes: 0,
            implied,
        }
    }

    /// Nodes that were ever made, replaced ones too.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Memory that was ever taken for nodes, names, link targets and attributes, at most: what was replaced counts
    /// too.
    pub(crate) fn metadata_bytes(&self) -> usize {
        self.metadata_bytes
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Puts an entry at `path`, making the directories that lead there. A directory that exists takes the new
    /// metadata; anything else that exists is replaced, as tar does.
    pub(crate) fn insert(
        &mut self,
        path: &EntryPath,
        metadata: Metadata,
        body: Body,
    ) -> Result<NodeId, EntryError> {
        body.check(path)?;
        let Some((parent, name)) = self.parent_of(path)? else {
            return self.replace_root(path, metadata, &body);
        };
        let Some(existing) = self.child(parent, name) else {
            return Ok(self.add(parent, name, metadata, body));
        };
        match (self.node(existing).body.is_directory(), body.is_directory()) {
            (true, true) => {
                self.set_metadata(existing, metadata);
                Ok(existing)
            }
            (false, false) => {
                self.unlink(parent, name);
                Ok(self.add(parent, name, metadata, body))
            }
            _ => Err(EntryError::TypeClash {
                path: path.to_path_buf(),
            }),
        }
    }

    /// Gives the file at `target` one more name.
    pub(crate) fn link(&mut self, path: &EntryPath, target: &EntryPath) -> Result<(), EntryError> {
        let error = || EntryError::HardLink {
            path: path.to_path_buf(),
            target: target.to_path_buf(),
        };
        let id = self
            .find(target)
            .filter(|id| !self.node(*id).body.is_directory())
            .ok_or_else(error)?;
        let clash = || EntryError::TypeClash {
            path: path.to_path_buf(),
        };
        let (parent, name) = self.parent_of(path)?.ok_or_else(clash)?;
        match self.child(parent, name) {
            Some(existing) if existing == id => return Ok(()),
            Some(existing) if self.node(existing).body.is_directory() => return Err(clash()),
            Some(_) => self.unlink(parent, name),
            None => {}
        }
        self.link_node(parent, name, id);
        Ok(())
    }

    /// Adds one more name of a node to a directory that does not have that name.
    pub(crate) fn link_node(&mut self, parent: NodeId, name: &[u8], id: NodeId) {
        if let Body::Directory(children) = &mut self.nodes[parent.0].body {
            children.insert(name.into(), id);
            self.nodes[id.0].links += 1;
            self.metadata_bytes += NAME_BYTES + name.len();
        }
    }

    /// Adds a node to a directory that does not have that name.
    pub(crate) fn add(&mut self, parent: NodeId, name: &[u8], metadata: Metadata, body: Body) -> NodeId {
        let id = NodeId(self.nodes.len());
        self.metadata_bytes += NODE_BYTES + metadata.xattrs.memory_bytes() + body.memory_bytes();
        let links = if body.is_directory() {
            self.nodes[parent.0].links += 1;
            1
        } else {
            0
        };
        self.nodes.push(Node {
            metadata,
            body,
            parent,
            links,
        });
        self.link_node(parent, name, id);
        id
    }

    pub(crate) fn set_root(&mut self, metadata: Metadata) {
        self.set_metadata(NodeId::ROOT, metadata);
    }

    /// Adds a directory that no entry describes to a directory that does not have that name.
    pub(crate) fn add_implied(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        self.add(parent, name, self.implied.clone(), Body::directory())
    }

    pub(crate) fn set_metadata(&mut self, id: NodeId, metadata: Metadata) {
        self.metadata_bytes += metadata.xattrs.memory_bytes();
        self.nodes[id.0].metadata = metadata;
    }

    fn replace_root(
        &mut self,
        path: &EntryPath,
        metadata: Metadata,
        body: &Body,
    ) -> Result<NodeId, EntryError> {
        if !body.is_directory() {
            return Err(EntryError::TypeClash {
                path: path.to_path_buf(),
            });
        }
        self.set_root(metadata);
        Ok(NodeId::ROOT)
    }

    /// The directory of `path`, made if need be, and its last name; `None` for the root.
    fn parent_of<'a>(&mut self, path: &'a EntryPath) -> Result<Option<(NodeId, &'a [u8])>, EntryError> {
        let Some((name, parents)) = path.names().split_last() else {
            return Ok(None);
        };
        let mut directory = NodeId::ROOT;
        for (depth, parent) in parents.iter().enumerate() {
            directory = match self.child(directory, parent) {
                None => self.add_implied(directory, parent),
                Some(child) => self.passable(child, path, depth + 1)?,
            };
        }
        Ok(Some((directory, name)))
    }

    /// The directory at `path`, made if need be.
    pub(crate) fn directory(&mut self, path: &EntryPath) -> Result<NodeId, EntryError> {
        let Some((parent, name)) = self.parent_of(path)? else {
            return Ok(NodeId::ROOT);
        };
        match self.child(parent, name) {
            None => Ok(self.add_implied(parent, name)),
            Some(child) => self.passable(child, path, path.names().len()),
        }
    }

    /// Refuses to walk through anything but a directory.
    fn passable(&self, id: NodeId, path: &EntryPath, depth: usize) -> Result<NodeId, EntryError> {
        match &self.node(id).body {
            Body::Directory(_) => Ok(id),
            Body::Symlink(_) => Err(EntryError::BelowSymlink {
                path: path.to_path_buf(),
                link: path.ancestor(depth),
            }),
            _ => Err(EntryError::BelowFile {
                path: path.to_path_buf(),
                parent: path.ancestor(depth),
            }),
        }
    }

    pub(crate) fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(directory).body {
            Body::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// Follows names only, never links.
    pub(crate) fn find(&self, path: &EntryPath) -> Option<NodeId> {
        path.names()
            .iter()
            .try_fold(NodeId::ROOT, |directory, name| self.child(directory, name))
    }

    /// Takes a name of something that is no directory out of its directory.
    fn unlink(&mut self, parent: NodeId, name: &[u8]) {
        if let Body::Directory(children) = &mut self.nodes[parent.0].body
            && let Some(id) = children.remove(name)
        {
            self.nodes[id.0].links -= 1;
        }
    }

    /// Takes a name out of a directory, with everything below it.
    pub(crate) fn remove(&mut self, parent: NodeId, name: &[u8]) {
        let Some(id) = self.child(parent, name) else {
            return;
        };
        if self.node(id).body.is_directory() {
            self.clear(id);
            self.nodes[parent.0].links -= 1;
        }
        self.unlink(parent, name);
    }

    /// Empties a directory.
    pub(crate) fn clear(&mut self, directory: NodeId) {
        let mut pending = vec![directory];
        while let Some(id) = pending.pop() {
            let Body::Directory(children) = &mut self.nodes[id.0].body else {
                continue;
            };
            for child in std::mem::take(children).into_values() {
                let node = &mut self.nodes[child.0];
                node.links -= 1;
                if node.body.is_directory() {
                    // Its `..`.
                    self.nodes[id.0].links -= 1;
                    pending.push(child);
                }
            }
        }
    }

    /// A path of a node that has a name: for words about it.
    pub(crate) fn path_of(&self, id: NodeId) -> PathBuf {
        let mut names = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            let parent = self.node(at).parent;
            if let Body::Directory(children) = &self.node(parent).body {
                let name = children.iter().find(|(_, child)| **child == at);
                names.extend(name.map(|(name, _)| OsStr::from_bytes(name)));
            }
            at = parent;
        }
        names.iter().rev().collect()
    }

    /// Every node that has a name, once, a directory before what is in it, in the order of paths.
    pub(crate) fn walk(&self) -> Vec<NodeId> {
        let mut order = Vec::new();
        let mut seen = vec![false; self.len()];
        let mut pending = vec![NodeId::ROOT];
        while let Some(id) = pending.pop() {
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            order.push(id);
            if let Body::Directory(children) = &self.node(id).body {
                pending.extend(children.values().rev());
            }
        }
        order
    }

    /// Says where the contents of a file are.
    pub(crate) fn set_content(&mut self, id: NodeId, content: Content) {
        if let Body::File(place) = &mut self.nodes[id.0].body {
            *place = content;
        }
    }
}

#[cfg(test)]
mod tests;
