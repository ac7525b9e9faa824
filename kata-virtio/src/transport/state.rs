//! What a transport is, in a form that can be kept: everything that the driver has said and was told.
//!
//! The device's own state and the bytes of its queues in guest memory are not in it.

use serde::{Deserialize, Serialize};

// Whoever changes a field changes what others have kept: their form needs another version.
const _: () = assert!(size_of::<State>() == 64 && size_of::<RingState>() == 32);

/// See the module. Field for field what the registers of VIRTIO 1.2 §4.2.2 hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct State {
    /// Type of the device, as in DeviceID.
    pub device: u32,
    /// Status, with `DEVICE_NEEDS_RESET`.
    pub status: u32,
    /// Features that the driver wants.
    pub features: u64,
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// QueueSel.
    pub queue_select: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The queues, in order.
    pub queues: Vec<RingState>,
}

/// A queue of a [`State`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RingState {
    /// Entries.
    pub size: u16,
    /// QueueReady.
    pub ready: bool,
    /// Guest addresses of descriptor table, available ring and used ring.
    pub areas: [u64; 3],
    /// The next entry of the available ring that the device takes.
    pub next_avail: u16,
    /// The next entry of the used ring that the device fills.
    pub next_used: u16,
}
