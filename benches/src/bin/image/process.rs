//! A program run to its end, with what it cost. It asks the kernel, never the program; what programs are for it
//! must not know.

use std::error::Error;
use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How often the highest memory is looked at. It only ever grows, so what is missed is the growth of the last such
/// time.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// What a program cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cost {
    /// From its start to its end.
    pub(crate) wall: Duration,
    /// On processors, in the kernel too.
    pub(crate) processor: Duration,
    /// The most memory that was resident at a time, in bytes.
    pub(crate) peak_bytes: u64,
    /// Bytes of files that it wrote or changed, counted in pages when they become dirty.
    pub(crate) written_bytes: u64,
}

impl Cost {
    /// Of programs that run one after the other.
    pub(crate) fn sum<'a>(costs: impl IntoIterator<Item = &'a Self>) -> Self {
        costs.into_iter().fold(Self::default(), |sum, cost| Self {
            wall: sum.wall + cost.wall,
            processor: sum.processor + cost.processor,
            peak_bytes: sum.peak_bytes.max(cost.peak_bytes),
            written_bytes: sum.written_bytes + cost.written_bytes,
        })
    }
}

/// Runs a program without input; what it cost, and what it said on standard output, which must fit into a pipe.
///
/// # Errors
/// When it does not start or does not end with status 0; the error has what it said on standard error.
pub(crate) fn run(command: &mut Command) -> Result<(Cost, String), Box<dyn Error>> {
    // A file: a program that says much on standard error must not wait for a reader.
    let said = tempfile::NamedTempFile::new()?;
    let errors = said.reopen()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    let begin = Instant::now();
    let mut child = command
        .spawn()
        .map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    let id = Pid::from_child(&child);
    let end = pidfd_open(id, PidfdFlags::empty())?;
    let mut peak_bytes = 0;
    loop {
        peak_bytes = peak(id).unwrap_or(peak_bytes);
        let mut wanted = [PollFd::new(&end, PollFlags::IN)];
        if poll(&mut wanted, Some(&LOOK))? > 0 {
            break;
        }
    }
    let wall = begin.elapsed();
    // It is a zombie until it is waited for, and the kernel still tells.
    let (processor, written_bytes) = (processor(id)?, written(id)?);
    let mut text = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut text)?;
    }
    let status = child.wait()?;
    if !status.success() {
        let said = fs::read_to_string(said.path())?;
        return Err(format!("{command:?}: {status}\n{said}").into());
    }
    let cost = Cost {
        wall,
        processor,
        peak_bytes,
        written_bytes,
    };
    Ok((cost, text))
}

fn read(id: Pid, name: &str) -> Result<String, Box<dyn Error>> {
    Ok(fs::read_to_string(format!("/proc/{}/{name}", id.as_raw_pid()))?)
}

/// The highest resident set size so far (proc(5), `VmHWM`); `None` of a program that ended.
fn peak(id: Pid) -> Option<u64> {
    let kibibytes = field(&read(id, "status").ok()?, "VmHWM:")?
        .strip_suffix(" kB")?
        .parse::<u64>();
    Some(kibibytes.ok()? << 10)
}

/// Time in user and kernel mode of all its threads (proc(5), `stat`, fields 14 and 15).
fn processor(id: Pid) -> Result<Duration, Box<dyn Error>> {
    let stat = read(id, "stat")?;
    let ticks = ticks(&stat).ok_or("the kernel does not tell the time of a process")?;
    let nanoseconds = ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second();
    Ok(Duration::from_nanos(nanoseconds))
}

fn ticks(stat: &str) -> Option<u64> {
    // The name, which may have blanks, ends with the last parenthesis; the state behind it is field 3.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Pages of files that it made dirty, less those that were cut off again before they were written (proc(5), `io`).
fn written(id: Pid) -> Result<u64, Box<dyn Error>> {
    let io = read(id, "io")?;
    let number = |name| field(&io, name).and_then(|text| text.parse::<u64>().ok());
    let dirty = number("write_bytes:").ok_or("the kernel does not count what is written")?;
    Ok(dirty.saturating_sub(number("cancelled_write_bytes:").unwrap_or_default()))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let stat = "17 (a) S 1 (b) Z 1 17 17 0 -1 4 0 0 0 0 250 17 0 0 20 0 1 0 5\n";
        assert_eq!(ticks(stat), Some(267));
    }

    #[test]
    fn a_program_costs_what_it_uses() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let script = "head -c 3000000 /dev/zero >file; echo done";
        let (cost, text) = run(Command::new("sh")
            .args(["-c", script])
            .current_dir(directory.path()))
        .unwrap();
        assert_eq!(text, "done\n");
        assert!(
            cost.peak_bytes > 100 << 10 && cost.wall > Duration::ZERO,
            "{cost:?}"
        );
    }

    #[test]
    fn a_failure_has_what_was_said() {
        let error = run(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3\nbroken\n"), "{error}");
    }
}
