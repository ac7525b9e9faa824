//! The packet header on the wire (VIRTIO 1.2 §5.10.6), and what makes one acceptable.
//!
//! Pure: knows bytes and rules, not queues, connections or memory.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a header.
pub const HEADER_BYTES: usize = size_of::<Wire>();

/// Largest payload in bytes that either side puts into one packet (the limit of Linux drivers).
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;

/// Stream sockets, the one type served here (VIRTIO 1.2 §5.10.6, `VIRTIO_VSOCK_TYPE_STREAM`).
pub const TYPE_STREAM: u16 = 1;

bitflags::bitflags! {
    /// Which directions the sender of a `SHUTDOWN` has given up for good (VIRTIO 1.2 §5.10.6.5).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Shutdown: u32 {
        /// It will receive no more.
        const RECEIVE = 1;
        /// It will send no more.
        const SEND = 2;
    }
}

/// What a packet asks for (VIRTIO 1.2 §5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Open a connection.
    Request = 1,
    /// The connection is accepted.
    Response = 2,
    /// The connection is refused, or is no more.
    Reset = 3,
    /// See [`Shutdown`].
    Shutdown = 4,
    /// Payload.
    ReadWrite = 5,
    /// The sender's credit, unasked or as an answer.
    CreditUpdate = 6,
    /// Asks for a [`CreditUpdate`](Self::CreditUpdate).
    CreditRequest = 7,
}

impl Op {
    /// The operation of this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// A header as it came: every field may be anything until [`accept`](Self::accept) has looked at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload after the header.
    pub len: u32,
    /// Socket type, [`TYPE_STREAM`].
    pub kind: u16,
    /// Number of an [`Op`].
    pub op: u16,
    /// Bits of [`Shutdown`] where `op` is one, else 0.
    pub flags: u32,
    /// Bytes that the sender can buffer for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer so far, modulo 2³².
    pub fwd_cnt: u32,
}

/// Why a packet from the guest is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The guest speaks in another's name.
    #[error("source CID {0} is not the guest's")]
    SourceCid(u64),
    /// Nobody but the host can be reached here.
    #[error("destination CID {0} is not the host")]
    DestinationCid(u64),
    /// Not a stream packet.
    #[error("socket type {0} is not served")]
    Type(u16),
    /// No such operation.
    #[error("operation {0} does not exist")]
    Op(u16),
    /// More payload than one packet may carry.
    #[error("payload of {0} bytes is too long")]
    TooLong(u32),
    /// Payload on an operation that has none.
    #[error("operation {0} has a payload")]
    Payload(u16),
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let wire: Wire = zerocopy::transmute!(*bytes);
        Self {
            src_cid: wire.src_cid.get(),
            dst_cid: wire.dst_cid.get(),
            src_port: wire.src_port.get(),
            dst_port: wire.dst_port.get(),
            len: wire.len.get(),
            kind: wire.kind.get(),
            op: wire.op.get(),
            flags: wire.flags.get(),
            buf_alloc: wire.buf_alloc.get(),
            fwd_cnt: wire.fwd_cnt.get(),
        }
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let wire = Wire {
            src_cid: self.src_cid.into(),
            dst_cid: self.dst_cid.into(),
            src_port: self.src_port.into(),
            dst_port: self.dst_port.into(),
            len: self.len.into(),
            kind: self.kind.into(),
            op: self.op.into(),
            flags: self.flags.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
        };
        zerocopy::transmute!(wire)
    }

    /// The operation, when a packet with this header may come from the guest `guest_cid`.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn accept(&self, guest_cid: u64) -> Result<Op, Refusal> {
        if self.src_cid != guest_cid {
            return Err(Refusal::SourceCid(self.src_cid));
        }
        if self.dst_cid != super::HOST_CID {
            return Err(Refusal::DestinationCid(self.dst_cid));
        }
        if self.kind != TYPE_STREAM {
            return Err(Refusal::Type(self.kind));
        }
        let op = Op::from_number(self.op).ok_or(Refusal::Op(self.op))?;
        match op {
            Op::ReadWrite if usize::try_from(self.len).is_ok_and(|len| len <= MAX_PAYLOAD_BYTES) => Ok(op),
            Op::ReadWrite => Err(Refusal::TooLong(self.len)),
            _ if self.len == 0 => Ok(op),
            _ => Err(Refusal::Payload(self.op)),
        }
    }

    /// The reset that answers this packet; `None` for a reset, which is never answered.
    #[must_use]
    pub fn reset(&self) -> Option<Self> {
        (self.op != Op::Reset.number()).then(|| Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.number(),
            ..Self::default()
        })
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Wire {
    src_cid: U64,
    dst_cid: U64,
    src_port: U32,
    dst_port: U32,
    len: U32,
    kind: U16,
    op: U16,
    flags: U32,
    buf_alloc: U32,
    fwd_cnt: U32,
}

