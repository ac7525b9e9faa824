//! How a sandbox ended, and the error that says so.
//!
//! Owns which error each end is to whoever waited for something. Must not know how an end is noticed, which is
//! [`supervise`](crate::supervise)'s.

use kata_agent_proto::{CallError, HelloError};
use kata_vmm::control::{self, LaunchError};
use kata_vmm::machine::VmExit;

use crate::error::{Error, ErrorKind};
use crate::report::Stage;

/// How a sandbox ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) cause: Cause,
    /// How far it had come, where its time was up before it was ready.
    pub(crate) reached: Option<Reached>,
    pub(crate) console_tail: String,
    pub(crate) monitor_log: String,
}

/// Why a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    Stopped,
    TimeUp(Limit),
    LaunchFailed(LaunchError),
    Vm(VmExit),
    MonitorDied { code: Option<i32>, signal: Option<i32> },
    MonitorProtocol { monitor: u32 },
    AgentLost(Loss),
}

/// How an agent was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The connection that its hello came on ended.
    HungUp,
    /// It went on talking there.
    WentOn,
    /// The connection for calls ended, by itself or for what came on it.
    Calls(CallError),
}

impl Cause {
    /// Whether it may be the first sign of a machine's end, which is the better cause.
    pub(crate) fn may_be_a_sign(&self) -> bool {
        matches!(self, Self::AgentLost(loss) if !loss.is_breach())
    }
}

impl Loss {
    /// Whether the agent did what none does.
    fn is_breach(&self) -> bool {
        matches!(self, Self::WentOn | Self::Calls(CallError::Broken { .. }))
    }
}

/// The last that is known of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) step: Step,
    /// How often the machine's processors came back to the monitor, where it is the monitor that runs them.
    pub(crate) exits: Option<u64>,
}

/// What a boot waits for, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Machine,
    Agent,
    Hello,
    Container,
}

/// What a deadline limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Getting ready, until the container is created.
    Boot,
    /// The container's run.
    Run,
}

impl Ended {
    /// The error of a call that this end cut short.
    pub(crate) fn error(&self, stage: Stage) -> Error {
        let (kind, message) = self.describe();
        let message = match self.monitor_log.as_str() {
            "" => message,
            log => format!("{message}; the monitor says: {log}"),
        };
        let error = Error::new(kind, stage, message)
            .sandbox_lost()
            .with_console(self.console_tail.clone());
        match &self.cause {
            Cause::LaunchFailed(cause) => error.with_source(cause.clone()),
            Cause::AgentLost(Loss::Calls(cause)) => error.with_source(cause.clone()),
            Cause::AgentLost(Loss::WentOn) => error.with_source(HelloError::WentOn),
            _ => error,
        }
    }

    fn describe(&self) -> (ErrorKind, String) {
        match &self.cause {
            Cause::Stopped => (ErrorKind::Stopped, "the sandbox was stopped".into()),
            Cause::TimeUp(Limit::Boot) => (ErrorKind::BootTimedOut, self.describe_boot()),
            Cause::TimeUp(Limit::Run) => (
                ErrorKind::TimedOut,
                "the container ran longer than its timeout".into(),
            ),
            Cause::LaunchFailed(error) => describe_launch(error),
            Cause::Vm(VmExit::GuestReset) => (
                ErrorKind::GuestPanicked,
                "the guest kernel panicked or reset the machine".into(),
            ),
            Cause::Vm(VmExit::GuestPanic) => (ErrorKind::GuestPanicked, "the guest kernel panicked".into()),
            Cause::Vm(VmExit::VcpuStopped(report)) => (ErrorKind::Hypervisor, report.to_string()),
            Cause::Vm(VmExit::PowerOff) => {
                (ErrorKind::GuestPoweredOff, "the guest powered itself off".into())
            }
            Cause::Vm(VmExit::Killed) => (ErrorKind::Stopped, "the machine was killed".into()),
            Cause::Vm(VmExit::HypervisorDied {
                code,
                signal,
                stderr_tail,
            }) => (
                ErrorKind::Hypervisor,
                format!("the hypervisor {}: {stderr_tail}", died(*code, *signal)),
            ),
            Cause::MonitorDied { code, signal } => (
                ErrorKind::Monitor,
                format!("the monitor {}", died(*code, *signal)),
            ),
            Cause::MonitorProtocol { monitor } => (
                ErrorKind::VersionMismatch,
                format!(
                    "the monitor speaks control protocol {monitor}, this library {}; use programs of one version",
                    control::PROTOCOL
                ),
            ),
            Cause::AgentLost(loss) => {
                let message = match loss.is_breach() {
                    true => "the agent in the guest cannot be trusted",
                    false => "the agent in the guest is gone",
                };
                (ErrorKind::AgentLost, message.into())
            }
        }
    }
}

