//! A console with a hostile driver and a careless host, as told by a string of bytes: what the fuzzer
//! runs, and the tests on its corpus.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::Bench;
use super::script::{Script, figure, misbehave};
use crate::Device;
use crate::console::{BACKLOG_BYTES, Console, Handle, RX_QUEUE, TX_QUEUE};

/// The most that a turn may take from the guest, with a margin of one chunk.
const TURN_BYTES: u64 = (256 << 10) + 4096;

/// Runs the script `data` against a console on a pair of sockets, and checks what must hold whatever a
/// driver does: no panic, turns that end, and every byte of the guest accounted for.
///
/// # Panics
/// When it does not hold.
pub fn run_script(data: &[u8]) {
    let Some(mut stage) = Stage::new() else { return };
    let mut script = Script(data);
    while let Some(act) = script.byte() {
        stage.act(act % 12, &mut script);
        stage.step();
    }
    stage.end();
}

struct Stage {
    bench: Bench<Console>,
    handle: Handle,
    host: Option<UnixStream>,
    /// Bytes that the host has read.
    read: u64,
    /// The driver has broken no rule since its last reset.
    tame: bool,
}

impl Stage {
    fn new() -> Option<Self> {
        let (host, theirs) = UnixStream::pair().ok()?;
        host.set_nonblocking(true).ok()?;
        let input = theirs.try_clone().ok()?;
        let (device, handle) = Console::new(theirs.into(), Some(input.into())).ok()?;
        Some(Self {
            bench: Bench::new(device).ok()?,
            handle,
            host: Some(host),
            read: 0,
            tame: true,
        })
    }

    fn act(&mut self, act: u8, script: &mut Script<'_>) {
        let rings = &mut self.bench.rings;
        match act {
            0 | 1 => drop(rings.offer(TX_QUEUE, &[script.take(40)], &[])),
            2 => {
                let bytes = vec![b'x'; usize::from(script.short()) * 8];
                drop(rings.offer_indirect(TX_QUEUE, &[&bytes, b"end"], &[]));
            }
            3 | 4 => drop(rings.offer(RX_QUEUE, &[], &[u32::from(script.small()), 9])),
            5 if self.tame => drop(rings.used(RX_QUEUE).or_else(|| rings.used(TX_QUEUE))),
            6 => self.host_writes(script),
            7 => self.host_reads(),
            8 => {
                let offset = usize::from(script.small() % 12);
                let data = script.take((12 - offset).min(8));
                self.bench.device.write_config(offset, data);
            }
            9 => self.handle.set_size(script.short(), script.short()),
            10 if script.small() == 0 => self.host_leaves(),
            _ => self.tame = misbehave(&mut self.bench, script),
        }
    }

    /// One turn of the device, which is not for ever.
    fn step(&mut self) {
        let before = figure(&self.bench, "bytes_from_guest");
        let stepped = self.bench.step();
        assert!(stepped.is_ok(), "{stepped:?}");
        let taken = figure(&self.bench, "bytes_from_guest") - before;
        assert!(taken <= TURN_BYTES, "{taken} bytes in a turn");
    }

    fn host_writes(&mut self, script: &mut Script<'_>) {
        if let Some(mut host) = self.host.as_ref() {
            // A full socket takes a part, or nothing.
            let _ = host.write(&vec![b'i'; usize::from(script.short())]);
        }
    }

    fn host_reads(&mut self) {
        let Some(mut host) = self.host.as_ref() else {
            return;
        };
        let mut bytes = vec![0; 1 << 16];
        while let Ok(count @ 1..) = host.read(&mut bytes) {
            self.read += u64::try_from(count).unwrap_or(u64::MAX);
        }
    }

    /// What it had not read is lost and not counted: the account ends here.
    fn host_leaves(&mut self) {
        self.host_reads();
        self.host = None;
    }

    /// Everything that was taken is with the host or dropped; at most the backlog had to wait.
    fn end(mut self) {
        self.bench.device.reset();
        let mut rounds = 0;
        while !self.bench.device.drained() {
            self.host_reads();
            self.step();
            rounds += 1;
            assert!(rounds <= BACKLOG_BYTES, "the backlog does not drain");
        }
        self.host_reads();
        if self.host.is_some() {
            let dropped = figure(&self.bench, "bytes_dropped");
            assert_eq!(figure(&self.bench, "bytes_from_guest"), self.read + dropped);
        }
    }
}
