//! The thread that serves a device: the only one that touches it and its queues.
//!
//! Owns device and queues from its start to its end, then hands them back. It waits in one place, for
//! kicks, the device's own events and the registers' commands.
//!
//! ```text
//!          ┌──────────────────────────────────────────────┐
//!          ▼                                              │
//!   turn: process, announce ──► wait ──► poll, if the host's side woke it; commands, if any
//!          │
//!          └─ after the command to stop: settle, for a pause; device and queues go back
//! ```
//!
//! Kicks are edge-triggered events that nobody reads: a write wakes the worker whatever the count is, and
//! one that comes while it works wakes it again.

use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SendError, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use virtio_queue::{Queue, QueueT};

use super::board::Board;
use super::courtesy::Courtesy;
use super::drain::wait_readable;
use super::name;
use crate::{Device, Memory, Signals};

/// Stack of the thread. A quarter of it is enough for the tests of this crate in a debug build, with the
/// backtrace of a panic; pages that are never touched cost nothing.
const STACK_BYTES: usize = 128 << 10;

/// Commands that wait for the worker: who gives one waits until it is carried out.
const COMMANDS: usize = 1;

/// How long the host may take to answer what is in flight at a pause.
const SETTLE: Duration = Duration::from_secs(5);

/// Events that one wait brings; what is beyond comes with the next.
const EVENTS_AT_ONCE: usize = 8;

const TOKEN_KICK: u64 = 0;
const TOKEN_HOST: u64 = 1;
const TOKEN_CONTROL: u64 = 2;

/// A device and its queues.
pub(super) struct Parts {
    pub(super) device: Box<dyn Device>,
    pub(super) queues: Vec<Queue>,
}

/// What a worker is started with, besides the parts.
pub(super) struct Surroundings<'a> {
    pub(super) memory: &'a Memory,
    pub(super) board: &'a Arc<Board>,
    pub(super) kicks: &'a [OwnedFd],
    /// Written after each command; the same one for all workers of a device.
    pub(super) control: &'a OwnedFd,
}

enum Command {
    WriteConfig {
        offset: usize,
        bytes: [u8; 8],
        len: usize,
        /// Dropped when the write has had its effect, on the configuration that the driver sees too.
        done: Sender<Infallible>,
    },
    Stop(End),
}

/// How a worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// What is in flight is of no interest any more.
    AtOnce,
    /// Everything that the device took is answered before, if the host answers in time.
    Settled,
}

/// The handle of the thread.
pub(super) struct Worker {
    thread: JoinHandle<Option<Parts>>,
    commands: SyncSender<Command>,
}

impl Worker {
    /// Starts to serve the device.
    ///
    /// # Errors
    /// When the thread or its epoll instance cannot be had; the parts come back.
    pub(super) fn start(parts: Parts, surroundings: &Surroundings<'_>) -> Result<Self, (Parts, io::Error)> {
        let (commands, receiver) = sync_channel(COMMANDS);
        // The parts follow once there is a thread, so that a thread that cannot be had does not cost them.
        let (hand_over, arriving) = sync_channel(1);
        let thread = watch(&parts, surroundings).and_then(|epoll| {
            let serving = Serving {
                epoll,
                commands: receiver,
                memory: surroundings.memory.clone(),
                board: Arc::clone(surroundings.board),
            };
            Builder::new()
                .name(name(parts.device.kind()).to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || arriving.recv().ok().map(|parts| serving.run(parts)))
        });
        match thread {
            Ok(thread) => match hand_over.send(parts) {
                Ok(()) => Ok(Self { thread, commands }),
                Err(SendError(parts)) => Err((parts, io::ErrorKind::BrokenPipe.into())),
            },
            Err(cause) => Err((parts, cause)),
        }
    }

    /// Lets the device take note of a configuration write of at most eight bytes, and waits until the
    /// driver can read what came of it: drivers read back what they wrote and rely on it, as Linux does
    /// with `wce` of a disk.
    pub(super) fn write_config(&self, control: &OwnedFd, offset: usize, data: &[u8]) {
        let mut bytes = [0; 8];
        let len = data.len().min(bytes.len());
        bytes[..len].copy_from_slice(&data[..len]);
        let (done, carried_out) = channel();
        self.command(
            control,
            Command::WriteConfig {
                offset,
                bytes,
                len,
                done,
            },
        );
        // Nothing is ever sent: the other end is dropped, at once when there is no worker any more.
        let Err(RecvError) = carried_out.recv();
    }

    /// Ends the thread after its turn and takes the parts back; `None` when it panicked.
    pub(super) fn stop(self, control: &OwnedFd, end: End) -> Option<Parts> {
        self.command(control, Command::Stop(end));
        self.thread.join().ok().flatten()
    }

    /// A worker that is gone takes no commands; [`stop`](Self::stop) finds that out.
    fn command(&self, control: &OwnedFd, command: Command) {
        if self.commands.send(command).is_ok() {
            wake(control);
        }
    }
}

/// Adds one to an event; it can only fail when 2⁶⁴ wakes wait already, and then it wakes.
pub(super) fn wake(event: &OwnedFd) {
    if let Err(cause) = rustix::io::write(event, &1u64.to_ne_bytes()) {
        log::debug!("virtio: the worker is awake already: {cause}");
    }
}

