//! A file that is read into guest memory, and is not trusted.
//!
//! Reads are positioned: the descriptor came from another process, and sandboxes that share it must not
//! move each other's position.
//! Owns the check that a range is in the file, and the one system call that fills guest memory.
//! It must not know formats.

#![expect(unsafe_code, reason = "a positioned read into guest memory has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile, VolatileMemoryError, VolatileSlice};

/// An open file and its size when it was opened here.
#[derive(Debug)]
pub(super) struct Image<'a> {
    file: &'a File,
    bytes: u64,
}

/// A file that does not give what it promises.
#[derive(Debug, thiserror::Error)]
pub(in crate::hypervisor::kvm) enum ImageError {
    /// Its size is not known.
    #[error("its size cannot be read")]
    Size(#[source] io::Error),
    /// Not a file that has a size and can be read anywhere.
    #[error("it is not a regular file")]
    NotAFile,
    /// It ends before something that it says it contains.
    #[error("its {what} needs {bytes:#x} bytes at {offset:#x}, and the file has {size:#x}")]
    Truncated {
        /// What.
        what: &'static str,
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        bytes: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// Reading it failed.
    #[error("its {what} cannot be read")]
    Read {
        /// What.
        what: &'static str,
        /// The operating system's answer.
        #[source]
        cause: io::Error,
    },
    /// Reading it to guest memory failed.
    #[error("its {what} cannot be copied to guest memory at {address:#x}")]
    Copy {
        /// What.
        what: &'static str,
        /// The guest address.
        address: u64,
        /// What failed.
        #[source]
        cause: vm_memory::GuestMemoryError,
    },
}

impl<'a> Image<'a> {
    pub(super) fn new(file: &'a File) -> Result<Self, ImageError> {
        let metadata = file.metadata().map_err(ImageError::Size)?;
        if !metadata.is_file() {
            return Err(ImageError::NotAFile);
        }
        Ok(Self {
            file,
            bytes: metadata.len(),
        })
    }

    /// The file's size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the range is in the file.
    pub(super) fn check(&self, what: &'static str, offset: u64, bytes: u64) -> Result<(), ImageError> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(ImageError::Truncated {
                what,
                offset,
                bytes,
                size: self.bytes,
            }),
        }
    }

    /// Fills `buffer` from the file.
    pub(super) fn read(&self, what: &'static str, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        self.check(what, offset, buffer.len() as u64)?;
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|cause| ImageError::Read { what, cause })
    }

    /// Fills guest memory, which is zero, from the file. Holes of the file cost nothing.
    pub(super) fn copy(
        &self,
        what: &'static str,
        (offset, bytes): (u64, u64),
        memory: &GuestMemoryMmap,
        address: u64,
    ) -> Result<(), ImageError> {
        self.check(what, offset, bytes)?;
        let end = offset + bytes;
        let mut from = offset;
        while let Some((start, stop)) = self.next_data(from, end) {
            let at = address.saturating_add(start - offset);
            self.copy_data(what, (start, stop), memory, at)?;
            from = stop;
        }
        Ok(())
    }

    fn copy_data(
        &self,
        what: &'static str,
        (start, stop): (u64, u64),
        memory: &GuestMemoryMmap,
        address: u64,
    ) -> Result<(), ImageError> {
        let mut source = At {
            file: self.file,
            offset: start,
        };
        // A range that is in no memory is refused; one that does not fit `usize` is one of them.
        let count = usize::try_from(stop - start).unwrap_or(usize::MAX);
        memory
            .read_exact_volatile_from(GuestAddress(address), &mut source, count)
            .map_err(|cause| ImageError::Copy { what, address, cause })
    }

    /// The next part of the file between two offsets that is no hole (lseek(2), `SEEK_DATA`). On a file system
    /// that knows no holes it is all of it. The position that this moves is nobody's: reads have their own.
    fn next_data(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        if from >= end {
            return None;
        }
        let start = match seek(self.file, SeekFrom::Data(from)) {
            Ok(start) if start < end => start.max(from),
            Ok(_) | Err(Errno::NXIO) => return None,
            Err(_) => return Some((from, end)),
        };
        match seek(self.file, SeekFrom::Hole(start)) {
            Ok(stop) if stop > start => Some((start, stop.min(end))),
            _ => Some((start, end)),
        }
    }
}

/// A file read from a position of its own.
#[derive(Debug)]
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl ReadVolatile for At<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let offset = libc::off_t::try_from(self.offset)
            .map_err(|_| VolatileMemoryError::IOError(io::Error::from(io::ErrorKind::InvalidInput)))?;
        let guard = buffer.ptr_guard_mut();
        // SAFETY: the descriptor is open for the life of `self.file`. A `VolatileSlice` covers mapped memory
        // of its length that may be written from outside of Rust's rules, the guard keeps it mapped, and the
        // kernel writes at most `buffer.len()` bytes to it.
        let count =
            unsafe { libc::pread(self.file.as_raw_fd(), guard.as_ptr().cast(), buffer.len(), offset) };
        let Ok(count) = usize::try_from(count) else {
            return Err(VolatileMemoryError::IOError(io::Error::last_os_error()));
        };
        buffer.bitmap().mark_dirty(0, count);
        self.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn two_readers_of_one_description_do_not_disturb_each_other() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 0x3000]).unwrap();
        file.write_all(&[9; 0x1000]).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap();
        let image = Image::new(&file).unwrap();
        image.copy("end", (0x2fff, 2), &memory, 0x7ffe).unwrap();
        image.copy("start", (0, 1), &memory, 0).unwrap();
        assert_eq!(memory.read_obj::<[u8; 2]>(GuestAddress(0x7ffe)).unwrap(), [7, 9]);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 7);
    }

    /// Of a file with holes only the contents are copied; `bytes` of a part need not be whole pages.
    #[test]
    fn holes_are_skipped() {
        let fd = rustix::fs::memfd_create("holes", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(0x1_0000).unwrap();
        file.write_all_at(&[7; 0x1000], 0x3000).unwrap();
        file.write_all_at(&[9; 0x1000], 0x8000).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap();
        memory.write_slice(&[0xcc; 0x2_0000], GuestAddress(0)).unwrap();
        let image = Image::new(&file).unwrap();
        image.copy("part", (0x800, 0x8000), &memory, 0x1_0000).unwrap();
        let mut expected = vec![0xcc; 0x2_0000];
        expected[0x1_2800..0x1_3800].fill(7);
        expected[0x1_7800..0x1_8000].fill(9);
        let mut found = vec![0; 0x2_0000];
        memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert!(found == expected);
    }

    #[test]
    fn ranges_outside_of_the_file_or_of_memory_are_refused() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 0x1000]).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let image = Image::new(&file).unwrap();
        for (offset, bytes) in [(0xfff, 2), (0x1001, 0), (u64::MAX, 1), (1, u64::MAX)] {
            let refusal = image.copy("part", (offset, bytes), &memory, 0).unwrap_err();
            assert!(matches!(refusal, ImageError::Truncated { .. }), "{refusal}");
        }
        let refusal = image.copy("part", (0, 0x1000), &memory, 1).unwrap_err();
        assert!(matches!(refusal, ImageError::Copy { .. }), "{refusal}");
        let directory = File::open(std::env::temp_dir()).unwrap();
        assert!(matches!(Image::new(&directory), Err(ImageError::NotAFile)));
    }
}
