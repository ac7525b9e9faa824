//! What is in the initramfs: the part of the guest that the agent and this program agree on.
//!
//! ```text
//!  /init                  the agent
//!  /lib/modules/order     names of the files beside it, one a line, in the order that loads
//!  /lib/modules/found     modules for devices that a machine may have: the start of a device's modalias, then
//!                         the names of files in the order that loads, one device a line
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

/// A module's file name and content.
pub(crate) type Module = (String, Vec<u8>);

/// Modules for a device, which is known by the start of its modalias.
pub(crate) type Found = (&'static str, Vec<Module>);

/// The archive, from the agent's executable, the modules in the order that loads, and those for devices.
pub(crate) fn initramfs(agent: &[u8], modules: &[Module], found: &[Found]) -> Result<Vec<u8>, LayoutError> {
    let mut builder = Builder::new();
    for directory in ["/proc", "/sys", "/dev", "/run", "/tmp", MODULES] {
        builder.directory(directory, 0o755)?;
    }
    // Linux Documentation/admin-guide/devices.txt: character device 5:1 is the system console.
    builder.device("/dev/console", 0o600, 5, 1)?;
    builder.file("/init", 0o755, agent)?;
    let names = |modules: &[Module], separator| {
        let names: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
        names.join(separator)
    };
    for (name, content) in modules.iter().chain(others(modules, found)) {
        builder.file(&format!("{MODULES}/{name}"), 0o644, content)?;
    }
    let order = names(modules, "\n") + "\n";
    builder.file(&format!("{MODULES}/order"), 0o644, order.as_bytes())?;
    let lines: String = found
        .iter()
        .map(|(device, modules)| format!("{device} {}\n", names(modules, " ")))
        .collect();
    builder.file(&format!("{MODULES}/found"), 0o644, lines.as_bytes())?;
    Ok(builder.build()?)
}

/// Modules for devices that are not among the others, each once.
fn others<'a>(modules: &[Module], found: &'a [Found]) -> Vec<&'a Module> {
    let mut others: Vec<&Module> = Vec::new();
    for module in found.iter().flat_map(|(_, modules)| modules) {
        let known = |name: &str| name == module.0;
        if !modules.iter().any(|(name, _)| known(name)) && !others.iter().any(|(name, _)| known(name)) {
            others.push(module);
        }
    }
    others
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
        let found = [
            ("virtio:d00000005", vec![("ring.ko".to_owned(), b"R".to_vec())]),
            (
                "virtio:d00000004",
                vec![modules[1].clone(), ("ring.ko".to_owned(), b"R".to_vec())],
            ),
        ];
        let archive = initramfs(b"agent", &modules, &found).unwrap();
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("vsock.ko\na.ko\n"));
        assert!(text.contains("virtio:d00000005 ring.ko\nvirtio:d00000004 a.ko ring.ko\n"));
        for name in [
            "init\0",
            "dev/console\0",
            "lib/modules/order\0",
            "lib/modules/vsock.ko\0",
            "lib/modules/ring.ko\0",
        ] {
            assert!(text.contains(name), "{name}");
        }
    }

    #[test]
    fn two_modules_of_one_name_are_refused() {
        let modules = [("a.ko".to_owned(), Vec::new()), ("a.ko".to_owned(), Vec::new())];
        assert!(initramfs(b"", &modules, &[]).is_err());
    }
}
