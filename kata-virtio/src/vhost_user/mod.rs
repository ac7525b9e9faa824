//! Devices behind vhost-user: the front door for QEMU and every other frontend of that protocol.
//!
//! Owns the socket, the worker thread and the moments at which a device starts, stops and is reset.
//! Knows neither what a device does nor who the frontend is. Guest memory comes from the frontend as shared
//! files.
//!
//! ```text
//!                 SET_FEATURES, SET_MEM_TABLE, SET_VRING_*
//!  frontend ──────────────────────────────────────────────► thread "vhost-user-blk" (requests)
//!     │                          │ start, stop, reset, configuration: the device, behind one lock
//!     │  kick ─────────────► thread "worker-blk": everything else that the device does
//!     │  ◄──────────── call
//!
//!   each queue:   Stopped ── started and enabled ──► Active ── stopped ──► Stopped
//!                    │                                  │       everything taken is answered before, or
//!                    │                                  │       after five seconds the connection ends
//!                    │                                  └─ its position is kept
//!                    └─ at the start: another position or other features mean a new driver: the device
//!                       is reset; the same mean that the machine was only paused (see `starts`)
//! ```
//!
//! Queues start on their own: a frontend may keep some for itself, as QEMU does with the event queue of
//! the socket device.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use crate::transport::{drain, name};
use crate::{Device, Kind};
use backend::Backend;

mod backend;
mod gate;
mod relay;
mod starts;
mod vring;

/// Why a device could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device was given something that it cannot use.
    #[error("device is not ready")]
    Device(#[source] io::Error),
    /// The connected pair of sockets could not be made.
    #[error("cannot make the vhost-user socket")]
    Socket(#[source] io::Error),
    /// The threads could not be started.
    #[error("cannot start the vhost-user threads: {cause}")]
    Start {
        /// What the vhost-user crate says (its errors are no `std::error::Error`).
        cause: String,
    },
    /// The frontend broke the protocol.
    #[error("vhost-user frontend: {cause}")]
    Frontend {
        /// What the vhost-user crate says.
        cause: String,
    },
}

type Shared = Arc<Mutex<Backend>>;

/// A device that is being served. Dropping it stops the threads and ends the device.
pub struct Served {
    daemon: Option<VhostUserDaemon<Shared>>,
    backend: Shared,
    stop: OwnedFd,
}

/// Starts serving on threads of its own; returns the handle and the frontend's end of the socket, to be
/// passed to QEMU as `-chardev socket,id=..,fd=N`. No path in the file system is used.
///
/// # Errors
/// See [`Error`].
pub fn serve(device: impl Device + 'static) -> Result<(Served, OwnedFd), Error> {
    serve_boxed(Box::new(device))
}

/// The same for a device of any type.
///
/// # Errors
/// See [`Error`].
pub fn serve_boxed(device: Box<dyn Device>) -> Result<(Served, OwnedFd), Error> {
    let (listener, frontend) = connected_listener().map_err(Error::Socket)?;
    Ok((serve_on(device, listener)?, frontend))
}

/// The same for QEMU's network card, which is another frontend than that of its other devices: it connects by
/// itself, so the first that connects to `listener` is served; this waits for it, and is best called when
/// `listener` is readable. And it enables its queues too early, which a thread between the two hides from the
/// backend.
///
/// # Errors
/// See [`Error`].
pub fn serve_at(device: Box<dyn Device>, listener: &UnixListener) -> Result<Served, Error> {
    let (stream, _) = listener.accept().map_err(Error::Socket)?;
    let (served, frontend) = serve_boxed(device)?;
    relay::start(stream.into(), frontend).map_err(Error::Socket)?;
    Ok(served)
}

fn serve_on(device: Box<dyn Device>, listener: UnixListener) -> Result<Served, Error> {
    let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|cause| Error::Socket(cause.into()))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let thread = format!("vhost-user-{}", short_name(device.kind()));
    let backend = Backend::new(device).map_err(Error::Device)?;
    let host = backend.events().map_err(Error::Device)?;
    let (host_event, stop_event) = (backend.host_event(), backend.stop_event());
    let backend = Arc::new(Mutex::new(backend));
    let daemon = VhostUserDaemon::new(thread, Arc::clone(&backend), memory).map_err(start)?;
    if let Err(error) = watch(&daemon, &stop, stop_event) {
        // Dropping it would wait for a worker that nothing can stop.
        std::mem::forget(daemon);
        return Err(error);
    }
    let mut served = Served {
        daemon: Some(daemon),
        backend,
        stop,
    };
    if let Some(daemon) = &mut served.daemon {
        watch(daemon, &host, host_event)?;
        daemon.start(&mut Listener::from(listener)).map_err(start)?;
    }
    Ok(served)
}

