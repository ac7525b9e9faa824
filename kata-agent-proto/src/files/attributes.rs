//! Extended attributes: which are copied, and how.
//!
//! A user's own, access control lists and file capabilities. What a file system or a security module keeps for itself
//! (`trusted.`, `security.` but for capabilities) means nothing elsewhere.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::kata::Attribute;

/// Beyond it an entry's attributes are left out, in bytes: more than any file system of Linux keeps for a file.
const BYTES_MAX: usize = 256 << 10;
/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` (linux/limits.h).
const LIST_BYTES_MAX: usize = 64 << 10;
const VALUE_BYTES_MAX: usize = 64 << 10;

/// File capabilities: a privilege, as a set-id bit is.
const CAPABILITY: &[u8] = b"security.capability";

/// What is done with an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Kept,
    Privilege,
    NotCopied,
}

pub(super) fn class(name: &[u8]) -> Class {
    match name {
        CAPABILITY => Class::Privilege,
        b"system.posix_acl_access" | b"system.posix_acl_default" => Class::Kept,
        name if name.starts_with(b"user.") => Class::Kept,
        _ => Class::NotCopied,
    }
}

/// The attributes of an open file or directory; none where there are too many.
pub(super) fn read(file: BorrowedFd<'_>) -> Option<Vec<Attribute>> {
    let mut list = vec![0_u8; LIST_BYTES_MAX];
    let length = match rustix::fs::flistxattr(file, &mut list[..]) {
        Ok(length) => length,
        // A file system without attributes has none.
        Err(Errno::NOTSUP | Errno::NOSYS) => 0,
        Err(_) => return None,
    };
    let mut attributes = Vec::new();
    let mut bytes = 0;
    let mut value = Vec::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if name.is_empty() || class(name) == Class::NotCopied {
            continue;
        }
        value.resize(VALUE_BYTES_MAX, 0);
        let length = match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(length) => length,
            // It was taken away meanwhile.
            Err(Errno::NODATA) => continue,
            Err(_) => return None,
        };
        bytes += name.len() + length;
        if bytes > BYTES_MAX {
            return None;
        }
        attributes.push(Attribute {
            name: name.to_vec(),
            value: value[..length].to_vec(),
            ..Default::default()
        });
    }
    Some(attributes)
}

/// Gives an open file or directory an attribute; false where it cannot have it.
pub(super) fn write(file: BorrowedFd<'_>, attribute: &Attribute) -> bool {
    let name = attribute.name.as_slice();
    !name.contains(&0) && rustix::fs::fsetxattr(file, name, &attribute.value, XattrFlags::empty()).is_ok()
}
