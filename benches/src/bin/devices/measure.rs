//! One machine from its start to its end: what its guest measured, and what the host counted meanwhile.
//!
//! It must not know how machines are configured, nor what is made of the figures.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use benches::observe::{self, Activity, Cost};
use device_guest::link;
use device_guest::pattern::{self, Author, Places, SECTOR_BYTES};
use device_guest::phase::{
    DEPTH, DISK_BYTES, HOST, Line, Outcome, REQUESTS, REQUESTS_AT_DEPTH, SMALL_BYTES, Seed,
};
use kata_virtio::net::Tap;

use crate::Guest;
use crate::contenders::{Contender, MEMORY_MIB, Started};
use crate::host::Host;

/// What the disk is at first.
#[derive(Debug)]
pub(crate) struct Disk(Vec<u8>);

impl Disk {
    pub(crate) fn new() -> Self {
        let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap_or(usize::MAX)];
        pattern::fill(&mut bytes, 0, Author::Host);
        Self(bytes)
    }
}

/// A phase.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// Exits by kind.
    pub(crate) exits: BTreeMap<String, u64>,
    /// Of the guest's processor.
    pub(crate) processor: Activity,
    /// Of all other threads of the monitor.
    pub(crate) devices: Activity,
}

/// One machine.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) phases: Vec<Phase>,
    /// What it costs while the guest waits.
    pub(crate) cost: Cost,
    /// Figures of our devices by name, at the end.
    pub(crate) devices: Vec<(String, BTreeMap<String, u64>)>,
}

/// Starts a machine, lets its guest measure, and compares the disk with what the guest wrote.
pub(crate) fn run(
    contender: &Contender,
    guest: &Guest,
    host: &Host,
    disk: &Disk,
) -> Result<Sample, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("disk");
    std::fs::write(&image, &disk.0)?;
    let tap = Tap::open("bench%d", 1)?;
    link::bring_up(tap.name().ok_or("a tap without a name")?, HOST)?;
    let started = contender.start(guest, &image, tap, directory.path())?;
    let sample = listen(&started, host).map_err(|error| {
        let counted = started.info();
        format!(
            "{error}; counted: {counted:?}; the guest's console:\n{}",
            started.console()
        )
    })?;
    drop(started);
    compare(&image)?;
    Ok(sample)
}

fn listen(started: &Started, host: &Host) -> Result<Sample, Box<dyn Error>> {
    let mut control = BufReader::new(host.control()?);
    let mut phases = Vec::new();
    let mut before = None;
    loop {
        let line = hear(&mut control)?;
        match line {
            Line::Begin(_) => before = Some(Counters::read(started.pids())?),
            Line::End(name, outcome) => {
                eprintln!(
                    "  {name}: {:.1} ms",
                    Duration::from_nanos(outcome.nanoseconds).as_secs_f64() * 1e3
                );
                let before = before.take().ok_or("a phase ended that had not begun")?;
                phases.push(Counters::read(started.pids())?.since(&before, name, outcome));
            }
            Line::Failed(why) => return Err(why.into()),
            Line::Done => break,
        }
        control.get_mut().write_all(b"!")?;
    }
    let cost = observe::cost(started.pids(), u64::from(MEMORY_MIB) << 20)?;
    let info = started.info()?.map(|info| info.devices).unwrap_or_default();
    let devices = info
        .into_iter()
        .map(|device| (device.name, device.figures))
        .collect();
    Ok(Sample {
        phases,
        cost,
        devices,
    })
}

fn hear(control: &mut BufReader<TcpStream>) -> Result<Line, Box<dyn Error>> {
    let mut line = String::new();
    control.read_line(&mut line)?;
    Line::parse(&line).ok_or_else(|| format!("the guest said {line:?}").into())
}

/// What the kernel has counted so far.
struct Counters {
    exits: BTreeMap<String, u64>,
    threads: BTreeMap<(u32, String), Activity>,
}

impl Counters {
    fn read(pids: &[u32]) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            exits: observe::exits(pids)?,
            threads: observe::activity(pids)?,
        })
    }

    fn since(&self, before: &Self, name: String, outcome: Outcome) -> Phase {
        let exits = self.exits.iter().map(|(kind, count)| {
            let before = before.exits.get(kind).copied().unwrap_or_default();
            (kind.clone(), count - before)
        });
        let mut phase = Phase {
            name,
            outcome,
            exits: exits.collect(),
            processor: Activity::default(),
            devices: Activity::default(),
        };
        for (thread, now) in &self.threads {
            let before = before.threads.get(thread).copied().unwrap_or_default();
            let sum = match is_processor(&thread.1) {
                true => &mut phase.processor,
                false => &mut phase.devices,
            };
            sum.nanoseconds += now.nanoseconds.saturating_sub(before.nanoseconds);
            sum.waits += now.waits.saturating_sub(before.waits);
        }
        phase
    }
}

/// Whether a thread of this name runs the guest: `vcpu0` of ours, `CPU 0/KVM` of QEMU.
fn is_processor(name: &str) -> bool {
    name.starts_with("vcpu") || name.starts_with("CPU ")
}

/// The disk after the guest's phases: all of it was written in order, some of it at random after that.
fn compare(image: &Path) -> Result<(), Box<dyn Error>> {
    let bytes = std::fs::read(image)?;
    if u64::try_from(bytes.len())? != DISK_BYTES {
        return Err("the disk has another size now".into());
    }
    let blocks = DISK_BYTES / SMALL_BYTES as u64;
    let mut random: BTreeSet<u64> = Places::new(Seed::Single as u64, blocks).take(REQUESTS).collect();
    for number in 0..DEPTH as u64 {
        let places = Places::new(Seed::Overlapping as u64 + number, blocks);
        random.extend(places.take(REQUESTS_AT_DEPTH / DEPTH));
    }
    for (block, bytes) in (0..).zip(bytes.chunks(SMALL_BYTES)) {
        let author = match random.contains(&block) {
            true => Author::Random,
            false => Author::Sequential,
        };
        let first = block * (SMALL_BYTES / SECTOR_BYTES) as u64;
        pattern::check(bytes, first, author).map_err(|error| format!("on the disk, {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_the_guest_did_not_write_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("disk");
        std::fs::write(&image, Disk::new().0).unwrap();
        let error = compare(&image).unwrap_err().to_string();
        assert_eq!(error, "on the disk, sector 0 has other bytes than were written");
    }

    #[test]
    fn a_phase_is_what_was_counted_since() {
        let counters = |exits, nanoseconds| Counters {
            exits: BTreeMap::from([("exits".to_owned(), exits)]),
            threads: ["vcpu0", "block"]
                .map(|name| {
                    (
                        (1, name.to_owned()),
                        Activity {
                            nanoseconds,
                            waits: 2,
                        },
                    )
                })
                .into(),
        };
        let outcome = Outcome {
            requests: 1,
            bytes: 1,
            nanoseconds: 1,
            median: 1,
        };
        let phase = counters(9, 30).since(&counters(4, 10), "p".to_owned(), outcome);
        assert_eq!(phase.exits["exits"], 5);
        assert_eq!((phase.processor.nanoseconds, phase.devices.waits), (20, 0));
    }
}
