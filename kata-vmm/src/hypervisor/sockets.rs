//! The vsock device of one machine and the way of the guest's dials to the control loop.
//!
//! Owns the control loop's ends of both. Where the device is served (behind vhost-user or a transport of
//! this process) is the hypervisor's matter.
//! It must not know the control socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use kata_virtio::vsock::{Handle, Vsock};

use super::Occurrence;
use super::channel::{Channel, Ports};
use super::vm::failure;
use crate::control::LaunchError;

/// The host's side of the guest's sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    handle: Handle,
    /// The worker puts the guest's dials in at the other end; gone with the worker.
    dials: Option<Channel>,
    /// Ports of the host that the guest may dial.
    host_ports: Vec<u32>,
}

impl Sockets {
    /// The device of a guest that may dial `host_ports`, to be served, and what is left here.
    pub(super) fn new(guest_cid: u32, host_ports: &[u32]) -> Result<(Self, Vsock), LaunchError> {
        let (dials, accepted) = Channel::pair().map_err(|cause| failure("make the vsock channel", &cause))?;
        let (device, handle) =
            Vsock::new(guest_cid.into()).map_err(|cause| failure("make the vsock device", &cause))?;
        let allowed = host_ports.to_vec();
        let device = device.on_dial(move |host_port| hand_over(&accepted, &allowed, host_port));
        let sockets = Self {
            handle,
            dials: Some(dials),
            host_ports: host_ports.to_vec(),
        };
        Ok((sockets, device))
    }

    /// What to wait on, while the worker lives.
    pub(super) fn dials(&self) -> Option<BorrowedFd<'_>> {
        self.dials.as_ref().map(AsFd::as_fd)
    }

    /// Moves some of the guest's dials over. `stopped` tells that the worker has ended as it should.
    pub(super) fn take_dials(&mut self, stopped: bool, occurrences: &mut Vec<Occurrence>) {
        let Some(dials) = &self.dials else { return };
        if let Err(cause) = dials.take_dials(&self.host_ports, occurrences) {
            if !stopped {
                log::error!("the vsock device's worker is gone: {cause}");
            }
            self.dials = None;
        }
    }

    /// Connects a stream to a port of the guest.
    pub(super) fn connect(&self, guest_port: u32, host_port: u32, stream: OwnedFd, greeted: bool) {
        let stream = UnixStream::from(stream);
        if greeted {
            self.handle.connect_greeted(host_port, guest_port, stream);
        } else {
            self.handle.connect(host_port, guest_port, stream);
        }
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
