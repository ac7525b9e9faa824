//! What is in the initramfs: the part of the guest that the agent and who makes it agree on.
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
//!
//! A kernel that has everything built in needs no `/lib/modules`, and its initramfs has none.

use std::io;
use std::path::Path;

use super::executable::{NotStatic, check_static};
use crate::initramfs::{Builder, InitramfsError};
use crate::kernel::{ModuleError, ModuleTree};

/// What a guest needs of its kernel beyond what is built in, with what it depends on: a root filesystem on a
/// block device, a way to the host, an overlay.
const NEEDED: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "vsock",
    "vmw_vsock_virtio_transport",
    "overlay",
    "erofs",
];

/// Modules for what a machine may have beside that; which devices they are for is written in them. A balloon,
/// which gives free pages back; an entropy source; a device that is told of a panic.
const FOUND: &[&str] = &["virtio_balloon", "virtio-rng", "pvpanic-mmio"];

/// Buses with such devices, as modaliases begin.
const BUSES: [&str; 2] = ["virtio:", "acpi:"];

/// What a module of the list needs and does not name: until Linux 6.14 erofs asks the crypto API for the
/// algorithm crc32c, which some module must have brought by then. Later kernels have no such module.
const ALGORITHMS: &[&str] = &["crc32c-intel"];

/// Where the modules are.
const MODULES: &str = "/lib/modules";

/// Why no initramfs was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The agent would need files that no guest has.
    #[error("the agent cannot be a guest's init")]
    Agent(#[from] NotStatic),
    /// A module is missing or broken.
    #[error("cannot take the guest's modules from the kernel's tree")]
    Modules(#[from] ModuleError),
    /// An entry is in the way of another.
    #[error("cannot put the initramfs together")]
    Entry(#[from] InitramfsError),
    /// It has more entries than the format can number.
    #[error("the archive cannot be written")]
    Write(#[from] io::Error),
}

/// A module's file name and content.
type Module = (String, Vec<u8>);

/// Modules for a device, which is known by the start of its modalias.
type Found = (String, Vec<Module>);

/// The initramfs of a sandbox, uncompressed, the same bytes for the same inputs: the agent's executable, and
/// the modules that a guest needs out of a kernel's tree (`…/lib/modules/<release>`), if it has one.
///
/// # Errors
///
/// When the agent is not static, or a module is missing or broken.
pub fn initramfs(agent: &[u8], modules: Option<&Path>) -> Result<Vec<u8>, LayoutError> {
    check_static(agent)?;
    let Some(directory) = modules else {
        return archive(agent, &[], &[]);
    };
    let tree = ModuleTree::open(directory)?;
    let needed = tree.contents(ALGORITHMS, NEEDED)?;
    let mut found = Vec::new();
    for module in FOUND {
        let modules = tree.contents(&[module], &[])?;
        for alias in tree.aliases(module)? {
            found.extend(start(&alias).map(|device| (device, modules.clone())));
        }
    }
    archive(agent, &needed, &found)
}

/// How the modalias of a device begins that a module's alias, which is a pattern, is for. ACPI's patterns have a
/// star where no device has anything (Linux `scripts/mod/file2alias.c`, `do_acpi_entry`).
fn start(alias: &str) -> Option<String> {
    let alias = alias.replacen("acpi*:", "acpi:", 1);
    let start = alias.split(['*', '?', '[']).next().unwrap_or_default();
    // The agent looks at these buses.
    let device = BUSES.iter().find_map(|bus| start.strip_prefix(bus))?;
    (!device.is_empty() && !device.contains(' ')).then(|| start.to_owned())
}

/// The archive, from the agent's executable, the modules in the order that loads, and those for devices.
fn archive(agent: &[u8], modules: &[Module], found: &[Found]) -> Result<Vec<u8>, LayoutError> {
    let mut builder = Builder::new();
    for directory in ["/proc", "/sys", "/dev", "/run", "/tmp"] {
        builder.directory(directory, 0o755)?;
    }
    // Linux Documentation/admin-guide/devices.txt: character device 5:1 is the system console.
    builder.device("/dev/console", 0o600, 5, 1)?;
    builder.file("/init", 0o755, agent)?;
    if !modules.is_empty() || !found.is_empty() {
        add_modules(&mut builder, modules, found)?;
    }
    Ok(builder.build()?)
}

fn add_modules(builder: &mut Builder, modules: &[Module], found: &[Found]) -> Result<(), LayoutError> {
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
    Ok(())
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
    use crate::kernel::elf::tests::program;

    #[test]
    fn the_order_of_the_modules_is_written_down() {
        let modules = [
            ("vsock.ko".to_owned(), b"V".to_vec()),
            ("a.ko".to_owned(), b"A".to_vec()),
        ];
        let found = [
            (
                "virtio:d00000005".to_owned(),
                vec![("ring.ko".to_owned(), b"R".to_vec())],
            ),
            (
                "virtio:d00000004".to_owned(),
                vec![modules[1].clone(), ("ring.ko".to_owned(), b"R".to_vec())],
            ),
        ];
        let archive = archive(b"agent", &modules, &found).unwrap();
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
    fn a_pattern_of_a_module_is_the_start_of_a_device() {
        let starts = [
            "virtio:d00000005v*",
            "acpi*:PANIC001:*",
            "balloon",
            "pci:*",
            "a b:c*",
        ]
        .map(start);
        let device = |text: &str| Some(text.to_owned());
        assert_eq!(
            starts,
            [
                device("virtio:d00000005v"),
                device("acpi:PANIC001:"),
                None,
                None,
                None
            ]
        );
    }

    #[test]
    fn two_modules_of_one_name_are_refused() {
        let modules = [("a.ko".to_owned(), Vec::new()), ("a.ko".to_owned(), Vec::new())];
        assert!(archive(b"", &modules, &[]).is_err());
    }

    #[test]
    fn a_kernel_without_modules_gets_the_agent_alone() {
        let agent = program(&[(1, b"code")]);
        let archive = initramfs(&agent, None).unwrap();
        let text = String::from_utf8_lossy(&archive);
        assert!(text.contains("init\0") && !text.contains("lib/modules"));
        assert_eq!(initramfs(&agent, None).unwrap(), archive);
    }

    #[test]
    fn an_agent_that_is_not_static_is_refused() {
        let error = initramfs(b"#!/bin/sh\n", None).unwrap_err();
        assert!(matches!(error, LayoutError::Agent(NotStatic::NotElf)));
    }
}
