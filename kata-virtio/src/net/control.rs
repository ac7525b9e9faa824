//! The control queue: how many pairs of queues the driver uses (VIRTIO 1.2 §5.1.6.5).
//!
//! Parses commands; what they do is the device's.

use virtio_bindings::virtio_net as bit;
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::GuestMemory;

use super::chains::{self, ChainError, Parts, Side};

/// Commands in one turn: each may make the host's kernel wait until nobody looks at a queue any more.
const COMMANDS_AT_ONCE: usize = 4;

/// Longest command that is looked at.
const COMMAND_BYTES: usize = 64;

/// What a driver can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// Use this many pairs (`VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`).
    Pairs(u16),
}

/// How a turn of the control queue ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Served {
    /// The driver waits for a signal.
    pub(super) signal: bool,
    /// There are more commands.
    pub(super) again: bool,
    /// Commands that were no commands.
    pub(super) malformed: usize,
}

/// The command in these bytes, if it is one that was offered.
fn parse(bytes: &[u8]) -> Option<Command> {
    let &[class, command, low, high] = bytes else {
        return None;
    };
    let known = u32::from(class) == bit::VIRTIO_NET_CTRL_MQ
        && u32::from(command) == bit::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET;
    known.then_some(Command::Pairs(u16::from_le_bytes([low, high])))
}

/// Serves the queue: `obey` says whether a command was carried out.
pub(super) fn serve(
    memory: &crate::Memory,
    queue: &mut Queue,
    mut obey: impl FnMut(Command) -> bool,
) -> Result<Served, QueueError> {
    let before = queue.next_used();
    let mut served = Served::default();
    queue.disable_notification(memory)?;
    for _ in 0..COMMANDS_AT_ONCE {
        let Some((head, command, answer)) = next(memory, queue)? else {
            served.signal = queue.next_used() != before && queue.needs_notification(memory)?;
            return Ok(served);
        };
        let done = command.as_ref().ok().copied().flatten().is_some_and(&mut obey);
        let ack = if done {
            bit::VIRTIO_NET_OK
        } else {
            bit::VIRTIO_NET_ERR
        };
        let written = write_ack(memory, &answer, ack);
        served.malformed += usize::from(command.is_err() || written == 0);
        queue.add_used(memory, head, written)?;
    }
    served.again = true;
    served.signal = queue.next_used() != before && queue.needs_notification(memory)?;
    Ok(served)
}

type Next = (u16, Result<Option<Command>, ChainError>, Parts);

fn next(memory: &crate::Memory, queue: &mut Queue) -> Result<Option<Next>, QueueError> {
    let Some(chain) = chains::next_chain(memory, queue)? else {
        return Ok(None);
    };
    let head = chain.head_index();
    let (mut asked, mut answer) = (Parts::default(), Parts::default());
    let loaded = asked
        .append(chain.clone(), Side::Readable, queue.size(), 2)
        .and_then(|_| answer.append(chain, Side::Writable, queue.size(), 1))
        .and_then(|_| {
            let mut bytes = [0; COMMAND_BYTES];
            let count = asked.gather(memory, &mut bytes)?;
            Ok(parse(&bytes[..count]))
        });
    Ok(Some((head, loaded, answer)))
}

/// Returns the bytes written.
fn write_ack<M: GuestMemory>(memory: &M, answer: &Parts, ack: u32) -> u32 {
    let ack = u8::try_from(ack).unwrap_or(u8::MAX);
    u32::from(answer.bytes() > 0 && answer.scatter(memory, &[ack]).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_offered_is_a_command() {
        assert_eq!(parse(&[4, 0, 2, 1]), Some(Command::Pairs(0x102)));
        for other in [
            &[4, 0, 2][..],
            &[4, 1, 2, 0],
            &[0, 0, 1, 0],
            &[4, 0, 1, 0, 0],
            &[],
        ] {
            assert_eq!(parse(other), None);
        }
    }
}
