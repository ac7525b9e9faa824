//! Packets out of and into descriptor chains (VIRTIO 1.2 §2.7, §5.10.6).
//!
//! The driver may cut header and payload wherever it likes: current Linux puts the payload of a long
//! write into several descriptors. Nothing is allocated before its length was checked, and guest
//! memory is read once, so that the driver cannot change a header after it was judged.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use super::packet::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES};
use crate::buffers::pieces;

/// A chain that holds no packet, or no room for one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// Fewer bytes than a header, or than the header promises.
    #[error("chain ends after {got} of {wanted} bytes")]
    Short {
        /// Bytes in the chain's buffers of the right direction.
        got: usize,
        /// Bytes that were needed.
        wanted: usize,
    },
    /// More buffers than the queue has descriptors (forbidden by VIRTIO 1.2 §2.7.5.3.1).
    #[error("chain of more than {0} buffers")]
    TooManyBuffers(u16),
    /// A buffer outside of guest memory.
    #[error("buffer outside of guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// The buffers of one chain in one direction; kept between packets for its allocation.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    parts: Vec<(GuestAddress, usize)>,
    bytes: usize,
}

impl Buffers {
    /// Takes the driver's readable buffers of `chain`.
    pub(crate) fn load_readable<M: GuestMemory>(
        &mut self,
        chain: DescriptorChain<&M>,
        most: u16,
    ) -> Result<(), ChainError> {
        self.load(chain, most, false)
    }

    /// Takes the device-writable buffers of `chain`, which must have room for a header and a byte.
    pub(crate) fn load_writable<M: GuestMemory>(
        &mut self,
        chain: DescriptorChain<&M>,
        most: u16,
    ) -> Result<(), ChainError> {
        self.load(chain, most, true)?;
        self.at_least(HEADER_BYTES + 1)
    }

    /// Bytes that a packet's payload can have in these buffers.
    pub(crate) fn payload_room(&self) -> usize {
        self.bytes.saturating_sub(HEADER_BYTES).min(MAX_PAYLOAD_BYTES)
    }

    /// Reads the header.
    pub(crate) fn read_header<M: GuestMemory>(&self, memory: &M) -> Result<Header, ChainError> {
        let mut header = [0; HEADER_BYTES];
        self.read(memory, 0, &mut header)?;
        Ok(Header::from_bytes(&header))
    }

    /// Reads the payload after the header into `payload`, whose length says how much.
    pub(crate) fn read_payload<M: GuestMemory>(
        &self,
        memory: &M,
        payload: &mut [u8],
    ) -> Result<(), ChainError> {
        self.read(memory, HEADER_BYTES, payload)
    }

    /// Writes a packet; returns its bytes. The payload fits [`payload_room`](Self::payload_room).
    pub(crate) fn write<M: GuestMemory>(
        &self,
        memory: &M,
        header: &Header,
        payload: &[u8],
    ) -> Result<u32, ChainError> {
        let total = HEADER_BYTES + payload.len();
        self.at_least(total)?;
        self.copy(0, HEADER_BYTES, |address, range| {
            memory.write_slice(&header.to_bytes()[range], address)
        })?;
        self.copy(HEADER_BYTES, payload.len(), |address, range| {
            memory.write_slice(&payload[range], address)
        })?;
        Ok(u32::try_from(total).unwrap_or(u32::MAX))
    }

    fn load<M: GuestMemory>(
        &mut self,
        chain: DescriptorChain<&M>,
        most: u16,
        writable: bool,
    ) -> Result<(), ChainError> {
        self.parts.clear();
        self.bytes = 0;
        let mut seen = 0;
        for descriptor in chain {
            seen += 1;
            if seen > most {
                return Err(ChainError::TooManyBuffers(most));
            }
            let len = usize::try_from(descriptor.len()).unwrap_or(usize::MAX);
            if descriptor.is_write_only() == writable && len > 0 {
                self.parts.push((descriptor.addr(), len));
                self.bytes = self.bytes.saturating_add(len);
            }
        }
        Ok(())
    }

    fn at_least(&self, wanted: usize) -> Result<(), ChainError> {
        if self.bytes < wanted {
            return Err(ChainError::Short {
                got: self.bytes,
                wanted,
            });
        }
        Ok(())
    }

    fn read<M: GuestMemory>(&self, memory: &M, from: usize, into: &mut [u8]) -> Result<(), ChainError> {
        self.at_least(from + into.len())?;
        self.copy(from, into.len(), |address, range| {
            memory.read_slice(&mut into[range], address)
        })
    }

    /// As [`pieces`], of these buffers.
    fn copy(
        &self,
        from: usize,
        len: usize,
        piece: impl FnMut(GuestAddress, std::ops::Range<usize>) -> Result<(), GuestMemoryError>,
    ) -> Result<(), ChainError> {
        pieces(&self.parts, from, len, piece).map_err(ChainError::Memory)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    use super::*;

    const START: u64 = 0x1000;

    /// Buffers of these sizes with gaps between them.
    fn buffers(sizes: &[usize]) -> Buffers {
        let mut address = START;
        let mut buffers = Buffers::default();
        for &size in sizes {
            buffers.parts.push((GuestAddress(address), size));
            buffers.bytes += size;
            address += u64::try_from(size).unwrap() + 3;
        }
        buffers
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
    }

    proptest! {
        /// However the driver cuts its buffers, a packet goes in and comes out the same; without room it
        /// does neither.
        #[test]
        fn a_packet_survives_any_cut(
            sizes in prop::collection::vec(1usize..120, 1..12),
            payload in prop::collection::vec(any::<u8>(), 0..300),
            fwd_cnt: u32,
        ) {
            let (memory, buffers) = (memory(), buffers(&sizes));
            let header = Header { fwd_cnt, ..Header::default() };
            let room = sizes.iter().sum::<usize>();
            let total = HEADER_BYTES + payload.len();
            let written = buffers.write(&memory, &header, &payload);
            prop_assert_eq!(written.is_ok(), total <= room);
            if let Ok(bytes) = written {
                prop_assert_eq!(usize::try_from(bytes).unwrap(), total);
                prop_assert_eq!(buffers.read_header(&memory).unwrap(), header);
                let mut read = vec![0; payload.len()];
                buffers.read_payload(&memory, &mut read).unwrap();
                prop_assert_eq!(read, payload);
                prop_assert!(buffers.payload_room() >= total - HEADER_BYTES);
            }
        }
    }

    #[test]
    fn buffers_outside_of_memory_are_an_error() {
        let mut outside = buffers(&[HEADER_BYTES]);
        outside.parts[0].0 = GuestAddress(0xfff0);
        assert!(matches!(
            outside.read_header(&memory()),
            Err(ChainError::Memory(_))
        ));
        outside.parts[0].0 = GuestAddress(u64::MAX - 3);
        outside.parts[0].1 = usize::MAX;
        outside.bytes = usize::MAX;
        let mut payload = [0; 8];
        assert!(matches!(
            outside.read_payload(&memory(), &mut payload),
            Err(ChainError::Memory(GuestMemoryError::GuestAddressOverflow))
        ));
    }
}
