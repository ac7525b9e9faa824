//! The device itself: what it offers, which of its pairs are served, and its link.
//!
//! Knows the pairs and the tap, not how frames look.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use virtio_queue::{Queue, QueueT};

use super::control::{self, Command};
use super::counters::{Cells, Count};
use super::features::Features;
use super::limits::Limits;
use super::link::{Handle, Link};
use super::pair::{Pair, Turn};
use super::rotation::Rotation;
use super::tap::Tap;
use crate::complaint::Complaints;
use crate::rate_limit::RateLimit;
use crate::vectors::Kept;
use crate::{COMMON_FEATURES, Device, Kind, Memory, Meter, Signals};

/// Entries of a receive or transmit queue, unless asked for otherwise.
const QUEUE_SIZE: u16 = 256;

/// Entries of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// Most pairs of queues: with the control queue, as many queues as a device may have.
pub const MAX_QUEUE_PAIRS: usize = 31;

/// Smallest MTU in bytes (VIRTIO 1.2 §5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// Event that is no tap's.
const WAKE: u64 = u64::MAX;

/// Event of a rate limit's timer.
const TIMER: u64 = u64::MAX - 1;

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process has no descriptors left, or the tap cannot be watched.
    #[error("cannot watch the tap")]
    Events(#[source] io::Error),
    /// More pairs of queues than the tap has, or none.
    #[error("{wanted} pairs of queues, where the tap allows 1 to {most}")]
    QueuePairs {
        /// What was asked for.
        wanted: usize,
        /// The tap's queues, at most [`MAX_QUEUE_PAIRS`].
        most: usize,
    },
    /// An MTU below [`MIN_MTU`].
    #[error("an MTU of {mtu} bytes, where {MIN_MTU} is the least")]
    Mtu {
        /// What was asked for.
        mtu: u16,
    },
    /// A size that no queue can have.
    #[error("queues of {size} entries, where a power of two up to 32768 is needed")]
    QueueSize {
        /// What was asked for.
        size: u16,
    },
}

/// The device: owns the tap; moved into the worker that serves it. See the [module](super).
pub struct Net {
    tap: Tap,
    pairs: Vec<Pair>,
    limits: Limits,
    /// Who goes first, guest to host and host to guest.
    transmits: Rotation,
    receives: Rotation,
    events: OwnedFd,
    /// The memory that frames were last in.
    memory: Kept,
    link: Arc<Link>,
    counters: Arc<Cells>,
    complaints: Complaints,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    queue_size: u16,
    /// What the driver chose; nothing before it is ready.
    features: Features,
    /// Pairs that the driver asked for.
    asked: usize,
    /// Pairs to which the tap gives frames.
    attached: usize,
    /// What the driver was told of the link.
    link_up: bool,
    /// The interface is gone.
    lost: bool,
    broken: bool,
}

// Whoever changes a field changes what others have kept: their form needs another version.
const _: () = assert!(size_of::<State>() == 16);

/// What a device is in the middle of, without what the host's kernel keeps. Frames on their way are not
/// in it: they are lost, as on any wire.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct State {
    /// Features that the driver chose, 0 before it is ready.
    pub features: u64,
    /// Pairs of queues that it uses.
    pub queue_pairs: u16,
    /// Whether the cable is plugged in.
    pub link_up: bool,
}