impl Ended {
    fn describe_boot(&self) -> String {
        let late = "the sandbox was not ready in time";
        let Some(Reached { step, exits }) = self.reached else {
            return late.into();
        };
        let waited = match step {
            Step::Machine => "the hypervisor had not started the machine",
            Step::Agent => "the machine ran, and the agent in it had not called",
            Step::Hello => "the agent had called, and had not said its hello",
            Step::Container => "the agent had said its hello, and the container was not created",
        };
        let mut said = format!("{late}: {waited}");
        if let Some(exits) = exits {
            said += &format!("; its processors had come back to the monitor {exits} times");
        }
        if step == Step::Agent && self.console_tail.is_empty() {
            said += "; its console is empty, for with `quiet` a kernel prints only what fails";
        }
        said
    }
}

fn describe_launch(error: &LaunchError) -> (ErrorKind, String) {
    match error {
        LaunchError::Protocol { .. } => (
            ErrorKind::VersionMismatch,
            "the monitor is of another version".into(),
        ),
        LaunchError::Unsupported { .. } => (ErrorKind::Unsupported, "the machine cannot be built".into()),
        LaunchError::Boot { .. } | LaunchError::Spawn { .. } | LaunchError::Ended { .. } => {
            (ErrorKind::Hypervisor, "the machine did not start".into())
        }
        LaunchError::Monitor { .. } => (ErrorKind::Monitor, "the monitor failed".into()),
    }
}

fn died(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        (Some(code), None) => format!("ended with status {code}"),
        (None, None) => "ended".into(),
    }
}

impl Ended {
    /// The end of a sandbox whose supervisor went away with its runtime.
    pub(crate) fn stopped() -> Self {
        Self {
            cause: Cause::Stopped,
            reached: None,
            console_tail: String::new(),
            monitor_log: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_that_takes_too_long_says_how_far_it_came() {
        let said = |step, exits, tail: &str| {
            let ended = Ended {
                cause: Cause::TimeUp(Limit::Boot),
                reached: Some(Reached { step, exits }),
                console_tail: tail.into(),
                ..Ended::stopped()
            };
            ended.error(Stage::Agent).to_string()
        };
        assert_eq!(
            said(Step::Agent, Some(12), ""),
            "guest agent: the sandbox was not ready in time: the machine ran, and the agent in it had not called; its \
             processors had come back to the monitor 12 times; its console is empty, for with `quiet` a kernel prints \
             only what fails"
        );
        assert_eq!(
            said(Step::Agent, None, "Kernel panic"),
            "guest agent: the sandbox was not ready in time: the machine ran, and the agent in it had not called"
        );
        assert!(said(Step::Machine, None, "").ends_with("the hypervisor had not started the machine"));
    }

    #[test]
    fn the_cause_of_an_end_has_a_kind_wherever_it_was_noticed() {
        let ended = |cause| Ended {
            cause,
            ..Ended::stopped()
        };
        let kind = |cause, stage| ended(cause).error(stage).kind();
        assert_eq!(
            kind(Cause::TimeUp(Limit::Boot), Stage::Create),
            ErrorKind::BootTimedOut
        );
        assert_eq!(kind(Cause::TimeUp(Limit::Run), Stage::Exit), ErrorKind::TimedOut);
        assert_eq!(
            kind(Cause::Vm(VmExit::GuestReset), Stage::Exit),
            ErrorKind::GuestPanicked
        );
        assert_eq!(kind(Cause::Stopped, Stage::Exit), ErrorKind::Stopped);
    }

    #[test]
    fn a_lost_agent_is_one_kind_and_the_source_says_what_it_did() {
        let check = |loss: Loss, expected: &str, may_be_a_sign| {
            let cause = Cause::AgentLost(loss);
            assert_eq!(cause.may_be_a_sign(), may_be_a_sign, "{cause:?}");
            let ended = Ended {
                cause,
                ..Ended::stopped()
            };
            let error = ended.error(Stage::Exit);
            assert_eq!(error.kind(), ErrorKind::AgentLost);
            assert_eq!(format!("{error:?}"), expected);
        };
        let gone = "exit: the agent in the guest is gone (AgentLost)";
        let liar = "exit: the agent in the guest cannot be trusted (AgentLost)";
        check(Loss::HungUp, gone, true);
        let source = "the connection to the agent ended in the middle of an answer";
        check(Loss::Calls(CallError::Cut), &format!("{gone}: {source}"), true);
        let source = "the agent went on talking after its hello";
        check(Loss::WentOn, &format!("{liar}: {source}"), false);
        let broken = CallError::Broken { what: "noise".into() };
        let source = "the agent broke the protocol: noise";
        check(Loss::Calls(broken), &format!("{liar}: {source}"), false);
    }
}
