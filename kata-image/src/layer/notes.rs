//! What a layer's image cannot say alone. Owns the form in which that is stored; knows neither archives nor images.

use serde::{Deserialize, Serialize};

use crate::tree::EntryPath;

/// What a layer leaves to the layers below it. Stored beside the layer's image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notes {
    /// Directories that are on the way to an entry and have none of their own: owner, mode, times and attributes are
    /// those of the layer below, and there the path may go through a symbolic link. The image marks them. The root is
    /// not counted: over a stack of layers it takes the attributes of what is mounted on top.
    pub implied_directories: u64,
    /// Nothing of the layers below is left: the root is opaque, which overlayfs does not look at.
    pub opaque_root: bool,
    /// Names that it takes away from the layers below. Overlayfs lists them, as names of nothing, in a directory that
    /// only one layer has.
    pub whiteouts: u64,
    /// Hard links to files that the layer does not have.
    pub links: Vec<Link>,
}

/// A hard link to a file of a layer below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// The new name.
    #[serde(with = "escaped")]
    pub path: Vec<u8>,
    /// The file, in the layers below.
    #[serde(with = "escaped")]
    pub target: Vec<u8>,
}

impl Notes {
    /// Whether the layer's image says everything that the layer does. One that does not cannot be stacked on others by
    /// overlayfs, and is merged with those below it ([`merge`](super::merge())); of those that do,
    /// [`can_stack`](super::can_stack) tells.
    #[must_use]
    pub fn is_self_contained(&self) -> bool {
        self.implied_directories == 0 && !self.opaque_root && self.links.is_empty()
    }

    /// Whether the layer's image can be the lowest: what it leaves to lower layers is nothing, or directories, which
    /// then are root's with mode 0755.
    #[must_use]
    pub fn can_be_lowest(&self) -> bool {
        self.links.is_empty() && self.whiteouts == 0
    }
}

impl Link {
    pub(super) fn new(path: &EntryPath, target: &EntryPath) -> Self {
        Self {
            path: path.to_bytes(),
            target: target.to_bytes(),
        }
    }
}

/// Paths are bytes, JSON is text: everything but visible ASCII is written as `%` and two digits.
mod escaped {
    use std::fmt::Write as _;

    use super::Deserialize;
    use serde::{Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len());
        for byte in bytes {
            if byte.is_ascii_graphic() && *byte != b'%' {
                text.push(char::from(*byte));
            } else {
                write!(text, "%{byte:02x}").map_err(serde::ser::Error::custom)?;
            }
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        unescape(text.as_bytes()).ok_or_else(|| D::Error::custom("a path is not escaped as it should be"))
    }

    fn unescape(text: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some((first, after)) = rest.split_first() {
            if *first == b'%' {
                let (digits, after) = after.split_at_checked(2)?;
                let digits = std::str::from_utf8(digits).ok()?;
                // It would take a sign, too.
                let valid = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| valid)?);
                rest = after;
            } else {
                bytes.push(*first);
                rest = after;
            }
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_json_whatever_the_names() {
        let notes = Notes {
            implied_directories: 2,
            opaque_root: false,
            whiteouts: 3,
            links: vec![Link {
                path: b"a b/\xff%".to_vec(),
                target: b"bin/sh".to_vec(),
            }],
        };
        let text = serde_json::to_string(&notes).unwrap();
        let expected = r#"{"implied_directories":2,"opaque_root":false,"whiteouts":3,"links":[{"path":"a%20b/%ff%25","target":"bin/sh"}]}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Notes>(&text).unwrap(), notes);
        for wrong in ["%f", "%zz", "%"] {
            let text = text.replace("bin/sh", wrong);
            assert!(serde_json::from_str::<Notes>(&text).is_err(), "{wrong}");
        }
    }

    #[test]
    fn whatever_is_left_to_lower_layers_is_no_stack() {
        assert!(Notes::default().is_self_contained());
        let implied = Notes {
            implied_directories: 1,
            ..Notes::default()
        };
        assert!(!implied.is_self_contained() && implied.can_be_lowest());
        let opaque = Notes {
            opaque_root: true,
            ..Notes::default()
        };
        assert!(!opaque.is_self_contained() && opaque.can_be_lowest());
        let taking = Notes {
            whiteouts: 1,
            ..Notes::default()
        };
        assert!(taking.is_self_contained() && !taking.can_be_lowest());
    }
}
