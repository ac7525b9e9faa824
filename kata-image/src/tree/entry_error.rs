//! What is wrong with an entry of a source.

use std::path::PathBuf;

/// An entry of a source that cannot stand in a filesystem. Paths are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// A path with `..` in it.
    #[error("{} leaves the root", .path.display())]
    LeavesRoot {
        /// The entry.
        path: PathBuf,
    },
    /// A path through a symbolic link; where it led would depend on the link.
    #[error("{} lies below the symbolic link {}", .path.display(), .link.display())]
    BelowSymlink {
        /// The entry.
        path: PathBuf,
        /// The link.
        link: PathBuf,
    },
    /// A path through something that is no directory.
    #[error("{} lies below {}, which is no directory", .path.display(), .parent.display())]
    BelowFile {
        /// The entry.
        path: PathBuf,
        /// What is in its way.
        parent: PathBuf,
    },
    /// A directory and something else under one name.
    #[error("{} is both a directory and something else", .path.display())]
    TypeClash {
        /// The entry.
        path: PathBuf,
    },
    /// A hard link to what is not there, or to a directory.
    #[error("{} is a hard link to {}, which is not an earlier file of the archive", .path.display(), .target.display())]
    HardLink {
        /// The entry.
        path: PathBuf,
        /// Its target.
        target: PathBuf,
    },
    /// A name with a zero byte or of more than 255 bytes, or a path of more than 4095.
    #[error("{} has a name that no Linux filesystem can hold", .path.display())]
    Name {
        /// The entry.
        path: PathBuf,
    },
    /// A symbolic link whose target is empty, too long, or has a zero byte.
    #[error("{} is a symbolic link with a target that Linux does not accept", .path.display())]
    Target {
        /// The entry.
        path: PathBuf,
    },
    /// An extended attribute that an image cannot hold.
    #[error("{} has an extended attribute {name:?} that an image cannot hold: {reason}", .path.display())]
    Xattr {
        /// The entry.
        path: PathBuf,
        /// Name of the attribute.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A device number beyond 12 bits of major or 20 bits of minor.
    #[error("{} has the device number {major}:{minor}, which Linux does not accept", .path.display())]
    Device {
        /// The entry.
        path: PathBuf,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A name that begins like a whiteout but cannot be one, or a path below a whiteout.
    #[error("{} is no whiteout that a layer can have", .path.display())]
    Whiteout {
        /// The entry.
        path: PathBuf,
    },
    /// A real character device 0:0 in a layer. Overlayfs takes such a device for a whiteout, and what a layer
    /// takes away it says with `.wh.` names.
    #[error("{} is a character device 0:0, which overlayfs takes for a whiteout", .path.display())]
    WhiteoutDevice {
        /// The entry.
        path: PathBuf,
    },
}
