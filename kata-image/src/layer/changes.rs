//! From the members of a layer's archive to a tree as overlayfs wants it, and to notes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::marks;
use super::names::{Meaning, meaning};
use super::notes::{Link, Notes};
use crate::archive::{BytesRead, Member, MemberKind};
use crate::erofs::{Contents, Error, Image};
use crate::tree::archive::Reader;
use crate::tree::{Body, EntryError, EntryPath, Metadata, NodeId, Tree, is_supported};

/// Memory for a whiteout besides its name, until it is a node and then too.
const WHITEOUT_BYTES: usize = 512;
/// Memory for a link besides its paths.
const LINK_BYTES: usize = 256;

/// Stands in the tree for a link to a file of a lower layer: no member of an archive is a socket.
const LINK_PLACEHOLDER: Body = Body::Socket;

/// The changes that a layer makes, as far as they were read.
pub(super) struct Changes<'a, 'b> {
    reader: Reader<'a, 'b>,
    whiteouts: BTreeSet<(NodeId, Box<[u8]>)>,
    opaque: BTreeSet<NodeId>,
    /// Hard links to what the layer does not have, by what stands for them in the tree: their paths, and those of the
    /// lower layers' files.
    links: BTreeMap<NodeId, (EntryPath, EntryPath)>,
    /// Memory that whiteouts and links take.
    extra_bytes: usize,
}

impl<'a, 'b> Changes<'a, 'b> {
    pub(super) fn new(label: &'a std::path::Path, image: &'a mut Image<'b>) -> Self {
        Self {
            reader: Reader::new(label, Tree::with_implied(marks::implied()), image),
            whiteouts: BTreeSet::new(),
            opaque: BTreeSet::new(),
            links: BTreeMap::new(),
            extra_bytes: 0,
        }
    }

    pub(super) fn archive_error(&self, source: crate::archive::ArchiveError) -> Error {
        self.reader.archive_error(source)
    }

    /// Takes in one member. What is not read of its contents is for the caller to skip.
    pub(super) fn member(
        &mut self,
        mut member: Member,
        contents: &mut impl Contents,
        bytes_read: &BytesRead,
    ) -> Result<(), Error> {
        let path = EntryPath::new(&member.path).map_err(|error| self.reader.entry_error(error))?;
        let is_entry = self
            .meaning(&path, &member)
            .map_err(|error| self.reader.entry_error(error))?;
        if is_entry {
            self.leave_out_xattrs(&path, &mut member);
            self.reader.member(member, contents, bytes_read)?;
        }
        let entries = self.reader.tree.len() + self.whiteouts.len() + self.links.len();
        let metadata_bytes = self.reader.tree.metadata_bytes() + self.extra_bytes;
        self.reader.image.check_limits(entries, metadata_bytes)
    }

    /// Does what a name says, and tells whether it is that of an entry which the tree takes.
    fn meaning(&mut self, path: &EntryPath, member: &Member) -> Result<bool, EntryError> {
        match meaning(path)? {
            Meaning::Nothing => return Ok(false),
            Meaning::Opaque { directory } => {
                let directory = self.reader.tree.directory(&directory)?;
                self.opaque.insert(directory);
                return Ok(false);
            }
            Meaning::Whiteout { directory, name } => {
                let directory = self.reader.tree.directory(&directory)?;
                self.extra_bytes += WHITEOUT_BYTES + name.len();
                self.whiteouts.insert((directory, name.into()));
                return Ok(false);
            }
            Meaning::Entry => {}
        }
        match &member.kind {
            MemberKind::Plain(Body::Character { major: 0, minor: 0 }) => Err(EntryError::WhiteoutDevice {
                path: path.to_path_buf(),
            }),
            MemberKind::HardLink(target) => self.link(path, target),
            _ => Ok(true),
        }
    }

    /// A link to an entry of this layer is one of the tree's; any other is left to the layers below.
    fn link(&mut self, path: &EntryPath, target: &[u8]) -> Result<bool, EntryError> {
        let target = EntryPath::new(target)?;
        if meaning(&target)? != Meaning::Entry || target.names().is_empty() {
            return Err(EntryError::HardLink {
                path: path.to_path_buf(),
                target: target.to_path_buf(),
            });
        }
        let lower = match self.reader.tree.find(&target) {
            None => target,
            Some(found) => match self.links.get(&found) {
                None => return Ok(true),
                Some((_, lower)) => lower.clone(),
            },
        };
        let placeholder = self
            .reader
            .tree
            .insert(path, Metadata::implied(), LINK_PLACEHOLDER)?;
        let length = |path: &EntryPath| path.names().iter().map(|name| name.len() + 24).sum::<usize>();
        self.extra_bytes += LINK_BYTES + 2 * (length(path) + length(&lower));
        self.links.insert(placeholder, (path.clone(), lower));
        Ok(false)
    }

    /// Leaves out what would steer overlayfs, and what no image can hold.
    fn leave_out_xattrs(&mut self, path: &EntryPath, member: &mut Member) {
        let image = &mut *self.reader.image;
        member.xattrs.retain(|(name, _)| {
            let stays = is_supported(name) && !marks::is_overlay(name);
            if !stays {
                image.skip_xattr(&path.to_path_buf(), OsStr::from_bytes(name));
            }
            stays
        });
    }

    /// The tree with whiteouts and opaque marks in it, and the notes.
    pub(super) fn finish(self) -> (Tree, Notes) {
        let mut tree = self.reader.into_tree();
        let mut opaque = self.opaque;
        let mut whiteouts = Vec::new();
        for (directory, name) in self.whiteouts {
            match tree.child(directory, &name) {
                // A directory of the same layer: it is new, and nothing of an older one is in it.
                Some(child) if tree.node(child).body.is_directory() => {
                    opaque.insert(child);
                    marks::unmark_implied(&mut tree, child);
                }
                Some(_) => {}
                None => whiteouts.push((directory, name)),
            }
        }
        let has_lower = marks::unmark_below(&mut tree, &opaque);
        let mut taken = 0;
        for (directory, name) in whiteouts {
            if has_lower(directory) {
                tree.add(directory, &name, marks::whiteout(), marks::WHITEOUT);
                taken += 1;
            }
        }
        for directory in &opaque {
            marks::mark_opaque(&mut tree, *directory);
        }
        let notes = Notes {
            implied_directories: marks::count_implied(&tree),
            opaque_root: opaque.contains(&NodeId::ROOT),
            whiteouts: taken,
            links: take_links(&mut tree, self.links),
        };
        (tree, notes)
    }
}

/// Takes the links to lower layers' files out of the tree, in the order in which they came. One that a later entry
/// replaced is none.
fn take_links(tree: &mut Tree, links: BTreeMap<NodeId, (EntryPath, EntryPath)>) -> Vec<Link> {
    let mut notes = Vec::new();
    for (placeholder, (path, target)) in links {
        if tree.find(&path) != Some(placeholder) {
            continue;
        }
        notes.push(Link::new(&path, &target));
        if let Some((directory, name)) = path.parent().zip(path.names().last())
            && let Some(directory) = tree.find(&directory)
        {
            tree.remove(directory, name);
        }
    }
    notes
}
