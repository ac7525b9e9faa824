//! What a layer's image says to overlayfs and to who merges it, in the image itself: whiteouts, opaque directories,
//! and directories that no entry describes (Linux `Documentation/filesystems/overlayfs.rst`, "whiteouts and opaque
//! directories").
//!
//! The mark of implied directories is in the namespace of overlayfs's own attributes, which it shows to nobody.

use std::collections::BTreeSet;

use crate::tree::{Body, Metadata, NodeId, Tree, Xattr, Xattrs};

/// `EROFS_XATTR_INDEX_TRUSTED`.
const TRUSTED: u8 = 4;
const OPAQUE_NAME: &[u8] = b"overlay.opaque";
const OPAQUE_VALUE: &[u8] = b"y";
const IMPLIED_NAME: &[u8] = b"overlay.kata-implied";

/// What overlayfs takes for a whiteout.
pub(super) const WHITEOUT: Body = Body::Character { major: 0, minor: 0 };

/// Owner, mode and times of a whiteout mean nothing.
pub(super) fn whiteout() -> Metadata {
    Metadata {
        mode: 0,
        ..Metadata::implied()
    }
}

/// Whether an attribute is one that overlayfs takes orders from: with `trusted.overlay.` as it is mounted by root,
/// with `user.overlay.` by the option `userxattr`.
pub(super) fn is_overlay(name: &[u8]) -> bool {
    [&b"trusted.overlay."[..], b"user.overlay."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn trusted(name: &[u8], value: &[u8]) -> Xattr {
    Xattr {
        namespace: TRUSTED,
        name: name.into(),
        value: value.into(),
    }
}

/// A directory that no entry describes.
pub(super) fn implied() -> Metadata {
    Metadata {
        xattrs: Xattrs::from_stored([trusted(IMPLIED_NAME, b"")]),
        ..Metadata::implied()
    }
}

pub(super) fn is_implied(metadata: &Metadata) -> bool {
    has(metadata, IMPLIED_NAME)
}

pub(super) fn is_opaque(metadata: &Metadata) -> bool {
    has(metadata, OPAQUE_NAME)
}

fn has(metadata: &Metadata, name: &[u8]) -> bool {
    let is_it = |xattr: &Xattr| xattr.namespace == TRUSTED && *xattr.name == *name;
    metadata.xattrs.iter().any(is_it)
}

/// Without what a layer says to overlayfs.
pub(super) fn unmarked(metadata: Metadata) -> Metadata {
    let stays = |xattr: &&Xattr| xattr.namespace != TRUSTED || !xattr.name.starts_with(b"overlay.");
    Metadata {
        xattrs: Xattrs::from_stored(metadata.xattrs.iter().filter(stays).cloned()),
        ..metadata
    }
}

pub(super) fn unmark_implied(tree: &mut Tree, id: NodeId) {
    if is_implied(&tree.node(id).metadata) {
        tree.set_metadata(id, Metadata::implied());
    }
}

pub(super) fn mark_opaque(tree: &mut Tree, id: NodeId) {
    let metadata = tree.node(id).metadata.clone();
    let mark = trusted(OPAQUE_NAME, OPAQUE_VALUE);
    let xattrs = metadata.xattrs.iter().cloned().chain([mark]);
    let xattrs = Xattrs::from_stored(xattrs);
    tree.set_metadata(id, Metadata { xattrs, ..metadata });
}

/// How many directories besides the root no entry describes.
pub(super) fn count_implied(tree: &Tree) -> u64 {
    let mut count = 0;
    let mut pending = vec![NodeId::ROOT];
    while let Some(id) = pending.pop() {
        if let Body::Directory(children) = &tree.node(id).body {
            let is_counted = id != NodeId::ROOT && is_implied(&tree.node(id).metadata);
            count += u64::from(is_counted);
            pending.extend(children.values());
        }
    }
    count
}

/// Below an opaque directory nothing comes from lower layers: directories there are not implied, they are as tar
/// makes them. Returns which directories may have something below them.
pub(super) fn unmark_below(tree: &mut Tree, opaque: &BTreeSet<NodeId>) -> impl Fn(NodeId) -> bool + use<> {
    let mut covered = vec![false; tree.len()];
    let mut pending = vec![NodeId::ROOT];
    while let Some(id) = pending.pop() {
        let covers = covered[id.index()] || opaque.contains(&id);
        covered[id.index()] = covers;
        let Body::Directory(children) = &tree.node(id).body else {
            continue;
        };
        let children: Vec<_> = children.values().copied().collect();
        for child in children {
            if covers && tree.node(child).body.is_directory() {
                covered[child.index()] = true;
                unmark_implied(tree, child);
            }
            pending.push(child);
        }
    }
    move |id| covered.get(id.index()).is_none_or(|covered| !covered)
}
