//! What a tree makes of entries, in order and out of it.

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