const _: () = assert!(HEADER_BYTES == 44, "VIRTIO 1.2 §5.10.6: 44 bytes, no padding");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use virtio_queue::{Queue, QueueOwnedT};
    use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    fn good() -> Header {
        Header {
            src_cid: 3,
            dst_cid: 2,
            kind: TYPE_STREAM,
            op: 5,
            len: 65536,
            ..Header::default()
        }
    }

    #[test]
    fn each_rule_refuses_alone() {
        assert_eq!(good().accept(3), Ok(Op::ReadWrite));
        let refuse = |header: Header| header.accept(3).unwrap_err();
        assert_eq!(refuse(Header { src_cid: 2, ..good() }), Refusal::SourceCid(2));
        assert_eq!(
            refuse(Header { dst_cid: 1, ..good() }),
            Refusal::DestinationCid(1)
        );
        assert_eq!(refuse(Header { kind: 2, ..good() }), Refusal::Type(2));
        assert_eq!(refuse(Header { op: 0, ..good() }), Refusal::Op(0));
        assert_eq!(refuse(Header { op: 8, ..good() }), Refusal::Op(8));
        assert_eq!(refuse(Header { len: 65537, ..good() }), Refusal::TooLong(65537));
        assert_eq!(refuse(Header { op: 1, ..good() }), Refusal::Payload(1));
    }

    #[test]
    fn a_reset_is_never_answered() {
        assert_eq!(Header { op: 3, ..good() }.reset(), None);
        let reset = good().reset().unwrap();
        assert_eq!((reset.src_cid, reset.dst_cid, reset.op, reset.len), (2, 3, 3, 0));
    }

    fn any_header() -> impl Strategy<Value = Header> {
        (
            (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>()),
            (any::<u32>(), any::<u16>(), any::<u16>(), any::<u32>()),
            (any::<u32>(), any::<u32>()),
        )
            .prop_map(|(addresses, body, credit)| Header {
                src_cid: addresses.0,
                dst_cid: addresses.1,
                src_port: addresses.2,
                dst_port: addresses.3,
                len: body.0,
                kind: body.1,
                op: body.2,
                flags: body.3,
                buf_alloc: credit.0,
                fwd_cnt: credit.1,
            })
    }

    proptest! {
        #[test]
        fn bytes_survive_both_ways(bytes: [u8; HEADER_BYTES]) {
            prop_assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
        }

        #[test]
        fn the_layout_is_the_one_of_the_virtio_vsock_crate(header in any_header()) {
            let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
            let mut queue: Queue = chain_of(&memory, &header.to_bytes());
            let mut chain = queue.iter(&memory).unwrap().next().unwrap();
            let oracle = VsockPacket::from_rx_virtq_chain(&memory, &mut chain, 0x1000).unwrap();
            let mut oracle = oracle;
            let mut bytes = [0; PKT_HEADER_SIZE];
            oracle.header_slice().read_slice(&mut bytes, 0).unwrap();
            oracle.set_header_from_raw(&bytes).unwrap();
            prop_assert_eq!(oracle.src_cid(), header.src_cid);
            prop_assert_eq!(oracle.dst_cid(), header.dst_cid);
            prop_assert_eq!(oracle.src_port(), header.src_port);
            prop_assert_eq!(oracle.dst_port(), header.dst_port);
            prop_assert_eq!(oracle.len(), header.len);
            prop_assert_eq!(oracle.type_(), header.kind);
            prop_assert_eq!(oracle.op(), header.op);
            prop_assert_eq!(oracle.flags(), header.flags);
            prop_assert_eq!(oracle.buf_alloc(), header.buf_alloc);
            prop_assert_eq!(oracle.fwd_cnt(), header.fwd_cnt);
        }
    }

    /// A queue with one chain whose first buffer holds the header.
    fn chain_of(memory: &GuestMemoryMmap<()>, header: &[u8]) -> Queue {
        memory.write_slice(header, GuestAddress(0x5000)).unwrap();
        let driver = MockSplitQueue::new(memory, 16);
        let writable = u16::try_from(VRING_DESC_F_WRITE).unwrap();
        let descriptors =
            [0x5000, 0x6000].map(|address| RawDescriptor::from(Descriptor::new(address, 0x100, writable, 0)));
        driver.build_desc_chain(&descriptors).unwrap();
        driver.create_queue().unwrap()
    }
}
