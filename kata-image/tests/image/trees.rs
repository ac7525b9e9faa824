//! Directories with everything that a filesystem can hold, as images.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, SystemTime};

use kata_image::Source;
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, mknodat};

use crate::oracle::{Image, assert_same, can_mount, check_directory_links, list};

/// Bytes that repeat nowhere near a block.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|index| u8::try_from(index * index % 251).expect("below 251"))
        .collect()
}

fn device(path: &Path, kind: FileType, major: u32, minor: u32) {
    let number = rustix::fs::makedev(major, minor);
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), number).expect("mknod");
}

fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("utimensat");
}

/// Makes the tree. Needs root.
pub(crate) fn make_everything(root: &Path) {
    let path = |name: &str| root.join(name);
    for size in [
        0,
        1,
        4031,
        4032,
        4033,
        4095,
        4096,
        4097,
        8192,
        12388,
        (1 << 20) + 3,
    ] {
        fs::write(path(&format!("size-{size}")), pattern(size)).expect("file");
    }
    make_modes_and_owners(root);
    make_names(root);
    make_special(root);
    make_xattrs(root);
    let sparse = File::create(path("sparse")).expect("file");
    sparse.write_all_at(b"middle", 1 << 20).expect("write");
    sparse.set_len(3 << 20).expect("size");
    sparse.write_all_at(b"end", (3 << 20) - 3).expect("write");
    set_mtime(&path("size-1"), -1_000_000, 250_000_000);
    set_mtime(&path("size-0"), 1_700_000_000, 123_456_789);
    set_mtime(root, 1_600_000_000, 0);
}

fn make_modes_and_owners(root: &Path) {
    for (name, mode, uid, gid) in [
        ("suid", 0o4755, 0, 0),
        ("sgid", 0o2711, 1, 2),
        ("none", 0, 65535, 65536),
        ("large", 0o644, 70000, 4_000_000),
    ] {
        let path = root.join(name);
        fs::write(&path, name).expect("file");
        chown(&path, Some(uid), Some(gid)).expect("chown");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    }
    fs::create_dir(root.join("sticky")).expect("directory");
    fs::set_permissions(root.join("sticky"), fs::Permissions::from_mode(0o1777)).expect("chmod");
}

fn make_names(root: &Path) {
    let many = root.join("many");
    fs::create_dir(&many).expect("directory");
    for index in 0..3000 {
        fs::write(many.join(format!("{index:040}")), format!("{index}")).expect("file");
    }
    let odd = root.join("odd");
    fs::create_dir(&odd).expect("directory");
    let longest = "n".repeat(255);
    for name in [
        &b"-"[..],
        b"!",
        b"+x",
        b"..x",
        b"...",
        b" ",
        b"new\nline",
        b"\xff\xfe",
        longest.as_bytes(),
    ] {
        fs::write(odd.join(OsStr::from_bytes(name)), name).expect("file");
    }
    let mut deep = root.join("deep");
    for depth in 0..40 {
        deep.push(format!("level-{depth}"));
    }
    fs::create_dir_all(&deep).expect("directories");
    fs::create_dir(root.join("empty")).expect("directory");
}

fn make_special(root: &Path) {
    let path = |name: &str| root.join(name);
    symlink("size-1", path("link")).expect("link");
    symlink("/nowhere/at/all", path("dangling")).expect("link");
    symlink("x/".repeat(1500), path("long-link")).expect("link");
    symlink("y/".repeat(2030), path("longest-link")).expect("link");
    fs::hard_link(path("size-4097"), path("hard-1")).expect("link");
    fs::hard_link(path("size-4097"), path("sticky/hard-2")).expect("link");
    fs::hard_link(path("link"), path("hard-link-to-link")).expect("link");
    device(&path("whiteout"), FileType::CharacterDevice, 0, 0);
    device(&path("console"), FileType::CharacterDevice, 5, 1);
    device(&path("disk"), FileType::BlockDevice, 259, 70000);
    device(&path("fifo"), FileType::Fifo, 0, 0);
    drop(UnixListener::bind(path("socket")).expect("socket"));
}

