//! The header before each frame (VIRTIO 1.2 §5.1.6), and what makes one acceptable.
//!
//! Pure: knows bytes and rules, no queue and no tap. A tap with `IFF_VNET_HDR` speaks the same header.

use virtio_bindings::virtio_net as bit;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::features::Features;

/// Bytes of the header before a frame.
pub const HEADER_BYTES: usize = size_of::<FrameHeader>();

/// Bytes of the largest frame: 64 KiB of IP with an Ethernet header (VIRTIO 1.2 §5.1.6.3.1).
pub const MAX_FRAME_BYTES: usize = 65_550;

/// Bytes of the smallest frame, an Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;

/// Flag: the checksum is to be completed (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
pub const NEEDS_CSUM: u8 = 1;

/// Flag: the checksum was found to be right (`VIRTIO_NET_HDR_F_DATA_VALID`).
pub const DATA_VALID: u8 = 2;

/// Addition to the kind of segmentation: with congestion marks (`VIRTIO_NET_HDR_GSO_ECN`).
const ECN: u8 = 0x80;

const CHECKSUM_BYTES: usize = 2;

/// `struct virtio_net_hdr` (VIRTIO 1.2 §5.1.6).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct FrameHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// How the frame is to be segmented, 0 for not at all.
    pub gso_type: u8,
    /// Bytes of all headers in the frame, a hint.
    pub hdr_len: U16,
    /// Bytes of payload in each segment.
    pub gso_size: U16,
    /// Where the checksummed part begins.
    pub csum_start: U16,
    /// Where the checksum is, from there.
    pub csum_offset: U16,
    /// Receive buffers that the frame takes.
    pub num_buffers: U16,
}

/// A frame that breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("frame of {0} bytes")]
    Length(usize),
    #[error("checksum at {at} of a frame of {frame} bytes")]
    Checksum { at: usize, frame: usize },
    #[error("headers of {headers} bytes in a frame of {frame} bytes")]
    Headers { headers: u16, frame: usize },
    #[error("segments of no bytes")]
    NoSegment,
    #[error("kind of segmentation {0:#x} was not negotiated")]
    Segmentation(u8),
    #[error("incomplete checksum was not negotiated")]
    NoChecksum,
}

/// Which features allow what.
struct Allowed {
    checksum: Features,
    tcp4: Features,
    tcp6: Features,
    ecn: Features,
    udp: Features,
}

const FROM_GUEST: Allowed = Allowed {
    checksum: Features::CSUM,
    tcp4: Features::HOST_TSO4,
    tcp6: Features::HOST_TSO6,
    ecn: Features::HOST_ECN,
    udp: Features::HOST_UFO,
};

const TO_GUEST: Allowed = Allowed {
    checksum: Features::GUEST_CSUM,
    tcp4: Features::GUEST_TSO4,
    tcp6: Features::GUEST_TSO6,
    ecn: Features::GUEST_ECN,
    udp: Features::GUEST_UFO,
};

