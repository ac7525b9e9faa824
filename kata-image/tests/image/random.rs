//! Trees nobody thought of.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use kata_image::Source;
use proptest::prelude::*;

use crate::oracle::{Image, assert_same, can_mount, check_directory_links, list};
use crate::trees::pattern;

#[derive(Debug, Clone)]
enum Node {
    File {
        bytes: usize,
        mode: u32,
        owner: u32,
        xattr: Option<usize>,
    },
    Symlink {
        length: usize,
    },
    Directory {
        mode: u32,
        children: BTreeMap<Vec<u8>, Node>,
    },
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("no separator", |byte| !matches!(byte, 0 | b'/'));
    let usual = prop::collection::vec(byte, 1..12);
    let long = prop::collection::vec(b'a'..=b'c', 200..256);
    prop_oneof![9 => usual, 1 => long].prop_filter("no dots", |name| name != b"." && name != b"..")
}

fn bytes() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0_usize..200, 2 => 3900_usize..4200, 1 => 0_usize..40_000]
}

fn node() -> impl Strategy<Value = Node> {
    let file = (
        bytes(),
        0_u32..0o10000,
        0_u32..100_000,
        prop::option::of(0_usize..3000),
    )
        .prop_map(|(bytes, mode, owner, xattr)| Node::File {
            bytes,
            mode,
            owner,
            xattr,
        });
    let link = (1_usize..4000).prop_map(|length| Node::Symlink { length });
    prop_oneof![5 => file, 1 => link].prop_recursive(4, 120, 20, |inner| {
        (0_u32..0o10000, prop::collection::btree_map(name(), inner, 0..30)).prop_map(|(mode, children)| {
            Node::Directory {
                mode: mode | 0o700,
                children,
            }
        })
    })
}

fn make(path: &Path, node: &Node) {
    match node {
        Node::File {
            bytes,
            mode,
            owner,
            xattr,
        } => {
            fs::write(path, pattern(*bytes)).unwrap();
            if let Some(length) = xattr {
                xattr::set(path, "user.random", &pattern(*length)).unwrap();
            }
            chown(path, Some(*owner), Some(owner / 2)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Node::Symlink { length } => symlink("t".repeat(*length), path).unwrap(),
        Node::Directory { mode, children } => {
            if !path.exists() {
                fs::create_dir(path).unwrap();
            }
            for (name, child) in children {
                make(&path.join(OsStr::from_bytes(name)), child);
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode)).unwrap();
        }
    }
}

#[test]
fn any_tree_mounts_as_it_was() {
    if !can_mount("any_tree_mounts_as_it_was") {
        return;
    }
    let children = prop::collection::btree_map(name(), node(), 0..20);
    let config = ProptestConfig {
        cases: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(children in children)| {
        let source = tempfile::tempdir().unwrap();
        make(source.path(), &Node::Directory { mode: 0o755, children });
        let image = Image::write(&Source::Directory(source.path().into()));
        image.check();
        let mounted = image.mount();
        let expected = list(source.path());
        assert_same(&list(mounted.path()), &expected);
        check_directory_links(mounted.path(), &expected);
    });
}
