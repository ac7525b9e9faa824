//! Paths of entries: names below the root, and nothing that could lead elsewhere.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::EntryError;

/// `NAME_MAX` and `PATH_MAX` without its terminator (linux/limits.h).
pub(super) const MAX_NAME_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 4095;

/// The names that lead from the root to an entry; none for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EntryPath(Vec<Box<[u8]>>);

impl EntryPath {
    /// Takes a path as an archive has it. A leading `/`, `.` and doubled slashes mean nothing, as for tar;
    /// `..` is refused wherever it leads.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, EntryError> {
        let path = || path_buf(bytes);
        if bytes.len() > MAX_PATH_BYTES || bytes.contains(&0) {
            return Err(EntryError::Name { path: path() });
        }
        let names: Vec<Box<[u8]>> = bytes
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .map(Box::from)
            .collect();
        if names.iter().any(|name| **name == *b"..") {
            return Err(EntryError::LeavesRoot { path: path() });
        }
        if names.iter().any(|name| name.len() > MAX_NAME_BYTES) {
            return Err(EntryError::Name { path: path() });
        }
        Ok(Self(names))
    }

    pub(crate) fn names(&self) -> &[Box<[u8]>] {
        &self.0
    }

    /// The names with slashes between them.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.0.join(&b'/')
    }

    pub(crate) fn to_path_buf(&self) -> PathBuf {
        if self.0.is_empty() {
            PathBuf::from(".")
        } else {
            self.ancestor(self.0.len())
        }
    }

    /// The entry's directory; `None` for the root.
    pub(crate) fn parent(&self) -> Option<Self> {
        let (_, parents) = self.0.split_last()?;
        Some(Self(parents.to_vec()))
    }

    /// The path of the first `depth` names.
    pub(crate) fn ancestor(&self, depth: usize) -> PathBuf {
        self.0.iter().take(depth).map(|name| path_buf(name)).collect()
    }
}

fn path_buf(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &[u8], expected: Result<&str, &str>) {
        let found = EntryPath::new(path).map(|path| path.to_path_buf().display().to_string());
        let found = found.map_err(|error| error.to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn what_means_nothing_is_dropped() {
        check(b"./a//b/./c/", Ok("a/b/c"));
        check(b"/etc/passwd", Ok("etc/passwd"));
        check(b"./", Ok("."));
        check(b"", Ok("."));
        check(b"a/...", Ok("a/..."));
    }

    #[test]
    fn dot_dot_is_refused_wherever_it_leads() {
        check(b"../x", Err("../x leaves the root"));
        check(b"a/../b", Err("a/../b leaves the root"));
        check(b"/..", Err("/.. leaves the root"));
    }

    #[test]
    fn names_are_bytes_within_the_limits_of_linux() {
        assert_eq!(EntryPath::new(b"\xff\xfe/\n").unwrap().names().len(), 2);
        assert!(EntryPath::new(b"a\0b").is_err());
        assert!(EntryPath::new(&[b'a'; 255]).is_ok());
        assert!(EntryPath::new(&[b'a'; 256]).is_err());
        assert!(EntryPath::new("a/".repeat(2048).as_bytes()).is_err());
    }
}