fn short_name(kind: Kind) -> &'static str {
    let name = name(kind);
    name.strip_prefix("virtio-").unwrap_or(name)
}

/// Gives the framework's worker, which calls this, the name of its device.
fn name_worker(kind: Kind) {
    let named = CString::new(format!("worker-{}", short_name(kind)))
        .map_err(io::Error::from)
        .and_then(|name| Ok(rustix::thread::set_name(&name)?));
    if let Err(cause) = named {
        log::debug!("vhost-user: the worker keeps its name: {cause}");
    }
}

/// Makes the worker call the backend with `token` when `fd` is readable.
fn watch(daemon: &VhostUserDaemon<Shared>, fd: &OwnedFd, token: u16) -> Result<(), Error> {
    for worker in daemon.get_epoll_handlers() {
        worker
            .register_listener(fd.as_raw_fd(), EventSet::IN, u64::from(token))
            .map_err(|cause| Error::Start {
                cause: cause.to_string(),
            })?;
    }
    Ok(())
}

impl Served {
    /// Waits until the frontend hangs up, then stops the threads. What the guest had sent is given to
    /// hosts that keep reading, for at most two seconds.
    ///
    /// # Errors
    /// [`Error::Frontend`] when it did not hang up but broke the protocol.
    pub fn wait(mut self) -> Result<(), Error> {
        match self.daemon.as_mut().map(VhostUserDaemon::wait) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(DaemonError::HandleRequest(
                ProtocolError::Disconnected | ProtocolError::PartialMessage,
            ))) => Ok(()),
            Some(Err(error)) => Err(Error::Frontend {
                cause: error.to_string(),
            }),
        }
    }

    fn device_state(&self) -> MutexGuard<'_, Backend> {
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the threads. The worker ends on an error of its handler, which the stop event makes: the
    /// exit event that the framework has for this would leave a descriptor behind for each device.
    fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else {
            return;
        };
        daemon.request_shutdown();
        if let Err(error) = daemon.wait() {
            log::debug!("vhost-user: frontend was cut off: {error}");
        }
        self.device_state().stopping = true;
        if let Err(cause) = rustix::io::write(&self.stop, &1u64.to_ne_bytes()) {
            log::error!("vhost-user: cannot stop the worker: {cause}");
        }
        drop(daemon);
    }

    /// Gives hosts what the guest had sent.
    fn drain(&self) {
        drain(self.device_state().device());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
        self.drain();
    }
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").finish_non_exhaustive()
    }
}

/// A listener with the other end of its one connection. The name is abstract and chosen by the kernel;
/// with a backlog of none, a stranger that finds it first would make our own connect fail.
fn connected_listener() -> io::Result<(UnixListener, OwnedFd)> {
    let socket = |flags| rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let listener = socket(SocketFlags::CLOEXEC)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new_unnamed())?;
    rustix::net::listen(&listener, 0)?;
    let name = rustix::net::getsockname(&listener)?;
    let frontend = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::connect(&frontend, &name)?;
    rustix::io::ioctl_fionbio(&frontend, false)?;
    Ok((listener.into(), frontend))
}

fn start(error: DaemonError) -> Error {
    Error::Start {
        cause: error.to_string(),
    }
}
