//! Mounting the storages of a request, and unmounting them.
//!
//! Owns the words of a storage (driver, source, options). A failure unmounts what this call mounted.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kata_agent_proto::{Failed, FailureKind};
use rustix::mount::{MountFlags, UnmountFlags};

use super::ownership;
use super::partition::Disk;
use super::verity::{self, Table, Verified};
use crate::extent::Extent;
use crate::order::{Storage, Storages};
use crate::sys;

/// How long a disk may take to appear.
pub(super) const DISK_WAIT: Duration = Duration::from_secs(1);
/// How often it is looked for, in that time.
pub(super) const DISK_POLL: Duration = Duration::from_millis(2);
/// A directory to make before an overlay is mounted; repeatable.
const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory=";

/// Mounts that are undone unless kept.
#[derive(Default)]
pub(crate) struct Mounted {
    points: Vec<PathBuf>,
    /// Serials of disks of which partitions were made.
    partitioned: BTreeSet<String>,
}

impl Mounted {
    /// Keeps the mounts.
    pub(crate) fn keep(mut self) {
        self.points.clear();
        self.partitioned.clear();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Rolling back: the failure that led here is the one to report.
        for path in self.points.iter().rev() {
            let _ = unmount(path);
        }
        for serial in &self.partitioned {
            let _ = sweep(serial);
        }
    }
}

/// Whether nothing has to be waited for: no disk, no other file system.
pub(crate) fn are_memory(storages: &Storages) -> bool {
    let is_memory = |storage: &Storage| storage.driver == "ephemeral" && storage.fstype == "tmpfs";
    storages.list.iter().all(is_memory)
}

/// Mounts the storages in order.
///
/// # Errors
/// The first that cannot be mounted, by kind; those before it are unmounted again.
pub(crate) fn mount_all(storages: &Storages) -> Result<Mounted, Failed> {
    let mut mounted = Mounted::default();
    for storage in &storages.list {
        let extent = Extent::of(storage)?;
        if extent.is_some() && storages.disks.is_empty() {
            mounted.partitioned.insert(storage.source.clone());
        }
        mount(storage, extent, storages)?;
        let path = PathBuf::from(&storage.mount_point);
        mounted.points.push(path.clone());
        if let Some(group) = &storage.group {
            let read_only = storage.options.iter().any(|option| option == "ro");
            ownership::give(&path, group, read_only).map_err(|error| failed(storage, &error))?;
        }
    }
    Ok(mounted)
}

/// Unmounts a storage and removes its mount point if nothing else is in it.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Ok(()) => {}
        // Still in use, or never mounted: out of sight at least.
        Err(rustix::io::Errno::BUSY) => {
            rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?
        }
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    // The caller may have put more into the directory.
    let _ = fs::remove_dir(path);
    Ok(())
}

/// Deletes the partitions of the disk with this serial that nobody uses.
pub(crate) fn sweep(serial: &str) -> Result<(), Failed> {
    let swept = match find_disk(Path::new("/sys/block"), serial) {
        Some(device) => Disk::lock(Path::new(&device)).and_then(|disk| disk.sweep()),
        None => Ok(()),
    };
    swept.map_err(|error| Failed::new(FailureKind::Mount, format!("partitions of {serial:?}: {error}")))
}

fn mount(storage: &Storage, extent: Option<Extent>, storages: &Storages) -> Result<(), Failed> {
    if !Path::new(&storage.mount_point).is_absolute() {
        return Err(Failed::new(
            FailureKind::Invalid,
            format!("mount point {:?}", storage.mount_point),
        ));
    }
    fs::create_dir_all(&storage.mount_point).map_err(|error| failed(storage, &error))?;
    match (storage.driver.as_str(), storage.fstype.as_str()) {
        ("blk", _) => mount_disk(storage, extent, storages),
        ("ephemeral", "tmpfs") => mount_options(storage, "tmpfs", "tmpfs"),
        ("overlayfs", "overlay") => mount_overlay(storage),
        (driver, fstype) => Err(Failed::new(
            FailureKind::Unsupported,
            format!("storage driver {driver:?} with file system {fstype:?}"),
        )),
    }
}

