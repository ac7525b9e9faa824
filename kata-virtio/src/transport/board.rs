//! What the registers and the worker share: interrupt status, configuration space, and the news that the
//! device needs a reset.
//!
//! An interrupt is never lost: its status bit is set before its event is written, and the event is
//! written whether or not the bit was set before (VIRTIO 1.2 §4.2.2, InterruptStatus).

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Signals;

/// InterruptStatus: the device has used a buffer.
const USED_BUFFER: u32 = 1;

/// InterruptStatus: the configuration has changed.
const CONFIG_CHANGE: u32 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Board {
    interrupt: OwnedFd,
    pending: AtomicU32,
    needs_reset: AtomicBool,
    config: Mutex<Config>,
    raised: AtomicU64,
}

/// The configuration space as the driver sees it.
#[derive(Debug, Default)]
pub(super) struct Config {
    pub(super) bytes: Vec<u8>,
    pub(super) generation: u32,
}

impl Board {
    pub(super) fn new(interrupt: OwnedFd, config: Vec<u8>) -> Self {
        Self {
            interrupt,
            pending: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            config: Mutex::new(Config {
                bytes: config,
                generation: 0,
            }),
            raised: AtomicU64::new(0),
        }
    }

    pub(super) fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the configuration; it is of another generation if anything changed (VIRTIO 1.2 §2.5.1).
    pub(super) fn refresh(&self, config: Vec<u8>) {
        let mut shown = self.config();
        if shown.bytes != config {
            shown.bytes = config;
            shown.generation = shown.generation.wrapping_add(1);
        }
    }

    /// Tells the driver what a turn of the device ended with. Its configuration was taken over before.
    pub(super) fn announce(&self, signals: Signals) {
        let mut bits = 0;
        if signals.queues != 0 {
            bits |= USED_BUFFER;
        }
        if signals.config {
            bits |= CONFIG_CHANGE;
        }
        // A device that needs a reset tells it by a configuration change (VIRTIO 1.2 §2.1.2).
        if signals.needs_reset && !self.needs_reset.swap(true, Ordering::SeqCst) {
            bits |= CONFIG_CHANGE;
        }
        if bits != 0 {
            self.raise(bits);
        }
    }

    fn raise(&self, bits: u32) {
        self.pending.fetch_or(bits, Ordering::SeqCst);
        self.raised.fetch_add(1, Ordering::Relaxed);
        // It can only fail when 2⁶⁴ interrupts wait already, and then one is pending.
        if let Err(cause) = rustix::io::write(&self.interrupt, &1u64.to_ne_bytes()) {
            log::debug!("virtio: an interrupt is pending already: {cause}");
        }
    }

    pub(super) fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.pending.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// Forgets what the driver was to be told. Only while nobody serves the device.
    pub(super) fn clear(&self) {
        self.pending.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    /// Interrupts raised, ever.
    pub(super) fn raised(&self) -> u64 {
        self.raised.load(Ordering::Relaxed)
    }
}
