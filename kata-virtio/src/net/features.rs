//! The feature bits of the device, what they need of each other, and what they mean to a tap.
//!
//! Pure: knows numbers, no queue and no descriptor.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net as bit;

use super::tap::Offloads;

bitflags::bitflags! {
    /// Feature bits of a network device (VIRTIO 1.2 §5.1.3).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Features: u64 {
        /// The device completes checksums of the driver's frames.
        const CSUM = 1 << bit::VIRTIO_NET_F_CSUM;
        /// The driver takes frames whose checksum is incomplete.
        const GUEST_CSUM = 1 << bit::VIRTIO_NET_F_GUEST_CSUM;
        /// The device says how large frames may be.
        const MTU = 1 << bit::VIRTIO_NET_F_MTU;
        /// The device has an address.
        const MAC = 1 << bit::VIRTIO_NET_F_MAC;
        /// The driver takes unsegmented TCP over IPv4.
        const GUEST_TSO4 = 1 << bit::VIRTIO_NET_F_GUEST_TSO4;
        /// The driver takes unsegmented TCP over IPv6.
        const GUEST_TSO6 = 1 << bit::VIRTIO_NET_F_GUEST_TSO6;
        /// The driver takes unsegmented TCP with congestion marks.
        const GUEST_ECN = 1 << bit::VIRTIO_NET_F_GUEST_ECN;
        /// The driver takes unfragmented UDP.
        const GUEST_UFO = 1 << bit::VIRTIO_NET_F_GUEST_UFO;
        /// The device takes unsegmented TCP over IPv4.
        const HOST_TSO4 = 1 << bit::VIRTIO_NET_F_HOST_TSO4;
        /// The device takes unsegmented TCP over IPv6.
        const HOST_TSO6 = 1 << bit::VIRTIO_NET_F_HOST_TSO6;
        /// The device takes unsegmented TCP with congestion marks.
        const HOST_ECN = 1 << bit::VIRTIO_NET_F_HOST_ECN;
        /// The device takes unfragmented UDP.
        const HOST_UFO = 1 << bit::VIRTIO_NET_F_HOST_UFO;
        /// The driver takes a frame in several receive buffers.
        const MRG_RXBUF = 1 << bit::VIRTIO_NET_F_MRG_RXBUF;
        /// The link can be down.
        const STATUS = 1 << bit::VIRTIO_NET_F_STATUS;
        /// There is a control queue.
        const CTRL_VQ = 1 << bit::VIRTIO_NET_F_CTRL_VQ;
        /// There are several pairs of queues.
        const MQ = 1 << bit::VIRTIO_NET_F_MQ;
        /// Not a legacy driver.
        const VERSION_1 = 1 << VIRTIO_F_VERSION_1;
    }
}

/// What the first needs of the second to mean anything (VIRTIO 1.2 §5.1.3.1).
const NEEDS: [(Features, &[Features]); 9] = [
    (Features::GUEST_TSO4, &[Features::GUEST_CSUM]),
    (Features::GUEST_TSO6, &[Features::GUEST_CSUM]),
    (Features::GUEST_UFO, &[Features::GUEST_CSUM]),
    (Features::GUEST_ECN, &[Features::GUEST_TSO4, Features::GUEST_TSO6]),
    (Features::HOST_TSO4, &[Features::CSUM]),
    (Features::HOST_TSO6, &[Features::CSUM]),
    (Features::HOST_UFO, &[Features::CSUM]),
    (Features::HOST_ECN, &[Features::HOST_TSO4, Features::HOST_TSO6]),
    (Features::MQ, &[Features::CTRL_VQ]),
];

const OFFLOADS: [(Features, Offloads); 5] = [
    (Features::GUEST_CSUM, Offloads::CSUM),
    (Features::GUEST_TSO4, Offloads::TSO4),
    (Features::GUEST_TSO6, Offloads::TSO6),
    (Features::GUEST_ECN, Offloads::ECN),
    (Features::GUEST_UFO, Offloads::UFO),
];

impl Features {
    /// What is offered of every device, whatever it was made of.
    pub(super) const ALWAYS: Self = Self::CSUM
        .union(Self::HOST_TSO4)
        .union(Self::HOST_TSO6)
        .union(Self::HOST_ECN)
        .union(Self::HOST_UFO)
        .union(Self::MRG_RXBUF)
        .union(Self::STATUS);

    /// What a driver chose, without what makes no sense for lack of something else.
    pub(super) fn settled(chosen: u64) -> Self {
        let chosen = Self::from_bits_truncate(chosen);
        NEEDS.iter().fold(chosen, |settled, (feature, needs)| {
            if needs.iter().any(|need| settled.contains(*need)) {
                settled
            } else {
                settled.difference(*feature)
            }
        })
    }

    /// What the tap may hand to such a driver.
    pub(super) fn offloads(self) -> Offloads {
        let chosen = OFFLOADS.iter().filter(|(feature, _)| self.contains(*feature));
        chosen.map(|(_, offload)| *offload).collect()
    }

    /// What can be offered of a tap that can do these.
    pub(super) fn of_tap(offloads: Offloads) -> Self {
        let possible = OFFLOADS.iter().filter(|(_, offload)| offloads.contains(*offload));
        possible.map(|(feature, _)| *feature).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_without_their_base_are_not_chosen() {
        let settled = |features: Features| Features::settled(features.bits());
        assert_eq!(
            settled(Features::GUEST_TSO4 | Features::GUEST_ECN),
            Features::empty()
        );
        assert_eq!(settled(Features::HOST_UFO | Features::MQ), Features::empty());
        let sound = Features::CSUM | Features::HOST_TSO6 | Features::HOST_ECN;
        assert_eq!(settled(sound), sound);
        assert_eq!(Features::settled(u64::MAX), Features::all());
    }

    #[test]
    fn the_tap_does_what_the_driver_takes_and_no_more() {
        let chosen = Features::GUEST_CSUM | Features::GUEST_TSO6 | Features::HOST_TSO4;
        assert_eq!(chosen.offloads(), Offloads::CSUM | Offloads::TSO6);
        assert_eq!(Features::of_tap(Offloads::CSUM), Features::GUEST_CSUM);
    }
}
