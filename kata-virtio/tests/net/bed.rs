//! A device on sockets in place of a tap, with the mock driver.

use std::os::fd::OwnedFd;

use kata_virtio::mock::net::{Machine, Received};
use kata_virtio::net::{Features, FrameHeader, HEADER_BYTES, MAX_FRAME_BYTES, Net, Tap};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
pub(crate) const OFFER_BYTES: u32 = 1526;

pub(crate) struct Bed {
    pub(crate) machine: Machine,
    pub(crate) host: Vec<OwnedFd>,
}

pub(crate) fn sockets(pairs: usize) -> (Vec<OwnedFd>, Tap) {
    let pair = || {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::NONBLOCK,
            None,
        )
    };
    let (host, device) = (0..pairs).map(|_| pair().unwrap()).unzip();
    (host, Tap::from_sockets(device).unwrap())
}

pub(crate) fn bed(pairs: usize) -> Bed {
    let (host, tap) = sockets(pairs);
    let device = Net::new(tap).unwrap().mac(MAC);
    Bed {
        machine: Machine::new(device).unwrap(),
        host,
    }
}

pub(crate) fn bed_with(features: Features) -> Bed {
    let (host, tap) = sockets(1);
    let device = Net::new(tap).unwrap();
    Bed {
        machine: Machine::with_features(device, features.bits()).unwrap(),
        host,
    }
}

impl Bed {
    pub(crate) fn host_sends(&self, pair: usize, header: &FrameHeader, frame: &[u8]) {
        let message = [&header.to_bytes()[..], frame].concat();
        assert_eq!(rustix::io::write(&self.host[pair], &message), Ok(message.len()));
    }

    pub(crate) fn host_takes(&self, pair: usize) -> Vec<Received> {
        let mut buffer = vec![0; HEADER_BYTES + MAX_FRAME_BYTES + 1];
        let mut frames = Vec::new();
        while let Ok(bytes @ 1..) = rustix::io::read(&self.host[pair], &mut buffer[..]) {
            let (header, frame) = buffer[..bytes].split_first_chunk().unwrap();
            frames.push(Received {
                header: FrameHeader::from_bytes(header),
                frame: frame.to_vec(),
            });
        }
        frames
    }

    /// A frame passes in each direction.
    pub(crate) fn still_works(&mut self) {
        let frame = pattern(100);
        assert!(
            self.machine
                .guest
                .send(0, &FrameHeader::default(), &frame, &[HEADER_BYTES])
        );
        self.machine.step();
        assert_eq!(self.host_takes(0).last().unwrap().frame, frame);
        self.machine.guest.offer(0, 1, OFFER_BYTES);
        self.host_sends(0, &FrameHeader::default(), &frame);
        self.machine.step();
        assert_eq!(self.machine.guest.receive(0).last().unwrap().frame, frame);
    }

    pub(crate) fn malformed(&self) -> u64 {
        self.machine.figure("malformed")
    }
}

pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..=250).cycle().take(bytes).collect()
}

pub(crate) fn tcp4_segments(frame: usize) -> FrameHeader {
    FrameHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54.into(),
        gso_size: u16::try_from(frame.min(1448)).unwrap().into(),
        csum_start: 34.into(),
        csum_offset: 16.into(),
        num_buffers: 0.into(),
    }
}

/// Says that a test did not run. In CI that is a failure.
pub(crate) fn skip(name: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "SKIPPED {name}: {why}");
    eprintln!("SKIPPED {name}: {why}");
}
