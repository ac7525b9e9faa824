//! Stage 10: the agent's hello, raced against the machine's end; then the sandbox's set-up.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kata_agent_proto::agent::{CreateSandboxRequest, ReseedRandomDevRequest, SetGuestDateTimeRequest};
use kata_agent_proto::{Client, Hello, HelloError, port, read_hello};
use kata_vmm::machine::Running;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::ending::Loss;
use crate::error::{Error, ErrorKind};
use crate::link::{Dialer, Link, ended};
use crate::report::{Stage, Timings};
use crate::spec;
use crate::supervise::{Milestones, Order, Supervision};

/// Bytes of host entropy that the guest is seeded with: the size of the kernel's pool.
const SEED_BYTES: usize = 256;

/// A sandbox whose agent answers.
pub(crate) struct Connected {
    pub(crate) link: Arc<Link>,
    pub(crate) hello: Hello,
    pub(crate) running: Running,
}

/// Waits for the agent and sets the sandbox up: name, clock and entropy, before any process runs.
pub(crate) async fn connect(
    supervision: &Supervision,
    milestones: Milestones,
    name: &str,
    shares_pid: bool,
    timings: &mut Timings,
) -> Result<Connected, Error> {
    let (running, launched_at) = reached(milestones.launched, supervision, Stage::Machine).await?;
    timings.mark_at(Stage::Machine, launched_at);
    let (mut stream, dialed_at) = reached(milestones.dialed, supervision, Stage::Agent).await?;
    let hello = tokio::select! {
        biased;
        hello = read_hello(&mut stream) => match hello {
            Ok(hello) => hello,
            Err(error) => return Err(no_hello(supervision, error).await),
        },
        ended = ended(supervision.state.clone()) => return Err(ended.error(Stage::Agent)),
    };
    mark_guest(timings, &hello, dialed_at);
    let dialer = Dialer::new(Arc::clone(&supervision.control));
    let link = match dialer
        .dial(port::AGENT)
        .await
        .and_then(|(_, stream)| UnixStream::from_std(stream))
    {
        Ok(stream) => Link::new(Client::new(stream), dialer, supervision.state.clone()),
        Err(error) => {
            let error =
                Error::new(ErrorKind::AgentLost, Stage::Connect, "cannot reach the agent").with_source(error);
            return Err(error);
        }
    };
    // The supervisor ends only after it published why, so an order that it cannot take is no loss.
    let _ = supervision.orders.send(Order::WatchAgent(stream));
    watch_calls(link.client.clone(), supervision);
    set_up(&link, name, shares_pid).await?;
    timings.mark(Stage::Connect);
    Ok(Connected {
        link: Arc::new(link),
        hello,
        running,
    })
}

/// Ends a sandbox whose agent takes no calls any more or breaks the protocol, also when nobody waits for an answer.
fn watch_calls(client: Client, supervision: &Supervision) {
    // The sandbox ends with the last of those who can give orders, which this is not one of.
    let orders = supervision.orders.downgrade();
    tokio::spawn(async move {
        let end = client.closed().await;
        if let Some(breach) = client.breach() {
            tracing::warn!(breach, "the agent broke the protocol");
        }
        if let Some(orders) = orders.upgrade() {
            // A supervisor that is gone has ended the sandbox already.
            let _ = orders.send(Order::GiveUp(Loss::Calls(end)));
        }
    });
}

async fn reached<T>(
    milestone: oneshot::Receiver<T>,
    supervision: &Supervision,
    stage: Stage,
) -> Result<T, Error> {
    match milestone.await {
        Ok(value) => Ok(value),
        Err(_) => Err(ended(supervision.state.clone()).await.error(stage)),
    }
}

async fn no_hello(supervision: &Supervision, error: HelloError) -> Error {
    let kind = match error {
        // The machine may be at its end, which the supervisor is told of by others.
        HelloError::Io(_) => {
            let _ = supervision.orders.send(Order::GiveUp(Loss::HungUp));
            return ended(supervision.state.clone()).await.error(Stage::Agent);
        }
        HelloError::Protocol { .. } => ErrorKind::VersionMismatch,
        _ => ErrorKind::AgentLost,
    };
    Error::new(kind, Stage::Agent, "the agent's hello was not understood").with_source(error)
}

/// The guest's own clock tells when its kernel handed over and how far its agent was, counted back from when it dialed.
fn mark_guest(timings: &mut Timings, hello: &Hello, dialed_at: Instant) {
    let mut mark = |stage, at_ns: u64| {
        let before = Duration::from_nanos(hello.ready_ns.saturating_sub(at_ns));
        timings.mark_at(stage, dialed_at.checked_sub(before).unwrap_or(dialed_at));
    };
    if !hello.process_mode {
        mark(Stage::Kernel, hello.init_start_ns);
        mark(Stage::Modules, hello.modules_ns);
        mark(Stage::Mounts, hello.mounts_ns);
    }
    timings.mark_at(Stage::Agent, dialed_at);
}

async fn set_up(link: &Link, name: &str, shares_pid: bool) -> Result<(), Error> {
    let create = CreateSandboxRequest {
        hostname: name.into(),
        sandbox_id: name.into(),
        storages: vec![spec::shared_memory()],
        sandbox_pidns: shares_pid,
        ..CreateSandboxRequest::default()
    };
    let reseed = ReseedRandomDevRequest {
        data: seed()?,
        ..ReseedRandomDevRequest::default()
    };
    tokio::try_join!(
        set_clock(link, Stage::Connect),
        link.call(
            Stage::Connect,
            "seed the guest's entropy",
            link.client.reseed_random_dev(reseed)
        ),
        link.call(
            Stage::Connect,
            "create the sandbox",
            link.client.create_sandbox(create)
        ),
    )?;
    Ok(())
}

/// Sets the guest's clock to the host's.
pub(crate) async fn set_clock(link: &Link, stage: Stage) -> Result<(), Error> {
    let call = link.client.set_guest_date_time(now());
    link.call(stage, "set the guest's clock", call).await
}

fn now() -> SetGuestDateTimeRequest {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    SetGuestDateTimeRequest {
        sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        usec: i64::from(now.subsec_micros()),
        ..SetGuestDateTimeRequest::default()
    }
}

fn seed() -> Result<Vec<u8>, Error> {
    let mut seed = vec![0; SEED_BYTES];
    // One call gives up to 256 bytes whole, see getrandom(2).
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).map_err(|error| {
        Error::new(ErrorKind::Io, Stage::Connect, "the host gave no entropy")
            .with_source(std::io::Error::from(error))
    })?;
    Ok(seed)
}
