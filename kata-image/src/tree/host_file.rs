//! A file of the host whose holes are not read (lseek(2), `SEEK_DATA`).

use std::fs::File;
use std::io::{self, Read, Seek};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::erofs::{BLOCK_BYTES, Contents};

pub(super) struct HostFile {
    file: File,
    position: u64,
    /// Up to here nothing is known to be a hole.
    data_until: u64,
}

impl HostFile {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            position: 0,
            data_until: 0,
        }
    }

    /// Where data begins at or after the position, or the file's end. A filesystem that does not tell has no holes.
    fn next_data(&self, end: u64) -> u64 {
        match seek(&self.file, SeekFrom::Data(self.position)) {
            Ok(data) => data.min(end),
            Err(Errno::NXIO) => end,
            Err(_) => self.position,
        }
    }
}

impl Read for HostFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Contents for HostFile {
    fn skip_hole(&mut self, most: u64) -> io::Result<u64> {
        if self.position < self.data_until {
            return Ok(0);
        }
        let end = self.file.metadata()?.len();
        let skipped = self.next_data(end).saturating_sub(self.position).min(most) / BLOCK_BYTES * BLOCK_BYTES;
        self.position += skipped;
        self.data_until = seek(&self.file, SeekFrom::Hole(self.position)).unwrap_or(end);
        self.file.seek(io::SeekFrom::Start(self.position))?;
        Ok(skipped)
    }
}
