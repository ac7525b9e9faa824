//! Telling apart what a root filesystem can come from. Looks at the first bytes, never at a file's name.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::archive;
use crate::erofs;

/// Where a root filesystem comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A directory that is taken as it is, with owners, modes, times and extended attributes.
    Directory(PathBuf),
    /// A tar archive: plain, gzip or zstd, told apart by its first bytes.
    Archive(PathBuf),
    /// A ready EROFS image, used as it is after a check of its superblock.
    Erofs(PathBuf),
}

/// Why something cannot be a [`Source`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It cannot be opened or read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// What was asked for.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// It is neither a file nor a directory.
    #[error("{} is neither a directory nor a regular file", .path.display())]
    Special {
        /// What was asked for.
        path: PathBuf,
    },
    /// It is compressed in a way that is not read here.
    #[error("{} is compressed with {compression}; use gzip or zstd, or unpack it first", .path.display())]
    Compression {
        /// What was asked for.
        path: PathBuf,
        /// Name of the compression.
        compression: &'static str,
    },
    /// Its first bytes belong to nothing known.
    #[error("{} is no directory, tar archive (plain, gzip or zstd) or EROFS image", .path.display())]
    Unrecognized {
        /// What was asked for.
        path: PathBuf,
    },
}

impl Source {
    /// Looks at `path`: a directory, or a file whose first bytes are those of an EROFS image or of a tar
    /// archive (plain, gzip or zstd).
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is none of these.
    pub fn detect(path: impl AsRef<Path>) -> Result<Self, SourceError> {
        let path = path.as_ref();
        let read_error = |source| SourceError::Read {
            path: path.to_path_buf(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(read_error)?;
        if metadata.is_dir() {
            return Ok(Self::Directory(path.to_path_buf()));
        }
        if !metadata.is_file() {
            return Err(SourceError::Special {
                path: path.to_path_buf(),
            });
        }
        let mut head = Vec::new();
        File::open(path)
            .and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head))
            .map_err(read_error)?;
        Self::from_head(path, &head)
    }

    fn from_head(path: &Path, head: &[u8]) -> Result<Self, SourceError> {
        let path = path.to_path_buf();
        if erofs::has_magic(head) {
            return Ok(Self::Erofs(path));
        }
        match archive::recognize(head) {
            archive::Recognized::Readable(_) => Ok(Self::Archive(path)),
            archive::Recognized::Unsupported(compression) => {
                Err(SourceError::Compression { path, compression })
            }
            archive::Recognized::Unknown => Err(SourceError::Unrecognized { path }),
        }
    }

    /// The path that this source was made from.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive(path) | Self::Erofs(path) => path,
        }
    }
}

/// Enough for the EROFS superblock, which starts at byte 1024.
const HEAD_BYTES: u64 = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &[u8], expected: Result<Source, &str>) {
        let found = Source::from_head(Path::new("/x"), head).map_err(|error| error.to_string());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    fn tar_header() -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    #[test]
    fn first_bytes_decide() {
        check(&tar_header(), Ok(Source::Archive("/x".into())));
        check(&[0x1f, 0x8b, 8, 0], Ok(Source::Archive("/x".into())));
        check(&[0x28, 0xb5, 0x2f, 0xfd], Ok(Source::Archive("/x".into())));
        let mut image = vec![0; 2048];
        image[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
        check(&image, Ok(Source::Erofs("/x".into())));
    }

    #[test]
    fn what_is_not_read_here_is_named() {
        let nothing = "/x is no directory, tar archive (plain, gzip or zstd) or EROFS image";
        check(b"", Err(nothing));
        check(b"hello", Err(nothing));
        let xz = "/x is compressed with xz; use gzip or zstd, or unpack it first";
        check(&[0xfd, b'7', b'z', b'X', b'Z', 0], Err(xz));
    }

    #[test]
    fn a_tar_header_with_a_wrong_checksum_is_not_an_archive() {
        let mut header = tar_header();
        header[0] ^= 1;
        assert!(Source::from_head(Path::new("/x"), &header).is_err());
    }

    #[test]
    fn detect_names_the_path() {
        let missing = Source::detect("/nonexistent/rootfs").unwrap_err();
        assert_eq!(missing.to_string(), "cannot read /nonexistent/rootfs");
        assert_eq!(Source::detect("/tmp").unwrap(), Source::Directory("/tmp".into()));
        assert!(matches!(
            Source::detect("/dev/null"),
            Err(SourceError::Special { .. })
        ));
    }
}
