//! A frame of the guest on its way to the tap: parsed once, then sent from where it lies.
//!
//! ```text
//!   parts ── parse: addresses found, header copied and judged ──► loaded ── send: writev ──► the tap
//!                                                                  header: ours, as judged
//!                                                                  frame: guest memory
//! ```
//!
//! Owns the frame between the two steps; knows chains and rules, no queue and no rate. The driver may
//! change its memory at any time: what was judged is sent from the copy, and of the rest only the place
//! and the length were judged, which are copies too.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::chains::{ChainError, Parts};
use super::features::Features;
use super::header::{FrameHeader, HEADER_BYTES, MAX_FRAME_BYTES, Malformed};
use crate::Memory;
use crate::vectors::{VECTORS_MAX, Vectors};

/// A chain that holds no frame for the host.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    /// Its buffers are of no use.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Its frame breaks a rule.
    #[error(transparent)]
    Frame(#[from] Malformed),
}

/// See the module; kept between frames for its allocations.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// What the host sees, whatever the guest's memory says by now.
    header: [u8; HEADER_BYTES],
    /// The frame behind it.
    frame: Vectors,
    /// Where a frame in more pieces than a system call takes is put together; empty until there is one.
    copy: Vec<u8>,
}

impl Outgoing {
    /// Takes the frame in `parts`; returns its bytes, without the header.
    ///
    /// # Errors
    /// When there is none that the host may see. Nothing is kept then.
    pub(super) fn parse(
        &mut self,
        memory: &Arc<Memory>,
        parts: &Parts,
        features: Features,
    ) -> Result<usize, Unfit> {
        self.load(memory, parts, features)
            .inspect_err(|_| self.frame.clear())
    }

    fn load(&mut self, memory: &Arc<Memory>, parts: &Parts, features: Features) -> Result<usize, Unfit> {
        let bytes = frame_bytes(parts)?;
        self.frame
            .load(memory, parts.as_slice())
            .map_err(ChainError::from)?;
        self.frame.empty(&mut self.header);
        let header = FrameHeader::from_bytes(&self.header).judge_from_guest(bytes, features)?;
        self.header = header.to_bytes();
        Ok(bytes)
    }

    /// Sends the frame that was parsed last, and keeps nothing of it.
    ///
    /// # Errors
    /// What the host says: [`Errno::AGAIN`] when it takes none now.
    pub(super) fn send(&mut self, tap: BorrowedFd<'_>) -> Result<(), Errno> {
        let sent = if self.frame.count() < VECTORS_MAX {
            let sent = self.frame.send(tap, &self.header);
            sent.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        } else {
            rustix::io::write(tap, self.gather())
        };
        self.frame.clear();
        sent.map(drop)
    }

    /// The message in one piece.
    fn gather(&mut self) -> &[u8] {
        let bytes =
            usize::try_from(self.frame.bytes()).map_or(MAX_FRAME_BYTES, |bytes| bytes.min(MAX_FRAME_BYTES));
        self.copy.clear();
        self.copy.extend_from_slice(&self.header);
        self.copy.resize(HEADER_BYTES + bytes, 0);
        self.frame.empty(&mut self.copy[HEADER_BYTES..]);
        &self.copy
    }

    /// Keeps nothing, not even the memory that the frame is in.
    pub(super) fn clear(&mut self) {
        self.frame.clear();
    }
}

