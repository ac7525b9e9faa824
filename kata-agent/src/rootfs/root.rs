//! A directory tree that is somebody else's root.
//!
//! Owns every access to files of a container from outside: paths are resolved by the kernel as if the
//! directory were `/` (openat2(2), RESOLVE_IN_ROOT), so no link or `..` leads out of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kata_agent_proto::files::open_within;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Longest file that is read whole, in bytes.
const READ_MAX_BYTES: u64 = 4 << 20;

/// Most links that are followed to what is not there (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// The root of a container.
pub(crate) struct Root(OwnedFd);

impl Root {
    /// Opens a directory as a root. `/proc/<pid>/root` is one.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// A root that is open already.
    pub(crate) fn from_fd(root: OwnedFd) -> Self {
        Root(root)
    }

    /// What a path leads to, under further conditions.
    pub(crate) fn resolve(
        &self,
        path: &Path,
        flags: OFlags,
        further: ResolveFlags,
    ) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | further;
        open_within(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn open_in(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(path, flags, ResolveFlags::empty())
    }

    /// Makes an empty file where there is none, also where a link of the root leads to.
    pub(crate) fn touch(&self, path: &Path) -> io::Result<()> {
        if self.exists(path) {
            // Opening a device would mean more.
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        open_within(&self.0, path, flags, Mode::from_raw_mode(0o644), resolve)?;
        Ok(())
    }

    /// Opens a device.
    pub(crate) fn open_device(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        Ok(self.open_in(path, flags)?)
    }

    /// Whether the path leads to a directory.
    #[cfg(test)]
    fn is_directory(&self, path: &Path) -> bool {
        self.open_in(path, OFlags::PATH | OFlags::DIRECTORY).is_ok()
    }

    /// Whether the path leads anywhere.
    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.open_in(path, OFlags::PATH).is_ok()
    }

    /// Whether the path leads to a regular file that somebody may execute; `None` when it leads nowhere.
    pub(crate) fn is_executable(&self, path: &Path) -> Option<bool> {
        let metadata = File::from(self.open_in(path, OFlags::PATH).ok()?)
            .metadata()
            .ok()?;
        Some(metadata.is_file() && metadata.mode() & 0o111 != 0)
    }

    /// The text of a file; nothing when it does not exist.
    pub(crate) fn read(&self, path: &Path) -> io::Result<String> {
        let file = match self.open_in(path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(String::new()),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = Vec::new();
        file.take(READ_MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Makes a directory and those above it, also where links of the root lead to what is not there yet.
    pub(crate) fn create_directories(&self, path: &Path) -> io::Result<()> {
        Ok(self.make_way(path, LINKS_MAX)?)
    }

    fn make_way(&self, path: &Path, links: usize) -> Result<(), Errno> {
        let mut parent = self.open_in(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
        let mut reached = PathBuf::from("/");
        for name in path
            .components()
            .filter(|part| !matches!(part, std::path::Component::RootDir))
        {
            let above = reached.clone();
            reached.push(name);
            parent = match self.open_in(&reached, OFlags::PATH | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => {
                    let made = rustix::fs::mkdirat(&parent, name.as_os_str(), Mode::from_raw_mode(0o755));
                    match made {
                        // A link that leads nowhere: to there.
                        Err(Errno::EXIST) => {
                            let target = rustix::fs::readlinkat(&parent, name.as_os_str(), Vec::new())?;
                            let target = above.join(std::ffi::OsStr::from_bytes(target.as_bytes()));
                            self.make_way(&target, links.checked_sub(1).ok_or(Errno::LOOP)?)?;
                        }
                        other => other?,
                    }
                    self.open_in(&reached, OFlags::PATH | OFlags::DIRECTORY)?
                }
                other => other?,
            };
        }
        Ok(())
    }

    /// Writes a new file in place of whatever leads nowhere under that name, such as a broken link.
    pub(crate) fn create_file(&self, directory: &Path, name: &str, text: &str) -> io::Result<()> {
        self.create_directories(directory)?;
        let directory = self.open_in(directory, OFlags::PATH | OFlags::DIRECTORY)?;
        match rustix::fs::unlinkat(&directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o644))?;
        File::from(file).write_all(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory with a secret beside the root, and links that try to reach it.
    fn tree() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).expect("made");
        fs::write(dir.path().join("secret"), "outside").expect("written");
        symlink("../../secret", root.join("etc/up")).expect("linked");
        symlink(dir.path().join("secret"), root.join("etc/absolute")).expect("linked");
        symlink("/etc", root.join("alias")).expect("linked");
        let opened = Root::open(&root).expect("opened");
        (dir, opened)
    }

    #[test]
    fn no_path_leads_out_of_the_root() {
        let (dir, root) = tree();
        for path in ["etc/up", "etc/absolute", "../secret", "/../../secret"] {
            assert_eq!(root.read(Path::new(path)).expect("no error"), "", "{path}");
        }
        root.create_file(Path::new("/etc"), "up", "inside")
            .expect("written");
        assert_eq!(
            fs::read_to_string(dir.path().join("secret")).expect("read"),
            "outside"
        );
        assert_eq!(root.read(Path::new("/alias/up")).expect("read"), "inside");
    }

    #[test]
    fn directories_are_made_through_links_inside_the_root() {
        let (dir, root) = tree();
        root.create_directories(Path::new("/alias/deep/er"))
            .expect("made");
        assert!(dir.path().join("root/etc/deep/er").is_dir());
        symlink("/new/../made", dir.path().join("root/dangling")).expect("linked");
        symlink("../../../outer", dir.path().join("root/etc/out")).expect("linked");
        symlink("loop", dir.path().join("root/loop")).expect("linked");
        root.create_directories(Path::new("/dangling/a")).expect("made");
        root.create_directories(Path::new("/etc/out/b")).expect("made");
        assert!(dir.path().join("root/made/a").is_dir() && dir.path().join("root/outer/b").is_dir());
        assert!(root.create_directories(Path::new("/loop/c")).is_err());
        assert!(root.is_directory(Path::new("/etc/deep/er")));
    }

    #[test]
    fn what_can_be_executed_is_told_apart() {
        let (dir, root) = tree();
        let file = dir.path().join("root/etc/program");
        fs::write(&file, "#!/bin/sh").expect("written");
        assert_eq!(root.is_executable(Path::new("/etc/program")), Some(false));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o711)).expect("set");
        assert_eq!(root.is_executable(Path::new("/alias/program")), Some(true));
        assert_eq!(root.is_executable(Path::new("/etc")), Some(false));
        assert_eq!(root.is_executable(Path::new("/nosuch")), None);
    }
}
