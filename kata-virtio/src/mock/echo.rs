//! A device that gives back what it is given, on two queues: for tests of transports and drivers.
//!
//! It does on request what devices do on their bad days.
#![expect(
    clippy::panic,
    reason = "a device that panics is what a transport is tested with"
)]

use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};

use crate::{COMMON_FEATURES, Device, Kind, Memory, Meter, Signals};

/// Entries of each of its queues.
const QUEUE_SIZES: [u16; 2] = [16, 8];

/// The most that one request gets back.
const MOST_BYTES: u64 = 64 << 10;

/// Requests in one turn on one queue: buffers that lie in the ring itself could keep it going for ever.
const AT_ONCE: u64 = 256;

/// Bytes of its configuration space, at the beginning.
const CONFIG: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// What the device shall do when it is next looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Have another configuration.
    Configure(Vec<u8>),
    /// Ask for a reset, as after a broken queue.
    AskForReset,
    /// Take what comes, but answer only once the queue rests, as one whose host is slow.
    Linger,
    /// Lose its host's side.
    FailPoll,
    /// Do nothing until it is [released](Director::release), as one whose turn takes long.
    Hold,
    /// Panic.
    Panic,
}

/// What has happened to the device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Story {
    /// Features of each activation.
    pub activations: Vec<u64>,
    /// Resets.
    pub resets: usize,
    /// Configuration writes: offset and bytes.
    pub config_writes: Vec<(usize, Vec<u8>)>,
    /// Requests that it answered.
    pub requests: u64,
    /// The name of the thread that served it last.
    pub thread: String,
}

#[derive(Debug, Default)]
struct Shared {
    acts: Vec<Act>,
    story: Story,
    dropped: bool,
    released: u64,
}

/// Watches and directs an [`Echo`] from any thread.
#[derive(Debug, Clone)]
pub struct Director {
    shared: Arc<Mutex<Shared>>,
    wake: Arc<OwnedFd>,
    release: Arc<Condvar>,
}

/// See the module.
#[derive(Debug)]
pub struct Echo {
    director: Director,
    config: Vec<u8>,
    pending: Signals,
    broken: bool,
    lingers: bool,
    held: Vec<(u16, u16, u32)>,
}

impl Echo {
    /// A device, and who directs it.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<(Self, Director)> {
        let director = Director {
            shared: Arc::default(),
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            release: Arc::default(),
        };
        let device = Self {
            director: director.clone(),
            config: CONFIG.to_vec(),
            pending: Signals::default(),
            broken: false,
            lingers: false,
            held: Vec::new(),
        };
        Ok((device, director))
    }

    fn act(&mut self, act: Act) -> io::Result<()> {
        match act {
            Act::Configure(config) => {
                self.config = config;
                self.pending.config = true;
                Ok(())
            }
            Act::AskForReset => {
                self.pending.needs_reset = true;
                Ok(())
            }
            Act::Linger => {
                self.lingers = true;
                Ok(())
            }
            Act::Hold => {
                self.director.hold();
                Ok(())
            }
            Act::FailPoll => Err(io::ErrorKind::BrokenPipe.into()),
            Act::Panic => panic!("the director wanted it"),
        }
    }

    fn serve(&mut self, memory: &Memory, index: u16, queue: &mut Queue) -> Result<bool, Error> {
        let before = queue.next_used();
        queue.disable_notification(memory)?;
        let mut budget = AT_ONCE;
        while budget > 0 {
            let Some(chain) = queue.iter(memory)?.next() else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            budget -= 1;
            let head = chain.head_index();
            let written = answer(memory, chain).unwrap_or_default();
            self.director.shared().story.requests += 1;
            if self.lingers {
                self.held.push((index, head, written));
            } else {
                queue.add_used(memory, head, written)?;
            }
        }
        if budget == 0 || !self.held.is_empty() {
            self.director.wake();
        }
        Ok(queue.next_used() != before && queue.needs_notification(memory)?)
    }

    /// Answers what was held back on a queue that rests.
    fn finish(&mut self, memory: &Memory, index: u16, queue: &mut Queue) -> Result<bool, Error> {
        let mut answered = false;
        for (_, head, written) in self.held.extract_if(.., |held| held.0 == index) {
            queue.add_used(memory, head, written)?;
            answered = true;
        }
        Ok(answered && queue.needs_notification(memory)?)
    }
}

