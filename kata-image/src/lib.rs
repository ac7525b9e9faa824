//! Container images and guest assets for microVMs.
//!
//! This crate turns what people have (an image of a registry, a layout, an archive, a directory) into what a sandbox
//! boots (read-only [EROFS](erofs) images, cached by their content in a [`Store`]), and finds or makes the other
//! files a guest needs: an uncompressed [kernel], its modules, an [initramfs] and the agent ([guest]).
//! It knows nothing of virtual machines, hypervisors or the agent's protocol.
//!
//! ```no_run
//! use kata_image::{ImageSource, Pull, Store};
//!
//! let store = Store::open(Store::default_directory()?)?;
//! let source = ImageSource::detect("docker.io/library/debian:12")?;
//! let image = store.image(&source, &Pull::default(), &mut |progress| eprintln!("{progress}"))?;
//! println!("{} has {} layers", image.digest, image.layers.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Words
//!
//! * A **source** is where a root filesystem comes from; it is only ever read.
//! * An **image** is one file with a read-only EROFS filesystem. The same source gives the same bytes.
//!   Making one costs a copy of the source; using it again costs a look at the source's metadata.
//! * A **container image** ([`Image`]) is what engines exchange: a manifest, a configuration and layers, in a
//!   [registry](Registries) under a [`Reference`], in a layout or an archive, or [made here](ImageBuilder). Its bytes
//!   are read when they are asked for, and checked against their digests.
//! * The **store** is a directory of images named after their digests. Any number of processes share it,
//!   and an image lives in it until it is removed or pruned, but never goes while somebody uses it.
//! * The **guest directory** holds the kernel, the initramfs and the agent that a sandbox boots.
#![forbid(unsafe_code)]

mod archive;
mod build;
mod cache;
pub mod erofs;
mod file_xattrs;
#[doc(hidden)]
pub mod fuzzing;
pub mod guest;
mod image_source;
pub mod initramfs;
pub mod kernel;
pub mod layer;
mod layout;
mod oci;
mod progress;
mod reference;
mod registry;
mod source;
mod store;
mod transfer;
mod tree;
pub mod verity;

pub use archive::ArchiveError;
pub use build::{BuildError, Image, ImageBuilder, ImageLayer, LayerCompression};
pub use cache::{CacheDirectoryError, cache_directory};
pub use image_source::{ImageSource, ImageSourceError};
pub use layout::LayoutError;
pub use oci::{Digest, DigestError, DocumentError, ImageConfig, Platform};
pub use progress::{Progress, Stage};
pub use reference::{Reference, ReferenceError};
pub use registry::{CredentialsError, KeeperError, Registries, RegistryError};
pub use source::{Source, SourceError};
pub use store::{
    Pruned, Pull, PullPolicy, ReadyImage, Rootfs, Store, StoreError, StoredHashTree, StoredImage, Writable,
    WritableError, find_mke2fs,
};
pub use transfer::{TransferError, Verified};
pub use tree::EntryError;
