//! The command line: which of its three roles this process has.
//!
//! Owns the words of the command line and nothing else.

use std::os::fd::RawFd;

/// What this process is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The first process of a guest.
    Init,
    /// The agent as an ordinary process in namespaces of its own.
    Process(ProcessMode),
    /// A short-lived child of the agent, with the descriptors of its order and its answer.
    Worker {
        /// Where the order is read from.
        order: RawFd,
        /// Where the outcome is written to.
        outcome: RawFd,
    },
}

/// What the agent is given as an ordinary process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProcessMode {
    /// Where connections come from.
    pub(crate) connections: Connections,
    /// Disks by serial.
    pub(crate) disks: Vec<(String, RawFd)>,
}

/// Where an ordinary process has its connections from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// A socket on which they come as descriptors.
    Channel(RawFd),
    /// The address of a socket that it listens on.
    Listen(String),
}

/// Why the command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0}; usage: kata-agent --channel-fd FD|--listen unix://PATH|unix://@NAME [--disk SERIAL=FD]... (or as PID 1 without arguments)"
)]
pub(crate) struct Usage(String);

/// Reads the command line. `pid_one` is whether this is the first process of its PID namespace.
pub(crate) fn parse(args: impl Iterator<Item = String>, pid_one: bool) -> Result<Role, Usage> {
    let args: Vec<String> = args.collect();
    match args.first().map(String::as_str) {
        // The kernel passes words it does not know to init: they are not for us.
        _ if pid_one && args.first().is_none_or(|word| word != "worker") => Ok(Role::Init),
        Some("worker") => match &args[1..] {
            [order, outcome] => Ok(Role::Worker {
                order: number(order)?,
                outcome: number(outcome)?,
            }),
            _ => Err(Usage("a worker takes two descriptors".into())),
        },
        _ => process_mode(&args).map(Role::Process),
    }
}

fn process_mode(args: &[String]) -> Result<ProcessMode, Usage> {
    let mut connections = None;
    let mut disks = Vec::new();
    for pair in args.chunks(2) {
        match pair {
            [word, value] if word == "--channel-fd" => {
                connections = Some(Connections::Channel(number(value)?));
            }
            [word, value] if word == "--listen" => connections = Some(Connections::Listen(value.clone())),
            [word, value] if word == "--disk" => disks.push(disk(value)?),
            [word, ..] => return Err(Usage(format!("unknown or incomplete argument {word}"))),
            [] => {}
        }
    }
    let connections = connections.ok_or_else(|| Usage("--channel-fd or --listen is missing".into()))?;
    Ok(ProcessMode { connections, disks })
}

fn disk(value: &str) -> Result<(String, RawFd), Usage> {
    let (serial, fd) = value
        .split_once('=')
        .ok_or_else(|| Usage(format!("{value} is not SERIAL=FD")))?;
    Ok((serial.to_owned(), number(fd)?))
}

fn number(word: &str) -> Result<RawFd, Usage> {
    word.parse()
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(|| Usage(format!("{word} is not a descriptor")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str, pid_one: bool) -> Result<Role, Usage> {
        parse(words.split_whitespace().map(str::to_owned), pid_one)
    }

    #[test]
    fn pid_one_is_init_whatever_the_kernel_passes() {
        assert_eq!(parsed("", true), Ok(Role::Init));
        assert_eq!(parsed("quiet single", true), Ok(Role::Init));
    }

    #[test]
    fn a_process_is_given_its_channel_and_disks() {
        let expected = ProcessMode {
            connections: Connections::Channel(3),
            disks: vec![("rootfs".into(), 4), ("data".into(), 5)],
        };
        assert_eq!(
            parsed("--channel-fd 3 --disk rootfs=4 --disk data=5", false),
            Ok(Role::Process(expected))
        );
    }

    #[test]
    fn a_process_may_listen_instead() {
        let expected = ProcessMode {
            connections: Connections::Listen("unix:///run/agent.sock".into()),
            disks: Vec::new(),
        };
        assert_eq!(
            parsed("--listen unix:///run/agent.sock", false),
            Ok(Role::Process(expected))
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for words in [
            "",
            "--disk a=1",
            "--channel-fd x",
            "--channel-fd 3 --disk a",
            "--channel-fd",
            "--listen",
            "--what 1",
            "worker 1",
        ] {
            assert!(parsed(words, false).is_err(), "{words}");
        }
    }
}
