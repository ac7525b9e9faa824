//! The framework's ring, made to survive a kick that is not there.
//!
//! The framework ends its worker when a kick event cannot be read. That happens to an event that was
//! seen just before the driver reset the device and the frontend brought a new kick descriptor: a guest
//! could kill the device for good. Here it is no kick.

use std::fs::File;
use std::io;

use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;

use super::backend::Memory;

/// See the module.
#[derive(Clone)]
pub(super) struct Vring(VringMutex<Memory>);

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateGuard<'a, Memory>>::G;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = <VringMutex<Memory> as VringStateMutGuard<'a, Memory>>::G;
}

macro_rules! pass_on {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)+) => {
        $(fn $name(&self, $($argument: $kind),*) $(-> $result)? { self.0.$name($($argument),*) })+
    };
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        VringMutex::new(memory, max_queue_size).map(Self)
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.0.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.0.get_mut()
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => Ok(false),
            kick => kick,
        }
    }

    pass_on! {
        fn add_used(desc_index: u16, len: u32) -> Result<(), QueueError>;
        fn signal_used_queue() -> io::Result<()>;
        fn enable_notification() -> Result<bool, QueueError>;
        fn disable_notification() -> Result<(), QueueError>;
        fn needs_notification() -> Result<bool, QueueError>;
        fn set_enabled(enabled: bool);
        fn set_queue_info(desc_table: u64, avail_ring: u64, used_ring: u64) -> Result<(), QueueError>;
        fn queue_next_avail() -> u16;
        fn set_queue_next_avail(base: u16);
        fn set_queue_next_used(idx: u16);
        fn queue_used_idx() -> Result<u16, QueueError>;
        fn set_queue_size(num: u16);
        fn set_queue_event_idx(enabled: bool);
        fn set_queue_ready(ready: bool);
        fn set_kick(file: Option<File>);
        fn set_call(file: Option<File>);
        fn set_err(file: Option<File>);
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

    use super::*;

    #[test]
    fn a_kick_that_is_not_there_is_no_kick_and_no_error() {
        let ring = Vring::new(GuestMemoryAtomic::new(GuestMemoryMmap::new()), 16).unwrap();
        ring.set_enabled(true);
        let kick = File::from(eventfd(1, EventfdFlags::NONBLOCK).unwrap());
        ring.set_kick(Some(kick));
        assert!(ring.read_kick().unwrap());
        assert!(
            !ring.read_kick().unwrap(),
            "an error would end the framework's worker"
        );
    }
}
