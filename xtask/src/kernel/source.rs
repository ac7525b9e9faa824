//! The source package of the distribution's kernel, as an archive in the user's cache.
//!
//! ```text
//!  <cache>/kernel/source-<version of the package>/linux-source-<release>.tar.xz
//! ```
//!
//! It knows package names and directories. It must not know what is built of it.

use std::fs;
use std::path::{Path, PathBuf};

use super::version_key;
use crate::making::{MakingError, file, program};
use crate::packages::Apt;
use crate::partial::Partial;
use crate::process;
use crate::progress::Step;

/// How the names of the directories begin.
const PREFIX: &str = "source-";

/// How the names of packages and archives begin, on Debian and on Ubuntu.
const PACKAGE: &str = "linux-source-";

/// A kernel's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// The package's version, which stands for every byte of it.
    pub(super) version: String,
    /// The tar archive.
    pub(super) archive: PathBuf,
}

/// Why there is no source.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The package lists do not know it, and cannot be fetched without root.
    #[error(
        "apt's lists know no package {PACKAGE}*; run\n\n    sudo apt-get update\n\nand then this again (on Debian \
         12 the kernel comes from bookworm-backports or bookworm-security)"
    )]
    NotListed,
    /// A program or a file of the cache failed.
    #[error(transparent)]
    Making(#[from] MakingError),
    /// The package is not what it is expected to be.
    #[error("the package {package} holds no archive {PACKAGE}*.tar.*")]
    Contents {
        /// Its name.
        package: String,
    },
}

/// The newest source in the cache; downloads one when there is none.
///
/// # Errors
/// When the cache holds none and none can be downloaded.
pub(super) fn provide(directory: &Path) -> Result<Source, SourceError> {
    match newest_cached(directory) {
        Some(source) => Ok(source),
        None => download(directory),
    }
}

fn newest_cached(directory: &Path) -> Option<Source> {
    let entries = fs::read_dir(directory).ok()?;
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name();
            Some(Source {
                version: name.to_str()?.strip_prefix(PREFIX)?.to_owned(),
                archive: archive_below(&entry.path())?,
            })
        })
        .max_by_key(|source| version_key(&source.version))
}

/// The archive in a directory: `linux-source-6.12.tar.xz`, in Debian's package below `usr/src`, in Ubuntu's one
/// directory deeper.
fn archive_below(directory: &Path) -> Option<PathBuf> {
    let mut directories = Vec::new();
    for entry in fs::read_dir(directory).ok()?.filter_map(Result::ok) {
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if path.is_dir() && !path.is_symlink() {
            directories.push(path);
        } else if name.starts_with(PACKAGE) && name.contains(".tar.") {
            return Some(path);
        }
    }
    directories.iter().find_map(|directory| archive_below(directory))
}

fn download(directory: &Path) -> Result<Source, SourceError> {
    let step = Step::start("kernel source");
    let package = listed_package(&step)?;
    let partial = Partial::new(directory, "-package").map_err(file("write into", directory))?;
    let unpacked = partial.path().join("unpacked");
    fs::create_dir_all(&unpacked).map_err(file("create", &unpacked))?;
    let mut download = process::command("apt-get", ["download", package.as_str()]);
    process::run(&step, download.current_dir(partial.path()))
        .map_err(program("download the kernel's source package"))?;
    let (deb, version) = downloaded(partial.path(), &package)?;
    let mut unpack = process::command("dpkg-deb", ["-x"]);
    process::run(&step, unpack.arg(&deb).arg(&unpacked))
        .map_err(program("unpack the kernel's source package"))?;
    let contents = || SourceError::Contents {
        package: package.clone(),
    };
    let found = archive_below(&unpacked).ok_or_else(contents)?;
    let complete = Partial::new(directory, "-source").map_err(file("write into", directory))?;
    fs::create_dir_all(complete.path()).map_err(file("create", complete.path()))?;
    let archive = found.file_name().ok_or_else(contents)?;
    fs::rename(&found, complete.path().join(archive)).map_err(file("move", &found))?;
    let target = directory.join(format!("{PREFIX}{version}"));
    complete.complete(&target).map_err(file("create", &target))?;
    step.done(format!("{package} {version}"));
    Ok(Source {
        archive: target.join(archive),
        version,
    })
}

/// The package file in a directory, and the version it says that it has.
fn downloaded(directory: &Path, package: &str) -> Result<(PathBuf, String), SourceError> {
    let deb = fs::read_dir(directory)
        .map_err(file("read", directory))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| SourceError::Contents {
            package: package.to_owned(),
        })?;
    let mut ask = process::command("dpkg-deb", ["-f"]);
    let version =
        process::read(ask.arg(&deb).arg("Version")).map_err(program("read the package's version"))?;
    Ok((deb, version.trim().to_owned()))
}

/// The newest source package that apt's lists know.
fn listed_package(step: &Step) -> Result<String, SourceError> {
    Apt::update_once(step);
    newest_listed()?.ok_or(SourceError::NotListed)
}

fn newest_listed() -> Result<Option<String>, SourceError> {
    let listing = process::read(&mut process::command(
        "apt-cache",
        ["search", "--names-only", "^linux-source-[0-9.]+$"],
    ))
    .map_err(program("search apt's lists"))?;
    Ok(newest(&listing).map(str::to_owned))
}

/// The newest package of `apt-cache search`'s lines.
fn newest(listing: &str) -> Option<&str> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|name| Some((name, name.strip_prefix(PACKAGE)?)))
        .filter(|(_, release)| release.starts_with(|first: char| first.is_ascii_digit()))
        .max_by_key(|(_, release)| version_key(release))
        .map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_release_is_taken() {
        let listing = "linux-source-6.1 - Linux kernel source\nlinux-source-6.12 - Linux kernel source\n\
                       linux-source - meta\nlinux-source-6.9.0 - x\n";
        assert_eq!(newest(listing), Some("linux-source-6.12"));
        assert_eq!(newest("linux-source - meta\n"), None);
    }

    #[test]
    fn the_newest_source_of_the_cache_is_used_if_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(newest_cached(directory.path()), None);
        for (version, name) in [
            ("6.12.9-1", "linux-source-6.12.tar.xz"),
            ("6.12.117-1~deb12u1", "linux-source-6.12.tar.xz"),
            ("6.13-1", "README"),
        ] {
            let at = directory.path().join(format!("source-{version}"));
            fs::create_dir(&at).unwrap();
            fs::write(at.join(name), "").unwrap();
        }
        let source = newest_cached(directory.path()).unwrap();
        assert_eq!(source.version, "6.12.117-1~deb12u1");
        assert!(
            source
                .archive
                .ends_with("source-6.12.117-1~deb12u1/linux-source-6.12.tar.xz")
        );
    }

    #[test]
    fn the_archive_is_found_where_either_distribution_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let deeper = directory.path().join("usr/src/linux-source-6.8.0");
        fs::create_dir_all(&deeper).unwrap();
        assert_eq!(archive_below(directory.path()), None);
        let archive = deeper.join("linux-source-6.8.0.tar.bz2");
        fs::write(&archive, "").unwrap();
        assert_eq!(archive_below(directory.path()), Some(archive));
    }
}
