//! What people call an image: a path, a layout, an archive, a reference. Tells them apart; fetches nothing.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::layout;
use crate::reference::{Reference, ReferenceError};
use crate::source::{Source, SourceError};

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageSource {
    /// Files alone: a directory, a tar archive, a ready image. It has no configuration.
    Files(Source),
    /// A registry.
    Registry(Reference),
    /// An OCI image layout, as a directory or a tar archive, or what `docker save` writes.
    Layout {
        /// The directory or archive.
        path: PathBuf,
        /// Which of its images; the only one without.
        name: Option<String>,
    },
}

/// Text that names no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageSourceError {
    /// It is the path of something that is no image.
    #[error("{} is no image", .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: SourceError,
    },
    /// It is neither a path of anything nor a reference.
    #[error("{} is neither the path of a file or directory nor an image's reference", .text.display())]
    Reference {
        /// The text.
        text: OsString,
        /// Why it is no reference.
        #[source]
        source: ReferenceError,
    },
}

/// The words before a path that skopeo and podman know.
const TRANSPORTS: [&[u8]; 3] = [b"oci:", b"oci-archive:", b"docker-archive:"];

impl ImageSource {
    /// Understands what names an image:
    ///
    /// | text | what it is |
    /// |---|---|
    /// | begins with `/`, `./` or `../`, or is the path of something | a directory, an archive, a ready image, a layout |
    /// | `oci:PATH[:NAME]`, `oci-archive:PATH[:NAME]`, `docker-archive:PATH[:NAME]` | an image of a layout or archive |
    /// | `docker://REFERENCE`, or anything else | a reference to a registry's image, as docker understands it |
    ///
    /// # Errors
    ///
    /// When it is a path and no image is there, or when it is neither a path nor a reference.
    pub fn detect(text: impl AsRef<OsStr>) -> Result<Self, ImageSourceError> {
        let text = text.as_ref();
        if let Some(rest) = TRANSPORTS
            .iter()
            .find_map(|word| text.as_bytes().strip_prefix(*word))
        {
            return Ok(in_layout(OsStr::from_bytes(rest)));
        }
        if let Some(reference) = text.as_bytes().strip_prefix(b"docker://") {
            return Self::reference(OsStr::from_bytes(reference));
        }
        let path = Path::new(text);
        if is_path(text) || path.exists() {
            return Self::path(path);
        }
        Self::reference(text)
    }

    fn path(path: &Path) -> Result<Self, ImageSourceError> {
        let failed = |source| ImageSourceError::Path {
            path: path.to_path_buf(),
            source,
        };
        let unreadable = |source| {
            failed(SourceError::Read {
                path: path.to_path_buf(),
                source,
            })
        };
        if layout::recognize(path).map_err(unreadable)?.is_some() {
            return Ok(Self::Layout {
                path: path.to_path_buf(),
                name: None,
            });
        }
        Source::detect(path).map(Self::Files).map_err(failed)
    }

    fn reference(text: &OsStr) -> Result<Self, ImageSourceError> {
        let failed = |source| ImageSourceError::Reference {
            text: text.to_owned(),
            source,
        };
        text.to_string_lossy().parse().map(Self::Registry).map_err(failed)
    }
}

/// Whether it can only be meant as a path.
fn is_path(text: &OsStr) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes, b"." | b"..")
        || [&b"/"[..], b"./", b"../"]
            .iter()
            .any(|start| bytes.starts_with(start))
}

/// A path, and behind a colon the name of an image in it, unless the whole is a path.
fn in_layout(text: &OsStr) -> ImageSource {
    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':');
    match colon.filter(|_| !Path::new(text).exists()) {
        Some(colon) => ImageSource::Layout {
            path: PathBuf::from(OsStr::from_bytes(&bytes[..colon])),
            name: Some(String::from_utf8_lossy(&bytes[colon + 1..]).into_owned()),
        },
        None => ImageSource::Layout {
            path: PathBuf::from(text),
            name: None,
        },
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(source) => source.path().display().fmt(formatter),
            Self::Registry(reference) => reference.fmt(formatter),
            Self::Layout { path, name: None } => path.display().fmt(formatter),
            Self::Layout {
                path,
                name: Some(name),
            } => write!(formatter, "{}:{name}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(path: impl Into<PathBuf>, name: Option<&str>) -> ImageSource {
        ImageSource::Layout {
            path: path.into(),
            name: name.map(str::to_owned),
        }
    }

    #[test]
    fn paths_layouts_and_references_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let detect = |text: &Path| ImageSource::detect(text).unwrap();
        assert_eq!(
            detect(path),
            ImageSource::Files(Source::Directory(path.to_path_buf()))
        );
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        assert_eq!(detect(path), layout(path, None));
        let named = format!("oci:{}:v1", path.display());
        assert_eq!(ImageSource::detect(&named).unwrap(), layout(path, Some("v1")));
        let bare = format!("oci:{}", path.display());
        assert_eq!(ImageSource::detect(&bare).unwrap(), layout(path, None));
        let archive = ImageSource::detect("docker-archive:a.tar:b:c").unwrap();
        assert_eq!(archive, layout("a.tar", Some("b:c")));
        for text in ["debian", "127.0.0.1:5000/a/b:1", "docker://debian"] {
            assert!(
                matches!(ImageSource::detect(text), Ok(ImageSource::Registry(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_neither_says_what_it_was_taken_for() {
        let error = ImageSource::detect("./nosuch").unwrap_err().to_string();
        assert_eq!(error, "./nosuch is no image");
        let error = ImageSource::detect("Not A Reference").unwrap_err().to_string();
        assert_eq!(
            error,
            "Not A Reference is neither the path of a file or directory nor an image's reference"
        );
    }
}
