//! The end of a device: what the guest had sent goes to hosts that are slow to take it.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::Device;

/// How long slow hosts are waited for, once the guest is gone.
const DRAIN: Duration = Duration::from_secs(2);

/// Resets the device and gives hosts what the guest had sent, for at most two seconds.
pub(crate) fn drain(device: &mut dyn Device) {
    device.reset();
    let deadline = Instant::now() + DRAIN;
    while !device.drained() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !wait_readable(device, left) || device.poll().is_err() {
            log::warn!(
                "{}: the host did not take everything that the guest had sent",
                super::name(device.kind())
            );
            return;
        }
    }
}

/// Waits for the device's side on the host; returns whether it may have something now.
pub(super) fn wait_readable(device: &dyn Device, timeout: Duration) -> bool {
    let timeout = rustix::time::Timespec::try_from(timeout).unwrap_or_default();
    let mut fds: Vec<_> = device
        .events()
        .map(|events| PollFd::from_borrowed_fd(events, PollFlags::IN))
        .into_iter()
        .collect();
    matches!(poll(&mut fds, Some(&timeout)), Ok(1..) | Err(Errno::INTR))
}
