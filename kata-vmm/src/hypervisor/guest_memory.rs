//! The file in memory that a guest's memory is, whoever maps it: our monitor, QEMU, devices in other processes.
//!
//! Owns how it is made ([why so](../../../docs/decisions/0012-huge-pages-for-guests.md)). It must not know who maps it.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

/// A new file of zeroes, with pages of 2 MiB if this process may have them, else without.
///
/// # Errors
/// When the host gives none.
pub(super) fn fresh(bytes: u64) -> io::Result<File> {
    huge(bytes).or_else(|cause| {
        log::info!("guest memory has pages of 4 KiB only: no file system for larger ones: {cause}");
        small(bytes)
    })
}

/// A file in a file system of its own that takes pages of 2 MiB where it can (Linux
/// Documentation/admin-guide/mm/transhuge.rst, `huge=`), which only a caller with CAP_SYS_ADMIN can make: a
/// memfd takes them only where the whole host says so. Each page that the guest meets for the first time is a
/// fault, and so there are five hundred times fewer.
fn huge(bytes: u64) -> rustix::io::Result<File> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "huge", "within_size")?;
    fsconfig_create(&context)?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(&mount, ".", flags, Mode::RUSR | Mode::WUSR)?;
    ftruncate(&file, bytes)?;
    Ok(File::from(file))
}

/// A file in memory that cannot shrink under a mapping.
fn small(bytes: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("guest-memory", flags)?);
    file.set_len(bytes)?;
    rustix::fs::fcntl_add_seals(
        &file,
        rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW | rustix::fs::SealFlags::SEAL,
    )?;
    Ok(file)
}

/// Bytes that the host has given to it.
pub(super) fn resident_bytes(file: &File) -> Option<u64> {
    /// What `st_blocks` counts (inode(7)).
    const BLOCK_BYTES: u64 = 512;
    let stat = rustix::fs::fstat(file).ok()?;
    u64::try_from(stat.st_blocks)
        .ok()
        .map(|blocks| blocks * BLOCK_BYTES)
}
