//! Layers nobody thought of: the kernel's overlayfs over their images, the merged image and umoci must agree.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tar::{EntryType, Header};

use crate::convert::forged;
use crate::forged::Forged;
use crate::oracle::{Listing, assert_same, can_mount, list};
use crate::stack::Layers;
use crate::umoci;

/// One name of a layer.
#[derive(Debug, Clone)]
enum Change {
    File {
        bytes: usize,
        mode: u32,
        owner: u64,
    },
    Symlink,
    /// To the file before it in this layer.
    HardLink,
    Device {
        minor: u32,
    },
    Whiteout,
    Directory {
        mode: u32,
        is_opaque: bool,
        xattr: bool,
        children: BTreeMap<String, Change>,
    },
}

/// Few names, so that layers meet.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-d]", 1 => "[ab]{2}"]
}

fn change() -> impl Strategy<Value = Change> {
    let bytes = prop_oneof![3 => 0_usize..300, 1 => 3900_usize..9000];
    let file = (bytes, 0_u32..0o10000, 0_u64..100_000);
    let leaf = prop_oneof![
        5 => file.prop_map(|(bytes, mode, owner)| Change::File { bytes, mode, owner }),
        1 => Just(Change::Symlink),
        1 => Just(Change::HardLink),
        1 => (1_u32..300).prop_map(|minor| Change::Device { minor }),
        2 => Just(Change::Whiteout),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        let children = prop::collection::btree_map(name(), inner, 0..5);
        (0_u32..0o10000, prop::bool::weighted(0.2), any::<bool>(), children).prop_map(
            |(mode, is_opaque, xattr, children)| Change::Directory {
                mode,
                is_opaque,
                xattr,
                children,
            },
        )
    })
}

/// An archive that is being written.
struct Writer {
    archive: Forged,
    last_file: Option<String>,
    count: u64,
    /// Whether directories have entries of their own.
    is_explicit: bool,
}

impl Writer {
    fn add(&mut self, kind: EntryType, path: &str, mode: u32, owner: u64, rest: (&str, u32, &[u8])) {
        let (link, minor, contents) = rest;
        let mut header = Header::new_gnu();
        header.set_path(path).unwrap();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner / 3);
        self.count += 1;
        header.set_mtime(1_500_000_000 + self.count % 5);
        header.set_size(contents.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_device_major(3).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.archive = std::mem::take(&mut self.archive).raw(&header, contents);
    }

    fn changes(&mut self, prefix: &str, changes: &BTreeMap<String, Change>) {
        for (name, change) in changes {
            let path = format!("{prefix}{name}");
            match change {
                Change::File { bytes, mode, owner } => {
                    let contents = path.bytes().cycle().take(*bytes).collect::<Vec<_>>();
                    self.add(EntryType::Regular, &path, *mode, *owner, ("", 0, &contents));
                    self.last_file = Some(path);
                }
                Change::Symlink => self.add(EntryType::Symlink, &path, 0o777, 0, ("target", 0, b"")),
                Change::HardLink => {
                    if let Some(target) = self.last_file.clone() {
                        self.add(EntryType::Link, &path, 0o644, 0, (&target, 0, b""));
                    }
                }
                Change::Device { minor } => self.add(EntryType::Char, &path, 0o600, 0, ("", *minor, b"")),
                Change::Whiteout => {
                    let path = format!("{prefix}.wh.{name}");
                    self.add(EntryType::Regular, &path, 0o644, 0, ("", 0, b""));
                }
                Change::Directory {
                    mode,
                    is_opaque,
                    xattr,
                    children,
                } => {
                    if self.is_explicit || *xattr {
                        if *xattr {
                            let archive = std::mem::take(&mut self.archive);
                            self.archive = archive.pax(&[("SCHILY.xattr.user.mine", path.as_bytes())]);
                        }
                        self.add(EntryType::Directory, &path, *mode, 0, ("", 0, b""));
                    }
                    if *is_opaque {
                        let path = format!("{path}/.wh..wh..opq");
                        self.add(EntryType::Regular, &path, 0o644, 0, ("", 0, b""));
                    }
                    self.changes(&format!("{path}/"), children);
                }
            }
        }
    }
}

