//! What a copy tells of itself.

use std::fmt;
use std::path::PathBuf;

/// How far a copy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyProgress {
    /// Files, directories and others that were copied.
    pub entries: u64,
    /// Bytes of files, without holes.
    pub bytes: u64,
}

impl fmt::Display for CopyProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.entries == 1 { "entry" } else { "entries" };
        write!(f, "copying {} MiB, {} {unit}", self.bytes >> 20, self.entries)
    }
}

/// What was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// Files, directories and others.
    pub entries: u64,
    /// Bytes of files, without holes.
    pub bytes: u64,
    /// What was left out, the first few dozen of it.
    pub left_out: Vec<LeftOut>,
    /// How much was left out.
    pub left_out_count: u64,
}

/// Something that was not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Where, from the source; empty for the source itself.
    pub path: PathBuf,
    /// What.
    pub what: Omitted,
}

/// What a copy can leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Omitted {
    /// A socket, which means nothing elsewhere.
    Socket,
    /// A device node.
    Device,
    /// The set-user-id and set-group-id bits of a file.
    SetId,
    /// An extended attribute, which the other file system cannot have or which is a privilege.
    Attribute,
    /// What is in one of the kernel's own file systems, such as `/proc`.
    KernelFiles,
    /// That it is another name of a file: it was copied as a file of its own.
    HardLink,
    /// What this version does not know.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_as_a_sentence() {
        let progress = CopyProgress {
            entries: 1,
            bytes: 3 << 20,
        };
        assert_eq!(progress.to_string(), "copying 3 MiB, 1 entry");
    }
}
