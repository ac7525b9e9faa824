//! The sandboxes that are measured.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use kata_sandbox::report::Stage;
use kata_sandbox::{Command, Container, Sandbox};

/// Programs that are run in one sandbox, after as many to warm it up.
const EXECS: usize = 40;

/// One sandbox from its creation to its end.
pub(crate) struct Boot {
    pub(crate) first_output: Duration,
    pub(crate) stages: Vec<(Stage, Duration)>,
    pub(crate) host_memory_bytes: u64,
}

/// A container that says one line.
pub(crate) async fn boot(rootfs: &Path) -> Result<Boot, Box<dyn Error>> {
    let output = Sandbox::run(Container::new(rootfs).args(["echo", "hello"])).await?;
    if output.stdout != b"hello\n" {
        return Err("the container did not say hello".into());
    }
    Ok(Boot {
        first_output: output.timings.at(Stage::FirstOutput).ok_or("no first output")?,
        stages: output.timings.iter().collect(),
        host_memory_bytes: output
            .usage
            .host_memory_bytes
            .ok_or("host memory cannot be read")?,
    })
}

/// Round trips of `true` in one sandbox.
pub(crate) struct Execs {
    pub(crate) round_trips: Vec<Duration>,
    pub(crate) hypervisor: String,
}

pub(crate) async fn execs(rootfs: &Path) -> Result<Execs, Box<dyn Error>> {
    let sandbox = Sandbox::boot(Container::new(rootfs)).await?;
    let mut round_trips = Vec::new();
    for round in 0..2 * EXECS {
        let begin = Instant::now();
        let status = sandbox.exec(Command::new("true")).await?.wait().await?;
        if !status.success() {
            return Err(format!("true ended with {status}").into());
        }
        if round >= EXECS {
            round_trips.push(begin.elapsed());
        }
    }
    let info = sandbox.info();
    let hypervisor = format!(
        "{} {}, {}",
        info.hypervisor_version, info.machine_type, info.selection.reason
    );
    sandbox.stop().await?;
    Ok(Execs {
        round_trips,
        hypervisor,
    })
}

/// How long each stage took by itself in every boot, in order.
pub(crate) fn stages(boots: &[Boot]) -> Vec<(String, Vec<Duration>)> {
    let Some(first) = boots.first() else {
        return Vec::new();
    };
    let of = |boot: &Boot, stage: Stage| {
        let at = boot.stages.iter().position(|(s, _)| *s == stage)?;
        let before = at
            .checked_sub(1)
            .map_or(Duration::ZERO, |before| boot.stages[before].1);
        Some(boot.stages[at].1.saturating_sub(before))
    };
    let times = |stage: Stage| boots.iter().filter_map(|boot| of(boot, stage)).collect();
    first
        .stages
        .iter()
        .map(|(stage, _)| (stage.to_string(), times(*stage)))
        .collect()
}
