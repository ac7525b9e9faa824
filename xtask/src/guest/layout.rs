//! What is in the initramfs: the part of the guest that the agent and this program agree on.
//!
//! ```text
//!  /init                  the agent
//!  /lib/modules/order     names of the files beside it, one a line, in the order that loads
//!  /lib/modules/*.ko      unpacked, without their signatures
//!  /proc /sys /dev /run /tmp    empty: the agent mounts
//!  /dev/console           what the kernel opens before there is a /dev
//! ```

use std::io;

use kata_image::initramfs::{Builder, InitramfsError};

/// Why no initramfs was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayoutError {
    /// An entry is in the way of another.
    #[error(transparent)]
    Entry(#[from] InitramfsError),
    /// It has more entries than the format can number.
    #[error("the archive cannot be written")]
    Write(#[from] io::Error),
}

/// Where the modules are.
const MODULES: &str = "/lib/modules";

/// The archive, from the agent's executable and the modules (file name, content) in the order that loads.
pub(crate) fn initramfs(agent: &[u8], modules: &[(String, Vec<u8>)]) -> Result<Vec<u8>, LayoutError> {
    let mut builder = Builder::new();
    for directory in ["/proc", "/sys", "/dev", "/run", "/tmp", MODULES] {
        builder.directory(directory, 0o755)?;
    }
    // Linux Documentation/admin-guide/devices.txt: character device 5:1 is the system console.
    builder.device("/dev/console", 0o600, 5, 1)?;
    builder.file("/init", 0o755, agent)?;
    let mut order = String::new();
    for (name, content) in modules {
        builder.file(&format!("{MODULES}/{name}"), 0o644, content)?;
        order.push_str(name);
        order.push('\n');
    }
    builder.file(&format!("{MODULES}/order"), 0o644, order.as_bytes())?;
    Ok(builder.build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_modules_is_written_down() {
        let modules = [
            ("vsock.ko".to_owned(), b"V".to_vec()),
            ("a.ko".to_owned(), b"A".to_vec()),
        ];
        let archive = initramfs(b"agent", &modules).unwrap();
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("vsock.ko\na.ko\n"));
        for name in [
            "init\0",
            "dev/console\0",
            "lib/modules/order\0",
            "lib/modules/vsock.ko\0",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn two_modules_of_one_name_are_refused() {
        let modules = [("a.ko".to_owned(), Vec::new()), ("a.ko".to_owned(), Vec::new())];
        assert!(initramfs(b"", &modules).is_err());
    }
}
