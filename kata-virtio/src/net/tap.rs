//! Taps: network interfaces of the host whose other end is a descriptor.
//!
//! Owns the descriptors and the ioctls of `linux/if_tun.h`; knows no queue and no frame.
//! The only module of the device with unsafe code: every block is one ioctl with its own argument.
#![expect(unsafe_code, reason = "the ioctls of a tap have no safe form")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Getter, IntegerSetter, Opcode, Setter, Updater, opcode};

use super::header::HEADER_BYTES;

bitflags::bitflags! {
    /// What a tap may hand over unfinished (`TUN_F_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(super) struct Offloads: u32 {
        const CSUM = 0x01;
        const TSO4 = 0x02;
        const TSO6 = 0x04;
        const ECN = 0x08;
        const UFO = 0x10;
    }
}

bitflags::bitflags! {
    /// What an interface is (`IFF_*` of `linux/if_tun.h`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Flags: u16 {
        const TAP = 0x0002;
        const MULTI_QUEUE = 0x0100;
        const ATTACH_QUEUE = 0x0200;
        const DETACH_QUEUE = 0x0400;
        const NO_PI = 0x1000;
        const VNET_HDR = 0x4000;
    }
}

const NAME_BYTES: usize = 16;

/// Opcodes of `linux/if_tun.h`.
const SET_INTERFACE: Opcode = opcode::write::<i32>(b'T', 202);
const SET_OFFLOADS: Opcode = opcode::write::<u32>(b'T', 208);
const GET_INTERFACE: Opcode = opcode::read::<u32>(b'T', 210);
const SET_HEADER_BYTES: Opcode = opcode::write::<i32>(b'T', 216);
const SET_QUEUE: Opcode = opcode::write::<i32>(b'T', 217);
const SET_LITTLE_ENDIAN: Opcode = opcode::write::<i32>(b'T', 220);

/// `struct ifreq` with the flags of its union (`netdevice(7)`).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

/// The kernel reads and writes as much.
const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// Why a tap cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// The name is empty, too long, or has characters that names of interfaces cannot have.
    #[error("interface name {name:?} is not one of 1 to 15 characters without / and space")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// No descriptor was given, or no queue asked for.
    #[error("a tap needs at least one queue")]
    NoQueues,
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open /dev/net/tun")]
    Open(#[source] std::io::Error),
    /// The interface cannot be made or joined.
    #[error("cannot attach to interface {name:?}")]
    Attach {
        /// Its name.
        name: String,
        /// What the kernel says.
        #[source]
        cause: std::io::Error,
    },
    /// The descriptor is no tap.
    #[error("descriptor of queue {queue} is not a tap")]
    NotTap {
        /// Which of the descriptors.
        queue: usize,
        /// What the kernel says.
        #[source]
        cause: std::io::Error,
    },
    /// The tap has the wrong shape.
    #[error("descriptor of queue {queue} needs IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, and has {flags:#x}")]
    Shape {
        /// Which of the descriptors.
        queue: usize,
        /// Its `IFF_*`.
        flags: u16,
    },
    /// The tap cannot be set up.
    #[error("cannot set up the descriptor of queue {queue}")]
    SetUp {
        /// Which of the descriptors.
        queue: usize,
        /// What the kernel says.
        #[source]
        cause: std::io::Error,
    },
}

/// The host's end of a network card: one descriptor for each pair of queues.
#[derive(Debug)]
pub struct Tap {
    queues: Vec<OwnedFd>,
    name: Option<String>,
    offloads: Offloads,
}