/// Writes to a chain what can be read from it; returns the bytes.
fn answer(memory: &Memory, chain: DescriptorChain<&Memory>) -> io::Result<u32> {
    let reader = chain.clone().reader(memory).map_err(io::Error::other)?;
    let mut writer = chain.writer(memory).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    reader.take(MOST_BYTES).read_to_end(&mut bytes)?;
    bytes.truncate(writer.available_bytes());
    writer.write_all(&bytes)?;
    u32::try_from(bytes.len()).map_err(io::Error::other)
}

impl Device for Echo {
    /// None of ours; a console comes closest.
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }

    fn config(&self) -> Vec<u8> {
        self.config.clone()
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let Some(field) = self.config.get_mut(offset..offset + data.len()) {
            field.copy_from_slice(data);
        }
        let mut shared = self.director.shared();
        shared.story.config_writes.push((offset, data.to_vec()));
    }

    /// Its last four bytes.
    fn early_config(&self) -> Range<usize> {
        8..12
    }

    fn activate(&mut self, features: u64) {
        self.director.shared().story.activations.push(features);
    }

    fn events(&self) -> Option<BorrowedFd<'_>> {
        Some(self.director.wake.as_fd())
    }

    fn poll(&mut self) -> io::Result<()> {
        match rustix::io::read(&*self.director.wake, &mut [0; 8]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(cause) => return Err(cause.into()),
        }
        let acts = std::mem::take(&mut self.director.shared().acts);
        acts.into_iter().try_for_each(|act| self.act(act))
    }

    fn process(&mut self, memory: &Memory, queues: &mut [&mut Queue]) -> Signals {
        let thread = std::thread::current();
        self.director.shared().story.thread = thread.name().unwrap_or_default().to_owned();
        let mut signals = std::mem::take(&mut self.pending);
        for (index, queue) in (0..).zip(queues) {
            let outcome = match (self.broken, queue.ready()) {
                (true, _) => Ok(false),
                (false, true) => self.serve(memory, index, queue),
                (false, false) => self.finish(memory, index, queue),
            };
            match outcome {
                Ok(wanted) => signals = signals.with_queue(index, wanted),
                Err(_) => (self.broken, signals.needs_reset) = (true, true),
            }
        }
        signals
    }

    fn settled(&self) -> bool {
        self.held.is_empty()
    }

    fn reset(&mut self) {
        (self.broken, self.lingers) = (false, false);
        self.held.clear();
        self.config = CONFIG.to_vec();
        self.pending = Signals::default();
        self.director.shared().story.resets += 1;
    }

    fn meter(&self) -> Arc<dyn Meter> {
        Arc::new(self.director.clone())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.director.shared().dropped = true;
    }
}

impl Director {
    /// Lets the device do something; it is woken for it.
    pub fn direct(&self, act: Act) {
        self.shared().acts.push(act);
        self.wake();
    }

    /// Lets a device go on that was told to hold, now or later.
    pub fn release(&self) {
        self.shared().released += 1;
        self.release.notify_all();
    }

    fn hold(&self) {
        let held = self
            .release
            .wait_while(self.shared(), |shared| shared.released == 0);
        held.unwrap_or_else(PoisonError::into_inner).released -= 1;
    }

    /// What has happened so far.
    #[must_use]
    pub fn story(&self) -> Story {
        self.shared().story.clone()
    }

    /// Whether the device is gone.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.shared().dropped
    }

    /// It can only fail when 2⁶⁴ wakes wait already, and then the device is awake.
    fn wake(&self) {
        if let Err(cause) = rustix::io::write(&*self.wake, &1u64.to_ne_bytes()) {
            log::debug!("mock: {cause}");
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter for Director {
    fn figures(&self) -> Vec<(&'static str, u64)> {
        vec![("requests", self.shared().story.requests)]
    }
}
