//! Extended attributes of one entry, checked and in a fixed order.

use super::EntryError;
use std::path::Path;

/// Namespaces that an image can hold, longest first, with their index on disk (Linux fs/erofs/erofs_fs.h,
/// `EROFS_XATTR_INDEX_*`). The access control lists are whole names.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"system.posix_acl_default", 3),
    (b"system.posix_acl_access", 2),
    (b"security.", 6),
    (b"trusted.", 4),
    (b"user.", 1),
];

/// Most bytes of a name without its namespace, and of a value, on disk.
const MAX_NAME_BYTES: usize = 255;
const MAX_VALUE_BYTES: usize = 65535;
/// Most bytes of one entry's attributes as stored: the inode counts them in units of four bytes, in 16 bits.
const MAX_STORED_BYTES: usize = 4 * 65534;

/// What an attribute costs in memory besides name and value.
const XATTR_BYTES: usize = 112;

/// Attributes sorted by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Xattrs(Box<[Xattr]>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    pub(crate) namespace: u8,
    /// Without the namespace.
    pub(crate) name: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

/// Full name and value, as a source has them.
pub(crate) type XattrPair = (Vec<u8>, Vec<u8>);

impl Xattr {
    /// Bytes on disk: an entry of four, name, value, padded to four.
    pub(crate) fn stored_bytes(&self) -> usize {
        (4 + self.name.len() + self.value.len()).next_multiple_of(4)
    }

    /// Whether its namespace is one, with a name as that namespace wants it.
    pub(crate) fn is_valid(&self) -> bool {
        let namespace = NAMESPACES.iter().find(|(_, index)| *index == self.namespace);
        let names_itself = |(name, _): &(&[u8], u8)| !name.ends_with(b".");
        namespace.is_some_and(|namespace| names_itself(namespace) == self.name.is_empty())
            && !self.name.contains(&0)
    }
}

/// Whether an image can hold attributes of this name.
pub(crate) fn is_supported(name: &[u8]) -> bool {
    split(name).is_some()
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    NAMESPACES.iter().find_map(|(namespace, index)| {
        let rest = name.strip_prefix(*namespace)?;
        // A namespace ends with a dot and needs a name; an access control list is a whole name.
        (namespace.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
    })
}

impl Xattrs {
    /// From full names and values; of two with one name the last counts.
    pub(crate) fn new(path: &Path, pairs: impl IntoIterator<Item = XattrPair>) -> Result<Self, EntryError> {
        let mut by_name = std::collections::BTreeMap::new();
        for (name, value) in pairs {
            let (key, value) = check(path, &name, value)?;
            by_name.insert(key, value);
        }
        let xattrs = by_name.into_iter().map(|((namespace, name), value)| Xattr {
            namespace,
            name,
            value,
        });
        let xattrs = Self(xattrs.collect());
        if !xattrs.fits() {
            return Err(error(
                path,
                b"*",
                "all attributes of one entry together exceed 256 KiB",
            ));
        }
        Ok(xattrs)
    }

    /// From what an image holds: namespace, name without it, and value.
    pub(crate) fn from_stored(xattrs: impl IntoIterator<Item = Xattr>) -> Self {
        let mut xattrs: Vec<_> = xattrs.into_iter().collect();
        xattrs.sort_unstable();
        xattrs.dedup_by(|one, other| (one.namespace, &one.name) == (other.namespace, &other.name));
        Self(xattrs.into())
    }

    /// Whether an inode can count them.
    pub(crate) fn fits(&self) -> bool {
        self.stored_bytes() <= MAX_STORED_BYTES
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Xattr> {
        self.0.iter()
    }

    /// Memory for the names and values and for what points to them.
    pub(crate) fn memory_bytes(&self) -> usize {
        let pointed_to = |xattr: &Xattr| xattr.name.len() + xattr.value.len();
        self.0.iter().map(|xattr| XATTR_BYTES + pointed_to(xattr)).sum()
    }

    /// Bytes on disk with the header, 0 without attributes.
    pub(crate) fn stored_bytes(&self) -> usize {
        if self.0.is_empty() {
            0
        } else {
            HEADER_BYTES + self.0.iter().map(Xattr::stored_bytes).sum::<usize>()
        }
    }
}

/// `struct erofs_xattr_ibody_header`.
pub(crate) const HEADER_BYTES: usize = 12;

type Key = (u8, Box<[u8]>);

fn check(path: &Path, name: &[u8], value: Vec<u8>) -> Result<(Key, Box<[u8]>), EntryError> {
    let (namespace, rest) = split(name).ok_or_else(|| error(path, name, "its namespace is not known"))?;
    if rest.len() > MAX_NAME_BYTES || rest.contains(&0) {
        return Err(error(path, name, "its name is too long or has a zero byte"));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(error(path, name, "its value is longer than 65535 bytes"));
    }
    Ok(((namespace, rest.into()), value.into()))
}

fn error(path: &Path, name: &[u8], reason: &'static str) -> EntryError {
    let name = String::from_utf8_lossy(name).into_owned();
    EntryError::Xattr {
        path: path.to_path_buf(),
        name,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(pairs: &[(&str, &str)]) -> Result<Xattrs, EntryError> {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        Xattrs::new(Path::new("f"), pairs)
    }

    #[test]
    fn order_and_duplicates_do_not_matter() {
        let one = new(&[("user.b", "1"), ("user.a", "2"), ("security.x", "3")]).unwrap();
        let other = new(&[
            ("security.x", "3"),
            ("user.a", "0"),
            ("user.a", "2"),
            ("user.b", "1"),
        ])
        .unwrap();
        assert_eq!(one, other);
        assert_eq!(one.stored_bytes(), 12 + 3 * 8);
        assert_eq!(new(&[]).unwrap().stored_bytes(), 0);
    }

    #[test]
    fn unknown_namespaces_are_refused_by_name() {
        let text = |name: &str| new(&[(name, "")]).unwrap_err().to_string();
        let expected = "f has an extended attribute \"system.nfs4_acl\" that an image cannot hold: \
                        its namespace is not known";
        assert_eq!(text("system.nfs4_acl"), expected);
        for name in ["user.", "plain", "system.posix_acl_access.x"] {
            assert!(new(&[(name, "")]).is_err(), "{name}");
        }
        assert!(new(&[("system.posix_acl_access", "x")]).is_ok());
    }

    #[test]
    fn sizes_are_limited_by_the_format() {
        assert!(new(&[("user.a", &"x".repeat(65536))]).is_err());
        let large = "x".repeat(65535);
        assert!(new(&[("user.a", &large), ("user.b", &large), ("user.c", &large)]).is_ok());
        let four = [
            ("user.a", large.as_str()),
            ("user.b", &large),
            ("user.c", &large),
            ("user.d", &large),
        ];
        assert!(new(&four).is_err());
    }
}
