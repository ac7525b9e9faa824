//! The file in memory that a guest's memory is, whoever maps it: our monitor, QEMU, devices in other processes.
//!
//! Owns how it is made ([why so](../../../docs/decisions/0012-huge-pages-for-guests.md)). It must not know who maps it.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

/// A large page, which is also the least that the file system of such pages has.
const PAGE_BYTES: u64 = 2 << 20;

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
///
/// The file system is as large as the file: by default it would end at half of the host's memory, and a guest that
/// touched more would kill whoever maps it (`SIGBUS`).
fn huge(bytes: u64) -> rustix::io::Result<File> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "huge", "within_size")?;
    fsconfig_set_string(&context, "size", bytes.next_multiple_of(PAGE_BYTES).to_string())?;
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

#[cfg(test)]
mod tests {
    use rustix::fs::fstatvfs;

    use super::*;

    #[test]
    fn memory_beyond_half_of_the_host_has_a_place_for_every_page() {
        // More than any host's half; nothing of it is touched.
        let bytes = (8 << 40) + 4096;
        let file = match huge(bytes) {
            Ok(file) => file,
            Err(cause) if !rustix::process::geteuid().is_root() => {
                println!("only root makes this file system: {cause}");
                return;
            }
            Err(cause) => panic!("{cause}"),
        };
        let places = fstatvfs(&file).unwrap();
        assert_eq!(
            places.f_blocks * places.f_frsize,
            bytes.next_multiple_of(PAGE_BYTES)
        );
        assert_eq!(file.metadata().unwrap().len(), bytes);
    }

    #[test]
    fn a_file_without_large_pages_cannot_shrink_under_a_mapping() {
        let file = small(1 << 20).unwrap();
        assert!(file.set_len(4096).is_err());
        assert_eq!(resident_bytes(&file), Some(0));
    }
}
