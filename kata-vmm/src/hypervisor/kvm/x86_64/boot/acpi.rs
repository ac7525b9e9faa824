//! ACPI tables, in the hardware-reduced form (ACPI 6.5 §4.1): no PM timer, no SCI, no legacy controllers.
//!
//! ```text
//!  RSDP ──► XSDT ──┬► FADT ──► DSDT   devices, power-off
//!                  └► MADT            processors, IO-APIC
//! ```
//!
//! Owns the bytes and their order from [`ACPI_TABLES`] on. It must not know guest memory.
//!
//! An interrupt source override is needed for none: a kernel in this mode takes trigger and polarity from the
//! device that uses the interrupt.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml};

use super::halves;
use crate::hypervisor::kvm::x86_64::layout::{
    ACPI_TABLES, COM1_GSI, COM1_PORT, IO_APIC, LOCAL_APIC, PANIC_PORT, RESET, RESET_PORT, SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT, SLEEP_TYPE_S5, Slot,
};

const OEM: [u8; 6] = *b"KATARS";
const OEM_TABLE: [u8; 8] = *b"KATAVMM ";
const OEM_REVISION: u32 = 1;
/// Bytes of a table's header.
const HEADER: u32 = 36;
/// Two: integers have 64 bits (ACPI 6.5 §5.2.11.1).
const DSDT_REVISION: u8 = 2;
/// Each table starts at a multiple of it; the RSDP is searched for at these (ACPI 6.5 §5.2.5.1).
const ALIGNMENT: usize = 16;

/// `IAPC_BOOT_ARCH` (ACPI 6.5 table 5.11): devices on ports exist (COM1), VGA does not, the CMOS RTC does not.
/// The bit for a keyboard controller is clear.
///
/// The RTC answers for kernels that use it anyway; one that believes this saves the exits of reading it, and
/// takes the time from kvm-clock.
const BOOT_ARCHITECTURE: u16 = 1 | 1 << 2 | 1 << 5;

