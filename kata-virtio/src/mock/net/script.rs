//! A hostile driver and a careless host, as told by a string of bytes: what the fuzzer runs, and the
//! tests on its corpus.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{Buffer, LANES, Machine};
use crate::mock::script::Script;
use crate::net::{FrameHeader, HEADER_BYTES, Handle, MAX_FRAME_BYTES, Net, Tap};

const PAIRS: usize = 2;

/// Most turns in which the device has to come to rest.
const TURNS: usize = 4096;

/// Runs the script `data` against a device whose tap is a pair of sockets, and checks what must hold
/// whatever a driver does: no panic, nothing sent that was not counted, and a device at rest at the end.
///
/// # Panics
/// When it does not hold.
pub fn run_script(data: &[u8]) {
    let Some(mut stage) = Stage::new() else { return };
    let mut script = Script(data);
    while let Some(action) = script.byte() {
        stage.act(action % 16, &mut script);
    }
    stage.end();
}

struct Stage {
    machine: Machine,
    handle: Handle,
    host: Vec<OwnedFd>,
    taken: u64,
}

impl Stage {
    fn new() -> Option<Self> {
        let pair = || {
            socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::NONBLOCK,
                None,
            )
        };
        let (host, tap) = (0..PAIRS)
            .map(|_| pair().ok())
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .unzip();
        let device = Net::new(Tap::from_sockets(tap).ok()?).ok()?;
        let device = device.mac([2, 0, 0, 0, 0, 1]).mtu(1500).ok()?;
        Some(Self {
            handle: device.handle(),
            machine: Machine::new(device).ok()?,
            host,
            taken: 0,
        })
    }

    fn act(&mut self, action: u8, script: &mut Script<'_>) {
        let pair = usize::from(peek(script)) % PAIRS;
        let guest = &mut self.machine.guest;
        match action {
            0..=2 => self.frame(pair, script),
            3 => {
                let bytes = script.take(usize::from(peek(script)) + 1);
                guest.send_bytes(pair, bytes, &[HEADER_BYTES, HEADER_BYTES + 7]);
            }
            4 => self.chain(script),
            5 | 6 => {
                let (count, bytes) = (script.small(), script.number());
                guest.offer(pair, usize::from(count), bytes.clamp(1, 0x11000));
            }
            7 => drop(guest.receive(pair)),
            8 | 9 => self.host_sends(pair, script),
            10 => self.host_takes(),
            11 => self.handle.set_link(script.small() & 1 == 1),
            12 => {
                let bytes = script.take(usize::from(peek(script) % 8) + 1);
                guest.command(bytes);
            }
            13 => self.break_something(script),
            14 => {
                let pairs = script.small() % 4;
                guest.command(&[4, 0, pairs, 0]);
            }
            _ => drop(self.machine.step()),
        }
        self.machine.work();
    }

    /// A frame of which most is right.
    fn frame(&mut self, pair: usize, script: &mut Script<'_>) {
        let bytes = usize::try_from(script.number()).unwrap_or(0) % (MAX_FRAME_BYTES + 40);
        let header = header(script);
        let cut = usize::from(script.small()) * 64;
        let frame = vec![0x5a; bytes];
        self.machine.guest.send(pair, &header, &frame, &[cut, cut * 2]);
    }

    /// Any buffers, but for writable ones over the rings: a driver that has the device overwrite its rings
    /// cannot follow them any more.
    fn chain(&mut self, script: &mut Script<'_>) {
        let count = script.small() % 200;
        let buffers: Vec<Buffer> = (0..count)
            .map(|_| {
                let address = u64::from(script.number()) << (peek(script) % 40);
                let (len, writable) = (script.number(), script.small() & 3 == 0);
                let address = if writable {
                    address.saturating_add(LANES)
                } else {
                    address
                };
                Buffer {
                    address,
                    len,
                    writable,
                }
            })
            .collect();
        let queue = usize::from(script.small()) % (2 * PAIRS);
        let indirect = script.small() & 1 == 1;
        self.machine.guest.send_chain(queue, &buffers, indirect);
    }

    /// What comes of it is not looked at: the socket may be full.
    fn host_sends(&mut self, pair: usize, script: &mut Script<'_>) {
        let bytes = usize::try_from(script.number()).unwrap_or(0) % (MAX_FRAME_BYTES + 40);
        let message = [&header(script).to_bytes()[..], &vec![0xa5; bytes]].concat();
        let sent = rustix::io::write(&self.host[pair], &message[..message.len() - bytes % 13]);
        assert!(!matches!(sent, Err(Errno::PIPE)), "the device keeps its tap");
    }

    fn host_takes(&mut self) {
        let mut frame = vec![0; HEADER_BYTES + MAX_FRAME_BYTES + 1];
        for host in &self.host {
            while let Ok(bytes @ 1..) = rustix::io::read(host, &mut frame[..]) {
                let (header, _) = frame.split_first_chunk().unwrap_or((&[0; HEADER_BYTES], &[]));
                check(&FrameHeader::from_bytes(header), bytes);
                self.taken += 1;
            }
        }
    }

    fn break_something(&mut self, script: &mut Script<'_>) {
        let what = script.small();
        if what & 1 == 1 {
            self.machine.reset(u64::from(script.number()));
        } else {
            let index = u16::try_from(script.number() & 0xffff).unwrap_or(0);
            let queue = usize::from(what >> 1) % (2 * PAIRS + 1);
            self.machine.guest.queues()[queue].corrupt_avail_index(index);
        }
    }

    /// With nothing more from anyone the device comes to rest, and what it says it sent is there.
    fn end(mut self) {
        for _ in 0..TURNS {
            self.machine.step();
            self.host_takes();
            if !self.machine.wait(std::time::Duration::ZERO).unwrap_or(true) {
                self.host_takes();
                assert_eq!(self.machine.figure("frames_from_guest"), self.taken);
                return;
            }
        }
        assert!(
            !self.machine.wait(std::time::Duration::ZERO).unwrap_or(false),
            "the device never rests"
        );
    }
}

/// What reaches the host keeps the rules of its kernel.
fn check(header: &FrameHeader, bytes: usize) {
    let frame = bytes - HEADER_BYTES;
    assert!((14..=MAX_FRAME_BYTES).contains(&frame));
    let checksum = usize::from(header.csum_start.get()) + usize::from(header.csum_offset.get()) + 2;
    assert!(header.flags & 1 == 0 || checksum <= frame);
    assert!(header.gso_type == 0 || header.gso_size.get() > 0);
}

/// The next byte, which stays there.
fn peek(script: &Script<'_>) -> u8 {
    script.0.first().copied().unwrap_or(0)
}

fn header(script: &mut Script<'_>) -> FrameHeader {
    if script.small() & 1 == 0 {
        return FrameHeader::default();
    }
    let mut bytes = [0; HEADER_BYTES];
    let taken = script.take(HEADER_BYTES);
    bytes[..taken.len()].copy_from_slice(taken);
    FrameHeader::from_bytes(&bytes)
}
