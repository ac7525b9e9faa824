//! Layers of images: a compressed tar stream that says what changed against the layers below it becomes an EROFS
//! image, in one pass, while it is downloaded. Owns what a change means (OCI image specification,
//! [`layer.md`](https://github.com/opencontainers/image-spec/blob/v1.1.0/layer.md)) and how overlayfs is told; knows
//! neither registries nor the store, and makes nothing on the host but the image.
//!
//! ```text
//!  blob ─► unpack (a thread) ─► members ─► changes ─┬─► image: entries, whiteouts, opaque marks
//!           gzip, zstd, plain    hashed: diff_id    └─► notes: what is left to the layers below
//!
//!  images and notes, lowest first ─► can_stack? ─► as they are, for overlayfs
//!                                              └─► merge ─► one flat image
//! ```
//!
//! A layer's image is for overlayfs, as a lower directory. `.wh.NAME` is a character device 0:0, `.wh..wh..opq` the
//! attribute `trusted.overlay.opaque`; they speak of the layers below only, wherever they stand in the archive, and a
//! directory that is both whited out and there is opaque. Other names of aufs (`.wh..wh.`) mean nothing.
//!
//! # Threats
//!
//! A layer comes from a stranger.
//!
//! | a layer | and what becomes of it |
//! |---|---|
//! | unpacks to more than it may | [`ArchiveError::Bomb`](crate::ArchiveError::Bomb) at [`Limits::image_bytes`], whatever the bytes are for |
//! | has more entries, names or attributes than memory should hold | an error at [`Limits::entries`] or [`Limits::metadata_bytes`]; whiteouts and links count too |
//! | has paths with `..`, through links or files of its own, or names that are too long | refused by name ([`EntryError`](crate::EntryError)) |
//! | has paths through links of lower layers | such a directory is implied; a merge follows the link inside the root |
//! | has `trusted.overlay.` or `user.overlay.` attributes, to redirect or hide | they are left out and counted |
//! | has a real character device 0:0, which is a whiteout to overlayfs | refused by name |
//! | has names that only look like whiteouts (`.wh.`, `.wh...`, `.wh.a/b`) | refused by name |
//! | links to files of lower layers | noted; a merge looks for them by names, never on the host |
//! | ends early, or is broken | an error; its digest is that of every byte to the stream's end |

mod changes;
mod marks;
mod merge;
mod names;
mod notes;
mod resolve;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::Digest as _;

use crate::archive::{BytesRead, Members, Packed, Unpacked};
use crate::erofs::{self, Error, Image, Limits, Summary};
use crate::oci::Digest;
use crate::progress::Progress;
use changes::Changes;
pub use merge::{Layer, can_stack, merge};
pub use notes::{Link, Notes};

/// A layer that became an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// What was written.
    pub summary: Summary,
    /// Of the unpacked archive, to the end of the stream: what an image's configuration lists in `rootfs.diff_ids`.
    pub diff_id: Digest,
    /// What the image leaves to the layers below it.
    pub notes: Notes,
}

/// Writes the layer whose archive is read from `blob` (a tar stream: plain, or compressed with gzip or zstd) to `out`,
/// which must be open for reading and writing and is truncated first. `label` is what the layer is called in errors.
///
/// It is read once, to its end, on a thread of its own; the call returns when that thread has ended, so a read of
/// `blob` must not hang for ever. The same archive gives the same bytes, however it was compressed. Memory is a few
/// MiB and some 350 bytes for each entry.
///
/// `progress` counts bytes of `blob`.
///
/// # Errors
///
/// When the blob cannot be read or is no such archive, when it holds what no layer can hold or exceeds the limits, or
/// when the output cannot be written. What the output then holds is of no use.
pub fn convert(
    blob: impl Read + Send,
    label: &Path,
    out: &File,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Converted, Error> {
    let read_error = |source| Error::Read {
        path: label.to_path_buf(),
        source,
    };
    out.set_len(0).map_err(Error::Write)?;
    let packed = Packed::maybe_empty(blob).map_err(read_error)?;
    let packed = packed.ok_or_else(|| Error::NotAnArchive {
        path: label.to_path_buf(),
    })?;
    let image = Image::of_known_source(out, *limits, progress);
    let convert = |unpacked, bytes_read: &BytesRead| convert_unpacked(unpacked, bytes_read, label, image);
    packed
        .limit(limits.image_bytes)
        .unpack(convert)
        .map_err(read_error)?
}

fn convert_unpacked(
    unpacked: Unpacked,
    bytes_read: &BytesRead,
    label: &Path,
    mut image: Image<'_>,
) -> Result<Converted, Error> {
    let mut members = Members::new(unpacked);
    let mut changes = Changes::new(label, &mut image);
    while let Some(member) = members.next().map_err(|error| changes.archive_error(error))? {
        changes.member(member, &mut members, bytes_read)?;
    }
    let (tree, notes) = changes.finish();
    let hasher = members.into_input().into_hasher();
    let source = hasher.clone().finalize().into();
    let summary = erofs::write_metadata(image, &tree, source)?;
    let diff_id = Digest::finish(hasher);
    Ok(Converted {
        summary,
        diff_id,
        notes,
    })
}