/// The tables, for [`ACPI_TABLES`]; the first is the RSDP.
pub(super) fn tables(vcpus: u8, virtio: &[Slot]) -> Vec<u8> {
    let rsdp_bytes = Rsdp::len().next_multiple_of(ALIGNMENT);
    let mut tables = vec![0; rsdp_bytes];
    let dsdt = append(&mut tables, dsdt(vcpus, virtio).as_slice());
    let fadt = append(&mut tables, &bytes(&fadt(dsdt)));
    let madt = append(&mut tables, &bytes(&madt(vcpus)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut tables, &bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    tables[..rsdp.len()].copy_from_slice(&rsdp);
    tables
}

/// Adds a table; its guest address.
fn append(tables: &mut Vec<u8>, table: &[u8]) -> u64 {
    let start = tables.len();
    tables.extend(table);
    tables.resize(tables.len().next_multiple_of(ALIGNMENT), 0);
    ACPI_TABLES + start as u64
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Fixed description (ACPI 6.5 §5.2.9).
fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // No power and sleep buttons among the fixed hardware, which there is none of.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

/// Processors and the interrupt controller (ACPI 6.5 §5.2.12).
fn madt(vcpus: u8) -> impl Aml {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for index in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

/// Devices, and how to switch off (ACPI 6.5 §5.2.11.1, §7.4.2.6).
fn dsdt(vcpus: u8, virtio: &[Slot]) -> Sdt {
    let mut code = Vec::new();
    Processors(vcpus).to_aml_bytes(&mut code);
    com1(&mut code);
    panic_device(&mut code);
    for (index, slot) in virtio.iter().enumerate() {
        virtio_device(index, slot, &mut code);
    }
    let mut code = aml::Scope::raw(Path::new("_SB_"), code);
    let state = Package::new(vec![&SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    Name::new(Path::new("_S5_"), &state).to_aml_bytes(&mut code);
    // All at once: each append sums the whole table up again.
    let mut table = Sdt::new(*b"DSDT", HEADER, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table
}

/// A container with the processors of the MADT: `ACPI0010` and `ACPI0007` (ACPI 6.5 §5.6.7, §8.4).
struct Processors(u8);

impl Aml for Processors {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let container = Name::new(Path::new("_HID"), &"ACPI0010");
        let devices: Vec<Processor> = (0..self.0).map(Processor).collect();
        let mut children: Vec<&dyn Aml> = vec![&container];
        children.extend(devices.iter().map(|device| device as &dyn Aml));
        Device::new(Path::new("CPUS"), children).to_aml_bytes(sink);
    }
}

struct Processor(u8);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let id = Name::new(Path::new("_HID"), &"ACPI0007");
        let number = Name::new(Path::new("_UID"), &self.0);
        let name = format!("C{:03X}", self.0);
        Device::new(Path::new(&name), vec![&id, &number]).to_aml_bytes(sink);
    }
}

/// The serial port.
fn com1(code: &mut Vec<u8>) {
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let number = Name::new(Path::new("_UID"), &aml::ZERO);
    let ports = IO::new(COM1_PORT, COM1_PORT, 1, 8);
    let interrupt = edge_triggered(COM1_GSI);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    let resources = Name::new(Path::new("_CRS"), &resources);
    Device::new(Path::new("COM1"), vec![&id, &number, &resources]).to_aml_bytes(code);
}

/// pvpanic (QEMU docs/specs/pvpanic).
fn panic_device(code: &mut Vec<u8>) {
    let id = Name::new(Path::new("_HID"), &"QEMU0001");
    let ports = IO::new(PANIC_PORT, PANIC_PORT, 1, 1);
    let resources = ResourceTemplate::new(vec![&ports]);
    let resources = Name::new(Path::new("_CRS"), &resources);
    Device::new(Path::new("PEVT"), vec![&id, &resources]).to_aml_bytes(code);
}

/// A virtio-mmio device, by the name that Linux and QEMU agreed on.
fn virtio_device(index: usize, slot: &Slot, code: &mut Vec<u8>) {
    let id = Name::new(Path::new("_HID"), &"LNRO0005");
    let number = Name::new(Path::new("_UID"), &index);
    // It sees memory as the processors' caches have it (ACPI 6.5 §6.2.17).
    let coherent = Name::new(Path::new("_CCA"), &aml::ONE);
    // All slots are below 4 GiB.
    let registers = Memory32Fixed::new(true, halves(slot.base).0, halves(slot.size).0);
    let interrupt = edge_triggered(slot.gsi);
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let name = format!("V{index:03X}");
    Device::new(Path::new(&name), vec![&id, &number, &coherent, &resources]).to_aml_bytes(code);
}

/// Edge-triggered, active high, not shared: what an irqfd raises.
fn edge_triggered(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Command;

    use super::*;
    use crate::hypervisor::kvm::x86_64::layout::{HIGH_MEMORY, MAX_VCPUS, MAX_VIRTIO_SLOTS, virtio_slot};

    fn slots(count: usize) -> Vec<Slot> {
        (0..count).map(|index| virtio_slot(index).unwrap()).collect()
    }

    fn number<const N: usize>(table: &[u8], offset: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&table[offset..offset + N]);
        u64::from_le_bytes(bytes)
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    /// The table at a guest address, checked: signature, length, sum.
    fn table<'a>(tables: &'a [u8], address: u64, signature: &[u8; 4]) -> &'a [u8] {
        let start = usize::try_from(address - ACPI_TABLES).unwrap();
        assert_eq!(start % ALIGNMENT, 0);
        let length = usize::try_from(number::<4>(tables, start + 4)).unwrap();
        let table = &tables[start..start + length];
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(signature));
        table
    }

    struct Parsed<'a> {
        fadt: &'a [u8],
        madt: &'a [u8],
        dsdt: &'a [u8],
    }

    /// As a kernel finds them, from the RSDP.
    fn parse(tables: &[u8]) -> Parsed<'_> {
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!((tables[15], sum(&tables[..20]), sum(&tables[..36])), (2, 0, 0));
        let xsdt = table(tables, number::<8>(tables, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = table(tables, number::<8>(xsdt, 36), b"FACP");
        Parsed {
            fadt,
            madt: table(tables, number::<8>(xsdt, 44), b"APIC"),
            dsdt: table(tables, number::<8>(fadt, 140), b"DSDT"),
        }
    }

    #[test]
    fn tables_are_whole_and_fit_for_every_machine() {
        for vcpus in 1..=MAX_VCPUS {
            for devices in [0, 1, 7, MAX_VIRTIO_SLOTS] {
                let tables = tables(vcpus, &slots(devices));
                assert!(ACPI_TABLES + tables.len() as u64 <= HIGH_MEMORY);
                let madt = parse(&tables).madt;
                // Flags: no 8259 (ACPI 6.5 table 5.20).
                assert_eq!(number::<4>(madt, 40), 0);
                assert_eq!(madt.len(), 44 + usize::from(vcpus) * 8 + 12);
            }
        }
    }

    /// Byte for byte against ACPI 6.5 table 5.9.
    #[test]
    fn the_fixed_table_has_no_fixed_hardware() {
        let tables = tables(1, &slots(1));
        let fadt = parse(&tables).fadt;
        assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
        assert_eq!(number::<2>(fadt, 109), 0b10_0101);
        let flags = 1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 12 | 1 << 20;
        assert_eq!(number::<4>(fadt, 112), flags);
        let port = |offset| (number::<4>(fadt, offset), number::<8>(fadt, offset + 4));
        // System I/O, eight bits, byte access.
        assert_eq!(port(116), (0x0100_0801, u64::from(RESET_PORT)));
        assert_eq!(fadt[128], RESET);
        assert_eq!(port(244), (0x0100_0801, u64::from(SLEEP_CONTROL_PORT)));
        assert_eq!(port(256), (0x0100_0801, u64::from(SLEEP_STATUS_PORT)));
        // Nothing between PM1a_EVT_BLK and P_LVL2_LAT, nor among the extended blocks.
        assert!(fadt[46..96].iter().chain(&fadt[148..244]).all(|byte| *byte == 0));
    }

    #[test]
    fn processors_and_the_io_apic_are_listed() {
        let tables = tables(3, &[]);
        let madt = parse(&tables).madt;
        assert_eq!(number::<4>(madt, 36), 0xfee0_0000);
        let expected: Vec<u8> = (0..3)
            .flat_map(|id| [0, 8, id, id, 1, 0, 0, 0])
            .chain([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0])
            .collect();
        assert_eq!(madt[44..], expected);
    }

    /// Each device's resources, as the bytes that ACPI 6.5 §6.4.3.4 and §6.4.3.6 ask for.
    #[test]
    fn devices_have_their_registers_and_interrupts() {
        let slots = slots(MAX_VIRTIO_SLOTS);
        let tables = tables(1, &slots);
        let dsdt = parse(&tables).dsdt;
        let holds = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
        for Slot { base, size, gsi } in slots {
            let [memory, length, gsi] = [base, size, gsi.into()].map(|field| u32::try_from(field).unwrap());
            let mut resources = vec![0x86, 9, 0, 1];
            resources.extend(memory.to_le_bytes());
            resources.extend(length.to_le_bytes());
            resources.extend([0x89, 6, 0, 0b0011, 1]);
            resources.extend(gsi.to_le_bytes());
            resources.extend([0x79, 0]);
            assert!(holds(&resources), "{gsi}");
        }
        assert!(holds(b"LNRO0005\0") && holds(b"QEMU0001\0"));
        // The package of _S5: four elements, the sleep type first.
        assert!(holds(b"_S5_\x12\x07\x04\x0a\x05\0\0\0"));
    }

    /// The disassembler of ACPI's reference implementation reads the code; where it is not installed (Debian:
    /// acpica-tools) the tests above stand alone.
    #[test]
    fn the_reference_disassembler_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dsdt.aml");
        let tables = tables(2, &slots(3));
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(parse(&tables).dsdt).unwrap();
        let outcome = match Command::new("iasl").arg("-d").arg(&path).output() {
            Ok(outcome) => outcome,
            Err(cause) => {
                println!("SKIPPED the_reference_disassembler_reads_it: optional: iasl: {cause}");
                return;
            }
        };
        assert!(outcome.status.success(), "{outcome:?}");
        let source = std::fs::read_to_string(directory.path().join("dsdt.dsl")).unwrap();
        for line in [
            "Device (CPUS)",
            "Name (_HID, \"ACPI0007\" /* Processor Device */)",
            "Name (_HID, EisaId (\"PNP0501\")",
            "Device (V002)",
            "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )",
            "Name (_S5, Package (0x04)",
        ] {
            assert!(source.contains(line), "{line}: {source}");
        }
    }
}
