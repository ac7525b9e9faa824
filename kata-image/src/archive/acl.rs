//! POSIX access control lists from their text form (`SCHILY.acl.*`) into the form of the extended attribute
//! (`system.posix_acl_*`, linux/posix_acl_xattr.h).

/// `ACL_UNDEFINED_ID`: entries without a user or group.
const NO_ID: u32 = u32::MAX;
const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;

/// Whether an access list says more than owner, group and others, which are the mode: the kernel keeps no other.
pub(super) fn says_more_than_mode(attribute: &[u8]) -> bool {
    attribute.len() > size_of_val(&VERSION) + 3 * ENTRY_BYTES
}

/// `user::rwx,user:name:rwx:1000,group::r-x,mask::rwx,other::r--`, by comma or newline. A name that is a number
/// counts as one; any other needs the number as its fourth field. `None` when that is not so.
pub(super) fn from_text(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let lines = text
        .split([',', '\n'])
        .map(|line| line.split('#').next().unwrap_or_default().trim());
    let mut entries = lines
        .filter(|line| !line.is_empty())
        .map(entry)
        .collect::<Option<Vec<_>>>()?;
    entries.sort_unstable();
    let mut attribute = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        attribute.extend(tag.to_le_bytes());
        attribute.extend(permissions.to_le_bytes());
        attribute.extend(id.to_le_bytes());
    }
    Some(attribute)
}

/// Tag, id, permissions.
fn entry(line: &str) -> Option<(u16, u32, u16)> {
    let mut fields = line.split(':');
    let (kind, name) = (fields.next()?, fields.next()?);
    let permissions = permissions(fields.next()?)?;
    let number = fields.next();
    let tag = match (kind, name.is_empty()) {
        ("user" | "u", true) => 0x01,
        ("user" | "u", false) => 0x02,
        ("group" | "g", true) => 0x04,
        ("group" | "g", false) => 0x08,
        ("mask" | "m", true) => 0x10,
        ("other" | "o", true) => 0x20,
        _ => return None,
    };
    let id = if name.is_empty() {
        NO_ID
    } else {
        number.unwrap_or(name).parse().ok()?
    };
    Some((tag, id, permissions))
}

fn permissions(text: &str) -> Option<u16> {
    text.bytes().try_fold(0, |bits, byte| match byte {
        b'r' => Some(bits | 4),
        b'w' => Some(bits | 2),
        b'x' => Some(bits | 1),
        b'-' => Some(bits),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_kernels_form() {
        let attribute =
            from_text(b"user::rw-,user:daemon:r-x:1,group::r--,mask::rwx,other::---\n").expect("acl");
        let expected = "02000000\
                        01000600ffffffff\
                        0200050001000000\
                        04000400ffffffff\
                        10000700ffffffff\
                        20000000ffffffff";
        assert_eq!(hex::encode(&attribute), expected);
        assert!(says_more_than_mode(&attribute));
        assert!(!says_more_than_mode(
            &from_text(b"user::rw-,group::r--,other::---").expect("acl")
        ));
        assert_eq!(from_text(b"user:7:rwx"), from_text(b"user:x:rwx:7"));
    }

    #[test]
    fn a_name_without_a_number_is_refused() {
        for text in [
            &b"user:daemon:rwx"[..],
            b"user",
            b"what::rwx",
            b"user::q",
            b"mask:1:rwx",
            b"\xff",
        ] {
            assert_eq!(from_text(text), None);
        }
    }
}
