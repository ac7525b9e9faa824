//! Disks whose every block is checked against a hash tree when it is read: Linux's dm-verity, by the device mapper.
//!
//! Owns the words of the storage's option and the device mapper's requests (linux/dm-ioctl.h; the kernel's
//! admin-guide/device-mapper/verity.rst). Must not know what is on the disk.

use std::fs::File;
use std::io;

use kata_agent_proto::{Failed, FailureKind};

use crate::extent::Extent;
use crate::sys;

/// A `struct dm_ioctl`, and the `struct dm_target_spec` that begins a table.
const HEAD_BYTES: usize = 312;
const TARGET_BYTES: usize = 40;
/// Sizes of blocks and of a hash.
const BLOCK_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
const HASH_BYTES: usize = 32;
const SALT_BYTES_MAX: usize = 256;

const DEV_CREATE: u32 = 3;
const DEV_REMOVE: u32 = 4;
const DEV_SUSPEND: u32 = 6;
const TABLE_LOAD: u32 = 9;

const READ_ONLY: u32 = 1;
/// When nobody has it open any more.
const DEFERRED_REMOVE: u32 = 1 << 17;

/// What a disk is checked against.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Serial of the disk with the hash tree, and where in it the tree is.
    pub(super) hashes: (String, Option<Extent>),
    blocks: u64,
    /// In hexadecimal, as the table wants them.
    root_hash: String,
    salt: String,
}

impl Table {
    /// Reads the words of the option.
    ///
    /// # Errors
    /// [`FailureKind::Invalid`] with the words, which become part of a table of the kernel's.
    pub(super) fn parse(words: &str) -> Result<Self, Failed> {
        let is_hex = |text: &str, bytes: usize| {
            text.len() == 2 * bytes && text.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let parsed = match *words.split(' ').collect::<Vec<_>>() {
            [hashes, blocks, root_hash, salt] if is_hex(root_hash, HASH_BYTES) => {
                let hashes = Extent::parse(hashes);
                let is_salt = salt.len() <= 2 * SALT_BYTES_MAX && is_hex(salt, salt.len() / 2);
                let blocks = blocks.parse().ok().filter(|blocks| (1..1 << 51).contains(blocks));
                blocks
                    .filter(|_| is_salt)
                    .zip(hashes)
                    .map(|(blocks, hashes)| Self {
                        hashes,
                        blocks,
                        root_hash: root_hash.to_owned(),
                        // The kernel's word for none.
                        salt: if salt.is_empty() { "-" } else { salt }.to_owned(),
                    })
            }
            _ => None,
        };
        parsed.ok_or_else(|| Failed::new(FailureKind::Invalid, format!("dm-verity of {words:?}")))
    }

    /// The table's only line. The hashes begin behind the tree's superblock.
    fn parameters(&self, data: &str, hashes: &str) -> String {
        let Self {
            blocks,
            root_hash,
            salt,
            ..
        } = self;
        format!("1 {data} {hashes} {BLOCK_BYTES} {BLOCK_BYTES} {blocks} 1 sha256 {root_hash} {salt}")
    }
}

/// Where the device mapper is asked.
const CONTROL: &str = "/dev/mapper/control";

/// A device that reads a disk and checks it. It goes when this and the last mount of it are gone.
pub(super) struct Verified {
    control: File,
    name: String,
    path: String,
}

impl Verified {
    /// Makes the device `name` over the disk `data`, checked by the tree on the disk `hashes`. Others may do the same.
    ///
    /// # Errors
    /// [`FailureKind::Unsupported`] where the kernel has no device mapper, [`FailureKind::Mount`] when it has no
    /// dm-verity or refuses these disks.
    pub(super) fn open(name: &str, data: &str, hashes: &str, table: &Table) -> Result<Self, Failed> {
        let failed = |what: &str, error: &io::Error| {
            Failed::new(
                FailureKind::Mount,
                format!("dm-verity on {data} ({what}): {error}"),
            )
        };
        let mut options = File::options();
        let control = match options.read(true).write(true).open(CONTROL) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let what = "dm-verity: the kernel has no device mapper";
                return Err(Failed::new(FailureKind::Unsupported, what));
            }
            opened => opened.map_err(|error| failed("control", &error))?,
        };
        let mut request = head(name, 0, 0);
        sys::ask_device_mapper(&control, DEV_CREATE, &mut request)
            .map_err(|error| failed("create", &error))?;
        let device = Self {
            control,
            name: name.to_owned(),
            path: path(&request),
        };
        let mut request = head(name, READ_ONLY, 1);
        let sectors = table.blocks * (BLOCK_BYTES / SECTOR_BYTES);
        request.extend(target(sectors, &table.parameters(data, hashes)));
        sys::ask_device_mapper(&device.control, TABLE_LOAD, &mut request)
            .map_err(|error| failed("table", &error))?;
        // Without a flag it is resumed: the table is used from here on.
        sys::ask_device_mapper(&device.control, DEV_SUSPEND, &mut head(name, 0, 0))
            .map_err(|error| failed("resume", &error))?;
        Ok(device)
    }

    /// Its file in `/dev`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Verified {
    fn drop(&mut self) {
        let_go(&self.control, &self.name);
    }
}

