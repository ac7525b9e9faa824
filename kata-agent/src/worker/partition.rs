//! Parts of a disk as block devices: partitions that stand in no table.
//!
//! Owns their numbers, and that none is left of which nobody has a mount. The disk has nothing on it that says
//! where they are; the kernel is told (ioctl BLKPG, uapi linux/blkpg.h). Two storages of the same part share
//! its partition: the kernel knows who uses it, so it is kept while it cannot be deleted. Workers take turns by a
//! lock on the disk, so that none deletes what another is about to mount.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::extent::Extent;
use crate::sys;

/// Most partitions of a disk (linux/genhd.h, `DISK_MAX_PARTS`, and one is the disk itself).
const NUMBER_MAX: i32 = 255;

/// The unit of sysfs, in bytes.
const SECTOR_BYTES: u64 = 512;

/// A disk whose partitions only this process changes.
pub(super) struct Disk {
    device: File,
    /// Where sysfs tells of it.
    directory: PathBuf,
}

/// What the kernel knows of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Partition {
    number: i32,
    /// Below /dev.
    name: String,
    extent: Extent,
}

impl Disk {
    /// Opens the device and waits for its turn.
    pub(super) fn lock(device: &Path) -> io::Result<Self> {
        let name = device.file_name().unwrap_or_default();
        let directory = Path::new("/sys/block").join(name);
        let device = File::open(device)?;
        rustix::fs::flock(&device, FlockOperation::LockExclusive)?;
        Ok(Disk { device, directory })
    }

    /// The device of a part of the disk, made where there is none.
    pub(super) fn partition(&self, extent: Extent) -> io::Result<PathBuf> {
        let known = list(&self.directory)?;
        if let Some(partition) = known.iter().find(|partition| partition.extent == extent) {
            return Ok(Path::new("/dev").join(&partition.name));
        }
        let number = match free(&known) {
            Some(number) => number,
            None => {
                self.sweep()?;
                free(&list(&self.directory)?).ok_or_else(|| {
                    io::Error::other(format!("the disk has {NUMBER_MAX} partitions already"))
                })?
            }
        };
        sys::add_partition(&self.device, number, extent.offset, extent.bytes)?;
        let mut known = list(&self.directory)?.into_iter();
        let made = known.find(|partition| partition.number == number);
        let made = made.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(Path::new("/dev").join(made.name))
    }

    /// Deletes the partitions that nobody uses.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for partition in list(&self.directory)? {
            match sys::delete_partition(&self.device, partition.number) {
                Err(error) if error.raw_os_error() != Some(Errno::BUSY.raw_os_error()) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The lowest number that none has.
fn free(known: &[Partition]) -> Option<i32> {
    let is_free = |number: &i32| known.iter().all(|partition| partition.number != *number);
    (1..=NUMBER_MAX).find(is_free)
}

/// The partitions below a disk's directory of sysfs.
fn list(directory: &Path) -> io::Result<Vec<Partition>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let number = |file: &str| {
            let text = fs::read_to_string(entry.path().join(file)).ok()?;
            text.trim_end().parse::<u64>().ok()
        };
        let Some(partition) = number("partition").and_then(|number| i32::try_from(number).ok()) else {
            continue;
        };
        let (Some(start), Some(size), Ok(name)) =
            (number("start"), number("size"), entry.file_name().into_string())
        else {
            continue;
        };
        found.push(Partition {
            number: partition,
            name,
            extent: Extent {
                offset: start * SECTOR_BYTES,
                bytes: size * SECTOR_BYTES,
            },
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_what_sysfs_says_and_the_lowest_free_number_is_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let add = |name: &str, files: &[(&str, &str)]| {
            fs::create_dir(dir.path().join(name)).expect("made");
            for (file, text) in files {
                fs::write(dir.path().join(name).join(file), text).expect("written");
            }
        };
        add("queue", &[]);
        fs::write(dir.path().join("size"), "2199023255552\n").expect("written");
        assert_eq!(free(&list(dir.path()).expect("read")), Some(1));
        add(
            "vdb1",
            &[("partition", "1\n"), ("start", "2048\n"), ("size", "8\n")],
        );
        add(
            "vdb3",
            &[("partition", "3\n"), ("start", "4096\n"), ("size", "16\n")],
        );
        let mut known = list(dir.path()).expect("read");
        known.sort_by_key(|partition| partition.number);
        assert_eq!(free(&known), Some(2));
        let expected = Extent {
            offset: 2 << 20,
            bytes: 8192,
        };
        assert_eq!((known[1].name.as_str(), known[1].extent), ("vdb3", expected));
        let all: Vec<Partition> = (1..=NUMBER_MAX)
            .map(|number| Partition {
                number,
                ..known[0].clone()
            })
            .collect();
        assert_eq!((free(&all), free(&all[1..])), (None, Some(1)));
    }
}