fn watch(parts: &Parts, surroundings: &Surroundings<'_>) -> io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let edges = EventFlags::IN | EventFlags::ET;
    for kick in surroundings.kicks {
        epoll::add(&epoll, kick, EventData::new_u64(TOKEN_KICK), edges)?;
    }
    epoll::add(
        &epoll,
        surroundings.control,
        EventData::new_u64(TOKEN_CONTROL),
        edges,
    )?;
    if let Some(events) = parts.device.events() {
        epoll::add(&epoll, events, EventData::new_u64(TOKEN_HOST), EventFlags::IN)?;
    }
    Ok(epoll)
}

/// The thread.
struct Serving {
    epoll: OwnedFd,
    commands: Receiver<Command>,
    memory: Memory,
    board: Arc<Board>,
}

/// What woke the thread.
#[derive(Debug, Clone, Copy, Default)]
struct Woken {
    host: bool,
    control: bool,
}

impl Serving {
    fn run(self, parts: Parts) -> Parts {
        let fallen = Fallen(&self.board);
        let Parts {
            mut device,
            mut queues,
        } = parts;
        let mut served: Vec<&mut Queue> = queues.iter_mut().collect();
        let mut courtesy = Courtesy::default();
        let mut woken = Woken {
            host: true,
            control: false,
        };
        loop {
            if woken.host {
                self.poll(&mut *device);
            }
            let end = if woken.control {
                self.obey(&mut *device)
            } else {
                None
            };
            let kicked = !woken.host && !woken.control;
            if kicked && courtesy.is_due() {
                rustix::thread::sched_yield();
                let before = taken(&served);
                self.turn(&mut *device, &mut served);
                courtesy.learn(taken(&served).wrapping_sub(before));
            } else {
                self.turn(&mut *device, &mut served);
            }
            if end == Some(End::Settled) {
                self.settle(&mut *device, &mut served);
            }
            if end.is_some() {
                break;
            }
            woken = self.wait();
        }
        drop(served);
        drop(fallen);
        Parts { device, queues }
    }

    /// The queues of a device that needs a reset are left alone.
    fn turn(&self, device: &mut dyn Device, queues: &mut [&mut Queue]) {
        if self.board.needs_reset() {
            return;
        }
        let signals = device.process(&self.memory, queues);
        if signals.config {
            self.board.refresh(device.config());
        }
        self.board.announce(signals);
    }

    /// Without its host's side the device is of no use to the driver.
    fn poll(&self, device: &mut dyn Device) {
        let Err(cause) = device.poll() else { return };
        log::error!(
            "{}: the host's side cannot be followed any more: {cause}",
            name(device.kind())
        );
        if let Some(events) = device.events()
            && let Err(cause) = epoll::delete(&self.epoll, events)
        {
            log::debug!("{}: it was not watched: {cause}", name(device.kind()));
        }
        self.board.announce(Signals {
            needs_reset: true,
            ..Signals::default()
        });
    }

    /// Waits until what the device took is answered. Its queues rest meanwhile: it takes nothing more.
    fn settle(&self, device: &mut dyn Device, queues: &mut [&mut Queue]) {
        let ready: Vec<bool> = queues.iter().map(|queue| queue.ready()).collect();
        queues.iter_mut().for_each(|queue| queue.set_ready(false));
        let deadline = Instant::now() + SETTLE;
        while !device.settled() && !self.board.needs_reset() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !wait_readable(device, left) {
                break;
            }
            self.poll(device);
            self.turn(device, queues);
        }
        for (queue, ready) in queues.iter_mut().zip(ready) {
            queue.set_ready(ready);
        }
    }

    /// Carries out the commands; returns how to stop, if it is to stop.
    fn obey(&self, device: &mut dyn Device) -> Option<End> {
        for command in self.commands.try_iter() {
            match command {
                Command::Stop(end) => return Some(end),
                Command::WriteConfig {
                    offset,
                    bytes,
                    len,
                    done,
                } => {
                    device.write_config(offset, &bytes[..len]);
                    self.board.refresh(device.config());
                    drop(done);
                }
            }
        }
        None
    }

    fn wait(&self) -> Woken {
        let mut events = [const { MaybeUninit::uninit() }; EVENTS_AT_ONCE];
        let events = match epoll::wait(&self.epoll, &mut events, None) {
            Ok((events, _)) => &*events,
            Err(Errno::INTR) => &[],
            Err(cause) => unreachable!("an epoll instance of our own can be waited for: {cause}"),
        };
        events.iter().fold(Woken::default(), |woken, event| Woken {
            host: woken.host || event.data.u64() == TOKEN_HOST,
            control: woken.control || event.data.u64() == TOKEN_CONTROL,
        })
    }
}

/// Chains that were taken off the queues so far; only differences mean something.
fn taken(queues: &[&mut Queue]) -> u32 {
    let positions = queues.iter().map(|queue| u32::from(queue.next_avail()));
    positions.fold(0, u32::wrapping_add)
}

/// Tells the driver when the thread panics: nobody else would.
struct Fallen<'a>(&'a Board);

impl Drop for Fallen<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.announce(Signals {
                needs_reset: true,
                ..Signals::default()
            });
        }
    }
}
