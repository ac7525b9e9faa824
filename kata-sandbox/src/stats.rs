//! What containers use while they run: from the agent's figures to the caller's, once or again and again.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use kata_agent_proto::agent::{self, BlkioStatsEntry, CgroupStats, StatsContainerResponse};
use tokio::time::{Interval, MissedTickBehavior};

use crate::error::{Error, ErrorKind};
use crate::members::{Shared, stats_of};
use crate::report::{ContainerStats, IoStats, NetworkStats, Sample};

/// The shortest time between two samples.
const INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Figures that a kernel does not keep are zero in the agent's answer.
fn kept(figure: u64) -> Option<u64> {
    (figure > 0).then_some(figure)
}

/// What the guest's cgroup says of a container.
pub(crate) fn of_container(cgroup: &CgroupStats) -> ContainerStats {
    let (cpu, memory) = (&cgroup.cpu_stats, &cgroup.memory_stats);
    let mut io: BTreeMap<(u64, u64), IoStats> = BTreeMap::new();
    let mut add = |entries: &[BlkioStatsEntry],
                   read: fn(&mut IoStats) -> &mut u64,
                   write: fn(&mut IoStats) -> &mut u64| {
        for entry in entries {
            let device = io.entry((entry.major, entry.minor)).or_default();
            match entry.op.as_str() {
                "Read" => *read(device) = entry.value,
                "Write" => *write(device) = entry.value,
                _ => {}
            }
        }
    };
    let block = &cgroup.blkio_stats;
    add(
        &block.io_service_bytes_recursive,
        |io| &mut io.read_bytes,
        |io| &mut io.written_bytes,
    );
    add(
        &block.io_serviced_recursive,
        |io| &mut io.reads,
        |io| &mut io.writes,
    );
    ContainerStats {
        cpu_time: Duration::from_nanos(cpu.cpu_usage.total_usage),
        user_cpu_time: Duration::from_nanos(cpu.cpu_usage.usage_in_usermode),
        system_cpu_time: Duration::from_nanos(cpu.cpu_usage.usage_in_kernelmode),
        throttled_time: Duration::from_nanos(cpu.throttling_data.throttled_time),
        memory_bytes: memory.usage.usage,
        memory_peak_bytes: kept(memory.usage.max_usage),
        // The agent's word for no limit.
        memory_limit_bytes: Some(memory.usage.limit).filter(|limit| *limit != u64::MAX),
        memory_cache_bytes: memory.cache,
        swap_bytes: memory.swap_usage.usage,
        processes: cgroup.pids_stats.current,
        processes_limit: kept(cgroup.pids_stats.limit),
        io,
    }
}

fn of_network(stats: &agent::NetworkStats) -> (String, NetworkStats) {
    let figures = NetworkStats {
        received_bytes: stats.rx_bytes,
        received_packets: stats.rx_packets,
        received_errors: stats.rx_errors,
        received_dropped: stats.rx_dropped,
        sent_bytes: stats.tx_bytes,
        sent_packets: stats.tx_packets,
        sent_errors: stats.tx_errors,
        sent_dropped: stats.tx_dropped,
    };
    (stats.name.clone(), figures)
}

/// All containers of a sandbox at one moment; one that is removed meanwhile is left out.
pub(crate) async fn sample(shared: &Shared) -> Result<Sample, Error> {
    let mut sample = Sample {
        taken: Instant::now(),
        containers: BTreeMap::new(),
        network: BTreeMap::new(),
    };
    for name in shared.names() {
        let StatsContainerResponse {
            cgroup_stats,
            network_stats,
            ..
        } = match stats_of(&shared.link, &name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            answer => answer?,
        };
        sample
            .containers
            .insert(name, of_container(&cgroup_stats.unwrap_or_default()));
        // They share it: each answer has all of it, and the last is the latest.
        sample.network = network_stats.iter().map(of_network).collect();
    }
    Ok(sample)
}

type Pending = Pin<Box<dyn Future<Output = Result<Sample, Error>> + Send>>;

/// What the containers of a sandbox use, again and again: a stream of [`Sample`]s.
///
/// The first comes at once. The stream ends with the error that says why, when the sandbox does.
///
/// ```no_run
/// use std::time::Duration;
///
/// # async fn example(sandbox: &kata_sandbox::Sandbox) -> Result<(), kata_sandbox::Error> {
/// let mut samples = sandbox.stats(Duration::from_secs(1));
/// while let Some(sample) = samples.next().await {
///     for (name, stats) in sample?.containers {
///         println!("{name}: {:?} of processor time, {} bytes", stats.cpu_time, stats.memory_bytes);
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Samples {
    shared: Arc<Shared>,
    ticks: Interval,
    pending: Option<Pending>,
    has_ended: bool,
}

impl fmt::Debug for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Samples")
            .field("interval", &self.ticks.period())
            .finish_non_exhaustive()
    }
}

impl Samples {
    /// Must be called within a runtime.
    pub(crate) fn new(shared: Arc<Shared>, interval: Duration) -> Self {
        let mut ticks = tokio::time::interval(interval.max(INTERVAL_MIN));
        // Who reads late wants the present, and not what was missed.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            shared,
            ticks,
            pending: None,
            has_ended: false,
        }
    }

    /// The next sample; none after an error. Dropping this future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Sample, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_sample(cx)).await
    }

    fn poll_sample(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Sample, Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let mut pending = match self.pending.take() {
            Some(pending) => pending,
            None => {
                ready!(self.ticks.poll_tick(cx));
                let shared = Arc::clone(&self.shared);
                Box::pin(async move { sample(&shared).await })
            }
        };
        let Poll::Ready(sample) = pending.as_mut().poll(cx) else {
            self.pending = Some(pending);
            return Poll::Pending;
        };
        self.has_ended = sample.is_err();
        Poll::Ready(Some(sample))
    }
}

impl futures_core::Stream for Samples {
    type Item = Result<Sample, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_sample(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_figures_keep_their_meaning() {
        let entry = |op: &str, value| BlkioStatsEntry {
            major: 254,
            op: op.into(),
            value,
            ..BlkioStatsEntry::default()
        };
        let mut cgroup = CgroupStats::default();
        let block = cgroup.blkio_stats.mut_or_insert_default();
        block.io_service_bytes_recursive = vec![entry("Read", 1), entry("Write", 2), entry("Discard", 9)];
        block.io_serviced_recursive = vec![entry("Read", 3), entry("Write", 4)];
        let usage = cgroup
            .memory_stats
            .mut_or_insert_default()
            .usage
            .mut_or_insert_default();
        (usage.usage, usage.limit) = (7, u64::MAX);
        let stats = of_container(&cgroup);
        let io = stats.io[&(254, 0)];
        assert_eq!(
            (io.read_bytes, io.written_bytes, io.reads, io.writes),
            (1, 2, 3, 4)
        );
        assert_eq!(
            (
                stats.memory_bytes,
                stats.memory_peak_bytes,
                stats.memory_limit_bytes
            ),
            (7, None, None)
        );
    }
}
