//! An image written into an OCI image layout, as a directory or as one file (OCI image specification 1.1, "Image
//! Layout"). A reader never sees half of anything: files appear whole, and the index that names them last.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tar::{EntryType, Header};

use super::image::{Done, Image};
use super::packing::{self, CopyError};
use super::{BuildError, to_bytes};
use crate::layout::{INDEX_FILE, IndexFile, LAYOUT_FILE, LAYOUT_VERSION, NAME_ANNOTATION, blob_name};
use crate::oci::{Descriptor, media_type};
use crate::progress::{Progress, Stage};
use crate::transfer::{self, TransferError};

/// Writes into a directory.
pub(super) fn layout(
    image: &Image,
    directory: &Path,
    name: Option<&str>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), BuildError> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(write_error(&blobs))?;
    let index = added(read_index(directory)?, image, name);
    let index = index_bytes(&index, directory)?;
    let mut done = Done::new(image, Stage::Copying);
    for descriptor in image.descriptors() {
        blob_file(image, descriptor, directory, &mut |bytes| {
            done.report(bytes, progress)
        })?;
        done.finish(descriptor, progress);
    }
    let manifest = directory.join(blob_name(&image.digest()));
    replace(&manifest, |output| {
        output
            .write_all(image.manifest_bytes())
            .map_err(write_error(&manifest))
    })?;
    let version = directory.join(LAYOUT_FILE);
    replace(&version, |output| {
        output.write_all(&layout_bytes()).map_err(write_error(&version))
    })?;
    let path = directory.join(INDEX_FILE);
    replace(&path, |output| {
        output.write_all(&index).map_err(write_error(&path))
    })
}

/// Writes one file.
pub(super) fn archive(
    image: &Image,
    path: &Path,
    name: Option<&str>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), BuildError> {
    let index = index_bytes(&added(empty_index(), image, name), path)?;
    replace(path, |output| {
        let mut members = Members { output, path };
        members.bytes(LAYOUT_FILE, &layout_bytes())?;
        members.bytes(INDEX_FILE, &index)?;
        members.bytes(&blob_name(&image.digest()), image.manifest_bytes())?;
        let mut done = Done::new(image, Stage::Copying);
        for descriptor in image.descriptors() {
            members.header(&blob_name(&descriptor.digest), descriptor.size)?;
            copy_blob(image, descriptor, members.output, path, &mut |bytes| {
                done.report(bytes, progress)
            })?;
            members.pad(descriptor.size)?;
            done.finish(descriptor, progress);
        }
        members.write(&[0; 1024])
    })
}

/// A blob in a layout; one that is there and whole is kept.
fn blob_file(
    image: &Image,
    descriptor: &Descriptor,
    directory: &Path,
    report: &mut dyn FnMut(u64),
) -> Result<(), BuildError> {
    let path = directory.join(blob_name(&descriptor.digest));
    if fs::symlink_metadata(&path).is_ok_and(|status| status.is_file() && status.len() == descriptor.size) {
        return Ok(());
    }
    replace(&path, |output| {
        copy_blob(image, descriptor, output, &path, report)
    })
}

/// Copies a blob and checks it.
fn copy_blob(
    image: &Image,
    descriptor: &Descriptor,
    output: &mut dyn Write,
    path: &Path,
    report: &mut dyn FnMut(u64),
) -> Result<(), BuildError> {
    let blobs = image.blobs();
    let mut reader = transfer::open(&*blobs, descriptor);
    match packing::copy(&mut reader, output, report) {
        Ok(()) => Ok(reader.finish()?),
        Err(CopyError::Read(error)) => Err(reader.failure(error).into()),
        Err(CopyError::Write(error)) => Err(write_error(path)(error)),
    }
}

/// Writes a file beside `path` and puts it there when it is whole.
fn replace(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let failed = write_error(path);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    let builder = builder.permissions(fs::Permissions::from_mode(0o644));
    let file = builder
        .tempfile_in(directory.unwrap_or(Path::new(".")))
        .map_err(&failed)?;
    let mut output = BufWriter::with_capacity(256 << 10, file);
    fill(&mut output)?;
    let file = output.into_inner().map_err(|error| failed(error.into_error()))?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> BuildError + '_ {
    move |source| BuildError::Write {
        path: path.to_path_buf(),
        source,
    }
}

fn layout_bytes() -> Vec<u8> {
    to_bytes(&serde_json::json!({"imageLayoutVersion": LAYOUT_VERSION}))
}

fn empty_index() -> IndexFile {
    IndexFile {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.into()),
        manifests: Vec::new(),
    }
}

/// The index of a layout that is there already.
fn read_index(directory: &Path) -> Result<IndexFile, BuildError> {
    let path = directory.join(INDEX_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(empty_index()),
        Err(error) => return Err(TransferError::file(&path)(error).into()),
    };
    let place = directory.display().to_string();
    let bytes = transfer::read_document(file, &place, INDEX_FILE, TransferError::file(&path))?;
    serde_json::from_slice(&bytes).map_err(layout_error(directory))
}

fn index_bytes(index: &IndexFile, path: &Path) -> Result<Vec<u8>, BuildError> {
    serde_json::to_vec(index).map_err(layout_error(path))
}

fn layout_error(path: &Path) -> impl Fn(serde_json::Error) -> BuildError + '_ {
    move |source| BuildError::Layout {
        path: path.to_path_buf(),
        source,
    }
}

/// The index with the image under its name, which it takes from whatever had it.
fn added(mut index: IndexFile, image: &Image, name: Option<&str>) -> IndexFile {
    let mut descriptor = image.manifest_descriptor();
    if let Some(name) = name {
        descriptor
            .annotations
            .insert(NAME_ANNOTATION.into(), name.to_owned());
    }
    let name_of = |entry: &Descriptor| entry.annotations.get(NAME_ANNOTATION).cloned();
    let takes_place = |entry: &Descriptor| match name {
        Some(name) => name_of(entry).as_deref() == Some(name),
        None => name_of(entry).is_none() && entry.digest == descriptor.digest,
    };
    index.manifests.retain(|entry| !takes_place(entry));
    index.manifests.push(descriptor);
    index
}

/// Members of a tar archive, with nothing in their headers but name and size.
struct Members<'a> {
    output: &'a mut dyn Write,
    path: &'a Path,
}

impl Members<'_> {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), BuildError> {
        let size = bytes.len() as u64;
        self.header(name, size)?;
        self.write(bytes)?;
        self.pad(size)
    }

    fn header(&mut self, name: &str, size: u64) -> Result<(), BuildError> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_path(name).map_err(write_error(self.path))?;
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn pad(&mut self, bytes: u64) -> Result<(), BuildError> {
        let padding = usize::try_from(bytes.wrapping_neg() % 512).unwrap_or_default();
        self.write(&[0; 512][..padding])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.output.write_all(bytes).map_err(write_error(self.path))
    }
}
