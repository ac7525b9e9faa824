//! The words of a guest kernel's command line that this machine is the reason for. Pure.
//!
//! Configuration does not travel here: words are fixed, but for the number of processors and the devices of
//! a machine without ACPI. It must not know guests.

use super::layout::Slot;

/// What every kernel is told.
const ALWAYS: [&str; 10] = [
    "console=ttyS0",
    // Every character of the console is an exit: 24,750 of them rather than 1,935 up to init.
    "quiet",
    // A panic resets at once: the machine is seen to end.
    "panic=-1",
    // There is one serial port. Each of the other three that a PC could have is probed with ten exits.
    "8250.nr_uarts=1",
    // There is no PCI. Looking for it is a dozen exits, and the complaint that there is none, which is an error
    // to kernels and so is not quiet, a hundred.
    "pci=off",
    "initcall_blacklist=pci_arch_init",
    // Memory above 4 GiB makes kernels set 64 MiB aside for devices that cannot reach it, 24 million
    // instructions and 64 MiB of host memory. Ours reach all memory.
    "swiotlb=noforce",
    // The self-tests of Debian's built-in ciphers are as long as half of the rest of its boot.
    "cryptomgr.notests",
    // And measuring the processor's jitter, for a random number generator that has better sources, is a
    // fifth of the rest.
    "initcall_blacklist=jent_mod_init",
    // A kernel with the dummy network card built in has one from the start, which nobody asked for.
    "dummy.numdummies=0",
];

/// The words, for a machine with these processors and devices.
///
/// Not among them, because KVM's guests need no telling: `no_timer_check`, `tsc=reliable`,
/// `tsc_early_khz=`, `lpj=` (kvm-clock says it all), `random.trust_cpu=on` (no difference was measured).
pub(in crate::hypervisor::kvm) fn words(vcpus: u8, acpi: bool, virtio: &[Slot]) -> String {
    let mut words: Vec<String> = ALWAYS.map(str::to_owned).into();
    if vcpus == 1 {
        // Nothing to patch out of the locks of a single processor: 4.5 million instructions.
        words.push("noreplace-smp".to_owned());
    }
    if acpi {
        // By the reset register: one exit that says what it is, where a triple fault could be a crash.
        words.push("reboot=a".to_owned());
    } else {
        // Only ACPI's tables say that there is no keyboard controller, and a silent one is waited for: half a
        // second. Its reset line is there, and is how a kernel without ACPI resets.
        let fixed = ["acpi=off", "reboot=k", "initcall_blacklist=i8042_init"];
        words.extend(fixed.map(str::to_owned));
        words.extend(virtio.iter().map(device));
    }
    words.join(" ")
}

/// One device, for a kernel with `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES` (Linux
/// Documentation/admin-guide/kernel-parameters.rst, `virtio_mmio.device`).
fn device(slot: &Slot) -> String {
    let Slot { base, size, gsi } = slot;
    format!("virtio_mmio.device={}K@{base:#x}:{gsi}", size >> 10)
}

#[cfg(test)]
mod tests {
    use super::super::layout::{COMMAND_LINE_BYTES, MAX_VIRTIO_SLOTS, virtio_slot};
    use super::*;

    const COMMON: &str = "console=ttyS0 quiet panic=-1 8250.nr_uarts=1 pci=off \
                          initcall_blacklist=pci_arch_init swiotlb=noforce cryptomgr.notests \
                          initcall_blacklist=jent_mod_init dummy.numdummies=0";

    fn slots(count: usize) -> Vec<Slot> {
        (0..count).map(|index| virtio_slot(index).unwrap()).collect()
    }

    #[test]
    fn with_acpi_devices_are_not_words() {
        assert_eq!(
            words(1, true, &slots(2)),
            format!("{COMMON} noreplace-smp reboot=a")
        );
        assert_eq!(words(2, true, &slots(2)), format!("{COMMON} reboot=a"));
    }

    #[test]
    fn without_acpi_they_are() {
        assert_eq!(
            words(2, false, &slots(2)),
            format!(
                "{COMMON} acpi=off reboot=k initcall_blacklist=i8042_init \
                 virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
            )
        );
    }

    #[test]
    fn the_longest_line_is_not_cut_off() {
        assert!(words(1, false, &slots(MAX_VIRTIO_SLOTS)).len() < COMMAND_LINE_BYTES);
    }
}
