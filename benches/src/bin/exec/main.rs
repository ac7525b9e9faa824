//! `cargo xtask bench exec`: processes and containers in a sandbox that runs, against runc in the same guest.
//!
//! ```text
//!  round:  our execs │ runc exec │ our containers │ runc run │ runc create, start, delete │ our output │ a pipe │ our copies │ cp
//! ```
//!
//! Both take turns in one guest, so that their ratio means something where absolute times do not. runc runs in a
//! container that may do everything. Prints one JSON line per figure, and writes a table. A goal that is missed is
//! said, and is no error.

#![expect(clippy::print_stdout, reason = "a program for people prints")]

mod ours;
mod report;
mod runc;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_sandbox::{Container, MiB, Sandbox};

use ours::Files;
use runc::Runc;

/// Rounds that are measured; one more warms caches up.
const ROUNDS: usize = 4;
/// How often each is done in a round.
const TIMES: usize = 12;
/// Bytes that a process writes, and a pipe carries.
const OUTPUT_BYTES: u64 = 256 << 20;
/// Bytes of a file that is copied.
const COPY_BYTES: u64 = 64 << 20;
/// Processes at once.
const AT_ONCE: usize = 100;

/// What was measured, all rounds together.
#[derive(Debug, Default)]
struct Measured {
    exec: Vec<Duration>,
    runc_exec: Vec<Duration>,
    container: Vec<Duration>,
    runc_run: Vec<Duration>,
    runc_create: Vec<Duration>,
    output: Vec<Duration>,
    pipe: Vec<Duration>,
    copy_in: Vec<Duration>,
    copy_out: Vec<Duration>,
    cp: Vec<Duration>,
    at_once: Duration,
    agent_bytes: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(images), Some(out)) = (words.next(), words.next()) else {
        return Err("usage: exec IMAGES OUTPUT-DIRECTORY; `cargo xtask bench exec` calls it".into());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(&images, &out))
}

async fn run(images: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let image = format!("oci:{}:runc", images.display());
    let container = Container::new(&image).idle().memory(MiB(768));
    let sandbox = Sandbox::boot(container).await?;
    let runc = Runc::new(&sandbox, &image).await?;
    let files = Files::new(COPY_BYTES)?;
    let mut measured = Measured {
        // Before anything has run that the agent would have to remember.
        agent_bytes: runc.agent_bytes().await?,
        ..Measured::default()
    };
    for number in 0..=ROUNDS {
        eprintln!("round {number} of {ROUNDS}");
        if number == 0 {
            round(&sandbox, &runc, &image, &files, &mut Measured::default()).await?;
        } else {
            round(&sandbox, &runc, &image, &files, &mut measured).await?;
        }
    }
    measured.at_once = ours::at_once(&sandbox, AT_ONCE).await?;
    let info = sandbox.info();
    let hypervisor = format!(
        "{} {}, {}",
        info.hypervisor_version, info.machine_type, info.selection.reason
    );
    sandbox.stop().await?;
    report::write(&measured, &hypervisor, out)
}

async fn round(
    sandbox: &Sandbox,
    runc: &Runc,
    image: &str,
    files: &Files,
    measured: &mut Measured,
) -> Result<(), Box<dyn Error>> {
    for _ in 0..TIMES {
        measured.exec.push(ours::exec(sandbox).await?);
    }
    measured.runc_exec.extend(runc.times("exec", TIMES).await?);
    for _ in 0..TIMES {
        measured.container.push(ours::container(sandbox, image).await?);
    }
    measured.runc_run.extend(runc.times("run", TIMES).await?);
    measured.runc_create.extend(runc.times("create", TIMES).await?);
    measured.output.push(ours::output(sandbox, OUTPUT_BYTES).await?);
    measured.pipe.extend(runc.times("pipe", 1).await?);
    measured.copy_in.push(files.copy_in(sandbox).await?);
    measured.copy_out.push(files.copy_out(sandbox).await?);
    measured.cp.extend(runc.times("copy", 1).await?);
    Ok(())
}