fn mount_overlay(storage: &Storage) -> Result<(), Failed> {
    for option in &storage.driver_options {
        let Some(directory) = option.strip_prefix(CREATE_DIRECTORY) else {
            return Err(Failed::new(
                FailureKind::Unsupported,
                format!("overlay driver option {option:?}"),
            ));
        };
        fs::create_dir_all(directory).map_err(|error| failed(storage, &error))?;
    }
    mount_options(storage, "overlay", "overlay")
}

/// Devices of disks, and of parts of them. While it lives, nobody deletes the partitions that were made.
#[derive(Default)]
struct Devices(BTreeMap<String, Disk>);

impl Devices {
    fn path(&mut self, serial: &str, extent: Option<Extent>) -> Result<String, Failed> {
        let Some(extent) = extent else {
            return wait_for_disk(serial);
        };
        let partition = self.partition(serial, extent);
        let path = partition.map_err(|error| {
            let text = format!("a part of disk {serial:?}: {error}");
            Failed::new(FailureKind::Mount, text)
        })?;
        Ok(path.to_string_lossy().into_owned())
    }

    fn partition(&mut self, serial: &str, extent: Extent) -> io::Result<PathBuf> {
        let disk = match self.0.entry(serial.to_owned()) {
            Entry::Occupied(locked) => locked.into_mut(),
            Entry::Vacant(place) => {
                let device = wait_for_disk(serial).map_err(io::Error::other)?;
                place.insert(Disk::lock(Path::new(&device))?)
            }
        };
        disk.partition(extent)
    }
}

fn mount_disk(storage: &Storage, extent: Option<Extent>, storages: &Storages) -> Result<(), Failed> {
    let name = extent.map_or_else(|| storage.source.clone(), |extent| extent.name(&storage.source));
    let inherited = storages.disks.iter().find(|(serial, _)| *serial == name);
    if let Some(words) = storage.verity() {
        return mount_verified(storage, extent, words, inherited.is_some());
    }
    let mut devices = Devices::default();
    let source = match inherited {
        Some((_, fd)) => format!("/proc/self/fd/{fd}"),
        None => devices.path(&storage.source, extent)?,
    };
    match mount_options(storage, &source, &storage.fstype) {
        // A file where this file system wants a device.
        Err(_) if inherited.is_some() => mount_by_loop(storage, &source),
        other => other,
    }
}

/// Mounts a disk whose every block is checked when it is read. What keeps the checking device is the mount alone.
fn mount_verified(
    storage: &Storage,
    extent: Option<Extent>,
    words: &str,
    is_inherited: bool,
) -> Result<(), Failed> {
    if is_inherited {
        let what = "a disk that is read through dm-verity, without a guest's kernel";
        return Err(Failed::new(FailureKind::Unsupported, what));
    }
    let table = Table::parse(words)?;
    let mut devices = Devices::default();
    let data = devices.path(&storage.source, extent)?;
    let (serial, part) = &table.hashes;
    let hashes = devices.path(serial, *part)?;
    let device = Verified::open(&verity::name_of(&storage.mount_point), &data, &hashes, &table)?;
    mount_options(storage, device.path(), &storage.fstype)
}

fn mount_by_loop(storage: &Storage, source: &str) -> Result<(), Failed> {
    let read_only = !storage.options.iter().any(|option| option == "rw");
    let file = fs::File::options().read(true).write(!read_only).open(source);
    let file = file.map_err(|error| failed(storage, &error))?;
    let (path, _device) = sys::attach_loop(&file, read_only).map_err(|error| failed(storage, &error))?;
    mount_options(storage, &path, &storage.fstype)
}