impl Tap {
    /// Makes the interface `name`, or joins it if it exists and is persistent, with this many queues.
    /// `%d` in the name stands for a free number; [`name`](Self::name) then says which. Needs
    /// `CAP_NET_ADMIN`, or to be the interface's owner. The interface is neither addressed nor up, and
    /// goes with its last descriptor unless it is persistent.
    ///
    /// An interface of one queue and one of several do not mix: it must have been made as it is joined.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, queues: u16) -> Result<Self, TapError> {
        let mut wanted = interface_name(name)?;
        let several = if queues > 1 {
            Flags::MULTI_QUEUE
        } else {
            Flags::empty()
        };
        let flags = Flags::TAP | Flags::NO_PI | Flags::VNET_HDR | several;
        let mut opened = Vec::with_capacity(usize::from(queues));
        for _ in 0..queues {
            let tun = rustix::fs::open(
                "/dev/net/tun",
                OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
                Mode::empty(),
            )
            .map_err(|cause| TapError::Open(cause.into()))?;
            wanted = attach(&tun, wanted, flags).map_err(|cause| TapError::Attach {
                name: name.to_owned(),
                cause: cause.into(),
            })?;
            opened.push(tun);
        }
        Self::from_fds(opened)
    }

    /// A tap of one queue that somebody else has opened; see [`from_fds`](Self::from_fds).
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn from_fd(queue: OwnedFd) -> Result<Self, TapError> {
        Self::from_fds(vec![queue])
    }

    /// A tap that somebody else has opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, one descriptor
    /// for each pair of queues (then with `IFF_MULTI_QUEUE`). They become non-blocking. Needs no
    /// privilege.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn from_fds(queues: Vec<OwnedFd>) -> Result<Self, TapError> {
        let mut name = None;
        let mut offloads = Offloads::all();
        for (queue, fd) in queues.iter().enumerate() {
            let interface = interface(fd).map_err(|cause| TapError::NotTap {
                queue,
                cause: cause.into(),
            })?;
            check_shape(queue, interface.flags)?;
            name = Some(name_of(&interface.name));
            offloads = set_up(fd).map_err(|cause| TapError::SetUp {
                queue,
                cause: cause.into(),
            })?;
        }
        Self::of(queues, name, offloads)
    }

    /// No tap but sockets on which each message is a frame with its header (`SOCK_SEQPACKET` or
    /// `SOCK_DGRAM`), one for each pair of queues: for a network in another process, and for tests.
    /// They become non-blocking. Frames with incomplete checksums and unsegmented ones go both ways, as
    /// far as the driver takes them.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn from_sockets(queues: Vec<OwnedFd>) -> Result<Self, TapError> {
        for (queue, fd) in queues.iter().enumerate() {
            rustix::io::ioctl_fionbio(fd, true).map_err(|cause| TapError::SetUp {
                queue,
                cause: cause.into(),
            })?;
        }
        Self::of(queues, None, Offloads::all())
    }

    /// The interface's name; none where there is no interface.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The descriptors, to be passed to whoever makes the device of them.
    #[must_use]
    pub fn into_fds(self) -> Vec<OwnedFd> {
        self.queues
    }

    fn of(queues: Vec<OwnedFd>, name: Option<String>, offloads: Offloads) -> Result<Self, TapError> {
        if queues.is_empty() {
            return Err(TapError::NoQueues);
        }
        Ok(Self {
            queues,
            name,
            offloads,
        })
    }

    pub(super) fn offloads(&self) -> Offloads {
        self.offloads
    }

    pub(super) fn queues(&self) -> usize {
        self.queues.len()
    }

    pub(super) fn keep_queues(&mut self, count: usize) {
        self.queues.truncate(count);
    }

    pub(super) fn queue(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.queues.get(index).map(AsFd::as_fd)
    }

    /// What the interface may hand over unfinished, for all queues at once (`TUNSETOFFLOAD`).
    pub(super) fn set_offloads(&self, offloads: Offloads) -> Result<(), Errno> {
        match self.queues.first() {
            Some(queue) if self.name.is_some() => set_offloads(queue, offloads),
            _ => Ok(()),
        }
    }

    /// Whether the interface hands frames to this queue (`TUNSETQUEUE`). Nothing to do with one queue.
    pub(super) fn set_attached(&self, index: usize, attached: bool) -> Result<(), Errno> {
        match self.queues.get(index) {
            Some(queue) if self.name.is_some() && self.queues.len() > 1 => set_attached(queue, attached),
            _ => Ok(()),
        }
    }
}

fn interface_name(name: &str) -> Result<[u8; NAME_BYTES], TapError> {
    let bytes = name.as_bytes();
    let unfit = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b':' | 0);
    if !(1..NAME_BYTES).contains(&bytes.len()) || bytes.iter().any(unfit) || matches!(name, "." | "..") {
        return Err(TapError::Name {
            name: name.to_owned(),
        });
    }
    let mut padded = [0; NAME_BYTES];
    padded[..bytes.len()].copy_from_slice(bytes);
    Ok(padded)
}

