//! Images in files: OCI image layouts (OCI image specification 1.1, "Image Layout"), as a directory or as a tar
//! archive, and the archives of `docker save`.
//!
//! Owns what is found where in them. Nothing is unpacked but a compressed archive, as a whole; names and links in an
//! archive lead to its own members and nowhere else.

mod directory;
mod docker;
mod index;
mod tarball;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use crate::archive::{self, Compression, Recognized};
use crate::oci::Blobs;
use crate::transfer::TransferError;
pub(crate) use index::{INDEX_FILE, IndexFile, LAYOUT_FILE, LAYOUT_VERSION, NAME_ANNOTATION, blob_name};
use tarball::Tarball;

/// What an image is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory with an `oci-layout`.
    Directory,
    /// A tar archive of one, or of `docker save`.
    Archive,
}

/// Why there is no image in a file or directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// It cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// It cannot be unpacked.
    #[error("cannot unpack {} into {}", .path.display(), .directory.display())]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// Where it was to go.
        directory: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no OCI image layout and no archive of one or of `docker save`", .path.display())]
    Unrecognized {
        /// The file or directory.
        path: PathBuf,
    },
    /// An archive is broken, or holds what no honest one holds.
    #[error("the archive {} is not usable: {reason}", .path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file that every image of this kind has is missing.
    #[error("{} has no {member}", .path.display())]
    Member {
        /// The archive or directory.
        path: PathBuf,
        /// The file.
        member: String,
    },
    /// A document in it is not what it should be.
    #[error("{member} in {} cannot be used", .path.display())]
    Json {
        /// The archive or directory.
        path: PathBuf,
        /// The document.
        member: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// It is of a version that is not known.
    #[error("{} is an image layout of version {version:?}, not 1.0.0", .path.display())]
    Version {
        /// The archive or directory.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// None of its images has that name, or there are several and no name was given.
    #[error("{} has {}: {}", .path.display(), asked(.name), known(.names))]
    Name {
        /// The archive or directory.
        path: PathBuf,
        /// What was asked for.
        name: Option<String>,
        /// What there is.
        names: Vec<String>,
    },
    /// Something in it cannot be read.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}

fn asked(name: &Option<String>) -> String {
    match name {
        Some(name) => format!("no image {name:?}"),
        None => "several images, and no name says which".into(),
    }
}

fn known(names: &[String]) -> String {
    if names.is_empty() {
        return "its images have no names".into();
    }
    let shown = names.iter().take(20).map(String::as_str).collect::<Vec<_>>();
    format!("there is {}", shown.join(", "))
}

/// The most that a compressed archive may hold: more than any image.
const UNPACKED_BYTES_MAX: u64 = 64 << 30;

/// Whether there are images at `path`: by the name of an archive's first member, or by a file in a directory. A tar
/// archive of a root filesystem is none.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn recognize(path: &Path) -> io::Result<Option<Kind>> {
    if std::fs::metadata(path)?.is_dir() {
        return Ok(path.join(index::LAYOUT_FILE).is_file().then_some(Kind::Directory));
    }
    let mut file = File::open(path)?;
    let head = head(&mut file)?;
    let first = match archive::recognize(&head) {
        Recognized::Readable(Compression::None) => head,
        Recognized::Readable(compression) => {
            file.rewind()?;
            let mut first = Vec::new();
            let unpacked = unpacker(compression, file)?;
            // What is compressed and broken is no archive that is known here; who reads it tells why.
            match unpacked.take(tarball::BLOCK_BYTES).read_to_end(&mut first) {
                Ok(_) => first,
                Err(_) => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    let is_image = tarball::first_name(&first).is_some_and(|name| is_member_of_image(&name));
    Ok(is_image.then_some(Kind::Archive))
}

/// Opens the image of that name, or the only one. A compressed archive is unpacked into a file without a name in
/// `temporary`.
///
/// # Errors
/// When there is no such image, or what there is cannot be read.
pub(crate) fn open(
    path: &Path,
    name: Option<&str>,
    temporary: &Path,
) -> Result<Box<dyn Blobs + Send>, LayoutError> {
    let read_error = |source| LayoutError::Read {
        path: path.to_path_buf(),
        source,
    };
    if std::fs::metadata(path).map_err(read_error)?.is_dir() {
        let directory = directory::Directory::open(path).map_err(read_error)?;
        return Ok(Box::new(index::Layout::open(directory, path, name)?));
    }
    let mut file = File::open(path).map_err(read_error)?;
    let head = head(&mut file).map_err(read_error)?;
    file.rewind().map_err(read_error)?;
    let file = match archive::recognize(&head) {
        Recognized::Readable(Compression::None) => file,
        Recognized::Readable(compression) => {
            unpack(compression, file, temporary).map_err(|source| LayoutError::Unpack {
                path: path.to_path_buf(),
                directory: temporary.to_path_buf(),
                source,
            })?
        }
        _ => {
            let path = path.to_path_buf();
            return Err(LayoutError::Unrecognized { path });
        }
    };
    let tarball = Tarball::open(file, path)?;
    // What docker writes today is both; as a layout it says more.
    if tarball.has(index::LAYOUT_FILE) && tarball.has(index::INDEX_FILE) {
        return Ok(Box::new(index::Layout::open(tarball, path, name)?));
    }
    if tarball.has(docker::MANIFEST_FILE) {
        return Ok(Box::new(docker::DockerArchive::open(tarball, path, name)?));
    }
    let path = path.to_path_buf();
    Err(LayoutError::Unrecognized { path })
}

/// Files of an image, by their names.
trait Files: Sync {
    /// A file from byte `offset` on; `None` when there is none.
    fn read(&self, name: &str, offset: u64) -> io::Result<Option<Box<dyn Read + Send>>>;
}

/// What the first member of an image's archive is called.
fn is_member_of_image(name: &str) -> bool {
    let name = name.trim_start_matches("./");
    if matches!(
        name,
        "oci-layout" | "index.json" | "manifest.json" | "repositories"
    ) || name.starts_with("blobs/")
    {
        return true;
    }
    // `docker save` begins with a layer's directory or a configuration, skopeo with a layer.
    let Some((id, rest)) = name.split_at_checked(64) else {
        return false;
    };
    let is_id = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_id && (rest.starts_with('/') || rest == ".json" || rest == ".tar")
}

fn head(file: &mut File) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.take(tarball::BLOCK_BYTES).read_to_end(&mut head)?;
    Ok(head)
}

/// The bytes in a packed file.
pub(crate) fn unpacker(compression: Compression, file: File) -> io::Result<Box<dyn Read>> {
    let input = io::BufReader::with_capacity(256 << 10, file);
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input)?),
    })
}

fn unpack(compression: Compression, file: File, directory: &Path) -> io::Result<File> {
    let mut unpacked = tempfile::tempfile_in(directory)?;
    let input = unpacker(compression, file)?;
    let count = io::copy(&mut input.take(UNPACKED_BYTES_MAX + 1), &mut unpacked)?;
    if count > UNPACKED_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it unpacks to more than 64 GiB",
        ));
    }
    unpacked.rewind()?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_tells_an_image_from_a_root_filesystem() {
        let id = "0123456789abcdef".repeat(4);
        for name in [
            "oci-layout",
            "./oci-layout",
            "index.json",
            "manifest.json",
            "repositories",
            "blobs/",
            "blobs/sha256/",
        ] {
            assert!(is_member_of_image(name), "{name}");
        }
        for rest in ["/", "/VERSION", ".json", ".tar"] {
            assert!(is_member_of_image(&format!("{id}{rest}")), "{rest}");
        }
        for name in [
            "./",
            "etc/",
            "bin",
            "blobs",
            "manifest.jsonx",
            "usr/manifest.json",
            &id,
            &id[1..],
            &format!("{id}x/"),
        ] {
            assert!(!is_member_of_image(name), "{name}");
        }
    }
}