impl FrameHeader {
    /// The header that these bytes begin with.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self::read_from_bytes(bytes).unwrap_or_default()
    }

    /// The header as it stands before a frame.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(self.as_bytes());
        bytes
    }

    /// Judges a frame of the driver; returns the header that the host may see: the flags that a driver
    /// has no business to set are gone (VIRTIO 1.2 §5.1.6.2.2).
    pub(super) fn judge_from_guest(self, frame: usize, features: Features) -> Result<Self, Malformed> {
        self.check(frame, features, &FROM_GUEST)?;
        Ok(Self {
            flags: self.flags & NEEDS_CSUM,
            num_buffers: U16::ZERO,
            ..self
        })
    }

    /// Judges a frame of the host: a tap may still hold what was meant for an earlier driver.
    pub(super) fn judge_to_guest(self, frame: usize, features: Features) -> Result<Self, Malformed> {
        self.check(frame, features, &TO_GUEST)?;
        let known = if features.contains(Features::GUEST_CSUM) {
            NEEDS_CSUM | DATA_VALID
        } else {
            0
        };
        Ok(Self {
            flags: self.flags & known,
            ..self
        })
    }

    fn check(&self, frame: usize, features: Features, allowed: &Allowed) -> Result<(), Malformed> {
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame) {
            return Err(Malformed::Length(frame));
        }
        if self.flags & NEEDS_CSUM != 0 {
            self.check_checksum(frame, features.contains(allowed.checksum))?;
        }
        if u32::from(self.gso_type) != bit::VIRTIO_NET_HDR_GSO_NONE {
            self.check_segments(frame, features, allowed)?;
        }
        Ok(())
    }

    fn check_checksum(&self, frame: usize, allowed: bool) -> Result<(), Malformed> {
        let at = usize::from(self.csum_start.get()) + usize::from(self.csum_offset.get());
        if !allowed {
            return Err(Malformed::NoChecksum);
        }
        if at + CHECKSUM_BYTES > frame {
            return Err(Malformed::Checksum { at, frame });
        }
        Ok(())
    }

    fn check_segments(&self, frame: usize, features: Features, allowed: &Allowed) -> Result<(), Malformed> {
        let needed = match u32::from(self.gso_type & !ECN) {
            bit::VIRTIO_NET_HDR_GSO_TCPV4 => allowed.tcp4,
            bit::VIRTIO_NET_HDR_GSO_TCPV6 => allowed.tcp6,
            bit::VIRTIO_NET_HDR_GSO_UDP => allowed.udp,
            _ => return Err(Malformed::Segmentation(self.gso_type)),
        };
        let marks = if self.gso_type & ECN == 0 {
            Features::empty()
        } else {
            allowed.ecn
        };
        if !features.contains(needed | marks) {
            return Err(Malformed::Segmentation(self.gso_type));
        }
        if self.gso_size == U16::ZERO {
            return Err(Malformed::NoSegment);
        }
        let headers = self.hdr_len.get();
        if usize::from(headers) > frame {
            return Err(Malformed::Headers { headers, frame });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP4: u8 = 1;

    fn segments() -> FrameHeader {
        FrameHeader {
            flags: NEEDS_CSUM,
            gso_type: TCP4,
            hdr_len: U16::new(54),
            gso_size: U16::new(1448),
            csum_start: U16::new(34),
            csum_offset: U16::new(16),
            num_buffers: U16::new(7),
        }
    }

    #[test]
    fn a_sound_header_passes_without_what_is_not_the_drivers() {
        let header = FrameHeader {
            flags: NEEDS_CSUM | DATA_VALID | 0x40,
            ..segments()
        };
        let seen = header.judge_from_guest(4000, Features::all()).unwrap();
        assert_eq!((seen.flags, seen.num_buffers.get()), (NEEDS_CSUM, 0));
    }

    #[test]
    fn what_was_not_negotiated_is_refused_in_both_directions() {
        let only = |features| segments().judge_from_guest(4000, features);
        assert_eq!(only(Features::empty()), Err(Malformed::NoChecksum));
        assert_eq!(only(Features::CSUM), Err(Malformed::Segmentation(TCP4)));
        assert!(only(Features::CSUM | Features::HOST_TSO4).is_ok());
        let to_guest = |features| segments().judge_to_guest(4000, features);
        assert_eq!(
            to_guest(Features::CSUM | Features::HOST_TSO4),
            Err(Malformed::NoChecksum)
        );
        assert!(to_guest(Features::GUEST_CSUM | Features::GUEST_TSO4).is_ok());
        let marked = FrameHeader {
            gso_type: TCP4 | ECN,
            ..segments()
        };
        assert_eq!(
            marked.judge_from_guest(4000, Features::CSUM | Features::HOST_TSO4),
            Err(Malformed::Segmentation(TCP4 | ECN))
        );
    }

    #[test]
    fn numbers_beyond_the_frame_are_refused() {
        let judge = |header: FrameHeader, frame| header.judge_from_guest(frame, Features::all());
        assert_eq!(judge(segments(), 13), Err(Malformed::Length(13)));
        assert!(judge(FrameHeader::default(), MAX_FRAME_BYTES).is_ok());
        let long = MAX_FRAME_BYTES + 1;
        assert_eq!(judge(segments(), long), Err(Malformed::Length(long)));
        assert_eq!(
            judge(segments(), 51),
            Err(Malformed::Checksum { at: 50, frame: 51 })
        );
        assert_eq!(
            judge(segments(), 53),
            Err(Malformed::Headers {
                headers: 54,
                frame: 53
            })
        );
        let endless = FrameHeader {
            gso_size: U16::ZERO,
            ..segments()
        };
        assert_eq!(judge(endless, 4000), Err(Malformed::NoSegment));
        let unknown = FrameHeader {
            gso_type: 9,
            ..segments()
        };
        assert_eq!(judge(unknown, 4000), Err(Malformed::Segmentation(9)));
    }

    proptest! {
        /// Whatever is accepted keeps the rules by which the host's kernel would refuse a frame.
        #[test]
        fn what_is_accepted_lies_in_the_frame(bytes: [u8; HEADER_BYTES], frame in 0usize..70_000) {
            let header = FrameHeader::from_bytes(&bytes);
            prop_assert_eq!(header.to_bytes(), bytes);
            if let Ok(seen) = header.judge_from_guest(frame, Features::all()) {
                let checksum = usize::from(seen.csum_start.get()) + usize::from(seen.csum_offset.get()) + 2;
                prop_assert!(seen.flags & NEEDS_CSUM == 0 || checksum <= frame);
                prop_assert!(seen.gso_type == 0 || seen.gso_size.get() > 0);
            }
        }
    }
}