/// What the device of a mount is called: one for each, as containers that share a disk come and go on their own.
pub(super) fn name_of(mount_point: &str) -> String {
    mount_point.replace('/', ":")
}

/// Lets go of a device that a worker left behind which was killed on its way.
pub(super) fn sweep(name: &str) {
    if let Ok(control) = File::options().read(true).write(true).open(CONTROL) {
        let_go(&control, name);
    }
}

/// Whether it is mounted or not, or gone, there is nothing else to do with it.
fn let_go(control: &File, name: &str) {
    let _ = sys::ask_device_mapper(control, DEV_REMOVE, &mut head(name, DEFERRED_REMOVE, 0));
}

/// A `struct dm_ioctl` of version 4.0.0: sizes and flags, and the device's name at 48.
fn head(name: &str, flags: u32, targets: u32) -> Vec<u8> {
    let mut head = vec![0; HEAD_BYTES];
    let data_start = u32::try_from(HEAD_BYTES).unwrap_or_default();
    for (at, value) in [(0, 4), (16, data_start), (20, targets), (28, flags)] {
        head[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    // The name has 128 bytes, the last of them 0; longer ones are cut.
    for (place, byte) in head[48..175].iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    head
}

/// A `struct dm_target_spec` with its parameters, which end with 0 at a multiple of eight bytes.
fn target(sectors: u64, parameters: &str) -> Vec<u8> {
    let mut target = vec![0; TARGET_BYTES];
    target[8..16].copy_from_slice(&sectors.to_ne_bytes());
    target[24..30].copy_from_slice(b"verity");
    target.extend(parameters.bytes());
    target.resize((target.len() + 1).next_multiple_of(8), 0);
    target
}

/// The device of an answer: its number is at byte 40, in the form of `huge_encode_dev`.
fn path(answer: &[u8]) -> String {
    let mut number = [0; 8];
    number.copy_from_slice(&answer[40..48]);
    format!("/dev/dm-{}", rustix::fs::minor(u64::from_ne_bytes(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_become_a_line_of_the_kernels_table() {
        let root = "ab".repeat(32);
        let table = Table::parse(&format!("tree-0 700 {root} 0102")).expect("a table");
        assert_eq!(
            table.parameters("/dev/vda", "/dev/vdb"),
            format!("1 /dev/vda /dev/vdb 4096 4096 700 1 sha256 {root} 0102")
        );
        let unsalted = Table::parse(&format!("tree-0 700 {root} ")).expect("a table");
        assert_eq!(unsalted.salt, "-");
        assert_eq!(unsalted.hashes, ("tree-0".to_owned(), None));
        let part = Table::parse(&format!("shelf@1048576+8192 700 {root} ")).expect("a table");
        let extent = Extent {
            offset: 1 << 20,
            bytes: 8192,
        };
        assert_eq!(part.hashes, ("shelf".to_owned(), Some(extent)));
    }

    #[test]
    fn words_that_say_something_else_are_refused() {
        let root = "ab".repeat(32);
        for words in [
            String::new(),
            format!("tree-0 700 {root}"),
            format!("tree-0 700 {root} 01 02"),
            format!("tree-0 0 {root} 01"),
            format!("tree-0 -1 {root} 01"),
            format!("tree-0 18446744073709551615 {root} 01"),
            format!(" 700 {root} 01"),
            format!("@512+512 700 {root} 01"),
            format!("shelf@512 700 {root} 01"),
            format!("shelf@512+1 700 {root} 01"),
            format!("tree-0 700 {root}ab 01"),
            format!("tree-0 700 {root} 0x"),
            format!("tree-0 700 {root} 012"),
            format!("tree-0 700 {root} {}", "00".repeat(257)),
        ] {
            let failed = Table::parse(&words).expect_err("refused");
            assert_eq!(
                (failed.kind, failed.subject),
                (FailureKind::Invalid, format!("dm-verity of {words:?}"))
            );
        }
    }

    #[test]
    fn requests_have_the_kernels_layout() {
        let request = head("layer-0", READ_ONLY, 1);
        assert_eq!((request.len(), &request[48..56]), (312, &b"layer-0\0"[..]));
        assert_eq!(request[16..20], 312_u32.to_ne_bytes());
        assert_eq!((request[20], request[28]), (1, 1));
        assert_eq!(head(&"n".repeat(300), 0, 0)[175], 0);
        let target = target(8, "1 a b");
        assert_eq!((target.len(), target[8], &target[40..45]), (48, 8, &b"1 a b"[..]));
        assert_eq!(super::target(8, "12345678").len(), 56);
    }
}
