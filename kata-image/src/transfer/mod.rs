//! Bytes from a place that cannot be trusted, checked while they pass: size, digest, and going on where a
//! connection broke.
//!
//! Knows digests, descriptors and the trait of the places; neither registries nor layers.
//!
//! ```text
//!              Blobs::blob(descriptor, offset)
//!                        │ bytes
//!                        ▼               breaks: waits, asks again from this byte on
//!   reader ◄── Verified: counts, hashes ─────────────────────────────────────────────► Blobs::blob
//!                        │ at the end
//!                        ▼
//!              size and digest as the descriptor says, or TransferError
//! ```

mod patience;
mod verified;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use patience::{Patience, patiently};
pub use verified::Verified;

use crate::oci::{Blobs, DOCUMENT_BYTES_MAX, Descriptor, Digest, Document, DocumentError};
use crate::registry::RegistryError;

/// Why bytes of an image are not to be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A file or directory that should hold them cannot be read.
    #[error("cannot read {}", .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: Arc<io::Error>,
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
        source: Arc<DocumentError>,
    },
    /// A manifest, index or configuration is larger than any honest one.
    #[error("{what} of {place} has more than {limit} bytes")]
    DocumentTooLarge {
        /// Where it came from.
        place: String,
        /// Which: a tag, a name or a digest.
        what: String,
        /// The most that is read.
        limit: u64,
    },
    /// The bytes stopped coming, and asking again did not help.
    #[error("{digest} broke off after {received} of {expected} bytes")]
    Broken {
        /// Of what.
        digest: Digest,
        /// As its descriptor says.
        expected: u64,
        /// How many came.
        received: u64,
        /// What happened last.
        #[source]
        source: Arc<io::Error>,
    },
    /// A registry did not give them.
    #[error(transparent)]
    Registry(#[from] Arc<RegistryError>),
}

impl TransferError {
    /// What a failed call on the file or directory at `path` means.
    pub(crate) fn file(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::File {
            path: path.to_path_buf(),
            source: Arc::new(source),
        }
    }

    /// What a document that is not what it should be means.
    pub(crate) fn document(place: &str, what: &str) -> impl Fn(DocumentError) -> Self {
        move |source| Self::Document {
            place: place.to_owned(),
            what: what.to_owned(),
            source: Arc::new(source),
        }
    }

    /// How long the other side wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Registry(error) => error.retry_after(),
            _ => None,
        }
    }

    /// Whether the same question may have a better answer later.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_temporary(),
            Self::Broken { .. } => true,
            _ => false,
        }
    }
}

impl From<RegistryError> for TransferError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Arc::new(error))
    }
}

/// The bytes of a blob, checked while they are read.
pub(crate) fn open<'a>(blobs: &'a dyn Blobs, descriptor: &Descriptor) -> Verified<'a> {
    Verified::new(blobs, descriptor.clone())
}

/// A manifest or index that a descriptor names, checked.
///
/// # Errors
/// When the place does not give it, or it is too large or not what the descriptor says.
pub(crate) fn document(blobs: &dyn Blobs, descriptor: &Descriptor) -> Result<Document, TransferError> {
    check_document_size(descriptor)?;
    let document = blobs.document(descriptor)?;
    let received = document.bytes.len() as u64;
    if received != descriptor.size {
        return Err(TransferError::Size {
            digest: descriptor.digest.clone(),
            expected: descriptor.size,
            received,
        });
    }
    check_digest(&descriptor.digest, &document.bytes)?;
    Ok(document)
}

/// A small blob, such as a configuration, checked.
///
/// # Errors
/// As [`document`].
pub(crate) fn small_blob(blobs: &dyn Blobs, descriptor: &Descriptor) -> Result<Vec<u8>, TransferError> {
    check_document_size(descriptor)?;
    let mut reader = open(blobs, descriptor);
    let mut bytes = Vec::new();
    match reader.read_to_end(&mut bytes) {
        Ok(_) => reader.finish().map(|()| bytes),
        Err(source) => Err(reader.failure(source)),
    }
}

/// Whether bytes are what a digest says.
pub(crate) fn check_digest(expected: &Digest, bytes: &[u8]) -> Result<(), TransferError> {
    let received = Digest::of(bytes);
    if received == *expected {
        return Ok(());
    }
    Err(TransferError::Digest {
        expected: expected.clone(),
        received,
        bytes: bytes.len() as u64,
    })
}

fn check_document_size(descriptor: &Descriptor) -> Result<(), TransferError> {
    if descriptor.size <= DOCUMENT_BYTES_MAX {
        return Ok(());
    }
    Err(TransferError::DocumentTooLarge {
        place: "its descriptor".into(),
        what: descriptor.digest.to_string(),
        limit: DOCUMENT_BYTES_MAX,
    })
}

/// Reads at most [`DOCUMENT_BYTES_MAX`] bytes of a document.
///
/// # Errors
/// When it cannot be read, or there are more.
pub(crate) fn read_document(
    input: impl Read,
    place: &str,
    what: &str,
    failed: impl Fn(io::Error) -> TransferError,
) -> Result<Vec<u8>, TransferError> {
    let mut bytes = Vec::new();
    input
        .take(DOCUMENT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(TransferError::DocumentTooLarge {
            place: place.to_owned(),
            what: what.to_owned(),
            limit: DOCUMENT_BYTES_MAX,
        });
    }
    Ok(bytes)
}
