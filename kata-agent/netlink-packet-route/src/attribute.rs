//! Attributes of a message: length, kind, value, each starting at a multiple of four (netlink(7), `struct nlattr`).
//! Knows no kinds.

use netlink_packet_core::DecodeError;

/// Length and kind.
const HEADER: usize = 4;

/// The two upper bits of a kind are not of its number (`NLA_TYPE_MASK`).
const KIND: u16 = 0x3fff;

/// Appends an attribute with what fills up the last of it.
pub(crate) fn write(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // A value that is too long for the number is one that the kernel refuses: names and addresses are short.
    let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(HEADER), 0);
}

/// The attributes in order, as kind and value.
///
/// # Errors
/// When one is cut short.
pub(crate) fn read(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, DecodeError> {
    let mut attributes = Vec::new();
    while let Some((&[l0, l1, k0, k1], _)) = bytes.split_first_chunk() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(HEADER..length).ok_or("an attribute is cut short")?;
        attributes.push((u16::from_ne_bytes([k0, k1]) & KIND, value));
        bytes = bytes.get(length.next_multiple_of(HEADER)..).unwrap_or_default();
    }
    Ok(attributes)
}
