//! Something that is being made: it has a name of its own until it is complete, and is gone if it never is.
//!
//! The name carries the process's id, so that what a killed process left is swept by the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How the names begin.
const PREFIX: &str = ".partial-";

/// A file or directory that is not complete; dropped, it is removed.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
}

impl Partial {
    /// A name in `directory`, which is made, for something of this process whose name ends in `suffix`;
    /// nothing is there yet. Sweeps what dead processes left.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub(crate) fn new(directory: &Path, suffix: &str) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if owner(&entry.file_name().to_string_lossy()).is_some_and(|pid| !is_alive(pid)) {
                remove(&entry.path());
            }
        }
        let path = directory.join(format!("{PREFIX}{}{suffix}", std::process::id()));
        Ok(Self { path })
    }

    /// Where it is made.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, at once; what has that name is replaced, unless it is a directory.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub(crate) fn complete(self, name: &Path) -> io::Result<()> {
        // What is dropped afterwards is not there any more.
        fs::rename(&self.path, name)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes what may be a file, a directory or nothing; what cannot be removed is swept another time.
fn remove(path: &Path) {
    let _ = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
}

/// The process that is making something.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_completed_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let partial = Partial::new(directory.path(), ".tar").unwrap();
        fs::write(partial.path(), "half").unwrap();
        drop(partial);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_completed_has_its_name_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let partial = Partial::new(directory.path(), "").unwrap();
        fs::create_dir(partial.path()).unwrap();
        partial.complete(&directory.path().join("whole")).unwrap();
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["whole"]);
    }

    #[test]
    fn what_a_dead_process_left_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        // Above the largest pid that Linux gives (PID_MAX_LIMIT, 2^22).
        let dead = directory.path().join(".partial-4194305.tar");
        let alive = directory
            .path()
            .join(format!(".partial-{}.tar", std::process::id()));
        for path in [&dead, &alive] {
            fs::write(path, "").unwrap();
        }
        Partial::new(directory.path(), ".other").unwrap();
        assert!(!dead.exists() && alive.exists());
    }
}
