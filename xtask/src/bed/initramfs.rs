//! What the outer guest starts from: its init and the modules of the kernel, in memory.
//!
//! It knows which parts of a kernel the bed needs. It must not know what runs in the bed.

use std::io;

use kata_image::initramfs::{Builder, InitramfsError};
use kata_image::kernel::ModuleError;

use crate::guest::{self, GuestError, Program};
use crate::kernel::Kernel;
use crate::workspace::Workspace;

/// PID 1 of the outer guest.
const INIT: Program = Program {
    what: "bed's init, static",
    package: "bed-init",
};

/// KVM for AMD's processors, and layers on disks.
const REQUIRED: &[&str] = &["virtio_blk", "erofs", "overlay", "loop", "kvm", "kvm-amd"];

/// The algorithm of erofs (see the guest's list), and what a monitor may ask of its host.
const WHERE_PRESENT: &[&str] = &["crc32c-intel", "tun", "vhost_net", "vhost_vsock"];

/// Why there is no initramfs of the outer guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitramfsFailure {
    /// The init does not build.
    #[error(transparent)]
    Init(#[from] GuestError),
    /// A module is missing or broken.
    #[error("cannot take the bed's modules from the kernel's package")]
    Modules(#[from] ModuleError),
    /// An entry is in the way of another.
    #[error(transparent)]
    Entry(#[from] InitramfsError),
    /// It has more entries than the format can number.
    #[error("the archive cannot be written")]
    Write(#[from] io::Error),
}

/// The archive.
pub(super) fn make(workspace: &Workspace, kernel: &Kernel) -> Result<Vec<u8>, InitramfsFailure> {
    let init = guest::build_static(workspace, &INIT)?;
    let mut builder = Builder::new();
    let mut order = String::new();
    for (name, content) in guest::modules_of(&kernel.modules, WHERE_PRESENT, REQUIRED)? {
        builder.file(&format!("/lib/modules/{name}"), 0o644, &content)?;
        order.push_str(&name);
        order.push('\n');
    }
    builder.file("/lib/modules/order", 0o644, order.as_bytes())?;
    // Linux Documentation/admin-guide/devices.txt: character device 5:1 is the system console.
    builder.device("/dev/console", 0o600, 5, 1)?;
    builder.file("/init", 0o755, &init)?;
    Ok(builder.build()?)
}
