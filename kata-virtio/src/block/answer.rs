//! The end of a request: its status, its chain back to the driver, and the signals for it.
//!
//! Knows queues and guest memory; not what was asked for.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::verdict::Work;
use crate::{Memory, Signals};

/// A request that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub(super) queue: u16,
    pub(super) head: u16,
    pub(super) status: GuestAddress,
    pub(super) work: Work,
    pub(super) bytes: u64,
}

/// A queue that the driver has broken beyond a request.
#[derive(Debug, thiserror::Error)]
#[error("queue {queue} is broken and stays so until the driver resets the device: {cause}")]
pub(super) struct Fault {
    pub(super) queue: u16,
    pub(super) cause: virtio_queue::Error,
}

/// Writes the status and gives the chain back. A status that vanished from memory is not ours to mourn:
/// it was there when the request was taken.
pub(super) fn answer(
    pending: Pending,
    status: u32,
    written: u32,
    queue: &mut Queue,
    memory: &Memory,
) -> Result<(), virtio_queue::Error> {
    let status = u8::try_from(status).unwrap_or(u8::MAX);
    if let Err(cause) = memory.write_obj(status, pending.status) {
        log::debug!("block: the status has no place any more: {cause}");
    }
    queue.add_used(memory, pending.head, written)
}

/// Which of the queues in `moved` deserve a signal.
pub(super) fn signals(memory: &Memory, queues: &mut [&mut Queue], moved: u64) -> Result<Signals, Fault> {
    let mut signals = Signals::default();
    for (index, queue) in (0u16..).zip(queues.iter_mut()) {
        if moved >> index & 1 == 1 {
            let wanted = queue.needs_notification(memory).map_err(fault(index))?;
            signals = signals.with_queue(index, wanted);
        }
    }
    Ok(signals)
}

pub(super) fn fault(queue: u16) -> impl Fn(virtio_queue::Error) -> Fault {
    move |cause| Fault { queue, cause }
}
