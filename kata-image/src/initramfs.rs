//! Building an initramfs: an uncompressed `newc` cpio archive, the same bytes for the same entries whatever
//! their order. Knows the format's limits, not what a guest needs in it.
//!
//! ```
//! use kata_image::initramfs::Builder;
//!
//! let mut builder = Builder::new();
//! builder.file("/init", 0o755, b"#!/bin/sh\n")?.device("/dev/console", 0o600, 5, 1)?;
//! let archive = builder.build()?;
//! assert!(archive.starts_with(b"070701"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::io::{self, Write};

use cpio::newc;

/// Why an entry cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// The path is there already.
    #[error("{path} is in the initramfs already")]
    Duplicate {
        /// The path.
        path: String,
    },
    /// A parent of the path is no directory.
    #[error("{path} lies below {parent}, which is no directory")]
    BelowFile {
        /// The path.
        path: String,
        /// What is in its way.
        parent: String,
    },
    /// The path is empty, has `..` or a zero byte in it, or is the name that ends an archive.
    #[error("{path:?} cannot be a path of an initramfs")]
    Path {
        /// The path.
        path: String,
    },
    /// The contents do not fit into the format.
    #[error("{path} is larger than 4 GiB")]
    TooLarge {
        /// The path.
        path: String,
    },
}

/// Collects entries. Owner and group of all are root, all times are zero, missing parents are made (0755).
#[derive(Debug, Clone, Default)]
pub struct Builder {
    /// By path without the leading slash, so that parents come before what is in them.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// `st_mode` with the type.
    mode: u32,
    device: (u32, u32),
    contents: Vec<u8>,
    /// A parent that was made because something is in it.
    implied: bool,
}

const DIRECTORY: u32 = 0o040_000;
const CHARACTER: u32 = 0o020_000;
const BLOCK: u32 = 0o060_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const PERMISSIONS: u32 = 0o7777;

impl Entry {
    fn new(kind: u32, mode: u32, contents: &[u8]) -> Self {
        let mode = kind | (mode & PERMISSIONS);
        Self {
            mode,
            device: (0, 0),
            contents: contents.to_vec(),
            implied: false,
        }
    }
}

