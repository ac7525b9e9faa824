//! Writing settings to the files of a cgroup, and putting them back.
//!
//! Owns what a setting means beside those that are there. Must not know where settings come from.

use std::fs;
use std::io;
use std::path::Path;

use kata_agent_proto::{Failed, FailureKind};

use super::{Change, MAX, Setting, WEIGHT_MAX, invalid, swap_above};

/// Weights of the two schedulers that know them (block/bfq-iosched.rst; cgroup-v2.rst, io.weight).
const BFQ_WEIGHT: &str = "io.bfq.weight";
const IO_WEIGHT: &str = "io.weight";
pub(super) const WEIGHTS: [&str; 2] = [BFQ_WEIGHT, IO_WEIGHT];

/// One write, and the one that undoes it.
struct Write<'a> {
    field: &'a str,
    file: &'a str,
    new: String,
    old: String,
}

/// Writes that were done.
pub(super) struct Written<'a>(Vec<Write<'a>>);

impl Written<'_> {
    /// Undoes them, the last first.
    pub(super) fn put_back(&self, cgroup: &Path) {
        for write in self.0.iter().rev() {
            // It stood there a moment ago. Whoever asked hears of the first failure.
            let _ = fs::write(cgroup.join(write.file), &write.old);
        }
    }
}

/// Writes all changes, or none.
pub(super) fn all<'a>(cgroup: &Path, changes: &'a [Change]) -> Result<Written<'a>, Failed> {
    let mut writes = Vec::new();
    for change in changes {
        writes.extend(settle(cgroup, change)?);
    }
    let mut written = Written(Vec::new());
    for write in writes {
        if let Err(error) = fs::write(cgroup.join(write.file), &write.new) {
            written.put_back(cgroup);
            return Err(refused(&write, &error));
        }
        written.0.push(write);
    }
    Ok(written)
}

fn refused(write: &Write<'_>, error: &io::Error) -> Failed {
    let Write { field, file, new, .. } = write;
    let kind = match error.raw_os_error() {
        Some(libc::EINVAL | libc::ERANGE | libc::ENODEV | libc::ENXIO) => FailureKind::Invalid,
        Some(libc::EOPNOTSUPP) => FailureKind::Unsupported,
        _ => FailureKind::Container,
    };
    Failed::new(kind, format!("{field}: {file} does not take {new:?}: {error}"))
}

/// What a file says now.
fn present(cgroup: &Path, field: &str, file: &str) -> Result<String, Failed> {
    let path = cgroup.join(file);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failed::new(
            FailureKind::Unsupported,
            format!("{field}: the kernel has no {file} for it"),
        )),
        Err(error) => Err(Failed::new(
            FailureKind::Container,
            format!("{}: {error}", path.display()),
        )),
    }
}

/// A change as a write; none where it holds already.
fn settle<'a>(cgroup: &Path, change: &'a Change) -> Result<Option<Write<'a>>, Failed> {
    let field = &change.field;
    let read = |file: &str| present(cgroup, field, file);
    let write = |file: &'a str, new: String, old: String| {
        Ok(Some(Write {
            field,
            file,
            new,
            old,
        }))
    };
    match &change.setting {
        Setting::Text { file, text } => write(file, text.clone(), read(file)?),
        Setting::NotAbove { file, limit } => {
            let used = read(file)?;
            match used.parse::<u64>() {
                Ok(used) if used > *limit => Err(invalid(field, format_args!("{used} bytes are in use"))),
                _ => Ok(None),
            }
        }
        Setting::CpuMax { quota, period } => {
            let old = read("cpu.max")?;
            let (old_quota, old_period) = old.split_once(' ').unwrap_or((&old, "100000"));
            let period = period.map_or_else(|| old_period.to_owned(), |period| period.to_string());
            let new = format!("{} {period}", quota.as_deref().unwrap_or(old_quota));
            write("cpu.max", new, old)
        }
        Setting::Swap { total, memory } => {
            let memory = match memory {
                Some(memory) => *memory,
                // What is not a number is no limit.
                None => read("memory.max")?.parse().unwrap_or(-1),
            };
            let new = swap_above(*total, memory).map_err(|what| invalid(field, what))?;
            let file = "memory.swap.max";
            let meaningless = new == MAX || new == "0";
            if meaningless && !cgroup.join(file).exists() {
                // A kernel without swap: none can be used, and there is none to limit.
                return Ok(None);
            }
            write(file, new, read(file)?)
        }
        Setting::IoWeight { device, weight } => {
            let bfq = cgroup.join(BFQ_WEIGHT).exists();
            let file = if bfq { BFQ_WEIGHT } else { IO_WEIGHT };
            let weight = if bfq { *weight } else { wide_weight(*weight) };
            let key = device.as_deref().unwrap_or("default");
            let old = line_of(&read(file)?, key).unwrap_or_else(|| match device {
                Some(device) => format!("{device} default"),
                None => "default 100".to_owned(),
            });
            write(file, format!("{key} {weight}"), old)
        }
        Setting::IoMax { device, key, rate } => {
            let old = line_of(&read("io.max")?, device);
            let old = old.unwrap_or_else(|| format!("{device} rbps=max wbps=max riops=max wiops=max"));
            let rate = rate.map_or_else(|| MAX.to_owned(), |rate| rate.to_string());
            write("io.max", format!("{device} {key}={rate}"), old)
        }
    }
}

/// The line that begins with a key.
fn line_of(text: &str, key: &str) -> Option<String> {
    let mut lines = text.lines();
    lines
        .find(|line| line.split_once(' ').is_some_and(|(first, _)| first == key))
        .map(str::to_owned)
}

/// From the range of 10 to 1000 to the one of 1 to 10000, as runc does.
fn wide_weight(weight: u32) -> u32 {
    (1 + weight.saturating_sub(10) * (WEIGHT_MAX - 1) / 990).min(WEIGHT_MAX)
}