impl Net {
    /// A device of as many pairs of queues as the tap has (at most [`MAX_QUEUE_PAIRS`]), without an
    /// address of its own: the driver then makes one up.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(mut tap: Tap) -> Result<Self, Error> {
        tap.keep_queues(MAX_QUEUE_PAIRS);
        let events = epoll::create(CreateFlags::CLOEXEC).map_err(failed)?;
        let link = Link::new().map_err(failed)?;
        epoll::add(&events, link.events(), EventData::new_u64(WAKE), EventFlags::IN).map_err(failed)?;
        let device = Self {
            pairs: (0..tap.queues()).map(|_| Pair::new()).collect(),
            limits: Limits::default(),
            transmits: Rotation::default(),
            receives: Rotation::default(),
            attached: tap.queues(),
            tap,
            events,
            memory: Kept::default(),
            link: Arc::new(link),
            counters: Arc::new(Cells::default()),
            complaints: Complaints::new("net"),
            mac: None,
            mtu: None,
            queue_size: QUEUE_SIZE,
            features: Features::empty(),
            asked: 1,
            link_up: true,
            lost: false,
            broken: false,
        };
        for index in 0..device.pairs.len() {
            device.watch(index).map_err(failed)?;
        }
        Ok(device)
    }

    /// The address that the driver takes for its own.
    #[must_use]
    pub fn mac(mut self, mac: [u8; 6]) -> Self {
        self.mac = Some(mac);
        self
    }

    /// The largest packet in bytes, without its Ethernet header, that the network takes.
    ///
    /// # Errors
    /// [`Error::Mtu`] below [`MIN_MTU`].
    pub fn mtu(mut self, mtu: u16) -> Result<Self, Error> {
        if mtu < MIN_MTU {
            return Err(Error::Mtu { mtu });
        }
        self.mtu = Some(mtu);
        Ok(self)
    }

    /// Offers only the first `pairs` of the tap's queues.
    ///
    /// # Errors
    /// [`Error::QueuePairs`] for none, or more than the tap has.
    pub fn queue_pairs(mut self, pairs: usize) -> Result<Self, Error> {
        if !(1..=self.pairs.len()).contains(&pairs) {
            return Err(Error::QueuePairs {
                wanted: pairs,
                most: self.pairs.len(),
            });
        }
        self.pairs.truncate(pairs);
        self.tap.keep_queues(pairs);
        self.attached = pairs;
        Ok(self)
    }

    /// Entries of each receive and transmit queue, 256 unless said otherwise.
    ///
    /// # Errors
    /// [`Error::QueueSize`] unless it is a power of two up to 32768.
    pub fn queue_size(mut self, entries: u16) -> Result<Self, Error> {
        if !entries.is_power_of_two() {
            return Err(Error::QueueSize { size: entries });
        }
        self.queue_size = entries;
        Ok(self)
    }

    /// How many bytes (of frames) and operations (frames) per second may pass in each direction, over all
    /// pairs of queues together. What is too much waits, it is not dropped.
    ///
    /// # Errors
    /// [`Error::Events`] when the process has no descriptors left.
    pub fn rate_limit(mut self, from_guest: RateLimit, to_guest: RateLimit) -> Result<Self, Error> {
        // Dropping earlier limits closes their timers, which nobody watches then.
        self.limits = Limits::new(from_guest, to_guest).map_err(Error::Events)?;
        for timer in self.limits.timers() {
            epoll::add(&self.events, timer, EventData::new_u64(TIMER), EventFlags::IN).map_err(failed)?;
        }
        Ok(self)
    }

    /// What pulls the cable while the device is served.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.link))
    }

    /// What the device is in the middle of.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            features: self.features.bits(),
            queue_pairs: u16::try_from(self.asked).unwrap_or(u16::MAX),
            link_up: self.link.is_up(),
        }
    }

    /// Goes on where another device of the same make stopped: instead of
    /// [`activate`](Device::activate).
    ///
    /// # Errors
    /// [`Error::QueuePairs`] when that one had more pairs.
    pub fn restore(&mut self, state: &State) -> Result<(), Error> {
        let asked = usize::from(state.queue_pairs);
        if !(1..=self.pairs.len()).contains(&asked) {
            return Err(Error::QueuePairs {
                wanted: asked,
                most: self.pairs.len(),
            });
        }
        self.handle().set_link(state.link_up);
        self.link_up = state.link_up;
        self.activate(state.features);
        self.asked = asked;
        Ok(())
    }

    fn offered(&self) -> Features {
        let mut offered = Features::ALWAYS | Features::of_tap(self.tap.offloads());
        offered.set(Features::MAC, self.mac.is_some());
        offered.set(Features::MTU, self.mtu.is_some());
        offered.set(Features::CTRL_VQ | Features::MQ, self.pairs.len() > 1);
        offered
    }

    fn watch(&self, index: usize) -> Result<(), Errno> {
        let (Some(tap), Ok(token)) = (self.tap.queue(index), u64::try_from(index)) else {
            return Err(Errno::BADF);
        };
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        epoll::add(&self.events, tap, EventData::new_u64(token), edges)
    }

    /// Where the control queue is (VIRTIO 1.2 §5.1.2).
    fn control_index(&self) -> Option<usize> {
        if !self.features.contains(Features::CTRL_VQ) {
            return None;
        }
        let pairs = if self.features.contains(Features::MQ) {
            self.pairs.len()
        } else {
            1
        };
        Some(2 * pairs)
    }

    /// Pairs to be served now. A frontend that keeps the control queue to itself (as QEMU does behind
    /// vhost-user) says which by starting their queues.
    fn wanted_pairs(&self, queues: &[&mut Queue]) -> usize {
        if !self.features.contains(Features::MQ) {
            return 1;
        }
        let control = self.control_index().and_then(|index| queues.get(index));
        if control.is_some_and(|control| control.ready()) {
            return self.asked;
        }
        let pairs = queues.chunks_exact(2).take(self.pairs.len());
        let ready = pairs.take_while(|pair| pair.iter().all(|queue| queue.ready()));
        match ready.count() {
            // Paused: the tap keeps its flows where they are.
            0 => self.attached,
            count => count,
        }
    }

    /// Has the tap give its frames to the first `count` pairs.
    fn attach(&mut self, count: usize) -> Result<(), Errno> {
        while self.attached != count {
            let attach = self.attached < count;
            let index = if attach { self.attached } else { self.attached - 1 };
            self.tap.set_attached(index, attach)?;
            if let (true, Some(pair)) = (attach, self.pairs.get_mut(index)) {
                pair.wake();
            } else if self.pairs[index].reset() {
                self.counters.add(Count::DroppedToGuest, 1);
            }
            self.attached = if attach { index + 1 } else { index };
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) -> bool {
        let Command::Pairs(pairs) = command;
        let pairs = usize::from(pairs);
        if !self.features.contains(Features::MQ) || !(1..=self.pairs.len()).contains(&pairs) {
            return false;
        }
        if let Err(error) = self.attach(pairs) {
            self.complaints
                .warn(&format_args!("cannot use {pairs} queues of the tap: {error}"));
            return false;
        }
        self.asked = pairs;
        true
    }

    fn serve_control(
        &mut self,
        memory: &Memory,
        queues: &mut [&mut Queue],
        signals: &mut Signals,
    ) -> Result<bool, virtio_queue::Error> {
        let Some(index) = self.control_index() else {
            return Ok(false);
        };
        let Some(queue) = queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(false);
        };
        let served = control::serve(memory, queue, |command| self.obey(command))?;
        if served.malformed > 0 {
            self.counters.add(Count::Malformed, served.malformed);
            self.complaints
                .warn(&"a chain of the control queue is no command");
        }
        *signals = signals.with_queue(number(index), served.signal);
        Ok(served.again)
    }

    fn run(
        &mut self,
        memory: &Memory,
        queues: &mut [&mut Queue],
        signals: &mut Signals,
    ) -> Result<(), virtio_queue::Error> {
        let mut again = self.serve_control(memory, queues, signals)?;
        let wanted = self.wanted_pairs(queues);
        if let Err(error) = self.attach(wanted) {
            self.lose(&error);
        }
        let memory = self.memory.keep(memory);
        let mut turn = Turn {
            memory: &memory,
            features: self.features,
            mtu: self.mtu.filter(|_| self.features.contains(Features::MTU)),
            link_up: self.link_up,
            limits: &mut self.limits,
            counters: &self.counters,
            complaints: &mut self.complaints,
            starved: false,
            again: false,
            lost: false,
        };
        for index in self.transmits.order(wanted) {
            let (Some(pair), Some(queue)) = (self.pairs.get_mut(index), ready(queues, 2 * index + 1)) else {
                continue;
            };
            let Some(tap) = self.tap.queue(index) else {
                continue;
            };
            let signal = pair.transmit(&mut turn, tap, queue)?;
            *signals = signals.with_queue(number(2 * index + 1), signal);
            if std::mem::take(&mut turn.starved) {
                self.transmits.starved(index);
            }
        }
        for index in self.receives.order(wanted) {
            let (Some(pair), Some(queue)) = (self.pairs.get_mut(index), ready(queues, 2 * index)) else {
                continue;
            };
            let Some(tap) = self.tap.queue(index) else {
                continue;
            };
            let signal = pair.receive(&mut turn, tap, queue)?;
            *signals = signals.with_queue(number(2 * index), signal);
            if std::mem::take(&mut turn.starved) {
                self.receives.starved(index);
            }
        }
        again |= turn.again;
        if turn.lost {
            self.lose(&"it was removed");
        }
        if again {
            self.link.wake();
        }
        Ok(())
    }

    /// The interface is gone: the driver sees a pulled cable from now on.
    fn lose(&mut self, why: &dyn std::fmt::Display) {
        if std::mem::replace(&mut self.lost, true) {
            return;
        }
        log::error!("net: the tap is gone, the link is down from now on: {why}");
        for index in 0..self.pairs.len() {
            if let Some(tap) = self.tap.queue(index)
                && let Err(error) = epoll::delete(&self.events, tap)
            {
                log::debug!("net: the tap was not watched: {error}");
            }
        }
        self.link.wake();
    }

    /// Takes note of the link; returns whether the driver is to be told.
    fn look_at_link(&mut self) -> bool {
        let up = self.link.is_up() && !self.lost;
        let changed = up != self.link_up;
        self.link_up = up;
        changed && self.features.contains(Features::STATUS)
    }

    fn set_offloads(&mut self) {
        if self.lost {
            return;
        }
        if let Err(error) = self.tap.set_offloads(self.features.offloads()) {
            self.lose(&error);
        }
    }
}