/// The device of the disk with this serial (`/sys/block/*/serial`; on virtio, virtio 1.2 §5.2.6.1
/// VIRTIO_BLK_T_GET_ID).
pub(super) fn wait_for_disk(serial: &str) -> Result<String, Failed> {
    let deadline = Instant::now() + DISK_WAIT;
    loop {
        if let Some(device) = find_disk(Path::new("/sys/block"), serial) {
            return Ok(device);
        }
        if Instant::now() >= deadline {
            return Err(Failed::new(FailureKind::NoSuchDisk, serial));
        }
        std::thread::sleep(DISK_POLL);
    }
}

fn find_disk(directory: &Path, serial: &str) -> Option<String> {
    let mut entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().collect();
    // Each look is a request to its disk, and those that a machine is built with are the first.
    entries.sort_by_key(DirEntry::file_name);
    entries.into_iter().find_map(|entry| {
        let found = fs::read_to_string(entry.path().join("serial")).ok()?;
        let name = entry.file_name().into_string().ok()?;
        (found.trim_end() == serial).then(|| format!("/dev/{name}"))
    })
}

/// Options that are flags of mount(2); the rest goes to the file system as text.
const FLAGS: [(&str, MountFlags); 10] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
];

/// Flags of mount(2), and what is for the file system.
pub(super) fn parse_options(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut text = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(word, _)| word == option) {
            Some((_, flag)) => flags |= *flag,
            None if matches!(option.as_str(), "rw" | "defaults") => {}
            None => text.push(option.as_str()),
        }
    }
    (flags, text.join(","))
}

fn mount_options(storage: &Storage, source: &str, fstype: &str) -> Result<(), Failed> {
    let (flags, text) = parse_options(&storage.options);
    let text = std::ffi::CString::new(text).map_err(|error| failed(storage, &error.into()))?;
    rustix::mount::mount(
        source,
        storage.mount_point.as_str(),
        fstype,
        flags,
        text.as_c_str(),
    )
    .map_err(|error| failed(storage, &error.into()))
}

fn failed(storage: &Storage, error: &io::Error) -> Failed {
    let Storage {
        source,
        fstype,
        mount_point,
        ..
    } = storage;
    Failed::new(
        FailureKind::Mount,
        format!("{fstype} {source:?} at {mount_point}: {error}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_into_flags_and_text() {
        let options = ["ro", "lowerdir=/a:/b", "nosuid", "size=1m"].map(String::from);
        let (flags, text) = parse_options(&options);
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(text, "lowerdir=/a:/b,size=1m");
    }

    #[test]
    fn a_disk_is_found_by_its_serial() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, serial) in [("vda", "rootfs\n"), ("vdb", "data")] {
            fs::create_dir(dir.path().join(name)).expect("made");
            fs::write(dir.path().join(name).join("serial"), serial).expect("written");
        }
        fs::create_dir(dir.path().join("loop0")).expect("made");
        assert_eq!(find_disk(dir.path(), "rootfs"), Some("/dev/vda".into()));
        assert_eq!(find_disk(dir.path(), "data"), Some("/dev/vdb".into()));
        assert_eq!(find_disk(dir.path(), "root"), None);
    }

    #[test]
    fn what_is_not_known_is_refused_by_kind() {
        let dir = tempfile::tempdir().expect("a directory");
        let mount_point = dir.path().join("m").to_string_lossy().into_owned();
        let storage = Storage {
            driver: "9p".into(),
            mount_point,
            ..Storage::default()
        };
        let storages = Storages {
            list: vec![storage],
            disks: Vec::new(),
        };
        assert_eq!(
            mount_all(&storages).err().map(|failed| failed.kind),
            Some(FailureKind::Unsupported)
        );
        let storages = Storages {
            list: vec![Storage::default()],
            disks: Vec::new(),
        };
        assert_eq!(
            mount_all(&storages).err().map(|failed| failed.kind),
            Some(FailureKind::Invalid)
        );
    }
}
