//! Hostile drivers, as told by a string of bytes: what the fuzzer runs, and the tests on its corpus.
//!
//! [`run_transport`] plays with the registers of a device that is served by its thread; [`run_queue`]
//! writes what it likes into the rings of a device that works when it is told to.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::bench::Bench;
use super::driver::{Driver, NEEDS_RESET};
use super::echo::Echo;
use super::ring::Buffer;
use super::rings::MEMORY_BYTES;
use super::vsock::Machine;
use crate::rng::Rng;
use crate::vsock::Vsock;
use crate::{Memory, Signals};

/// Descriptors of a table that a script can name.
const TABLE_ENTRIES: u16 = 20;

/// Where scripts have indirect tables and buffers.
const PLAYGROUND: u64 = 0x20_0000;

/// Runs the script `data` on the registers of an entropy source or a socket device, and checks what must
/// hold whatever a driver does: no panic, and a driver that keeps the rules is served afterwards.
///
/// # Panics
/// When it does not hold.
pub fn run_transport(data: &[u8]) {
    let mut script = Script(data);
    let sockets = script.byte().unwrap_or(0) & 1 == 1;
    let driver = if sockets {
        Vsock::new(3).and_then(|(device, _handle)| Driver::at_reset(device))
    } else {
        Rng::new().and_then(Driver::at_reset)
    };
    let Ok(mut driver) = driver else { return };
    while let Some(action) = script.byte() {
        disturb(&mut driver, action % 16, &mut script);
    }
    let _ = driver.registers.mmio.resume();
    assert!(driver.initialise(u64::MAX).is_ok(), "a reset heals everything");
    if !sockets {
        let entropy = driver.request(0, &[], &[8]);
        assert!(entropy.is_ok_and(|bytes| bytes.len() == 8));
    }
    assert!(
        driver.registers.mmio.pause().is_ok(),
        "the thread has not panicked"
    );
    assert_eq!(driver.registers.status() & NEEDS_RESET, 0);
}

fn disturb(driver: &mut Driver, action: u8, script: &mut Script<'_>) {
    let queue = u16::from(script.peek() % 4);
    let exists = usize::from(queue) < driver.rings.queues().len();
    match action {
        0 | 1 => {
            let offset = 4 * u64::from(script.byte().unwrap_or(0) % 66);
            driver.registers.write(offset, script.number());
        }
        2 => {
            let (offset, width) = (u64::from(script.number() % 0x220), script.byte().unwrap_or(0) % 9);
            let mut data = [0; 8];
            let data = &mut data[..usize::from(width.min(8))];
            driver.registers.mmio.read(offset, data);
        }
        3 => {
            let offset = u64::from(script.number() % 0x220);
            let width = usize::from(script.peek() % 9);
            driver.registers.mmio.write(offset, script.take(width));
        }
        4 => drop(driver.registers.add_status(1 << (script.byte().unwrap_or(0) % 9))),
        5 => drop(
            driver
                .registers
                .negotiate(u64::from(script.number()) << 24 | 1 << 32),
        ),
        6 if exists => drop(
            driver
                .registers
                .set_up(queue, &driver.rings.queues()[usize::from(queue)]),
        ),
        7 => drop(driver.registers.go()),
        8 => drop(driver.registers.kick(queue)),
        9 => driver.registers.notify(queue),
        10 | 11 if exists => {
            let len = script.number() % 5000;
            drop(driver.rings.offer(queue, &[&[0; 44]], &[len]));
            drop(driver.registers.kick(queue));
        }
        12 if exists => {
            driver.rings.publish(queue, u16::from(script.byte().unwrap_or(0)));
            drop(driver.registers.kick(queue));
        }
        13 => drop(driver.registers.mmio.pause()),
        14 => drop(driver.registers.mmio.resume()),
        15 => drop(driver.initialise(u64::MAX)),
        _ => drop(driver.registers.mmio.state()),
    }
}

/// Lets the script `data` write descriptors and rings before an echoing device or the socket device, and
/// checks what must hold: no panic, no turn without an end, and a driver that keeps the rules is served
/// after a reset.
///
/// # Panics
/// When it does not hold.
pub fn run_queue(data: &[u8]) {
    let mut script = Script(data);
    if script.byte().unwrap_or(0) & 1 == 1 {
        run_socket_queues(&mut script);
    } else {
        run_echo_queue(&mut script);
    }
}

