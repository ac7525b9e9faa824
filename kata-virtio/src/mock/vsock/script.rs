//! A hostile driver and a careless host, as told by a string of bytes: what the fuzzer runs, and the
//! tests on its corpus.

use std::io::{Read, Write};
use std::net::Shutdown as Direction;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};

use super::guest::Guest;
use super::machine::Machine;
use super::socket::Socket;
use crate::Device;
use crate::mock::ring::Buffer;
use crate::vsock::packet::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, Op, Shutdown};
use crate::vsock::{Handle, Vsock};

const MOST_STREAMS: usize = 64;
const GUEST_BUFFER_BYTES: u64 = 256 << 10;

/// Runs the script `data` against a device and checks what must hold whatever a driver does: no panic,
/// no more kept for the host than the credit, and nothing left once both sides are gone.
///
/// # Panics
/// When it does not hold.
pub fn run_script(data: &[u8]) {
    let Some(mut stage) = Stage::new() else { return };
    let mut script = Script(data);
    while let Some(action) = script.byte() {
        stage.act(action % 16, &mut script);
        let counters = stage.handle.counters();
        assert!(counters.connections_open <= 1024);
        assert!(counters.bytes_buffered <= counters.connections_open * GUEST_BUFFER_BYTES);
    }
    stage.end();
}

/// Checks on any bytes that a header survives being read and written, and that what is accepted keeps
/// the rules.
///
/// # Panics
/// When it does not hold.
pub fn check_header(data: &[u8]) {
    let Some((bytes, _)) = data.split_first_chunk::<HEADER_BYTES>() else {
        return;
    };
    let header = Header::from_bytes(bytes);
    assert_eq!(header.to_bytes(), *bytes);
    for cid in [3, header.src_cid] {
        if let Ok(op) = header.accept(cid) {
            assert_eq!((header.src_cid, op.number()), (cid, header.op));
            assert!(usize::try_from(header.len).is_ok_and(|len| len <= MAX_PAYLOAD_BYTES));
            assert!(op == Op::ReadWrite || header.len == 0);
        }
    }
    assert!(header.reset().is_none_or(|reset| reset.reset().is_none()));
}

struct Stage {
    machine: Machine,
    handle: Handle,
    dialed: Receiver<UnixStream>,
    streams: Vec<UnixStream>,
}

impl Stage {
    fn new() -> Option<Self> {
        let (device, handle) = Vsock::new(3).ok()?;
        let (sender, dialed) = channel();
        let device = device.on_dial(move |port| {
            let (ours, theirs) = UnixStream::pair().ok()?;
            ours.set_nonblocking(true).ok()?;
            sender.send(ours).ok()?;
            (port % 4 != 3).then_some(theirs)
        });
        let mut machine = Machine::new(device).ok()?;
        machine.guest.listen(1);
        Some(Self {
            machine,
            handle,
            dialed,
            streams: Vec::new(),
        })
    }

    fn act(&mut self, action: u8, script: &mut Script<'_>) {
        match action {
            0..=2 => self.packet(script),
            3 => {
                let bytes = script.take(usize::from(script.peek()) + 1);
                self.machine
                    .guest
                    .send_raw(bytes, &[HEADER_BYTES, HEADER_BYTES + 7]);
            }
            4 => self.chain(script),
            5 => self.dial(script),
            6..=8 => self.stream(script),
            9 => self
                .machine
                .guest
                .hold_receive_buffers(script.byte().unwrap_or(0) & 1 == 1),
            10 => self
                .machine
                .guest
                .grant(script.number(), script.byte().unwrap_or(0) & 1 == 1),
            11 => drop(self.machine.step()),
            12 => drop(self.machine.guest.receive()),
            13 => self.guest_writes(script),
            14 => self.break_something(script),
            _ => {
                drop(self.machine.device.poll());
                self.machine.work();
            }
        }
        self.streams.extend(self.dialed.try_iter());
        self.streams.truncate(MOST_STREAMS);
    }

