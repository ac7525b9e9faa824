//! Extended attributes of a file on the host, without following links.

use std::io;
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;

/// Largest list of names and largest value (xattr(7), `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX_BYTES: usize = 64 << 10;

/// Names and values of the attributes whose names are wanted; none where the file system has none.
///
/// # Errors
/// What the operating system answers.
pub(crate) fn read(
    path: &Path,
    mut wanted: impl FnMut(&[u8]) -> bool,
) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; MAX_BYTES];
    match llistxattr(path, &mut names[..]) {
        Ok(length) => names.truncate(length),
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let mut pairs = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !wanted(name) {
            continue;
        }
        let mut value = vec![0; MAX_BYTES];
        match lgetxattr(path, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                value.shrink_to_fit();
                pairs.push((name.to_owned(), value));
            }
            // One that vanished since it was listed is not there.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_read_and_an_empty_value_is_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("f");
        std::fs::write(&path, "").expect("a file");
        assert_eq!(read(&path, |_| true).expect("none"), []);
        for (name, value) in [("user.a", "1"), ("user.b", ""), ("user.c", "3")] {
            xattr::set(&path, name, value.as_bytes()).expect("an attribute");
        }
        let mut pairs = read(&path, |name| name != b"user.c").expect("two");
        pairs.sort();
        let expected = [
            (b"user.a".to_vec(), b"1".to_vec()),
            (b"user.b".to_vec(), Vec::new()),
        ];
        assert_eq!(pairs, expected);
        assert!(read(&directory.path().join("none"), |_| true).is_err());
    }
}
