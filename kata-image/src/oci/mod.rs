//! What the [OCI image specification] says: digests, descriptors, manifests, indexes and configurations, and the
//! places that hold them.
//!
//! Parsing and nothing else: it opens no file and no connection. Documents come from strangers; what is
//! wrong with one is an error that names the field.
//!
//! [OCI image specification]: https://github.com/opencontainers/image-spec/blob/v1.1.0/spec.md

mod config;
mod digest;
mod manifest;
mod platform;

use std::io::Read;

pub(crate) use config::ConfigDocument;
pub use config::ImageConfig;
pub(crate) use digest::hex;
pub use digest::{Digest, DigestError};
pub use manifest::DocumentError;
pub(crate) use manifest::{Descriptor, Document, Index, Manifest, Parsed, check_layer_count, media_type};
pub use platform::Platform;

use crate::transfer::{Patience, TransferError};

/// The most that a manifest, an index or a configuration may have: what registries accept too (OCI distribution
/// specification 1.1, "Pushing Manifests").
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// A place that holds one image, or an index of images: a repository of a registry, a layout, an archive.
///
/// It gives bytes as they are there; whether they are what a digest says is checked by who reads them
/// ([`transfer`](crate::transfer)).
pub(crate) trait Blobs: Sync {
    /// What the reference or name that this place was opened with stands for: a manifest or an index.
    fn root(&self) -> Result<Document, TransferError>;

    /// The manifest or index of a descriptor.
    fn document(&self, descriptor: &Descriptor) -> Result<Document, TransferError>;

    /// The bytes of a blob (a layer, a configuration) from byte `offset` on.
    fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send>, TransferError>;

    /// How long to bear with it when it fails for now.
    fn patience(&self) -> Patience {
        Patience::default()
    }

    /// Host and path of the repository that holds the blobs, where there is one.
    fn repository(&self) -> Option<(&str, &str)> {
        None
    }
}