impl Builder {
    /// An empty initramfs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory with the permission bits `mode`.
    ///
    /// # Errors
    ///
    /// When the path is not usable or there already.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<&mut Self, InitramfsError> {
        self.add(path, Entry::new(DIRECTORY, mode, b""))
    }

    /// Adds a file with the permission bits `mode`.
    ///
    /// # Errors
    ///
    /// When the path is not usable or there already, or `bytes` are more than 4 GiB.
    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<&mut Self, InitramfsError> {
        self.add(path, Entry::new(FILE, mode, bytes))
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    ///
    /// When the path is not usable or there already.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self, InitramfsError> {
        self.add(path, Entry::new(SYMLINK, 0o777, target.as_bytes()))
    }

    /// Adds a character device with the permission bits `mode`, or a block device when `mode` has the bits of
    /// `S_IFBLK` (`0o060000`).
    ///
    /// # Errors
    ///
    /// When the path is not usable or there already.
    pub fn device(
        &mut self,
        path: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<&mut Self, InitramfsError> {
        let kind = if mode & !PERMISSIONS == BLOCK {
            BLOCK
        } else {
            CHARACTER
        };
        self.add(
            path,
            Entry {
                device: (major, minor),
                ..Entry::new(kind, mode, b"")
            },
        )
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<&mut Self, InitramfsError> {
        let name = normalized(path).ok_or_else(|| InitramfsError::Path {
            path: path.to_owned(),
        })?;
        if u32::try_from(entry.contents.len()).is_err() {
            return Err(InitramfsError::TooLarge { path: name });
        }
        self.imply_parents(&name)?;
        let is_directory = entry.mode & !PERMISSIONS == DIRECTORY;
        match self.entries.get(&name) {
            Some(existing) if !(existing.implied && is_directory) => {
                return Err(InitramfsError::Duplicate { path: name });
            }
            _ => self.entries.insert(name, entry),
        };
        Ok(self)
    }

    fn imply_parents(&mut self, name: &str) -> Result<(), InitramfsError> {
        for (slash, _) in name.match_indices('/') {
            let parent = &name[..slash];
            let implied = || Entry {
                implied: true,
                ..Entry::new(DIRECTORY, 0o755, b"")
            };
            let entry = self.entries.entry(parent.to_owned()).or_insert_with(implied);
            if entry.mode & !PERMISSIONS != DIRECTORY {
                let (path, parent) = (name.to_owned(), parent.to_owned());
                return Err(InitramfsError::BelowFile { path, parent });
            }
        }
        Ok(())
    }

    /// The archive.
    ///
    /// # Errors
    ///
    /// When it would hold more entries than the format can number.
    pub fn build(&self) -> io::Result<Vec<u8>> {
        let mut archive = Vec::new();
        for (number, (path, entry)) in (1_u32..).zip(&self.entries) {
            let size = u32::try_from(entry.contents.len()).map_err(io::Error::other)?;
            let links = if entry.mode & !PERMISSIONS == DIRECTORY {
                2
            } else {
                1
            };
            let header = newc::Builder::new(path).ino(number).mode(entry.mode).nlink(links);
            let header = header.rdev_major(entry.device.0).rdev_minor(entry.device.1);
            let mut writer = header.write(&mut archive, size);
            writer.write_all(&entry.contents)?;
            writer.finish()?;
        }
        newc::trailer(&mut archive)?;
        Ok(archive)
    }
}

/// Without leading and doubled slashes and `.`.
fn normalized(path: &str) -> Option<String> {
    let names: Vec<_> = path
        .split('/')
        .filter(|name| !matches!(*name, "" | "."))
        .collect();
    let usable = !names.is_empty() && !names.contains(&"..") && !path.contains('\0');
    Some(names.join("/")).filter(|name| usable && name != "TRAILER!!!")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode, device, contents.
    type Read = (String, u32, (u32, u32), Vec<u8>);

    fn read(archive: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        let mut rest = archive;
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let entry = reader.entry();
            let (name, mode) = (entry.name().to_owned(), entry.mode());
            let device = (entry.rdev_major(), entry.rdev_minor());
            assert_eq!((entry.mtime(), entry.uid(), entry.gid()), (0, 0, 0));
            let mut contents = Vec::new();
            io::Read::read_to_end(&mut reader, &mut contents).unwrap();
            entries.push((name, mode, device, contents));
            rest = reader.finish().unwrap();
        }
    }

    fn sample(order: impl Fn(Vec<usize>) -> Vec<usize>) -> Vec<u8> {
        let mut builder = Builder::new();
        for step in order((0..5).collect()) {
            match step {
                0 => builder.file("/sbin/agent", 0o755, b"ELF"),
                1 => builder.symlink("init", "/sbin/agent"),
                2 => builder.device("dev/console", 0o600, 5, 1),
                3 => builder.device("dev/vda", 0o060_600, 254, 0),
                _ => builder.directory("dev/", 0o700),
            }
            .unwrap();
        }
        builder.build().unwrap()
    }

    #[test]
    fn entries_come_sorted_with_their_parents() {
        let entries = read(&sample(|order| order));
        let expected = [
            ("dev", 0o040_700, (0, 0), &b""[..]),
            ("dev/console", 0o020_600, (5, 1), b""),
            ("dev/vda", 0o060_600, (254, 0), b""),
            ("init", 0o120_777, (0, 0), b"/sbin/agent"),
            ("sbin", 0o040_755, (0, 0), b""),
            ("sbin/agent", 0o100_755, (0, 0), b"ELF"),
        ];
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(name, mode, device, contents)| (name.to_owned(), mode, device, contents.to_vec()))
            .collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn the_order_of_calls_does_not_matter() {
        let reversed = |order: Vec<usize>| order.into_iter().rev().collect();
        assert_eq!(sample(|order| order), sample(reversed));
    }

    #[test]
    fn duplicates_and_bad_paths_are_refused_by_name() {
        let mut builder = Builder::new();
        builder
            .file("a/b", 0o644, b"")
            .unwrap()
            .directory("d", 0o755)
            .unwrap();
        let check = |result: Result<&mut Builder, InitramfsError>, text: &str| {
            assert_eq!(result.unwrap_err().to_string(), text);
        };
        check(
            builder.clone().file("/a//b", 0o644, b""),
            "a/b is in the initramfs already",
        );
        check(
            builder.clone().directory("d", 0o755),
            "d is in the initramfs already",
        );
        check(
            builder.clone().file("a", 0o644, b""),
            "a is in the initramfs already",
        );
        check(
            builder.clone().symlink("a/b/c", "x"),
            "a/b/c lies below a/b, which is no directory",
        );
        check(
            builder.clone().file("../x", 0o644, b""),
            "\"../x\" cannot be a path of an initramfs",
        );
        check(
            builder.clone().file("/", 0o644, b""),
            "\"/\" cannot be a path of an initramfs",
        );
        check(
            builder.clone().file("TRAILER!!!", 0o644, b""),
            "\"TRAILER!!!\" cannot be a path of an initramfs",
        );
    }
}
