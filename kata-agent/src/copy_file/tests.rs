use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

const REGULAR: u32 = 0o100_000;

fn request(base: &Path, name: &str, data: &[u8]) -> CopyFileRequest {
    CopyFileRequest {
        path: format!("{}/{name}", base.display()),
        file_size: i64::try_from(data.len()).expect("small"),
        file_mode: REGULAR | 0o640,
        // As Kata's own tool sends it: with Go's bit of a directory.
        dir_mode: 0o20_000_000_750,
        uid: -1,
        gid: -1,
        data: data.to_vec(),
        ..Default::default()
    }
}

#[test]
fn a_file_has_its_name_when_its_last_piece_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = dir.path();
    let mut first = request(base, "a/b/file", b"one ");
    first.file_size = 7;
    copy_into(base, &first).expect("taken");
    let path = base.join("a/b/file");
    assert!(!path.exists());
    assert_eq!(
        fs::metadata(base.join("a/b")).expect("made").mode() & 0o7777,
        0o750
    );
    let mut last = request(base, "a/b/file", b"two");
    (last.file_size, last.offset) = (7, 4);
    copy_into(base, &last).expect("taken");
    assert_eq!(fs::read_to_string(&path).expect("read"), "one two");
    assert_eq!(fs::metadata(&path).expect("there").mode() & 0o7777, 0o640);
    assert_eq!(fs::read_dir(base.join("a/b")).expect("listed").count(), 1);
    // Again, in place of the first, and empty.
    copy_into(base, &request(base, "a/b/file", b"")).expect("taken");
    assert_eq!(fs::read(&path).expect("read"), b"");
}

#[test]
fn directories_and_links_are_made_with_their_modes() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = dir.path();
    let mut directory = request(base, "d", b"");
    directory.file_mode = 0o040_000 | 0o1777;
    copy_into(base, &directory).expect("made");
    copy_into(base, &directory).expect("twice is once");
    assert_eq!(
        fs::metadata(base.join("d")).expect("there").mode() & 0o7777,
        0o1777
    );
    for to in ["first", "/etc/passwd"] {
        let mut link = request(base, "..data", to.as_bytes());
        link.file_mode = 0o120_777;
        copy_into(base, &link).expect("linked");
        assert_eq!(fs::read_link(base.join("..data")).expect("a link"), Path::new(to));
    }
}

#[test]
fn no_path_leads_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = dir.path().join("base");
    fs::create_dir(&base).expect("made");
    fs::create_dir(dir.path().join("out")).expect("made");
    symlink(dir.path().join("out"), base.join("link")).expect("linked");
    symlink(dir.path().join("out/file"), base.join("file")).expect("linked");
    for name in ["../out/x", "a/../../out/x", "", ".", "a//b", "a/./b", "a/"] {
        let failed = copy_into(&base, &request(&base, name, b"x")).expect_err(name);
        assert_eq!(failed.kind, FailureKind::Invalid, "{name}");
    }
    let mut elsewhere = request(&base, "x", b"x");
    elsewhere.path = "/etc/shadow".into();
    assert!(copy_into(&base, &elsewhere).is_err());
    assert!(copy_into(&base, &request(&base, "link/x", b"x")).is_err());
    copy_into(&base, &request(&base, "file", b"inside")).expect("the link is replaced");
    assert_eq!(fs::read_dir(dir.path().join("out")).expect("listed").count(), 0);
}

#[test]
fn pieces_that_make_no_file_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let base = dir.path();
    let with = |change: fn(&mut CopyFileRequest)| {
        let mut request = request(base, "file", b"1234");
        change(&mut request);
        copy_into(base, &request).expect_err("refused")
    };
    assert_eq!(with(|r| r.offset = -1).kind, FailureKind::Invalid);
    assert_eq!(with(|r| r.file_size = 3).kind, FailureKind::Invalid);
    assert_eq!(
        with(|r| (r.offset, r.file_size) = (i64::MAX, i64::MAX)).kind,
        FailureKind::Invalid
    );
    assert_eq!(with(|r| r.file_mode = 0o020_666).kind, FailureKind::Unsupported);
    let gap = with(|r| (r.offset, r.file_size) = (10, 100));
    assert!(gap.subject.contains("a piece at 10 after 0 bytes"), "{gap}");
    fs::set_permissions(base, fs::Permissions::from_mode(0o755)).expect("set");
    assert!(!base.join("file").exists());
}