fn name_of(padded: &[u8; NAME_BYTES]) -> String {
    let name = padded.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

fn check_shape(queue: usize, flags: u16) -> Result<(), TapError> {
    let needed = Flags::TAP | Flags::NO_PI | Flags::VNET_HDR;
    if Flags::from_bits_retain(flags).contains(needed) {
        return Ok(());
    }
    Err(TapError::Shape { queue, flags })
}

/// Non-blocking, with headers of the length and byte order of a modern device; returns what it can be
/// asked to hand over, and has it hand over only what is complete.
fn set_up(queue: &OwnedFd) -> Result<Offloads, Errno> {
    rustix::io::ioctl_fionbio(queue, true)?;
    let header = i32::try_from(HEADER_BYTES).map_err(|_| Errno::OVERFLOW)?;
    set_integer::<SET_HEADER_BYTES>(queue, header)?;
    set_integer::<SET_LITTLE_ENDIAN>(queue, 1)?;
    let mut possible = Offloads::all();
    if set_offloads(queue, possible) == Err(Errno::INVAL) {
        possible.remove(Offloads::UFO);
        set_offloads(queue, possible)?;
    }
    set_offloads(queue, Offloads::empty())?;
    Ok(possible)
}

fn request(name: [u8; NAME_BYTES], flags: Flags) -> InterfaceRequest {
    InterfaceRequest {
        name,
        flags: flags.bits(),
        rest: [0; 22],
    }
}

/// Returns the interface's real name.
fn attach(tun: &OwnedFd, name: [u8; NAME_BYTES], flags: Flags) -> Result<[u8; NAME_BYTES], Errno> {
    let mut request = request(name, flags);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which `InterfaceRequest` is.
    let update = unsafe { Updater::<SET_INTERFACE, _>::new(&mut request) };
    // SAFETY: as above; the request outlives the call.
    unsafe { ioctl::ioctl(tun, update) }?;
    Ok(request.name)
}

fn interface(queue: &OwnedFd) -> Result<InterfaceRequest, Errno> {
    // SAFETY: TUNGETIFF writes one `struct ifreq`, of which any bytes are an `InterfaceRequest`.
    let get = unsafe { Getter::<GET_INTERFACE, InterfaceRequest>::new() };
    // SAFETY: as above; where it fails, nothing is read of what was not written.
    unsafe { ioctl::ioctl(queue, get) }
}

fn set_integer<const OPCODE: Opcode>(queue: &OwnedFd, value: i32) -> Result<(), Errno> {
    // SAFETY: the callers' opcodes, TUNSETVNETHDRSZ and TUNSETVNETLE, read one int.
    let set = unsafe { Setter::<OPCODE, i32>::new(value) };
    // SAFETY: as above.
    unsafe { ioctl::ioctl(queue, set) }
}

fn set_offloads(queue: &OwnedFd, offloads: Offloads) -> Result<(), Errno> {
    let value = usize::try_from(offloads.bits()).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
    let set = unsafe { IntegerSetter::<SET_OFFLOADS>::new_usize(value) };
    // SAFETY: as above.
    unsafe { ioctl::ioctl(queue, set) }
}

fn set_attached(queue: &OwnedFd, attached: bool) -> Result<(), Errno> {
    let flags = if attached {
        Flags::ATTACH_QUEUE
    } else {
        Flags::DETACH_QUEUE
    };
    // SAFETY: TUNSETQUEUE reads one `struct ifreq`, which `InterfaceRequest` is.
    let set = unsafe { Setter::<SET_QUEUE, _>::new(request([0; NAME_BYTES], flags)) };
    // SAFETY: as above.
    unsafe { ioctl::ioctl(queue, set) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", "sixteen-letters-", "a b", "a/b", "a:b", "a\0b", ".", ".."] {
            assert!(
                matches!(Tap::open(name, 1), Err(TapError::Name { .. })),
                "{name:?}"
            );
        }
        assert_eq!(name_of(&interface_name("tap%d").unwrap()), "tap%d");
    }

    #[test]
    fn a_descriptor_that_is_no_tap_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Tap::from_fd(file.into()).unwrap_err();
        assert_eq!(error.to_string(), "descriptor of queue 0 is not a tap");
        assert!(matches!(Tap::from_fds(Vec::new()), Err(TapError::NoQueues)));
        assert!(matches!(Tap::from_sockets(Vec::new()), Err(TapError::NoQueues)));
        assert!(matches!(
            check_shape(1, 0x1002),
            Err(TapError::Shape {
                queue: 1,
                flags: 0x1002
            })
        ));
    }
}
