//! Bytes from a place that cannot be trusted, checked while they pass: size, digest, and going on where a
//! connection broke.
//!
//! Knows digests and descriptors; neither registries nor layers.

use std::io;
use std::path::PathBuf;

use crate::oci::{Digest, DocumentError};

/// Why bytes of an image are not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A file or directory that should hold them cannot be read.
    #[error("cannot read {}", .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The place has no such manifest, index or blob.
    #[error("{place} has no {what}")]
    Missing {
        /// Where it was looked for.
        place: String,
        /// A tag, a name or a digest.
        what: String,
    },
    /// They are of another size than was said.
    #[error("{digest} has {expected} bytes, and {received} came")]
    Size {
        /// Of what.
        digest: Digest,
        /// As its descriptor says.
        expected: u64,
        /// As counted; more is not read than needed to know.
        received: u64,
    },
    /// They are not what the digest says.
    #[error("what should be {expected} is {received}, {bytes} bytes")]
    Digest {
        /// As asked for.
        expected: Digest,
        /// As computed.
        received: Digest,
        /// How many came.
        bytes: u64,
    },
    /// A manifest, index or configuration is not what it should be.
    #[error("{what} of {place} cannot be used")]
    Document {
        /// Where it came from.
        place: String,
        /// Which: a tag, a name or a digest.
        what: String,
        /// Why not.
        #[source]
        source: DocumentError,
    },
}