impl Device for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | self.offered().bits()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![self.queue_size; 2 * self.pairs.len()];
        if self.pairs.len() > 1 {
            sizes.push(CONTROL_QUEUE_SIZE);
        }
        sizes
    }

    /// Address, status, pairs of queues, MTU (VIRTIO 1.2 §5.1.4).
    fn config(&self) -> Vec<u8> {
        let status = if self.link_up { VIRTIO_NET_S_LINK_UP } else { 0 };
        let pairs = u16::try_from(self.pairs.len()).unwrap_or(u16::MAX);
        let mut config = self.mac.unwrap_or_default().to_vec();
        config.extend(u16::try_from(status).unwrap_or(0).to_le_bytes());
        config.extend(pairs.to_le_bytes());
        config.extend(self.mtu.unwrap_or_default().to_le_bytes());
        config
    }

    fn activate(&mut self, features: u64) {
        self.features = Features::settled(features & self.features());
        self.asked = 1;
        self.set_offloads();
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn poll(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(self.pairs.len() + 3);
        let now = rustix::time::Timespec::default();
        match epoll::wait(
            &self.events,
            rustix::buffer::spare_capacity(&mut events),
            Some(&now),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
        for event in events {
            let token = event.data.u64();
            if token == WAKE {
                self.link.calm()?;
            } else if token == TIMER {
                self.limits.poll()?;
            } else if let Some(pair) = usize::try_from(token)
                .ok()
                .and_then(|index| self.pairs.get_mut(index))
            {
                pair.wake();
            }
        }
        Ok(())
    }

    /// Moves frames both ways. Nothing happens on queues that the driver broke, until it resets the
    /// device, nor for a legacy driver, whose frames have other headers.
    fn process(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Signals {
        let mut signals = Signals {
            config: self.look_at_link(),
            ..Signals::default()
        };
        if self.broken || !self.features.contains(Features::VERSION_1) {
            return signals;
        }
        if let Err(cause) = self.run(memory, queues, &mut signals) {
            self.complaints.warn(&format_args!(
                "a queue is broken until the driver resets the device: {cause}"
            ));
            self.reset();
            self.broken = true;
            signals.needs_reset = true;
        }
        signals.config |= self.look_at_link();
        signals
    }

    /// What was on its way is lost.
    fn reset(&mut self) {
        self.counters.add(Count::DeviceResets, 1);
        self.broken = false;
        self.features = Features::empty();
        self.memory.forget();
        self.asked = 1;
        let held = self
            .pairs
            .iter_mut()
            .map(Pair::reset)
            .filter(|held| *held)
            .count();
        self.counters.add(Count::DroppedToGuest, held);
        self.set_offloads();
    }

    fn meter(&self) -> Arc<dyn Meter> {
        Arc::clone(&self.counters) as Arc<dyn Meter>
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net")
            .field("tap", &self.tap)
            .field("features", &self.features)
            .field("attached", &self.attached)
            .field("link_up", &self.link_up)
            .field("figures", &self.counters.figures())
            .finish_non_exhaustive()
    }
}

fn failed(cause: Errno) -> Error {
    Error::Events(cause.into())
}

/// The queue with this number, if the driver uses it.
fn ready<'q>(queues: &'q mut [&mut Queue], index: usize) -> Option<&'q mut Queue> {
    let queue = queues.get_mut(index)?;
    queue.ready().then_some(&mut **queue)
}

fn number(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