fn run_echo_queue(script: &mut Script<'_>) {
    let Ok((device, _director)) = Echo::new() else {
        return;
    };
    let Ok(mut bench) = Bench::new(device) else { return };
    let ring = Forged {
        memory: bench.rings.memory(),
        areas: bench.rings.queues()[0].addresses(),
        size: bench.rings.queues()[0].size(),
    };
    let mut broken = false;
    while let Some(action) = script.byte() {
        if ring.act(action, script) {
            let signals = bench.work();
            assert!(!broken || signals == Signals::default(), "a broken device rests");
            broken |= signals.needs_reset;
        }
    }
    bench.reset();
    let echo = bench.request(0, &[b"still there"], &[11]);
    assert!(
        echo.is_ok_and(|bytes| bytes == b"still there"),
        "a reset heals everything"
    );
}

fn run_socket_queues(script: &mut Script<'_>) {
    let Ok((device, _handle)) = Vsock::new(3) else {
        return;
    };
    let Ok(mut machine) = Machine::new(device) else {
        return;
    };
    let memory = machine.guest.memory();
    let rings = machine.guest.queues().map(|queue| Forged {
        memory: Arc::clone(&memory),
        areas: queue.addresses(),
        size: queue.size(),
    });
    while let Some(action) = script.byte() {
        let ring = &rings[usize::from(script.peek() % 2)];
        if ring.act(action, script) {
            machine.work();
        }
    }
    if machine.reset().is_ok() {
        assert!(!machine.step().needs_reset, "a reset heals everything");
    }
}

/// A queue whose rings are written behind its driver's back.
struct Forged {
    memory: Arc<Memory>,
    areas: [u64; 3],
    size: u16,
}

impl Forged {
    /// Does what the script says; returns whether the device is to look at it.
    fn act(&self, action: u8, script: &mut Script<'_>) -> bool {
        let [table, avail, _] = self.areas;
        match action % 8 {
            0 | 1 => self.describe(table, script),
            2 => self.describe(PLAYGROUND, script),
            3 => self.publish(script.short()),
            4 => self.put(avail + 2, &script.short().to_le_bytes()),
            5 => {
                let offset = u64::from(script.short() % 0x1000);
                let len = usize::from(script.peek() % 64);
                self.put(table + offset, script.take(len));
            }
            6 => {
                // Any used_event.
                let place = avail + 4 + 2 * u64::from(self.size);
                self.put(place, &script.short().to_le_bytes());
            }
            _ => return true,
        }
        false
    }

    fn describe(&self, table: u64, script: &mut Script<'_>) {
        let index = u64::from(script.short() % TABLE_ENTRIES);
        let buffer = self.buffer(script);
        let flags = u16::from(script.byte().unwrap_or(0) % 8);
        let next = script.short() % TABLE_ENTRIES;
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&buffer.address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&buffer.len.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        descriptor[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * index, &descriptor);
    }

    /// A buffer that mostly is where it does harm: the rings, the ends of memory, nowhere.
    fn buffer(&self, script: &mut Script<'_>) -> Buffer {
        let end = u64::try_from(MEMORY_BYTES).unwrap_or(u64::MAX);
        let near = u64::from(script.byte().unwrap_or(0));
        let address = match script.byte().unwrap_or(0) % 6 {
            0 | 1 => PLAYGROUND + near,
            2 => self.areas[usize::from(script.peek() % 3)] + near,
            3 => end - near,
            4 => u64::MAX - near,
            _ => u64::from(script.number()) << (near % 33),
        };
        let len = match script.byte().unwrap_or(0) {
            small @ 0..=127 => u32::from(small),
            128..=191 => 16 * u32::from(script.short()),
            _ => script.number(),
        };
        Buffer {
            address,
            len,
            writable: false,
        }
    }

    fn publish(&self, head: u16) {
        let avail = self.areas[1];
        let index: u16 = self.memory.read_obj(GuestAddress(avail + 2)).unwrap_or_default();
        let slot = avail + 4 + 2 * u64::from(index % self.size);
        self.put(slot, &(head % (self.size + 4)).to_le_bytes());
        self.put(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        let written = self.memory.write_slice(bytes, GuestAddress(address));
        assert!(written.is_ok(), "scripts write inside of memory");
    }
}

/// Bytes that tell what to do.
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

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte().unwrap_or(0), self.byte().unwrap_or(0)])
    }

    fn number(&mut self) -> u32 {
        u32::from(self.short()) | u32::from(self.short()) << 16
    }
}
