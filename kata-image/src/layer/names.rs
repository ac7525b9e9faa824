//! What a name of a layer's archive says: an entry, or something that the layer takes away (OCI image specification,
//! `layer.md#whiteouts`). Knows names only; what they do to a tree is decided by who asks.

use crate::tree::{EntryError, EntryPath};

const PREFIX: &[u8] = b".wh.";
/// Names of aufs's own (`.wh..wh.plnk`, `.wh..wh.aufs`) begin so; of these only the opaque mark has a meaning.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// An entry of the layer.
    Entry,
    /// The lower layers' entry of this name, in this directory, is gone.
    Whiteout { directory: EntryPath, name: &'a [u8] },
    /// Nothing of the lower layers is in this directory.
    Opaque { directory: EntryPath },
    /// Metadata of aufs.
    Nothing,
}

/// What a path means.
pub(super) fn meaning(path: &EntryPath) -> Result<Meaning<'_>, EntryError> {
    let (Some((name, parents)), Some(directory)) = (path.names().split_last(), path.parent()) else {
        return Ok(Meaning::Entry);
    };
    if parents.iter().any(|name| name.starts_with(AUFS_PREFIX)) {
        return Ok(Meaning::Nothing);
    }
    let refused = || EntryError::Whiteout {
        path: path.to_path_buf(),
    };
    if parents.iter().any(|name| name.starts_with(PREFIX)) {
        return Err(refused());
    }
    if **name == *OPAQUE {
        return Ok(Meaning::Opaque { directory });
    }
    if name.starts_with(AUFS_PREFIX) {
        return Ok(Meaning::Nothing);
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Meaning::Entry),
        Some(b"" | b"." | b"..") => Err(refused()),
        Some(name) => Ok(Meaning::Whiteout { directory, name }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_mean_what_the_specification_says() {
        let check = |text: &str, expected: Meaning<'_>| {
            assert_eq!(meaning(&path(text)), Ok(expected), "{text}");
        };
        let whiteout = |at: &str, name| Meaning::Whiteout {
            directory: path(at),
            name,
        };
        check(".", Meaning::Entry);
        check("a/wh.b", Meaning::Entry);
        check("a/.whb", Meaning::Entry);
        check("a/.wh.b", whiteout("a", b"b"));
        check(".wh...b", whiteout("", b"..b"));
        check("a/.wh..b", whiteout("a", b".b"));
        check("a/.wh..wh..opq", Meaning::Opaque { directory: path("a") });
        check(".wh..wh..opq", Meaning::Opaque { directory: path("") });
        check(".wh..wh.plnk", Meaning::Nothing);
        check("a/.wh..wh.plnk/1.2", Meaning::Nothing);
        check(".wh..wh.", Meaning::Nothing);
    }

    #[test]
    fn what_cannot_stand_is_refused_by_name() {
        for text in [".wh.", "a/.wh..", ".wh...", ".wh.a/b"] {
            let error = meaning(&path(text)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{text} is no whiteout that a layer can have")
            );
        }
    }
}
