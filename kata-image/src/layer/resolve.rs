//! Paths through symbolic links inside a tree, as the kernel walks them below a root (path_resolution(7), chroot(2)):
//! an absolute link starts at the root, and `..` of the root is the root. Nothing leads to the host.

use crate::tree::{Body, EntryPath, NodeId, Tree};

/// `MAXSYMLINKS` (linux/namei.h).
const MAX_LINKS: usize = 40;
const MAX_NAME_BYTES: usize = 255;

/// A walk that is under way.
struct Walk {
    at: NodeId,
    /// The names that are still to be walked, the next one last.
    pending: Vec<Box<[u8]>>,
    links: usize,
}

enum Step {
    There(NodeId),
    On,
    /// There is nothing of this name in the directory where the walk is.
    Missing(Box<[u8]>),
    /// Through something that is no directory, or through more links than Linux follows.
    Stuck,
}

impl Walk {
    fn new(at: NodeId) -> Self {
        Self {
            at,
            pending: Vec::new(),
            links: 0,
        }
    }

    /// Puts the names of a link's target before what is left.
    fn push_target(&mut self, target: &[u8]) {
        if target.starts_with(b"/") {
            self.at = NodeId::ROOT;
        }
        let names = target.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        self.pending.extend(names.rev().map(Box::from));
    }

    fn step(&mut self, tree: &Tree) -> Step {
        let Some(name) = self.pending.pop() else {
            return Step::There(self.at);
        };
        match &*name {
            b"." => return Step::On,
            b".." => {
                self.at = tree.node(self.at).parent;
                return Step::On;
            }
            name if name.len() > MAX_NAME_BYTES => return Step::Stuck,
            _ => {}
        }
        let Some(child) = tree.child(self.at, &name) else {
            return Step::Missing(name);
        };
        match &tree.node(child).body {
            Body::Directory(_) => self.at = child,
            Body::Symlink(target) if self.links < MAX_LINKS => {
                self.links += 1;
                self.push_target(target);
            }
            _ => return Step::Stuck,
        }
        Step::On
    }

    fn follow(mut self, tree: &Tree) -> Option<NodeId> {
        loop {
            match self.step(tree) {
                Step::There(id) => return Some(id),
                Step::On => {}
                Step::Missing(_) | Step::Stuck => return None,
            }
        }
    }

    fn make(mut self, tree: &mut Tree) -> Option<NodeId> {
        loop {
            match self.step(tree) {
                Step::There(id) => return Some(id),
                Step::On => {}
                Step::Missing(name) => self.at = tree.add_implied(self.at, &name),
                Step::Stuck => return None,
            }
        }
    }
}

/// The directory that a link in the directory `parent` leads to.
pub(super) fn follow(tree: &Tree, parent: NodeId, target: &[u8]) -> Option<NodeId> {
    let mut walk = Walk::new(parent);
    walk.push_target(target);
    walk.follow(tree)
}

/// [`follow`], making what is missing on the way.
pub(super) fn make(tree: &mut Tree, parent: NodeId, target: &[u8]) -> Option<NodeId> {
    let mut walk = Walk::new(parent);
    walk.push_target(target);
    walk.make(tree)
}

fn parents(path: &EntryPath) -> Option<(Walk, &[u8])> {
    let (name, parents) = path.names().split_last()?;
    let mut walk = Walk::new(NodeId::ROOT);
    walk.pending = parents.iter().rev().cloned().collect();
    Some((walk, name))
}

/// The directory of a path, with links on the way followed, and the path's last name.
pub(super) fn follow_parents<'a>(tree: &Tree, path: &'a EntryPath) -> Option<(NodeId, &'a [u8])> {
    let (walk, name) = parents(path)?;
    Some((walk.follow(tree)?, name))
}

/// [`follow_parents`], making what is missing on the way.
pub(super) fn make_parents<'a>(tree: &mut Tree, path: &'a EntryPath) -> Option<(NodeId, &'a [u8])> {
    let (walk, name) = parents(path)?;
    Some((walk.make(tree)?, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Metadata;

    fn tree(links: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new();
        let path = |text: &str| EntryPath::new(text.as_bytes()).unwrap();
        tree.directory(&path("usr/lib")).unwrap();
        for (at, target) in links {
            let body = Body::Symlink(target.as_bytes().into());
            tree.insert(&path(at), Metadata::implied(), body).unwrap();
        }
        tree
    }

    #[test]
    fn links_stay_inside_the_root() {
        let mut tree = tree(&[
            ("lib", "usr/lib"),
            ("up", "../../usr/./lib"),
            ("usr/abs", "/lib"),
            ("loop", "loop"),
            ("gone", "usr/new/deep"),
        ]);
        let path = |text: &str| EntryPath::new(text.as_bytes()).unwrap();
        let lib = tree.find(&path("usr/lib"));
        assert!(lib.is_some());
        for target in [
            "lib",
            "/lib",
            "up",
            "usr/abs",
            "usr/../lib",
            "../../../etc/../lib",
            "/",
        ] {
            let expected = match target {
                "../../../etc/../lib" => None,
                "/" => Some(NodeId::ROOT),
                _ => lib,
            };
            assert_eq!(
                follow(&tree, NodeId::ROOT, target.as_bytes()),
                expected,
                "{target}"
            );
        }
        assert_eq!(follow(&tree, NodeId::ROOT, b"loop"), None);
        assert_eq!(make(&mut tree, NodeId::ROOT, b"loop"), None);
        let made = make(&mut tree, NodeId::ROOT, b"gone");
        assert_eq!(made, tree.find(&path("usr/new/deep")));
        assert_eq!(make(&mut tree, NodeId::ROOT, "n".repeat(256).as_bytes()), None);
        let below = path("up/x");
        let (found, name) = follow_parents(&tree, &below).unwrap();
        assert_eq!((Some(found), name), (lib, &b"x"[..]));
    }
}
