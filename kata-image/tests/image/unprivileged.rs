//! What root makes, anybody makes: a user without any right gets the same bytes.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_image::{Image, ImageSource, Pull, Store};
use tar::EntryType::{Directory, Fifo, Link};

use crate::archives::{PAX, pack};
use crate::forged::Forged;
use crate::oracle::can_mount;
use crate::trees::make_everything;

const IMAGES: &str = "KATA_IMAGE_TEST_UNPRIVILEGED";
const NOBODY: u32 = 65534;

/// The digests of all images of what lies in the directory, from a store in it.
fn digests(directory: &Path, images: &str) -> Vec<String> {
    let store = Store::open(directory.join(images)).unwrap();
    let image = |name: &str| {
        let source = ImageSource::detect(directory.join(name)).unwrap();
        store.image(&source, &Pull::default(), &mut |_| ()).unwrap()
    };
    let layers = ["archive.tar", "layout"].map(|name| image(name).layers);
    layers.into_iter().flatten().map(|layer| layer.digest).collect()
}

/// Not a test of its own: what the user without rights does.
#[test]
fn worker() {
    let Some(directory) = std::env::var_os(IMAGES).map(PathBuf::from) else {
        return;
    };
    assert!(!rustix::process::geteuid().is_root());
    let found = digests(&directory, "nobodys");
    fs::write(directory.join("nobodys/found"), found.join("\n")).unwrap();
}

/// An image of a layer and one that takes something of it away.
fn write_layout(directory: &Path) {
    let lower = Forged::default()
        .add(Directory, b"d", b"", b"")
        .file("d/gone", "1")
        .file("gone", "2");
    let upper = Forged::default()
        .add(Directory, b"d", b"", b"")
        .file("d/.wh..wh..opq", "")
        .file(".wh.gone", "")
        .pax(&[(
            "SCHILY.xattr.security.capability",
            b"\x01\0\0\x02\n\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        )])
        .file("f", "3")
        .add(Link, b"g", b"f", b"")
        .add(Fifo, b"fifo", b"", b"");
    let mut builder = Image::builder();
    for (name, layer) in [("lower.tar", lower), ("upper.tar", upper)] {
        fs::write(directory.join(name), layer.end()).unwrap();
        builder = builder.archive(directory.join(name));
    }
    let image = builder.build(&mut |_| ()).unwrap();
    image
        .write_layout(directory.join("layout"), Some("latest"), &mut |_| ())
        .unwrap();
}

#[test]
fn a_user_without_rights_makes_what_root_makes() {
    if !can_mount("a_user_without_rights_makes_what_root_makes") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(path("tree")).unwrap();
    make_everything(&path("tree"));
    pack(&path("tree"), &path("archive.tar"), &PAX);
    write_layout(directory.path());
    let roots = digests(directory.path(), "roots");
    assert_eq!(roots.len(), 3);
    fs::create_dir(path("nobodys")).unwrap();
    chown(path("nobodys"), Some(NOBODY), Some(NOBODY)).unwrap();
    // Where cargo keeps it, only its owner may reach it.
    fs::copy(std::env::current_exe().unwrap(), path("program")).unwrap();
    let mut command = Command::new(path("program"));
    command.args(["--exact", "unprivileged::worker"]);
    command.env(IMAGES, directory.path()).current_dir("/");
    let output = command.uid(NOBODY).gid(NOBODY).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let nobodys = fs::read_to_string(path("nobodys/found")).unwrap();
    assert_eq!(nobodys.lines().collect::<Vec<_>>(), roots);
}
