//! A filesystem tree in memory: names and metadata, with contents that are already in the image. Owns what
//! may stand where; knows neither tar nor EROFS, and never looks at the host's filesystem except in
//! [`directory`], which reads one.
//!
//! Nodes live in one vector and name each other by index, so neither walking nor dropping a deep tree recurses.

pub(crate) mod archive;
pub(crate) mod directory;
mod host_file;
mod path;
mod xattr;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub(crate) use path::EntryPath;
pub(crate) use xattr::{HEADER_BYTES as XATTR_HEADER_BYTES, XattrPair, Xattrs};

/// An entry of a source that cannot stand in a filesystem. Paths are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// A path with `..` in it.
    #[error("{} leaves the root", .path.display())]
    LeavesRoot {
        /// The entry.
        path: PathBuf,
    },
    /// A path through a symbolic link; where it led would depend on the link.
    #[error("{} lies below the symbolic link {}", .path.display(), .link.display())]
    BelowSymlink {
        /// The entry.
        path: PathBuf,
        /// The link.
        link: PathBuf,
    },
    /// A path through something that is no directory.
    #[error("{} lies below {}, which is no directory", .path.display(), .parent.display())]
    BelowFile {
        /// The entry.
        path: PathBuf,
        /// What is in its way.
        parent: PathBuf,
    },
    /// A directory and something else under one name.
    #[error("{} is both a directory and something else", .path.display())]
    TypeClash {
        /// The entry.
        path: PathBuf,
    },
    /// A hard link to what is not there, or to a directory.
    #[error("{} is a hard link to {}, which is not an earlier file of the archive", .path.display(), .target.display())]
    HardLink {
        /// The entry.
        path: PathBuf,
        /// Its target.
        target: PathBuf,
    },
    /// A name with a zero byte or of more than 255 bytes, or a path of more than 4095.
    #[error("{} has a name that no Linux filesystem can hold", .path.display())]
    Name {
        /// The entry.
        path: PathBuf,
    },
    /// A symbolic link whose target is empty, too long, or has a zero byte.
    #[error("{} is a symbolic link with a target that Linux does not accept", .path.display())]
    Target {
        /// The entry.
        path: PathBuf,
    },
    /// An extended attribute that an image cannot hold.
    #[error("{} has an extended attribute {name:?} that an image cannot hold: {reason}", .path.display())]
    Xattr {
        /// The entry.
        path: PathBuf,
        /// Name of the attribute.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A device number beyond 12 bits of major or 20 bits of minor.
    #[error("{} has the device number {major}:{minor}, which Linux does not accept", .path.display())]
    Device {
        /// The entry.
        path: PathBuf,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

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
    fn implied() -> Self {
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
    /// Where in the buffer of tails the rest begins, when it is to be stored beside the inode.
    pub(crate) tail: Option<usize>,
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

    fn is_directory(&self) -> bool {
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
}

impl Tree {
    pub(crate) fn new() -> Self {
        let root = Node {
            metadata: Metadata::implied(),
            body: Body::directory(),
            parent: NodeId::ROOT,
            links: 2,
        };
        Self {
            nodes: vec![root],
            metadata_bytes: 0,
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

    fn set_metadata(&mut self, id: NodeId, metadata: Metadata) {
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
                None => self.add(directory, parent, Metadata::implied(), Body::directory()),
                Some(child) => self.passable(child, path, depth + 1)?,
            };
        }
        Ok(Some((directory, name)))
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

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(directory).body {
            Body::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// Follows names only, never links.
    fn find(&self, path: &EntryPath) -> Option<NodeId> {
        path.names()
            .iter()
            .try_fold(NodeId::ROOT, |directory, name| self.child(directory, name))
    }

    fn unlink(&mut self, parent: NodeId, name: &[u8]) {
        if let Body::Directory(children) = &mut self.nodes[parent.0].body
            && let Some(id) = children.remove(name)
        {
            self.nodes[id.0].links -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::new(text.as_bytes()).expect("path")
    }

    fn file(size_bytes: u64) -> Body {
        Body::File(Content {
            size_bytes,
            ..Content::default()
        })
    }

    fn insert(tree: &mut Tree, at: &str, body: Body) -> Result<NodeId, EntryError> {
        tree.insert(&path(at), Metadata::implied(), body)
    }

    #[test]
    fn missing_parents_are_made_and_counted() {
        let mut tree = Tree::new();
        insert(&mut tree, "a/b/c", file(1)).unwrap();
        assert_eq!(tree.node(NodeId::ROOT).links, 3);
        let b = tree.find(&path("a/b")).unwrap();
        assert_eq!(tree.node(b).metadata, Metadata::implied());
        assert_eq!(tree.node(b).links, 2);
    }

    #[test]
    fn the_last_entry_of_a_name_wins_and_a_directory_keeps_what_is_in_it() {
        let mut tree = Tree::new();
        insert(&mut tree, "d/f", file(1)).unwrap();
        insert(&mut tree, "d/f", Body::Symlink(b"x"[..].into())).unwrap();
        insert(&mut tree, "d/f", file(2)).unwrap();
        insert(&mut tree, "d", Body::directory()).unwrap();
        let found = tree.find(&path("d/f")).unwrap();
        assert_eq!(tree.node(found).body, file(2));
        assert_eq!(tree.node(NodeId::ROOT).links, 3);
    }

    #[test]
    fn whatever_takes_memory_is_charged() {
        let mut tree = Tree::new();
        let mut charged = |at: &str, body: Body| {
            let before = tree.metadata_bytes();
            insert(&mut tree, at, body).unwrap();
            tree.metadata_bytes() - before
        };
        let file_bytes = NODE_BYTES + NAME_BYTES + 1;
        assert_eq!(charged("f", file(1)), file_bytes);
        assert_eq!(charged("f", file(2)), file_bytes, "what is replaced is kept");
        assert_eq!(charged("l", Body::Symlink(b"target"[..].into())), file_bytes + 6);
        let directory_bytes = file_bytes + DIRECTORY_BYTES;
        assert_eq!(charged("d/e/f", file(1)), 2 * directory_bytes + file_bytes);
        let before = tree.metadata_bytes();
        tree.link(&path("name"), &path("f")).unwrap();
        assert_eq!(tree.metadata_bytes() - before, NAME_BYTES + 4);
        let pair = (b"user.abc".to_vec(), b"value".to_vec());
        let metadata = Metadata {
            xattrs: Xattrs::new(std::path::Path::new("d"), [pair]).unwrap(),
            ..Metadata::implied()
        };
        let before = tree.metadata_bytes();
        tree.insert(&path("d"), metadata, Body::directory()).unwrap();
        assert!(
            tree.metadata_bytes() - before > 8,
            "an entry for a directory that exists"
        );
    }

    #[test]
    fn hard_links_share_a_node() {
        let mut tree = Tree::new();
        let id = insert(&mut tree, "f", file(1)).unwrap();
        tree.link(&path("g"), &path("f")).unwrap();
        tree.link(&path("g"), &path("f")).unwrap();
        tree.link(&path("f"), &path("f")).unwrap();
        assert_eq!(tree.node(id).links, 2);
        insert(&mut tree, "f", file(2)).unwrap();
        assert_eq!(tree.node(id).links, 1);
        assert_eq!(tree.find(&path("g")), Some(id));
    }

    #[test]
    fn what_cannot_stand_is_refused_by_name() {
        let mut tree = Tree::new();
        insert(&mut tree, "link", Body::Symlink(b"/etc"[..].into())).unwrap();
        insert(&mut tree, "file", file(0)).unwrap();
        insert(&mut tree, "dir", Body::directory()).unwrap();
        let check = |result: Result<NodeId, EntryError>, text: &str| {
            assert_eq!(result.unwrap_err().to_string(), text);
        };
        check(
            insert(&mut tree, "link/passwd", file(0)),
            "link/passwd lies below the symbolic link link",
        );
        check(
            insert(&mut tree, "file/x", file(0)),
            "file/x lies below file, which is no directory",
        );
        check(
            insert(&mut tree, "dir", file(0)),
            "dir is both a directory and something else",
        );
        check(
            insert(&mut tree, "link", Body::directory()),
            "link is both a directory and something else",
        );
        check(
            insert(&mut tree, ".", file(0)),
            ". is both a directory and something else",
        );
        let missing = "new is a hard link to gone, which is not an earlier file of the archive";
        assert_eq!(
            tree.link(&path("new"), &path("gone")).unwrap_err().to_string(),
            missing
        );
        assert!(tree.link(&path("new"), &path("dir")).is_err());
        assert!(tree.link(&path("new"), &path("link/x")).is_err());
        assert!(tree.link(&path("dir"), &path("file")).is_err());
    }
}
