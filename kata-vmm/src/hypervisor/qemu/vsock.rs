//! The vsock device of one machine: served by this process, reached by QEMU as vhost-user.
//!
//! Owns the device's worker and the way of the guest's dials to the control loop.
//! It must not know the control socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use kata_virtio::vhost_user::{self, Served};
use kata_virtio::vsock::{Device, Handle};

use crate::control::LaunchError;
use crate::hypervisor::Occurrence;
use crate::hypervisor::channel::{Channel, Ports};
use crate::hypervisor::vm::failure;

/// A device that is served. Dropping it stops its worker.
#[derive(Debug)]
pub(super) struct Vsock {
    handle: Handle,
    /// The worker puts the guest's dials in at the other end; gone with the worker.
    dials: Option<Channel>,
    /// Ports of the host that the guest may dial.
    host_ports: Vec<u32>,
    /// Gone once the machine has ended.
    served: Option<Served>,
}

impl Vsock {
    /// Starts the device's worker; the descriptor is QEMU's end of the vhost-user connection. The guest may
    /// dial `host_ports`.
    pub(super) fn serve(guest_cid: u32, host_ports: &[u32]) -> Result<(Self, OwnedFd), LaunchError> {
        let (dials, accepted) = Channel::pair().map_err(|cause| failure("make the vsock channel", &cause))?;
        let (device, handle) =
            Device::new(guest_cid.into()).map_err(|cause| failure("make the vsock device", &cause))?;
        let allowed = host_ports.to_vec();
        let device = device.on_dial(move |host_port| hand_over(&accepted, &allowed, host_port));
        let (served, frontend) =
            vhost_user::serve(device).map_err(|cause| failure("serve the vsock device", &cause))?;
        let vsock = Self {
            handle,
            dials: Some(dials),
            host_ports: host_ports.to_vec(),
            served: Some(served),
        };
        Ok((vsock, frontend))
    }

    /// What to wait on, while the worker lives.
    pub(super) fn dials(&self) -> Option<BorrowedFd<'_>> {
        self.dials.as_ref().map(AsFd::as_fd)
    }

    /// Moves some of the guest's dials over.
    pub(super) fn take_dials(&mut self, occurrences: &mut Vec<Occurrence>) {
        let Some(dials) = &self.dials else { return };
        if let Err(cause) = dials.take_dials(&self.host_ports, occurrences) {
            // Expected once the device was stopped; before, the guest has lost its device.
            if self.served.is_some() {
                log::error!("the vsock device's worker is gone: {cause}");
            }
            self.dials = None;
        }
    }

    /// After QEMU's end: gives the host what the guest had sent, for at most two seconds where the host does
    /// not read, and closes all streams.
    pub(super) fn drain(&mut self) {
        if let Some(Err(cause)) = self.served.take().map(Served::wait) {
            log::warn!("the vsock device ends: {cause}");
        }
    }

    /// Connects a stream to a port of the guest.
    pub(super) fn connect(&self, guest_port: u32, host_port: u32, stream: UnixStream) {
        self.handle.connect(host_port, guest_port, stream);
    }
}

/// On the worker: makes the stream of a dial; `None` refuses it. A dial that is not `allowed` costs no
/// descriptor.
fn hand_over(dials: &Channel, allowed: &[u32], host_port: u32) -> Option<UnixStream> {
    if !allowed.contains(&host_port) {
        log::debug!("the guest's dial of port {host_port} is refused: nothing is there for it");
        return None;
    }
    let (device, host) = UnixStream::pair().ok()?;
    let ports = Ports {
        guest: 0,
        host: host_port,
    };
    match dials.send(ports, host.as_fd()) {
        Ok(()) => Some(device),
        Err(cause) => {
            log::debug!("the guest's dial of port {host_port} is refused: {cause}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_ports_that_were_named_can_be_dialed() {
        let (taken, dials) = Channel::pair().unwrap();
        assert!(hand_over(&dials, &[7], 8).is_none());
        assert!(taken.recv().unwrap().is_none());
        let _stream = hand_over(&dials, &[7], 7).unwrap();
        let (ports, _) = taken.recv().unwrap().unwrap();
        assert_eq!(ports.host, 7);
    }
}
