//! A layer of the outer guest's root: a list of files, and the read-only image made of them.
//!
//! It owns how an image is put together and when one that exists is used again. It must not know what is in it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kata_image::{Source, erofs};
use sha2::{Digest, Sha256};

use super::libraries;
use crate::partial::Partial;
use crate::process::ProcessError;

/// Why a layer could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    /// A file cannot be read or written.
    #[error("cannot put {} into the bed", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// Nobody can say which libraries a program needs.
    #[error("cannot find the libraries of the bed's programs")]
    Libraries(#[from] ProcessError),
    /// The image cannot be written.
    #[error("cannot write an image of the bed")]
    Image(#[from] erofs::Error),
}

/// What a file of the layer is made of.
#[derive(Debug)]
enum Content {
    /// A copy of this one, with its permissions.
    Copy(PathBuf),
    /// The same, where possible by a second name for it: for files whose owner does not look at their `ctime`.
    Link(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

/// Files by the path that they have in the outer guest.
#[derive(Debug, Default)]
pub(super) struct Layer(BTreeMap<PathBuf, Content>);

impl Layer {
    /// A file that is a copy of another.
    pub(super) fn copy(&mut self, at: impl Into<PathBuf>, from: impl Into<PathBuf>) {
        self.0.insert(at.into(), Content::Copy(from.into()));
    }

    /// A file that cargo built.
    pub(super) fn link(&mut self, at: impl Into<PathBuf>, from: impl Into<PathBuf>) {
        self.0.insert(at.into(), Content::Link(from.into()));
    }

    /// A file with these contents.
    pub(super) fn text(&mut self, at: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>) {
        self.0.insert(at.into(), Content::Bytes(bytes.into()));
    }

    /// The files directly in a directory, where it is; a layer may well do without.
    pub(super) fn directory(&mut self, directory: &Path) -> Result<(), LayerError> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(file(directory))?,
        };
        for entry in entries {
            let path = entry.map_err(file(directory))?.path();
            if path.is_file() {
                self.copy(&path, &path);
            }
        }
        Ok(())
    }

    /// The files directly in a directory, which must be there, below another one.
    pub(super) fn files(&mut self, from: &Path, at: &Path) -> Result<(), LayerError> {
        for entry in fs::read_dir(from).map_err(file(from))? {
            let path = entry.map_err(file(from))?.path();
            if path.is_file() {
                self.copy(at.join(path.file_name().unwrap_or_default()), &path);
            }
        }
        Ok(())
    }

    /// The libraries of all programs of the layer, at the paths of this machine.
    pub(super) fn libraries(&mut self, programs: &[&Path]) -> Result<(), LayerError> {
        for library in libraries::of(programs.iter().copied())? {
            // Below a directory that is a symbolic link, the layer would replace the link.
            let directory = library.parent().unwrap_or(Path::new("/"));
            let directory = directory.canonicalize().map_err(file(directory))?;
            let name = library.file_name().unwrap_or_default();
            self.copy(directory.join(name), &library);
        }
        Ok(())
    }

    /// The image in `directory` that is named after the contents; written if it is not there.
    pub(super) fn cached(&self, directory: &Path, name: &str) -> Result<PathBuf, LayerError> {
        let image = directory.join(format!("{name}-{}.erofs", self.digest()?));
        if image.is_file() {
            return Ok(image);
        }
        forget(directory, name)?;
        let partial = Partial::new(directory, ".erofs").map_err(file(directory))?;
        self.write(partial.path(), directory)?;
        partial.complete(&image).map_err(file(&image))?;
        Ok(image)
    }

    /// Writes the image to `image`; `scratch` is a directory on the file system of most of the files.
    pub(super) fn write(&self, image: &Path, scratch: &Path) -> Result<(), LayerError> {
        let stage = tempfile::Builder::new()
            .prefix(".stage-")
            .tempdir_in(scratch)
            .map_err(file(scratch))?;
        fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755)).map_err(file(stage.path()))?;
        for (at, content) in &self.0 {
            place(&below(stage.path(), at), content)?;
        }
        let out = File::create(image).map_err(file(image))?;
        erofs::write(&Source::Directory(stage.path().to_owned()), &out, &mut |_| ())?;
        Ok(())
    }

    /// Of names and contents.
    fn digest(&self) -> Result<String, LayerError> {
        let mut hasher = Sha256::new();
        for (at, content) in &self.0 {
            hasher.update(at.as_os_str().as_encoded_bytes());
            hasher.update([0]);
            match content {
                Content::Bytes(bytes) => hasher.update(Sha256::digest(bytes)),
                Content::Copy(from) | Content::Link(from) => {
                    let mut digest = Hashing(Sha256::new());
                    File::open(from)
                        .and_then(|mut input| io::copy(&mut input, &mut digest))
                        .map_err(file(from))?;
                    hasher.update(digest.0.finalize());
                }
            }
        }
        Ok(hex::encode(&hasher.finalize()[..12]))
    }
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes older images of this name: nobody asks for them again.
fn forget(directory: &Path, name: &str) -> Result<(), LayerError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(file(directory))?,
    };
    for entry in entries {
        let path = entry.map_err(file(directory))?.path();
        let stem = path.file_name().unwrap_or_default().to_string_lossy();
        if stem.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')) {
            fs::remove_file(&path).map_err(file(&path))?;
        }
    }
    Ok(())
}

/// Puts one file into the stage.
fn place(to: &Path, content: &Content) -> Result<(), LayerError> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(file(parent))?;
    }
    match content {
        Content::Bytes(bytes) => fs::write(to, bytes).map_err(file(to)),
        Content::Copy(from) => copy(from, to).map_err(file(from)),
        Content::Link(from) => fs::hard_link(from, to)
            .or_else(|_| copy(from, to))
            .map_err(file(from)),
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to).map(|_| ())
}

/// An absolute path of the guest below a directory.
fn below(directory: &Path, at: &Path) -> PathBuf {
    directory.join(at.strip_prefix("/").unwrap_or(at))
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> LayerError {
    let path = path.to_owned();
    move |source| LayerError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_made_once_for_the_same_contents() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("program");
        fs::write(&from, "1").unwrap();
        let mut layer = Layer::default();
        layer.copy("/bin/program", &from);
        layer.text("/etc/note", "x");
        let images = directory.path().join("images");
        let first = layer.cached(&images, "tools").unwrap();
        let made = fs::metadata(&first).unwrap().modified().unwrap();
        assert_eq!(layer.cached(&images, "tools").unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), made);
        fs::write(&from, "2").unwrap();
        let second = layer.cached(&images, "tools").unwrap();
        assert_ne!(second, first);
        assert!(second.is_file() && !first.exists());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut layer = Layer::default();
        layer.copy("/bin/program", "/no/such/program");
        let error = layer
            .write(&directory.path().join("image"), directory.path())
            .unwrap_err();
        assert_eq!(error.to_string(), "cannot put /no/such/program into the bed");
    }
}
