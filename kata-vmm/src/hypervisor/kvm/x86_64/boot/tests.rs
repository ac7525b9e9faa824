//! Guest memory as a kernel finds it, byte by byte against the specifications, and files that no kernel is.

use std::fs::File;
use std::io::Write;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::hypervisor::kvm::x86_64::layout::virtio_slot;

const MIB: u64 = 1 << 20;

fn memory(ranges: &[(u64, u64)]) -> GuestMemoryMmap {
    let ranges: Vec<(GuestAddress, usize)> = ranges
        .iter()
        .map(|&(start, size)| (GuestAddress(start), usize::try_from(size).unwrap()))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn number<const N: usize>(memory: &GuestMemoryMmap, address: u64) -> u64 {
    let mut bytes = [0; 8];
    memory.read_slice(&mut bytes[..N], GuestAddress(address)).unwrap();
    u64::from_le_bytes(bytes)
}

fn text(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// An ELF in parts, so that a test can break one.
#[derive(Clone)]
struct Parts {
    machine: u16,
    entry: u64,
    /// Type, offset, address, bytes in the file, in memory, alignment.
    headers: Vec<[u64; 6]>,
    /// From offset 0x1000 on.
    contents: Vec<u8>,
}

const LOAD: u64 = 1;
const NOTE: u64 = 4;

/// Two segments, the entry in the second, and PVH's note in the first, after another note.
fn pvh() -> Parts {
    with_note(b"GNU\0", 3)
}

/// The same, by its notes a Linux.
fn linux() -> Parts {
    with_note(b"Linux\0", 0x101)
}

fn with_note(name: &[u8], kind: u32) -> Parts {
    let mut contents = vec![0xaa; 0x2000];
    let mut notes = Vec::new();
    for (name, kind, description) in [
        (name, kind, &[9; 5][..]),
        (b"Xen\0", 18, &[0x30, 0x0a, 0x20, 0, 0, 0, 0, 0]),
    ] {
        notes.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
        notes.extend(u32::try_from(description.len()).unwrap().to_le_bytes());
        notes.extend(kind.to_le_bytes());
        for field in [name, description] {
            notes.extend(field);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
    }
    contents[0x800..0x800 + notes.len()].copy_from_slice(&notes);
    contents[0x1000..].fill(0xbb);
    Parts {
        machine: 62,
        entry: 0x20_0100,
        headers: vec![
            [LOAD, 0x2000, 0x20_0000, 0x1000, 0x3000, 0x1000],
            [LOAD, 0x1000, 0x10_0000, 0x1000, 0x1000, 0x1000],
            [NOTE, 0x1800, 0, notes.len() as u64, notes.len() as u64, 4],
        ],
        contents,
    }
}

fn plain() -> Parts {
    let mut parts = pvh();
    parts.headers.pop();
    parts
}

impl Parts {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend(2_u16.to_le_bytes());
        bytes.extend(self.machine.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(self.entry.to_le_bytes());
        bytes.extend(64_u64.to_le_bytes());
        bytes.extend([0; 14]);
        bytes.extend(56_u16.to_le_bytes());
        bytes.extend(u16::try_from(self.headers.len()).unwrap().to_le_bytes());
        bytes.resize(64, 0);
        for [kind, offset, address, in_file, in_memory, alignment] in &self.headers {
            bytes.extend(kind.to_le_bytes());
            for field in [offset, &0, address, in_file, in_memory, alignment] {
                bytes.extend(field.to_le_bytes());
            }
        }
        bytes.resize(0x1000, 0);
        bytes.extend(&self.contents);
        bytes
    }
}

/// A bzImage with one sector of setup code and a payload of 0x55.
fn bzimage(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![0; 0x400];
    bytes[0x1f1] = 1;
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    bytes[0x211] = 1;
    bytes[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    bytes[0x236] = 1;
    bytes[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    bytes.resize(0x1400, 0x55);
    change(&mut bytes);
    bytes
}

fn boot(memory: &GuestMemoryMmap, kernel: &[u8], initramfs: &[u8], acpi: bool) -> Result<Entry, BootError> {
    load(&Boot {
        memory,
        kernel: &file(kernel),
        initramfs: &file(initramfs),
        command_line: "quiet panic=-1",
        vcpus: 2,
        virtio: &[virtio_slot(0).unwrap()],
        acpi,
    })
}

/// xen/include/public/arch-x86/hvm/start_info.h, as the kernel reads it.
#[test]
fn pvh_finds_everything_by_the_start_information() {
    let memory = memory(&[(0, 64 * MIB), (1 << 32, 16 * MIB)]);
    let entry = boot(&memory, &pvh().bytes(), &[7; 0x1801], true).unwrap();
    let Entry::Pvh { rip, start_info } = entry else {
        panic!("{entry:?}");
    };
    assert_eq!(rip, 0x20_0a30);
    let word = |offset| number::<4>(&memory, start_info + offset);
    let long = |offset| number::<8>(&memory, start_info + offset);
    // Magic, version, flags, modules.
    assert_eq!([word(0), word(4), word(8), word(12)], [0x336e_c578, 1, 0, 1]);
    let (modules, words, rsdp, map) = (long(16), long(24), long(32), long(40));
    assert_eq!(text(&memory, words, 15), b"quiet panic=-1\0");
    assert_eq!(text(&memory, rsdp, 8), b"RSD PTR ");
    assert_eq!((word(48), word(52)), (5, 0));
    let ranges: Vec<[u64; 3]> = (0..5)
        .map(|index| [0, 8, 16].map(|field| number::<8>(&memory, map + index * 24 + field)))
        .collect();
    assert_eq!(
        ranges,
        [
            [0, 0x9_fc00, 1],
            [0x9_fc00, 0x400, 2],
            [0xe_0000, 0x2_0000, 2],
            [0x10_0000, 63 * MIB, 1],
            [1 << 32, 16 * MIB, 1],
        ]
    );
    // The initramfs: whole pages below the end of low memory, and it is all there.
    let [start, size, words, reserved] = [0, 8, 16, 24].map(|field| number::<8>(&memory, modules + field));
    assert_eq!((start, size, words, reserved), (64 * MIB - 0x2000, 0x1801, 0, 0));
    assert_eq!(text(&memory, start, 0x1802), [vec![7; 0x1801], vec![0]].concat());
    // The segments, and zeroes where the second has no contents.
    assert_eq!(text(&memory, 0x10_0000, 4), [0xaa; 4]);
    assert_eq!(text(&memory, 0x20_0fff, 2), [0xbb, 0]);
}

/// Linux Documentation/arch/x86/zero-page.rst and boot.rst.
#[test]
fn a_plain_elf_finds_everything_by_the_zero_page() {
    let memory = memory(&[(0, 64 * MIB)]);
    let entry = boot(&memory, &plain().bytes(), &[7; 0x1000], true).unwrap();
    let Entry::Long { rip, zero_page } = entry else {
        panic!("{entry:?}");
    };
    assert_eq!(rip, 0x20_0100);
    let field = |offset| number::<4>(&memory, zero_page + offset);
    assert_eq!(number::<8>(&memory, zero_page + 0x70), 0xe_0000);
    assert_eq!(
        (field(0x1e8) & 0xff, field(0x1ec) >> 24),
        (4, 0),
        "ranges, sentinel"
    );
    assert_eq!(number::<2>(&memory, zero_page + 0x1fe), 0xaa55);
    assert_eq!((field(0x202), field(0x206) & 0xffff), (0x5372_6448, 0x020f));
    assert_eq!(field(0x210) & 0xff, 0xff);
    assert_eq!((field(0x218), field(0x21c)), (0x3ff_f000, 0x1000));
    assert_eq!((field(0x228), field(0x238)), (0x2_0000, 2047));
    // The last of the e820 ranges, of 20 bytes each.
    let last = zero_page + 0x2d0 + 3 * 20;
    assert_eq!(number::<8>(&memory, last), 0x10_0000);
    assert_eq!(number::<8>(&memory, last + 8), 63 * MIB);
    assert_eq!(number::<4>(&memory, last + 16), 1);
    assert_eq!(number::<8>(&memory, layout::GDT + 16), 0x00af_9b00_0000_ffff);
}

/// A walk as the processor does it (Intel SDM 3A §4.5), for the first and last byte of every 2 MiB.
#[test]
fn linux_is_entered_by_its_own_protocol_also_where_it_has_the_other() {
    let memory = memory(&[(0, 64 * MIB)]);
    let entry = boot(&memory, &linux().bytes(), &[], true).unwrap();
    assert_eq!(entry, boot(&memory, &plain().bytes(), &[], true).unwrap());
    assert!(matches!(entry, Entry::Long { rip: 0x20_0100, .. }), "{entry:?}");
}

#[test]
fn page_tables_map_the_first_four_gib_to_themselves() {
    let memory = memory(&[(0, 64 * MIB)]);
    boot(&memory, &plain().bytes(), &[], true).unwrap();
    let present = |entry: u64| {
        assert_eq!(entry & 0b11, 0b11);
        entry & 0x000f_ffff_ffff_f000
    };
    for address in (0..1 << 32)
        .step_by(1 << 21)
        .flat_map(|start| [start, start + 0x1f_ffff])
    {
        let index = |level: u32| address >> (12 + 9 * level) & 0x1ff;
        let directories = present(number::<8>(&memory, layout::PAGE_TABLES + 8 * index(3)));
        let directory = present(number::<8>(&memory, directories + 8 * index(2)));
        let page = number::<8>(&memory, directory + 8 * index(1));
        assert_eq!(page & 0x80, 0x80);
        assert_eq!(present(page) | (address & 0x1f_ffff), address);
    }
}

#[test]
fn a_bzimage_gets_its_own_header_back() {
    let memory = memory(&[(0, 64 * MIB)]);
    let entry = boot(&memory, &bzimage(|_| ()), &[7; 0x1000], false).unwrap();
    let expected = Entry::Long {
        rip: 0x100_0200,
        zero_page: layout::BOOT_INFO,
    };
    assert_eq!(entry, expected);
    assert_eq!(text(&memory, 0x100_0fff, 2), [0x55, 0]);
    // From the file: the version, what it needs; from here: the loader, the command line, no RSDP.
    let field = |offset| number::<4>(&memory, layout::BOOT_INFO + offset);
    assert_eq!((field(0x206) & 0xffff, field(0x260)), (0x020f, 0x20_0000));
    assert_eq!(
        (field(0x210) & 0xff, field(0x228), field(0x70)),
        (0xff, 0x2_0000, 0)
    );
    assert_eq!(text(&memory, layout::MP_TABLE, 4), b"_MP_");
}

/// The initramfs stays below what a kernel can reach.
#[test]
fn a_bzimage_limits_its_initramfs() {
    let memory = memory(&[(0, 64 * MIB)]);
    let kernel = bzimage(|bytes| bytes[0x22c..0x230].copy_from_slice(&0x1ff_ffff_u32.to_le_bytes()));
    boot(&memory, &kernel, &[7; 0x1000], true).unwrap();
    assert_eq!(number::<4>(&memory, layout::BOOT_INFO + 0x218), 32 * MIB - 0x1000);
}

fn chain(refusal: &dyn std::error::Error) -> String {
    match refusal.source() {
        Some(cause) => format!("{refusal}: {}", chain(cause)),
        None => refusal.to_string(),
    }
}

/// Every refusal, as a caller would be told.
#[test]
fn refusals() {
    let memory = memory(&[(0, 4 * MIB)]);
    let mut table = String::new();
    let mut check = |name: &str, kernel: &[u8], initramfs: &[u8]| {
        let refusal = boot(&memory, kernel, initramfs, true).unwrap_err();
        table.push_str(&format!("{name}: {}\n", chain(&refusal)));
    };
    let elf = |change: fn(&mut Parts)| {
        let mut parts = pvh();
        change(&mut parts);
        parts.bytes()
    };
    check("empty kernel", &[], &[]);
    check("a script", b"#!/bin/sh\n", &[]);
    check("half a header", &pvh().bytes()[..40], &[]);
    check("aarch64", &elf(|parts| parts.machine = 183), &[]);
    check("no program headers", &elf(|parts| parts.headers.clear()), &[]);
    check(
        "65 program headers",
        &elf(|parts| parts.headers = vec![[0; 6]; 65]),
        &[],
    );
    check("cut in a segment", &pvh().bytes()[..0x2800], &[]);
    check(
        "a segment of 16 EiB",
        &elf(|parts| parts.headers[0][3] = u64::MAX),
        &[],
    );
    check(
        "more in the file than in memory",
        &elf(|parts| parts.headers[0][4] = 0x800),
        &[],
    );
    check(
        "wraps around",
        &elf(|parts| parts.headers[0][2] = u64::MAX - 0x1000),
        &[],
    );
    check("beyond memory", &elf(|parts| parts.headers[0][4] = 4 << 20), &[]);
    check("on the tables", &elf(|parts| parts.headers[1][2] = 0x7000), &[]);
    check("overlapping", &elf(|parts| parts.headers[1][2] = 0x1f_f001), &[]);
    check(
        "nothing to load",
        &elf(|parts| drop(parts.headers.drain(..2))),
        &[],
    );
    check(
        "entry elsewhere",
        &elf(|parts| parts.headers[0][2] = 0x30_0000),
        &[],
    );
    check(
        "megabytes of notes",
        &elf(|parts| parts.headers[2][3] = 64 << 20),
        &[],
    );
    check("a note too long", &elf(|parts| parts.contents[0x804] = 99), &[]);
    check(
        "an address of five bytes",
        &elf(|parts| parts.contents[0x800 + 24 + 4] = 5),
        &[],
    );
    check("bzImage 2.11", &bzimage(|bytes| bytes[0x206] = 0x0b), &[]);
    check("zImage", &bzimage(|bytes| bytes[0x211] = 0), &[]);
    check("32-bit bzImage", &bzimage(|bytes| bytes[0x236] = 0), &[]);
    check(
        "bzImage without payload",
        &bzimage(|bytes| bytes.truncate(0x500)),
        &[],
    );
    check("bzImage beyond memory", &bzimage(|_| ()), &[]);
    check("initramfs too large", &pvh().bytes(), &vec![0; 0x1f_d001]);
    assert_eq!(table, include_str!("refusals.txt"));
}

#[test]
fn limits_of_the_machine_are_refusals() {
    let (kernel, initramfs) = (file(&pvh().bytes()), file(&[]));
    let small = memory(&[(0, MIB)]);
    let memory = memory(&[(0, 4 * MIB)]);
    let good = Boot {
        memory: &memory,
        kernel: &kernel,
        initramfs: &initramfs,
        command_line: "",
        vcpus: 1,
        virtio: &[],
        acpi: true,
    };
    assert!(load(&good).is_ok());
    let refused = |boot: Boot<'_>| load(&boot).unwrap_err();
    assert!(matches!(
        refused(Boot { vcpus: 0, ..good }),
        BootError::Vcpus { vcpus: 0 }
    ));
    assert!(matches!(
        refused(Boot { vcpus: 33, ..good }),
        BootError::Vcpus { vcpus: 33 }
    ));
    assert!(matches!(
        refused(Boot {
            memory: &small,
            ..good
        }),
        BootError::Memory { .. }
    ));
    let long = "x".repeat(2048);
    for command_line in [&*long, "quiet\0init=/bin/sh"] {
        assert!(matches!(
            refused(Boot { command_line, ..good }),
            BootError::CommandLine { .. }
        ));
    }
}

/// At 2 MiB, and 1 MiB large.
fn in_low_memory(bytes: &mut [u8]) {
    bytes[0x258..0x25c].copy_from_slice(&0x20_0000_u32.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&0x10_0000_u32.to_le_bytes());
}

/// Files near to kernels: each is loaded or refused, and what is refused or loaded never reaches the tables of
/// the first MiB from the file.
#[test]
fn no_file_breaks_the_loader() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 11).unwrap() % below
    };
    let memory = memory(&[(0, 4 * MIB)]);
    let seeds = [
        pvh().bytes(),
        plain().bytes(),
        bzimage(|bytes| in_low_memory(bytes)),
    ];
    let interesting = [0, 1, 0x7f, 0x80, 0xff];
    let (mut loaded, mut refused) = (0, 0);
    for round in 0..3000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..=random(4) {
            // Headers and notes, where the meaning is.
            let spot = [random(0x270), 0x1800 + random(0x40), random(bytes.len())][random(3)] % bytes.len();
            bytes[spot] = if random(2) == 0 {
                interesting[random(interesting.len())]
            } else {
                u8::try_from(random(256)).unwrap()
            };
        }
        if random(4) == 0 {
            bytes.truncate(random(bytes.len()));
        }
        memory
            .write_slice(&[0; 0x1000], GuestAddress(layout::COMMAND_LINE))
            .unwrap();
        match boot(&memory, &bytes, &[7; 0x1000], round % 2 == 0) {
            Ok(_) => {
                loaded += 1;
                assert_eq!(text(&memory, layout::COMMAND_LINE, 15), b"quiet panic=-1\0");
            }
            Err(_) => refused += 1,
        }
    }
    assert!(
        loaded > 100 && refused > 100,
        "{loaded} loaded, {refused} refused"
    );
}
