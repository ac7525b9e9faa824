//! A balloon with a hostile driver, as told by a string of bytes: what the fuzzer runs, and the tests on
//! its corpus.

use super::script::{Script, figure, misbehave};
use super::{Bench, Buffer, MEMORY_BYTES};
use crate::Device;
use crate::balloon::{
    Balloon, DEFLATE_QUEUE, F_PAGE_POISON, Handle, INFLATE_QUEUE, PAGE_BYTES, REPORTING_QUEUE,
    STATISTICS_QUEUE,
};

/// The most pages that a turn may take from one inflate queue: its calls and one chunk.
const TURN_PAGES: u64 = 512 * 256;

/// The most that a turn may take from the two queues of reports.
const TURN_BYTES: u64 = 2 * (64 << 20);

/// Runs the script `data` against a balloon, and checks what must hold whatever a driver does: no panic,
/// turns that end, nothing given back that was not said, and memory of the same size.
///
/// # Panics
/// When it does not hold.
pub fn run_script(data: &[u8]) {
    let mut script = Script(data);
    let Some(mut stage) = Stage::new(script.small()) else {
        return;
    };
    while let Some(act) = script.byte() {
        stage.act(act % 12, &mut script);
        stage.step();
    }
    stage.end();
}

struct Stage {
    bench: Bench<Balloon>,
    handle: Handle,
    /// The driver has broken no rule since its last reset.
    tame: bool,
}

impl Stage {
    /// With all features, without the poison, or with any.
    fn new(features: u8) -> Option<Self> {
        let (device, handle) = Balloon::new().ok()?;
        let features = match features {
            0..=99 => device.features(),
            100..=199 => device.features() & !F_PAGE_POISON,
            some => device.features() & !(u64::from(some) & 0x3f),
        };
        Some(Self {
            bench: Bench::with_features(device, features).ok()?,
            handle,
            tame: true,
        })
    }

    fn act(&mut self, act: u8, script: &mut Script<'_>) {
        let queue = [INFLATE_QUEUE, DEFLATE_QUEUE][usize::from(act & 1)];
        match act {
            0..=2 => {
                let numbers = Self::numbers(script);
                drop(self.bench.rings.offer(queue, &[&numbers], &[]));
            }
            3 | 4 => self.report(script),
            5 => drop(self.bench.rings.offer(STATISTICS_QUEUE, &[script.take(30)], &[])),
            6 => self.handle.statistics(|_| {}),
            7 => {
                let offset = usize::from(script.small() % 16);
                let data = script.take((16 - offset).min(8));
                self.bench.device.write_config(offset, data);
            }
            8 => self.handle.set_target_bytes(u64::from(script.number()) << 4),
            9 if self.tame => {
                let queue = u16::from(script.small() % 5);
                // Whatever came back.
                let _ = self.bench.rings.used(queue);
            }
            _ => self.tame = misbehave(&mut self.bench, script),
        }
    }

    /// A run of pages, or a few that may be anywhere, perhaps cut.
    fn numbers(script: &mut Script<'_>) -> Vec<u8> {
        let first = u32::from(script.short());
        let step = u32::from(script.small());
        let count = u32::from(script.short() & 0x3ff);
        let run = (0..count).map(|index| first.wrapping_add(index.wrapping_mul(step)));
        let mut numbers: Vec<u8> = run.flat_map(u32::to_le_bytes).collect();
        let rest = usize::from(script.small() & 15);
        numbers.extend(script.take(rest));
        numbers
    }

    fn report(&mut self, script: &mut Script<'_>) {
        let count = 1 + script.small() % 33;
        let buffers: Vec<Buffer> = (0..count)
            .map(|_| Buffer {
                address: u64::from(script.short()) * 1024,
                len: u32::from(script.short()) * 256,
                writable: true,
            })
            .collect();
        let queue = REPORTING_QUEUE + u16::from(count & 1);
        self.bench.rings.queue(queue).add(&buffers);
    }

    /// One turn of the device, which is not for ever.
    fn step(&mut self) {
        let said = |bench: &_| ["reported_bytes", "inflated_bytes"].map(|name| figure(bench, name));
        let before = said(&self.bench);
        let stepped = self.bench.step();
        assert!(stepped.is_ok(), "{stepped:?}");
        let [reported, inflated] = said(&self.bench);
        assert!(reported - before[0] <= TURN_BYTES);
        assert!(inflated - before[1] <= TURN_PAGES * PAGE_BYTES);
    }

    fn end(self) {
        let of = |name| figure(&self.bench, name);
        assert!(of("discarded_bytes") + of("kept_bytes") <= of("reported_bytes") + of("inflated_bytes"));
        assert_eq!(of("errors"), 0, "all of this memory can be given back");
        let len = self.bench.rings.memory_file().metadata().map(|file| file.len());
        assert_eq!(len.ok(), u64::try_from(MEMORY_BYTES).ok());
    }
}