fn archive(changes: &BTreeMap<String, Change>, is_explicit: bool) -> Vec<u8> {
    let mut writer = Writer {
        archive: forged(),
        last_file: None,
        count: 0,
        is_explicit,
    };
    writer.changes("", changes);
    writer.archive.end()
}

fn layers() -> impl Strategy<Value = Vec<BTreeMap<String, Change>>> {
    prop::collection::vec(prop::collection::btree_map(name(), change(), 1..6), 2..5)
}

const CASES: u32 = 40;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    }
}

/// The root is that of what is mounted on top.
fn without_root(mut listing: Listing) -> Listing {
    listing.remove(&b"."[..]);
    listing
}

/// overlayfs counts links that upper layers hide.
fn without_link_counts(mut listing: Listing) -> Listing {
    listing.values_mut().for_each(|facts| facts.links = 0);
    listing
}

/// Conformance: semantics 24
#[test]
fn stacked_merged_and_unpacked_are_the_same() {
    let test = "stacked_merged_and_unpacked_are_the_same";
    if !can_mount(test) || !umoci::has_umoci(test) {
        return;
    }
    let stacked = std::cell::Cell::new(0);
    proptest!(config(CASES), |(layers in layers())| {
        let archives: Vec<_> = layers.iter().map(|layer| archive(layer, true)).collect();
        let converted = Layers::convert(&archives);
        prop_assert!(converted.converted.iter().all(|layer| layer.notes.is_self_contained()));
        let merged = without_root(converted.merge().list());
        assert_same(&merged, &without_root(umoci::unpack(&archives)));
        if converted.can_stack() {
            let stack = converted.mount();
            assert_same(&without_link_counts(without_root(list(stack.merged()))), &without_link_counts(merged));
            stacked.set(stacked.get() + 1);
        }
    });
    // Chance decides how many; none at all would be a test of nothing.
    assert!(stacked.get() > 0, "none of {CASES} could be stacked");
}

#[test]
fn layers_that_imply_directories_are_merged_as_they_are_unpacked() {
    let test = "layers_that_imply_directories_are_merged_as_they_are_unpacked";
    if !can_mount(test) || !umoci::has_umoci(test) {
        return;
    }
    proptest!(config(CASES), |(layers in layers())| {
        let archives: Vec<_> = { layers.iter().enumerate() }
            .map(|(index, layer)| archive(layer, index == 0))
            .collect();
        let converted = Layers::convert(&archives);
        // What a layer implies below a file is refused here, and by umoci.
        let Ok(_) = converted.try_merge() else { return Ok(()) };
        let mut merged = without_root(converted.merge().list());
        let mut unpacked = without_root(umoci::unpack(&archives));
        // An unpacker gives new directories the time at which it ran.
        let now = |facts: &crate::oracle::Facts| facts.mtime.0 > 1_600_000_000;
        let new: Vec<_> = { unpacked.iter() }
            .filter(|(_, facts)| now(facts))
            .map(|(path, _)| path.clone())
            .collect();
        for path in new {
            for listing in [&mut merged, &mut unpacked] {
                if let Some(facts) = listing.get_mut(&path) {
                    facts.mtime = (0, 0);
                    // mkdir(2) hands a parent's set-group-id bit on to what an unpacker makes below it.
                    facts.mode &= !0o2000;
                }
            }
        }
        // An opaque directory that is implied, or one in which nothing is but a whiteout: umoci does not make it.
        let is_dir = |facts: &crate::oracle::Facts| facts.mode & 0o170_000 == 0o040_000;
        merged.retain(|path, facts| !is_dir(facts) || unpacked.contains_key(path));
        for listing in [&mut merged, &mut unpacked] {
            listing.values_mut().filter(|facts| is_dir(facts)).for_each(|facts| facts.links = 0);
        }
        assert_same(&merged, &unpacked);
    });
}
