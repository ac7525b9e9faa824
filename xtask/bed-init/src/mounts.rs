//! The file systems: what the kernel offers, and a root out of read-only layers.
//!
//! ```text
//!  /dev/vda, vdb, …  EROFS   lower layers, the last one on top
//!  tmpfs                     what is written
//!        └─ overlay ─► /     with proc, sys, dev, run, tmp of its own
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount, mount_move};

use crate::Failure;

/// Where the layers are put together, before the root is entered.
const WORK: &str = "/work";

/// Part of the memory that files of the job may fill: half of it, as tmpfs(5) has it by default, is too
/// little for a bed whose guests' memory is files as well.
const TMPFS: &str = "mode=0755,size=80%";

/// The least that it takes to load modules and find disks.
pub(crate) fn kernel_interfaces() -> Result<(), Failure> {
    attach("devtmpfs", "/dev", "")?;
    attach("proc", "/proc", "")?;
    attach("sysfs", "/sys", "")
}

/// Makes the root out of the disks and goes there.
pub(crate) fn enter_layers() -> Result<(), Failure> {
    attach("tmpfs", WORK, TMPFS)?;
    let work = Path::new(WORK);
    let mut lower = String::new();
    for (number, disk) in disks().iter().enumerate() {
        let at = work.join(number.to_string());
        fs::create_dir(&at)?;
        mount(disk, &at, "erofs", MountFlags::RDONLY, None)
            .map_err(|error| format!("cannot mount {}: {error}", disk.display()))?;
        // overlayfs: the first one is the uppermost.
        lower = match lower.as_str() {
            "" => at.display().to_string(),
            below => format!("{}:{below}", at.display()),
        };
    }
    let (upper, scratch, root) = (work.join("upper"), work.join("scratch"), work.join("root"));
    for directory in [&upper, &scratch, &root] {
        fs::create_dir(directory)?;
    }
    let options = format!(
        "lowerdir={lower},upperdir={},workdir={}",
        upper.display(),
        scratch.display()
    );
    attach_new("overlay", &root, &options)?;
    enter(&root)?;
    inside()
}

/// The disks in the order in which the machine has them; Linux names virtio disks `vda`, `vdb`, ….
fn disks() -> Vec<PathBuf> {
    (b'a'..=b'z')
        .map(|letter| PathBuf::from(format!("/dev/vd{}", char::from(letter))))
        .take_while(|path| path.exists())
        .collect()
}

/// As switch_root(8): the initramfs cannot be unmounted, so the new root is moved over it.
fn enter(root: &Path) -> Result<(), Failure> {
    for name in ["dev", "proc", "sys"] {
        fs::create_dir_all(root.join(name))?;
        mount_move(Path::new("/").join(name), root.join(name))
            .map_err(|error| format!("cannot move /{name}: {error}"))?;
    }
    std::env::set_current_dir(root)?;
    mount_move(".", "/").map_err(|error| format!("cannot move the root: {error}"))?;
    rustix::process::chroot(".")?;
    Ok(std::env::set_current_dir("/")?)
}

/// What a job expects of a Linux machine beside its files.
fn inside() -> Result<(), Failure> {
    attach("devpts", "/dev/pts", "ptmxmode=0666")?;
    attach("tmpfs", "/dev/shm", "mode=1777")?;
    attach("tmpfs", "/run", "mode=0755")?;
    attach("tmpfs", "/tmp", "mode=1777,size=80%")?;
    attach("cgroup2", "/sys/fs/cgroup", "")?;
    attach("debugfs", "/sys/kernel/debug", "")?;
    rustix::system::sethostname(b"bed")?;
    Ok(())
}

/// Mounts a file system without a device; its directory is made.
fn attach(kind: &str, at: &str, options: &str) -> Result<(), Failure> {
    attach_new(kind, Path::new(at), options)
}

fn attach_new(kind: &str, at: &Path, options: &str) -> Result<(), Failure> {
    fs::create_dir_all(at)?;
    let options = std::ffi::CString::new(options)?;
    mount(kind, at, kind, MountFlags::empty(), Some(options.as_c_str()))
        .map_err(|error| format!("cannot mount {kind} at {}: {error}", at.display()).into())
}