    /// A header of which most is right.
    fn packet(&mut self, script: &mut Script<'_>) {
        let op = u16::from(script.byte().unwrap_or(0) % 9);
        let socket = script.socket();
        let len = script.number() % 70_000;
        let mut header = self
            .machine
            .guest
            .header(socket, Op::CreditUpdate, Shutdown::empty(), len);
        header.op = op;
        header.flags = script.byte().unwrap_or(0).into();
        if op != Op::ReadWrite.number() {
            header.len &= 1;
        }
        if script.byte().unwrap_or(0) & 7 == 0 {
            header.buf_alloc = script.number();
            header.fwd_cnt = script.number();
        }
        let payload = vec![0x5a; usize::try_from(header.len).unwrap_or(0)];
        let packet = [&header.to_bytes()[..], &payload].concat();
        let cut = usize::from(script.byte().unwrap_or(44)) * 256;
        self.machine.guest.send_raw(&packet, &[HEADER_BYTES, cut]);
    }

    fn chain(&mut self, script: &mut Script<'_>) {
        let count = script.byte().unwrap_or(1) % 200;
        let buffers: Vec<Buffer> = (0..count)
            .map(|_| Buffer {
                address: u64::from(script.number()) << (script.peek() % 40),
                len: script.number(),
                writable: script.byte().unwrap_or(0) & 3 == 0,
            })
            .collect();
        self.machine
            .guest
            .send_chain(&buffers, script.byte().unwrap_or(0) & 1 == 1);
    }

    fn dial(&mut self, script: &mut Script<'_>) {
        let Ok((ours, theirs)) = UnixStream::pair() else {
            return;
        };
        let socket = script.socket();
        if ours.set_nonblocking(true).is_ok() {
            self.handle.connect(socket.host_port, socket.guest_port, theirs);
            self.streams.push(ours);
        }
    }

    /// The host uses one of its streams. What comes of it is not looked at: it may be closed or full.
    fn stream(&mut self, script: &mut Script<'_>) {
        let index = usize::from(script.byte().unwrap_or(0));
        if self.streams.is_empty() {
            return;
        }
        let index = index % self.streams.len();
        let mut stream = &self.streams[index];
        match script.byte().unwrap_or(0) % 5 {
            0 => drop(self.streams.swap_remove(index)),
            1 => drop(stream.shutdown(Direction::Write)),
            2 => drop(stream.shutdown(Direction::Read)),
            3 => drop(stream.write(&vec![0xa5; usize::from(script.byte().unwrap_or(0)) * 512])),
            _ => drop(stream.read(&mut vec![0; usize::from(script.byte().unwrap_or(0)) * 512])),
        }
    }

    fn guest_writes(&mut self, script: &mut Script<'_>) {
        let socket = script.socket();
        let bytes = vec![0x33; usize::from(script.byte().unwrap_or(0)) * 1024];
        self.machine.guest.write(socket, &bytes);
    }

    fn break_something(&mut self, script: &mut Script<'_>) {
        if script.byte().unwrap_or(0) & 1 == 1 {
            drop(self.machine.reset());
            self.machine.guest.listen(1);
        } else {
            let index = u16::try_from(script.number() & 0xffff).unwrap_or(0);
            Guest::queues(&mut self.machine.guest)[1].corrupt_avail_index(index);
        }
    }

    /// Both sides go away.
    fn end(mut self) {
        let polled = self.machine.device.poll();
        self.machine.device.reset();
        self.streams.clear();
        drop(self.dialed);
        while polled.is_ok() && !self.machine.device.drained() {
            if self.machine.device.poll().is_err() {
                break;
            }
        }
        let counters = self.handle.counters();
        assert_eq!((counters.connections_open, counters.bytes_buffered), (0, 0));
    }
}

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn peek(&self) -> u8 {
        self.0.first().copied().unwrap_or(0)
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Small numbers by one byte, any number by five.
    fn number(&mut self) -> u32 {
        match self.byte().unwrap_or(0) {
            255 => {
                let mut bytes = [0; 4];
                let taken = self.take(4);
                bytes[..taken.len()].copy_from_slice(taken);
                u32::from_le_bytes(bytes)
            }
            small => u32::from(small) * 300,
        }
    }

    /// One of sixteen, so that packets meet.
    fn socket(&mut self) -> Socket {
        let byte = u32::from(self.byte().unwrap_or(0));
        Socket {
            guest_port: byte & 3,
            host_port: byte >> 2 & 3,
        }
    }
}