/// Bytes of the frame behind its header, before anything is looked up.
fn frame_bytes(parts: &Parts) -> Result<usize, ChainError> {
    let (got, most) = (parts.bytes(), HEADER_BYTES + MAX_FRAME_BYTES);
    if got > most {
        return Err(ChainError::Long { got, most });
    }
    got.checked_sub(HEADER_BYTES).ok_or(ChainError::Short {
        got,
        wanted: HEADER_BYTES,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::net::NEEDS_CSUM;

    const MEMORY_BYTES: usize = 0x4_0000;

    /// Two regions that touch, so that a buffer may lie in both.
    fn memory() -> Arc<Memory> {
        let half = MEMORY_BYTES / 2;
        let upper = GuestAddress(u64::try_from(half).unwrap());
        Arc::new(Memory::from_ranges(&[(GuestAddress(0), half), (upper, half)]).unwrap())
    }

    fn tap() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::NONBLOCK;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn taken(host: &OwnedFd) -> Vec<u8> {
        let mut message = vec![0; 70_000];
        let bytes = rustix::io::read(host, &mut message[..]).unwrap();
        message.truncate(bytes);
        message
    }

    fn message(bytes: usize) -> Vec<u8> {
        let frame = (0..=250).cycle().take(bytes);
        FrameHeader::default()
            .to_bytes()
            .into_iter()
            .chain(frame)
            .collect()
    }

    /// Puts `message` at `start`, in buffers of these sizes and a last one, with gaps of 3 bytes.
    fn place(memory: &Memory, start: u64, message: &[u8], sizes: &[usize]) -> Parts {
        let (mut rest, mut address, mut parts) = (message, start, Vec::new());
        for &size in sizes.iter().chain([&usize::MAX]) {
            let (now, later) = rest.split_at(size.min(rest.len()));
            if !now.is_empty() {
                memory.write_slice(now, GuestAddress(address)).unwrap();
                parts.push((GuestAddress(address), now.len()));
                address += u64::try_from(now.len()).unwrap() + 3;
            }
            rest = later;
        }
        Parts::of(parts)
    }

    fn passed(memory: &Arc<Memory>, parts: &Parts) -> Vec<u8> {
        let (host, device) = tap();
        let mut outgoing = Outgoing::default();
        let bytes = outgoing.parse(memory, parts, Features::all()).unwrap();
        outgoing.send(device.as_fd()).unwrap();
        let taken = taken(&host);
        assert_eq!(taken.len(), HEADER_BYTES + bytes);
        taken
    }

    proptest! {
        /// However the driver cuts a frame, and wherever it lies, the host gets its bytes.
        #[test]
        fn frames_survive_any_cut(
            sizes in prop::collection::vec(1usize..40, 0..60),
            bytes in 14usize..3000,
            start in 0x1_e000u64..0x2_1000,
        ) {
            let (memory, message) = (memory(), message(bytes));
            let parts = place(&memory, start, &message, &sizes);
            prop_assert_eq!(passed(&memory, &parts), message);
        }
    }

    #[test]
    fn the_longest_frame_passes_and_a_longer_one_does_not() {
        let (memory, longest) = (memory(), message(MAX_FRAME_BYTES));
        assert!(passed(&memory, &place(&memory, 0x1_8000, &longest, &[4096; 15])) == longest);
        let longer = place(&memory, 0x1_8000, &message(MAX_FRAME_BYTES + 1), &[]);
        let refused = Outgoing::default().parse(&memory, &longer, Features::all());
        assert!(
            matches!(refused, Err(Unfit::Chain(ChainError::Long { .. }))),
            "{refused:?}"
        );
    }

    /// With the header, 1023 pieces behind it are what one system call takes.
    #[test]
    fn frames_in_more_pieces_than_a_system_call_takes_pass_too() {
        let memory = memory();
        for pieces in [1022, 1023, 1024, 1025] {
            let message = message(60 * pieces);
            let mut sizes = vec![60; pieces];
            sizes.insert(0, HEADER_BYTES);
            let parts = place(&memory, 0x1_0000, &message, &sizes);
            assert_eq!(parts.as_slice().len(), pieces + 1);
            assert!(passed(&memory, &parts) == message, "{pieces}");
        }
    }

    /// A piece in two regions counts twice.
    #[test]
    fn a_piece_more_for_the_end_of_a_region_is_not_forgotten() {
        let (memory, message) = (memory(), message(60 * 1023));
        let mut sizes = vec![60; 1023];
        sizes.insert(0, HEADER_BYTES);
        let parts = place(&memory, 0x1_8011, &message, &sizes);
        let across = |&(GuestAddress(address), len): &(GuestAddress, usize)| {
            address < 0x2_0000 && address + u64::try_from(len).unwrap() > 0x2_0000
        };
        assert!(parts.as_slice().iter().any(across));
        assert!(passed(&memory, &parts) == message);
    }

    #[test]
    fn what_the_guest_changes_behind_the_judgement_is_not_what_the_host_sees() {
        let (memory, (host, device)) = (memory(), tap());
        let mut sound = message(100);
        sound[0] = NEEDS_CSUM;
        let parts = place(&memory, 0x1000, &sound, &[5, 7, 20]);
        let mut outgoing = Outgoing::default();
        outgoing.parse(&memory, &parts, Features::all()).unwrap();
        let changed = [0xff; 200];
        memory.write_slice(&changed, GuestAddress(0x1000)).unwrap();
        outgoing.send(device.as_fd()).unwrap();
        let taken = taken(&host);
        assert_eq!(taken[..HEADER_BYTES], sound[..HEADER_BYTES], "as it was judged");
        assert_eq!(taken[HEADER_BYTES..], changed[..100], "the guest's own affair");
        let refused = outgoing.parse(&memory, &parts, Features::all());
        assert!(
            matches!(refused, Err(Unfit::Frame(_))),
            "it is judged anew: {refused:?}"
        );
    }

    /// The driver's flags that it has no business to set do not reach the host.
    #[test]
    fn the_host_sees_the_header_as_it_was_judged() {
        let (memory, mut message) = (memory(), message(60));
        (message[0], message[10]) = (NEEDS_CSUM | 0xfe, 9);
        let taken = passed(&memory, &place(&memory, 0x1000, &message, &[]));
        assert_eq!(
            (taken[0], taken[10], &taken[12..]),
            (NEEDS_CSUM, 0, &message[12..])
        );
    }

    #[test]
    fn overlapping_buffers_are_read_as_often_as_they_are_named() {
        let memory = memory();
        memory.write_slice(&message(30), GuestAddress(0x1000)).unwrap();
        let parts = [(0x1000, 20), (0x100c, 8), (0x100c, 30)];
        let parts = parts.map(|(address, len)| (GuestAddress(address), len));
        let taken = passed(&memory, &Parts::of(parts.to_vec()));
        let bytes: Vec<u8> = (0..8).chain(0..8).chain(0..30).collect();
        assert_eq!(taken[HEADER_BYTES..], bytes);
    }

    #[test]
    fn buffers_outside_of_memory_are_refused_wherever_they_stand() {
        let (memory, end) = (memory(), u64::try_from(MEMORY_BYTES).unwrap());
        for outside in [
            (end - 8, 9),
            (end, 1),
            (u64::MAX, 1),
            (u64::MAX - 3, 64),
            (1 << 60, 4096),
        ] {
            for place in 0..3 {
                let mut parts = [(0x1000, 12), (0x2000, 40), (0x3000, 40)];
                parts[place] = outside;
                let parts = parts.map(|(address, len)| (GuestAddress(address), len));
                let mut outgoing = Outgoing::default();
                let refused = outgoing.parse(&memory, &Parts::of(parts.to_vec()), Features::all());
                let expected = matches!(refused, Err(Unfit::Chain(ChainError::Memory(_))));
                assert!(expected, "{outside:x?} at {place}: {refused:?}");
                assert_eq!(outgoing.frame.count(), 0, "nothing is kept");
            }
        }
    }

    #[test]
    fn a_host_that_takes_nothing_is_an_answer() {
        let (memory, (_host, device)) = (memory(), tap());
        let parts = place(&memory, 0x1000, &message(60_000), &[12, 4096]);
        let mut outgoing = Outgoing::default();
        let full = (0..10_000).find_map(|_| {
            outgoing.parse(&memory, &parts, Features::all()).unwrap();
            outgoing.send(device.as_fd()).err()
        });
        assert_eq!(full, Some(Errno::AGAIN));
    }
}
