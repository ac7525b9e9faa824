//! Layers to one flat image, where overlayfs cannot stack them: the changes of each are applied to what those below
//! it made (OCI image specification, `layer.md#applying-changesets`). Owns what a change does to a tree; contents are
//! copied at the end, and only of files that are left.
//!
//! ```text
//!  for each layer, lowest first:
//!    links to files of lower layers are looked up ─► what it whites out goes ─► its entries come ─► the links come
//! ```
//!
//! A directory that a layer only implies keeps what was below, and where a symbolic link is below, the link is
//! followed, inside the root, as an unpacker would. One that has an entry takes the place of whatever is no directory.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::marks;
use super::notes::Notes;
use super::resolve::{follow, follow_parents, make, make_parents};
use crate::erofs::{self, Error, Image, Limits, StoreFileError, StoredFile, Summary, read_tree};
use crate::progress::Progress;
use crate::tree::{Body, EntryError, EntryPath, NodeId, Tree};

/// One layer that [`convert`](super::convert()) made.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Its image.
    pub image: &'a File,
    /// What the image leaves to lower layers.
    pub notes: &'a Notes,
    /// What the layer is called in errors.
    pub label: &'a Path,
}

/// Writes layers, the lowest first, as one image to `out`, which must be open for reading and writing and is truncated
/// first. No whiteout is left in it. The same layers give the same bytes.
///
/// `progress` counts bytes of file contents.
///
/// # Errors
///
/// When an image is not what `convert` wrote, when a layer links to a file that is not there or has entries below one,
/// when the limits are exceeded, or when the output cannot be written.
pub fn merge(
    layers: &[Layer<'_>],
    out: &File,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, Error> {
    out.set_len(0).map_err(Error::Write)?;
    let mut image = Image::of_known_source(out, *limits, progress);
    let mut merged = Merged::new();
    let mut source = Sha256::new_with_prefix("merged");
    for (index, layer) in layers.iter().enumerate() {
        let (tree, uuid) = layer.read(limits)?;
        source.update(uuid);
        merged.apply(&tree, layer, index)?;
        image.check_limits(merged.tree.len(), merged.tree.metadata_bytes())?;
    }
    merged.store_contents(layers, &mut image)?;
    erofs::write_metadata(image, &merged.tree, source.finalize().into())
}

/// Whether overlayfs shows layers, the lowest first, as [`merge`] makes them: each image can stand on those below it,
/// and every whiteout is in a directory that a layer below has too, for overlayfs shows others as names of nothing.
///
/// Images are read only where one has whiteouts.
///
/// # Errors
///
/// As [`merge`], but nothing is written.
pub fn can_stack(layers: &[Layer<'_>], limits: &Limits) -> Result<bool, Error> {
    let notes = |layer: &Layer<'_>| layer.notes.is_self_contained();
    let Some((lowest, others)) = layers.split_first() else {
        return Ok(false);
    };
    if !lowest.notes.can_be_lowest() || !others.iter().all(notes) {
        return Ok(false);
    }
    if layers.iter().all(|layer| layer.notes.whiteouts == 0) {
        return Ok(true);
    }
    let mut merged = Merged::new();
    for (index, layer) in layers.iter().enumerate() {
        let (tree, _) = layer.read(limits)?;
        if !merged.has_directories_of_whiteouts(&tree) {
            return Ok(false);
        }
        merged.apply(&tree, layer, index)?;
    }
    Ok(true)
}

struct Merged {
    tree: Tree,
    /// By node, the layer that has its contents.
    origins: Vec<usize>,
}

impl Layer<'_> {
    /// What its image holds, and the image's UUID.
    fn read(&self, limits: &Limits) -> Result<(Tree, [u8; 16]), Error> {
        read_tree(self.image, limits).map_err(|source| Error::Image {
            path: self.label.to_path_buf(),
            source,
        })
    }
}

impl Merged {
    fn new() -> Self {
        Self {
            tree: Tree::new(),
            origins: Vec::new(),
        }
    }

    fn apply(&mut self, tree: &Tree, layer: &Layer<'_>, index: usize) -> Result<(), Error> {
        let applied = self.apply_tree(tree, layer.notes, index);
        applied.map_err(|source| Error::Entry {
            path: layer.label.to_path_buf(),
            source,
        })
    }

    /// Whether a directory of each whiteout is there.
    fn has_directories_of_whiteouts(&self, layer: &Tree) -> bool {
        let mut pending = vec![(NodeId::ROOT, Some(NodeId::ROOT))];
        while let Some((from, to)) = pending.pop() {
            let Body::Directory(children) = &layer.node(from).body else {
                continue;
            };
            for (name, child) in children {
                let node = layer.node(*child);
                if node.body == marks::WHITEOUT && to.is_none() {
                    return false;
                }
                if node.body.is_directory() {
                    pending.push((*child, to.and_then(|to| self.below(to, name, false))));
                }
            }
        }
        true
    }

    fn apply_tree(&mut self, layer: &Tree, notes: &Notes, index: usize) -> Result<(), EntryError> {
        let links = self.find_links(notes)?;
        self.take_away(layer);
        self.put(layer)?;
        for (path, id) in links {
            self.link(&path, id)?;
        }
        self.origins.resize(self.tree.len(), index);
        Ok(())
    }

    /// The files that the layer links to, before it changes anything.
    fn find_links(&self, notes: &Notes) -> Result<Vec<(EntryPath, NodeId)>, EntryError> {
        let mut links = Vec::new();
        for link in &notes.links {
            let (path, target) = (EntryPath::new(&link.path)?, EntryPath::new(&link.target)?);
            let found = follow_parents(&self.tree, &target);
            let found = found.and_then(|(directory, name)| self.tree.child(directory, name));
            let id = found.filter(|id| !self.tree.node(*id).body.is_directory());
            let id = id.ok_or_else(|| EntryError::HardLink {
                path: path.to_path_buf(),
                target: target.to_path_buf(),
            })?;
            links.push((path, id));
        }
        Ok(links)
    }

    /// Removes what the layer whites out.
    fn take_away(&mut self, layer: &Tree) {
        let mut pending = vec![(NodeId::ROOT, NodeId::ROOT)];
        while let Some((from, to)) = pending.pop() {
            let Body::Directory(children) = &layer.node(from).body else {
                continue;
            };
            if marks::is_opaque(&layer.node(from).metadata) {
                self.tree.clear(to);
            }
            for (name, child) in children {
                let node = layer.node(*child);
                if node.body == marks::WHITEOUT {
                    self.tree.remove(to, name);
                } else if node.body.is_directory()
                    && let Some(to) = self.below(to, name, marks::is_implied(&node.metadata))
                {
                    pending.push((*child, to));
                }
            }
        }
    }

    /// The directory that a layer's directory speaks of, if there is one already.
    fn below(&self, parent: NodeId, name: &[u8], is_implied: bool) -> Option<NodeId> {
        let child = self.tree.child(parent, name)?;
        match &self.tree.node(child).body {
            Body::Directory(_) => Some(child),
            Body::Symlink(target) if is_implied => follow(&self.tree, parent, target),
            _ => None,
        }
    }

    /// Adds the layer's entries.
    fn put(&mut self, layer: &Tree) -> Result<(), EntryError> {
        let mut copied = HashMap::new();
        let makes = makes(layer);
        let mut pending = vec![(NodeId::ROOT, NodeId::ROOT)];
        while let Some((from, to)) = pending.pop() {
            let node = layer.node(from);
            if !marks::is_implied(&node.metadata) {
                self.tree.set_metadata(to, marks::unmarked(node.metadata.clone()));
            }
            let Body::Directory(children) = &node.body else {
                continue;
            };
            for (name, child) in children {
                let node = layer.node(*child);
                if !makes[child.index()] {
                    continue;
                }
                if node.body.is_directory() {
                    let is_implied = marks::is_implied(&node.metadata);
                    let to = self.directory(to, name, is_implied);
                    pending.push((*child, to.map_err(|obstacle| obstacle.error(layer, *child))?));
                } else {
                    self.entry(to, name, layer, *child, &mut copied);
                }
            }
        }
        Ok(())
    }

    /// The directory for a layer's directory.
    fn directory(&mut self, parent: NodeId, name: &[u8], is_implied: bool) -> Result<NodeId, Obstacle> {
        let Some(child) = self.tree.child(parent, name) else {
            return Ok(self.tree.add_implied(parent, name));
        };
        match &self.tree.node(child).body {
            Body::Directory(_) => Ok(child),
            Body::Symlink(target) if is_implied => {
                let target = target.clone();
                make(&mut self.tree, parent, &target).ok_or(Obstacle::Link)
            }
            _ if is_implied => Err(Obstacle::File),
            _ => {
                self.tree.remove(parent, name);
                Ok(self.tree.add_implied(parent, name))
            }
        }
    }

    /// Puts something that is no directory in the place of whatever is there.
    fn entry(
        &mut self,
        parent: NodeId,
        name: &[u8],
        layer: &Tree,
        from: NodeId,
        copied: &mut HashMap<NodeId, NodeId>,
    ) {
        let node = layer.node(from);
        self.tree.remove(parent, name);
        if let Some(id) = copied.get(&from) {
            self.tree.link_node(parent, name, *id);
            return;
        }
        let metadata = marks::unmarked(node.metadata.clone());
        let id = self.tree.add(parent, name, metadata, node.body.clone());
        if node.links > 1 {
            copied.insert(from, id);
        }
    }

    fn link(&mut self, path: &EntryPath, id: NodeId) -> Result<(), EntryError> {
        let clash = || EntryError::TypeClash {
            path: path.to_path_buf(),
        };
        let (directory, name) = make_parents(&mut self.tree, path).ok_or_else(clash)?;
        match self.tree.child(directory, name) {
            Some(child) if child == id => return Ok(()),
            Some(child) if self.tree.node(child).body.is_directory() => return Err(clash()),
            _ => self.tree.remove(directory, name),
        }
        self.tree.link_node(directory, name, id);
        Ok(())
    }

    fn store_contents(&mut self, layers: &[Layer<'_>], image: &mut Image<'_>) -> Result<(), Error> {
        let mut done_bytes = 0;
        for id in self.tree.walk() {
            let node = self.tree.node(id);
            let Body::File(content) = node.body else {
                continue;
            };
            let layer = self
                .origins
                .get(id.index())
                .and_then(|origin| layers.get(*origin));
            let Some(layer) = layer else {
                continue;
            };
            let mut contents = StoredFile::new(layer.image, content);
            let stored = image.store(
                &mut contents,
                content.size_bytes,
                node.metadata.xattrs.stored_bytes(),
            );
            let content = stored.map_err(|error| store_error(layer, error))?;
            self.tree.set_content(id, content);
            done_bytes += content.size_bytes;
            image.report(done_bytes, self.tree.len());
        }
        Ok(())
    }
}

/// Whether a layer makes something of a node: not of whiteouts, nor of directories that it only implies on the way to
/// them. Where such a directory is not below, there is nothing to take away.
fn makes(layer: &Tree) -> Vec<bool> {
    // What has several names may come late, but is no whiteout: whiteouts and directories have one.
    let mut made = vec![true; layer.len()];
    // Those below come first.
    for id in layer.walk().into_iter().rev() {
        let node = layer.node(id);
        made[id.index()] = match &node.body {
            Body::Directory(children) => {
                !marks::is_implied(&node.metadata) || children.values().any(|child| made[child.index()])
            }
            body => *body != marks::WHITEOUT,
        };
    }
    made
}

fn store_error(layer: &Layer<'_>, error: StoreFileError) -> Error {
    let path = layer.label.to_path_buf();
    match error {
        StoreFileError::Read(source) => Error::Read { path, source },
        StoreFileError::Write(source) => Error::Write(source),
        StoreFileError::TooLarge { limit } => Error::TooLarge { path, limit },
    }
}

/// What is in the way of a directory that a layer implies.
enum Obstacle {
    /// A link that leads to no directory, or in a circle.
    Link,
    File,
}

impl Obstacle {
    /// `directory` is the layer's.
    fn error(&self, layer: &Tree, directory: NodeId) -> EntryError {
        let parent = layer.path_of(directory);
        let path = match &layer.node(directory).body {
            Body::Directory(children) => children
                .keys()
                .next()
                .map(|name| parent.join(OsStr::from_bytes(name))),
            _ => None,
        };
        let path = path.unwrap_or_else(|| parent.clone());
        match self {
            Self::Link => EntryError::BelowSymlink { path, link: parent },
            Self::File => EntryError::BelowFile { path, parent },
        }
    }
}