fn make_xattrs(root: &Path) {
    let set =
        |name: &str, key: &str, value: &[u8]| xattr::set(root.join(name), key, value).expect("setxattr");
    set("size-4032", "user.one", b"1");
    set("size-4032", "user.two", b"");
    set("size-4095", "user.large", &pattern(3000));
    set(
        "size-1",
        "security.capability",
        b"\x01\0\0\x02\n\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    );
    set("sticky", "trusted.overlay.opaque", b"y");
    set("empty", "user.on-a-directory", b"value");
    set("size-8192", "system.posix_acl_access", &acl());
    set("empty", "system.posix_acl_default", &acl());
}

/// `user::rw-,user:4000007:r--,group::r--,mask::r--,other::---` in the kernel's form.
fn acl() -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 4_000_007),
        (4, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

#[test]
fn the_kernel_sees_what_the_source_has() {
    if !can_mount("the_kernel_sees_what_the_source_has") {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    make_everything(source.path());
    let image = Image::write(&Source::Directory(source.path().into()));
    image.check();
    let mounted = image.mount();
    let expected = list(source.path());
    assert_same(&list(mounted.path()), &expected);
    check_directory_links(mounted.path(), &expected);
    assert_eq!(
        image.summary.size_bytes,
        fs::metadata(image.path()).unwrap().len()
    );
    assert_eq!(image.summary.xattrs_left_out, 0);
}

#[test]
fn the_same_source_gives_the_same_bytes() {
    let source = tempfile::tempdir().unwrap();
    for index in 0..300 {
        let directory = source.path().join(format!("{}", index % 7));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{index}")), pattern(index * 37)).unwrap();
    }
    let write = || Image::write(&Source::Directory(source.path().into())).bytes();
    let first = write();
    assert!(first == write(), "two images of one source differ");
    let changed = source.path().join("3/3");
    let mtime = fs::metadata(&changed).unwrap().modified().unwrap();
    fs::write(&changed, vec![0xee; 3 * 37]).unwrap();
    File::options()
        .write(true)
        .open(&changed)
        .unwrap()
        .set_modified(mtime)
        .unwrap();
    let other = write();
    assert_eq!(first.len(), other.len());
    assert_ne!(
        first[1024 + 48..][..16],
        other[1024 + 48..][..16],
        "the UUID does not tell contents"
    );
}

#[test]
fn inodes_are_short_where_one_time_is_shared() {
    let source = tempfile::tempdir().unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    for index in 0..64 {
        let file = File::create(source.path().join(format!("{index}"))).unwrap();
        file.set_modified(time).unwrap();
    }
    let short = Image::write(&Source::Directory(source.path().into()));
    for index in 0..64 {
        let file = File::options()
            .write(true)
            .open(source.path().join(format!("{index}")))
            .unwrap();
        file.set_modified(time + Duration::from_secs(index)).unwrap();
    }
    let long = Image::write(&Source::Directory(source.path().into()));
    assert_eq!(long.summary.size_bytes, short.summary.size_bytes + 4096);
}

#[test]
fn a_file_beyond_4_gib_is_whole_and_its_holes_cost_nothing() {
    if !can_mount("a_file_beyond_4_gib_is_whole_and_its_holes_cost_nothing") {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let large = File::create(source.path().join("large")).unwrap();
    let size = (5_u64 << 30) + 77;
    large.set_len(size).unwrap();
    large.write_all_at(b"across", (1 << 32) - 3).unwrap();
    large.write_all_at(b"end", size - 3).unwrap();
    fs::write(source.path().join("z-after"), pattern(10_000)).unwrap();
    let image = Image::write(&Source::Directory(source.path().into()));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(image.path()).unwrap());
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks for holes");
    let mounted = image.mount();
    let file = File::open(mounted.join("large")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let mut bytes = [0; 6];
    file.read_exact_at(&mut bytes, (1 << 32) - 3).unwrap();
    assert_eq!(&bytes, b"across");
    file.read_exact_at(&mut bytes, size - 6).unwrap();
    assert_eq!(&bytes, b"\0\0\0end");
    assert_eq!(fs::read(mounted.join("z-after")).unwrap(), pattern(10_000));
}

#[test]
fn a_ready_image_is_checked_and_copied() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("file"), pattern(5000)).unwrap();
    let image = Image::write(&Source::Directory(source.path().into()));
    let detected = Source::detect(image.path()).unwrap();
    assert_eq!(detected, Source::Erofs(image.path()));
    assert!(Image::write(&detected).bytes() == image.bytes());
    File::options()
        .write(true)
        .open(image.path())
        .unwrap()
        .set_len(4096)
        .unwrap();
    let error = Image::try_write(&detected).map(drop).unwrap_err();
    assert!(
        crate::oracle::chain(&error).ends_with("the file has 4096 bytes, the filesystem 12288"),
        "{error:?}"
    );
}

#[test]
fn a_whole_distribution_is_what_it_was() {
    const TEST: &str = "a_whole_distribution_is_what_it_was";
    let Some(archive) = std::env::var_os("KATA_TEST_ROOTFS") else {
        writeln!(
            std::io::stderr(),
            "SKIPPED {TEST}: KATA_TEST_ROOTFS names no tar archive of a distribution"
        )
        .unwrap();
        return;
    };
    if !can_mount(TEST) {
        return;
    }
    let unpacked = tempfile::tempdir().unwrap();
    let mut tar = std::process::Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(&archive);
    crate::oracle::run(tar.arg("-C").arg(unpacked.path()));
    let image = Image::write(&Source::detect(&archive).unwrap());
    image.check();
    assert_same(&list(image.mount().path()), &list(unpacked.path()));
}
