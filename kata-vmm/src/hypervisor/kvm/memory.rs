//! Guest memory: a file in memory, mapped here and given to KVM.
//!
//! Owns the mapping and the memory slots. Fresh memory is mapped shared, so that devices in other
//! processes see it too; memory that comes from a template is mapped privately: the guest's writes stay its
//! own. It must not know what is in it.
#![expect(
    unsafe_code,
    reason = "KVM is told an address of this process, which must stay mapped"
)]

use std::fs::File;
use std::io;

use kata_virtio::Memory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::hypervisor::guest_memory;

/// Where the contents come from.
#[derive(Debug)]
pub(super) enum Contents {
    /// Zeroes, in a file of its own.
    Fresh,
    /// A file that others may have mapped too and that is never written.
    #[cfg_attr(not(test), expect(dead_code, reason = "restoring a machine comes later"))]
    Template(File),
}

/// Guest memory and its file.
#[derive(Debug)]
pub(super) struct Ram {
    memory: Memory,
    file: File,
}

impl Ram {
    /// Memory at these guest-physical ranges (address, bytes), in this order in the file.
    ///
    /// # Errors
    /// When the host has no such address space, or the file is too small.
    pub(super) fn new(ranges: &[(GuestAddress, u64)], contents: Contents) -> io::Result<Self> {
        let total = ranges.iter().map(|(_, bytes)| bytes).sum();
        let (file, flags) = match contents {
            Contents::Fresh => (guest_memory::fresh(total)?, libc::MAP_SHARED),
            Contents::Template(file) => (file, libc::MAP_PRIVATE),
        };
        if file.metadata()?.len() < total {
            let message = format!("the template has less than {total} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut regions = Vec::with_capacity(ranges.len());
        let mut offset = 0;
        for &(address, bytes) in ranges {
            let size = usize::try_from(bytes).map_err(io::Error::other)?;
            let region = MmapRegionBuilder::new(size)
                .with_file_offset(FileOffset::new(file.try_clone()?, offset))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(flags | libc::MAP_NORESERVE)
                .build()
                .map_err(io::Error::other)?;
            let region = GuestRegionMmap::new(region, address)
                .ok_or_else(|| io::Error::other("memory beyond the guest's addresses"))?;
            regions.push(region);
            offset += bytes;
        }
        let memory = Memory::from_regions(regions).map_err(io::Error::other)?;
        Ok(Self { memory, file })
    }

    /// The memory as devices see it.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Bytes that the host has given to its file; private copies of a template's pages are not among them.
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        guest_memory::resident_bytes(&self.file)
    }

    /// Gives it to a VM, a slot for each range. The VM must be dropped before.
    ///
    /// # Errors
    /// What KVM says.
    pub(super) fn attach(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr().addr() as u64,
            };
            // SAFETY: the range is mapped, and stays so until this value is dropped: after the VM, which is made
            // later and stands before it among the machine's fields.
            unsafe { vm.set_user_memory_region(region) }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use vm_memory::Bytes;

    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn fresh_memory_is_empty_until_it_is_written() {
        let ranges = [(GuestAddress(0), 64 * PAGE), (GuestAddress(1 << 32), 64 * PAGE)];
        let ram = Ram::new(&ranges, Contents::Fresh).unwrap();
        assert_eq!(ram.resident_bytes(), Some(0));
        ram.memory().write_obj(7u8, GuestAddress(1 << 32)).unwrap();
        assert_eq!(ram.resident_bytes(), Some(PAGE));
        assert!(ram.memory().write_obj(7u8, GuestAddress(64 * PAGE)).is_err());
    }

    #[test]
    fn a_template_is_read_and_never_written() {
        let mut file = guest_memory::fresh(2 * PAGE).unwrap();
        file.write_all(b"template").unwrap();
        let ranges = [(GuestAddress(0), 2 * PAGE)];
        let one = Ram::new(&ranges, Contents::Template(file.try_clone().unwrap())).unwrap();
        let two = Ram::new(&ranges, Contents::Template(file.try_clone().unwrap())).unwrap();
        one.memory().write_slice(b"TEMPLATE", GuestAddress(0)).unwrap();
        let mut seen = [0; 8];
        two.memory().read_slice(&mut seen, GuestAddress(0)).unwrap();
        assert_eq!(&seen, b"template");
        file.rewind().unwrap();
        file.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"template");
        let ranges = [(GuestAddress(0), 3 * PAGE)];
        let error = Ram::new(&ranges, Contents::Template(file)).unwrap_err();
        assert_eq!(error.to_string(), "the template has less than 12288 bytes");
    }
}
