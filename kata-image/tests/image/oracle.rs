//! What an image is compared with: the kernel's own erofs, fsck.erofs, and a listing of everything in a tree.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use kata_image::{Source, erofs};
use sha2::{Digest, Sha256};

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

/// Whether a test that mounts, makes devices and changes owners can run. What cannot is said on the real
/// standard error, which the test harness does not hide, and fails where `CI` is `true`.
pub(crate) fn can_mount(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        return skip(test, "needs root to mount images and make devices");
    }
    ["mount", "umount", "fsck.erofs", "tar"]
        .iter()
        .all(|tool| has_tool(tool) || skip(test, tool))
}

pub(crate) fn skip(test: &str, why: &str) -> bool {
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "{test} cannot be skipped in CI: {why}"
    );
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    writeln!(io::stderr(), "SKIPPED {test}: {why} (skipped so far: {count})").expect("standard error");
    false
}

pub(crate) fn has_tool(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]);
    directories
        .map(|directory| directory.join(tool))
        .any(|path| path.is_file())
}

pub(crate) fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
}

/// An image in a directory of its own.
pub(crate) struct Image {
    directory: tempfile::TempDir,
    pub(crate) summary: erofs::Summary,
}

impl Image {
    pub(crate) fn try_write(source: &Source) -> Result<Self, erofs::Error> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("image.erofs");
        let out = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .expect("image");
        let summary = erofs::write(source, &out, &mut |_| {})?;
        Ok(Self { directory, summary })
    }

    pub(crate) fn write(source: &Source) -> Self {
        Self::try_write(source).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("image.erofs")
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(self.path()).expect("image")
    }

    /// The tool's own check of every inode and directory.
    pub(crate) fn check(&self) {
        if has_tool("fsck.erofs") || skip("a check of an image", "fsck.erofs is not installed") {
            run(Command::new("fsck.erofs").arg(self.path()));
        }
    }

    pub(crate) fn mount(&self) -> Mounted {
        let directory = tempfile::tempdir().expect("temporary directory");
        run(Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .arg(self.path())
            .arg(directory.path()));
        Mounted { directory }
    }
}

/// A mounted image.
pub(crate) struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn join(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(self.directory.path()));
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Everything that can be told of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) device: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) links: u64,
    pub(crate) size: u64,
    /// Digest of a file, target of a link.
    pub(crate) contents: Vec<u8>,
    /// The first path that leads to the same inode.
    pub(crate) first_path: Vec<u8>,
}

pub(crate) type Listing = BTreeMap<Vec<u8>, Facts>;

/// Everything in a tree, by path; the root is `.`.
pub(crate) fn list(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut first_paths = BTreeMap::new();
    let mut pending = vec![PathBuf::from(".")];
    while let Some(relative) = pending.pop() {
        let path = root.join(&relative);
        let status = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        if status.is_dir() {
            let entries = fs::read_dir(&path)
                .expect("directory")
                .map(|entry| entry.expect("entry"));
            let mut names: Vec<_> = entries.map(|entry| relative.join(entry.file_name())).collect();
            names.sort_unstable_by(|one, other| other.cmp(one));
            pending.extend(names);
        }
        let name = relative.as_os_str().as_bytes().to_vec();
        let first_path = first_paths
            .entry((status.dev(), status.ino()))
            .or_insert_with(|| name.clone())
            .clone();
        listing.insert(name, facts(&path, &status, first_path));
    }
    listing
}

fn facts(path: &Path, status: &fs::Metadata, first_path: Vec<u8>) -> Facts {
    let is_directory = status.is_dir();
    Facts {
        mode: status.mode(),
        owner: (status.uid(), status.gid()),
        device: status.rdev(),
        mtime: (status.mtime(), status.mtime_nsec()),
        xattrs: xattrs(path),
        // Filesystems differ in what they count for directories.
        links: if is_directory {
            subdirectories(path) + 2
        } else {
            status.nlink()
        },
        size: if is_directory { 0 } else { status.size() },
        contents: contents(path, status),
        first_path,
    }
}

/// What erofs itself must say for its directories: two links and one for each directory in it.
pub(crate) fn check_directory_links(root: &Path, listing: &Listing) {
    for (path, facts) in listing {
        let path = root.join(std::ffi::OsStr::from_bytes(path));
        let status = fs::symlink_metadata(&path).expect("entry");
        assert_eq!(status.nlink(), facts.links, "{}", path.display());
    }
}

fn subdirectories(path: &Path) -> u64 {
    let entries = fs::read_dir(path)
        .expect("directory")
        .map(|entry| entry.expect("entry"));
    entries
        .filter(|entry| entry.file_type().expect("type").is_dir())
        .count() as u64
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let names = xattr::list(path).expect("attributes");
    let value = |name: &std::ffi::OsString| xattr::get(path, name).expect("attribute").expect("value");
    names
        .map(|name| (name.as_bytes().to_vec(), value(&name)))
        .collect()
}

fn contents(path: &Path, status: &fs::Metadata) -> Vec<u8> {
    if status.is_symlink() {
        return fs::read_link(path).expect("link").into_os_string().into_vec();
    }
    if status.is_file() {
        return Sha256::digest(fs::read(path).expect("file")).to_vec();
    }
    Vec::new()
}

/// Compares entry by entry, so that a failure names the path.
pub(crate) fn assert_same(found: &Listing, expected: &Listing) {
    for (path, facts) in expected {
        let name = String::from_utf8_lossy(path);
        assert_eq!(found.get(path), Some(facts), "{name}");
    }
    let unexpected: Vec<_> = found
        .keys()
        .filter(|path| !expected.contains_key(*path))
        .collect();
    assert!(unexpected.is_empty(), "unexpected: {unexpected:?}");
}
