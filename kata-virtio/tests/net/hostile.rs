//! What a hostile driver can try, and a careless host: the rows of the threat table in `net`.

use std::time::Duration;

use kata_virtio::mock::net::Machine;
use kata_virtio::mock::{Buffer, DriverQueue};
use kata_virtio::net::{Features, FrameHeader, HEADER_BYTES, MAX_FRAME_BYTES, Net};
use kata_virtio::{Device, Signals};
use rustix::net::SendFlags;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress};

use crate::bed::{Bed, OFFER_BYTES, bed, bed_with, pattern, sockets, tcp4_segments};

#[test]
fn malformed_frames_and_chains_are_counted_and_returned() {
    let mut bed = bed(1);
    let mut expected = 0;
    let mut send = |bed: &mut Bed, header: &FrameHeader, frame: &[u8]| {
        assert!(bed.machine.guest.send(0, header, frame, &[HEADER_BYTES]));
        bed.machine.step();
        expected += 1;
        assert_eq!(bed.malformed(), expected, "{header:?}");
        assert_eq!(bed.machine.guest.reclaim(0), 1);
    };
    let good = tcp4_segments(1514);
    send(&mut bed, &FrameHeader::default(), &[0; 13]);
    send(&mut bed, &FrameHeader::default(), &[0; MAX_FRAME_BYTES + 1]);
    send(
        &mut bed,
        &FrameHeader {
            gso_size: 0.into(),
            ..good
        },
        &[0; 1514],
    );
    send(
        &mut bed,
        &FrameHeader {
            hdr_len: 1515.into(),
            ..good
        },
        &[0; 1514],
    );
    send(
        &mut bed,
        &FrameHeader {
            csum_start: 1498.into(),
            ..good
        },
        &[0; 1513],
    );
    send(&mut bed, &FrameHeader { gso_type: 7, ..good }, &[0; 1514]);
    for bytes in [1, 11] {
        bed.machine.guest.send_bytes(0, &vec![0; bytes], &[]);
    }
    let outside = Buffer {
        address: u64::MAX - 50,
        len: 100,
        writable: false,
    };
    let huge = Buffer {
        address: 0,
        len: u32::MAX,
        writable: false,
    };
    bed.machine.guest.send_chain(1, &[outside], false);
    bed.machine.guest.send_chain(1, &[huge; 100], true);
    bed.machine.step();
    assert_eq!(bed.malformed(), 10);
    assert!(bed.host_takes(0).is_empty());
    bed.still_works();
}

#[test]
fn segmentation_that_was_not_negotiated_is_refused() {
    let mut bed = bed_with(Features::CSUM | Features::HOST_TSO6);
    bed.machine.guest.mergeable = false;
    bed.machine.guest.send(0, &tcp4_segments(1514), &[0; 1514], &[]);
    bed.machine.step();
    assert_eq!((bed.malformed(), bed.host_takes(0).len()), (1, 0));
    bed.still_works();
}

#[test]
fn receive_buffers_that_cannot_be_used_cost_no_frame() {
    let mut bed = bed(1);
    let buffer = |address, len, writable| Buffer {
        address,
        len,
        writable,
    };
    bed.machine
        .guest
        .send_chain(0, &[buffer(0x10_0000, 12, true)], false);
    bed.machine
        .guest
        .send_chain(0, &[buffer(0x10_0000, 2000, false)], false);
    bed.machine
        .guest
        .send_chain(0, &[buffer(u64::MAX - 10, 2000, true)], false);
    bed.host_sends(0, &FrameHeader::default(), &pattern(700));
    bed.machine.step();
    assert_eq!(bed.malformed(), 3);
    bed.machine.guest.offer(0, 1, OFFER_BYTES);
    bed.machine.step();
    assert_eq!(bed.machine.guest.receive(0)[0].frame, pattern(700));
}

/// A descriptor in place of the first of a queue's table.
fn forge(bed: &mut Bed, queue: usize, buffer: Buffer, flags: u32, next: u16) {
    let flags = flags | if buffer.writable { VRING_DESC_F_WRITE } else { 0 };
    let flags = u16::try_from(flags).unwrap();
    let descriptor = Descriptor::new(buffer.address, buffer.len, flags, next);
    let table = GuestAddress(bed.machine.guest.queues()[queue].addresses()[0]);
    let memory = bed.machine.guest.memory();
    memory.write_obj(RawDescriptor::from(descriptor), table).unwrap();
}

#[test]
fn chains_that_do_not_end_are_refused() {
    let cases = [
        (VRING_DESC_F_NEXT, 0),
        (VRING_DESC_F_NEXT, 256),
        (VRING_DESC_F_NEXT, u16::MAX),
        (VRING_DESC_F_INDIRECT, 0),
    ];
    for (queue, writable) in [(1, false), (0, true)] {
        for (flags, next) in cases {
            let mut bed = bed(1);
            let indirect = flags == VRING_DESC_F_INDIRECT;
            let buffer = Buffer {
                address: if indirect { u64::MAX - 0xfff } else { 0x10_0000 },
                len: if indirect { 32 } else { 72 },
                writable: writable && !indirect,
            };
            assert!(bed.machine.guest.send_chain(queue, &[buffer], false));
            forge(&mut bed, queue, buffer, flags, next);
            if queue == 0 {
                bed.host_sends(0, &FrameHeader::default(), &pattern(60));
            }
            bed.machine.step();
            assert_eq!(bed.malformed(), 1, "queue {queue}, flags {flags}, next {next}");
            assert!(bed.host_takes(0).is_empty());
        }
    }
}

#[test]
fn a_frame_in_thousands_of_buffers_is_refused() {
    let (host, tap) = sockets(1);
    let device = Net::new(tap).unwrap().queue_size(4096).unwrap();
    let mut bed = Bed {
        machine: Machine::new(device).unwrap(),
        host,
    };
    let byte = |address| Buffer {
        address,
        len: 14,
        writable: false,
    };
    let chain = |count: u64| (0..count).map(|at| byte(0x10_0000 + 14 * at)).collect::<Vec<_>>();
    let mut ring = DriverQueue::new(bed.machine.guest.memory(), 0x18_0000, 4096);
    bed.machine.queues[1] = ring.device_side(true);
    ring.add(&chain(1024)).unwrap();
    ring.add(&chain(1025)).unwrap();
    bed.machine.step();
    assert_eq!((bed.malformed(), bed.host_takes(0).len()), (1, 1));
}

#[test]
fn buffers_of_no_bytes_are_not_there() {
    let mut bed = bed(1);
    let message = [&FrameHeader::default().to_bytes()[..], &pattern(90)].concat();
    let memory = bed.machine.guest.memory();
    memory.write_slice(&message, GuestAddress(0x10_0000)).unwrap();
    let buffer = |address, len| Buffer {
        address,
        len,
        writable: false,
    };
    // Where a buffer without bytes is does not matter.
    let empty = buffer(u64::MAX, 0);
    let chain = [
        empty,
        buffer(0x10_0000, 5),
        empty,
        buffer(0x10_0005, 60),
        empty,
        buffer(0x10_0041, 37),
        empty,
    ];
    for indirect in [false, true] {
        assert!(bed.machine.guest.send_chain(1, &chain, indirect));
        bed.machine.step();
        assert_eq!(bed.host_takes(0)[0].frame, pattern(90));
        assert!(bed.machine.guest.send_chain(1, &[empty; 3], indirect));
        bed.machine.step();
    }
    assert_eq!((bed.malformed(), bed.host_takes(0).len()), (2, 0));
}

#[test]
fn a_frame_that_waited_for_the_host_is_judged_as_it_is_then() {
    let mut bed = bed(1);
    let place = GuestAddress(0x10_0000);
    let memory = bed.machine.guest.memory();
    let frame = Buffer {
        address: place.0,
        len: 1412,
        writable: false,
    };
    let mut sent = 0;
    while bed.machine.figure("transmit_stalls") == 0 {
        while bed.machine.guest.send_chain(1, &[frame], false) {
            sent += 1;
        }
        bed.machine.step();
    }
    memory.write_slice(&[0xff; HEADER_BYTES], place).unwrap();
    let went = bed.machine.figure("frames_from_guest");
    let mut taken = Vec::new();
    bed.machine
        .run_until(|machine| {
            let mut message = [0; 2000];
            while let Ok(bytes @ 1..) = rustix::io::read(&bed.host[0], &mut message[..]) {
                taken.push(message[..bytes].to_vec());
            }
            machine.figure("malformed") + went == sent
        })
        .unwrap();
    assert_eq!(bed.machine.figure("frames_from_guest"), went);
    assert!(
        taken
            .iter()
            .all(|message| message[..HEADER_BYTES] == [0; HEADER_BYTES])
    );
    assert_eq!(u64::try_from(taken.len()).unwrap(), went);
}

#[test]
fn a_head_out_of_range_breaks_the_queue() {
    for queue in [0, 1] {
        let mut bed = bed(1);
        let buffer = Buffer {
            address: 0x10_0000,
            len: 72,
            writable: queue == 0,
        };
        assert!(bed.machine.guest.send_chain(queue, &[buffer], false));
        let available = bed.machine.guest.queues()[queue].addresses()[1];
        let memory = bed.machine.guest.memory();
        memory.write_obj(300u16, GuestAddress(available + 4)).unwrap();
        bed.host_sends(0, &FrameHeader::default(), &pattern(60));
        assert!(bed.machine.step().needs_reset);
        assert!(bed.host_takes(0).is_empty(), "it is not even looked at");
    }
}

#[test]
fn empty_messages_are_no_frames_and_no_end() {
    let mut bed = bed(1);
    bed.machine.guest.offer(0, 4, OFFER_BYTES);
    for message in [&[][..], &[0; HEADER_BYTES - 1], &[0; HEADER_BYTES]] {
        assert_eq!(
            rustix::net::send(&bed.host[0], message, SendFlags::empty()),
            Ok(message.len())
        );
    }
    assert!(!bed.machine.step().config, "the link is up");
    assert_eq!(bed.machine.figure("dropped_to_guest"), 3);
    assert!(!bed.machine.wait(Duration::ZERO).unwrap(), "it would spin");
    bed.still_works();
}

#[test]
fn a_frame_larger_than_the_whole_ring_is_dropped() {
    let mut bed = bed(1);
    bed.machine.guest.offer(0, 256, 64);
    bed.host_sends(0, &tcp4_segments(60_000), &pattern(60_000));
    bed.host_sends(0, &FrameHeader::default(), &pattern(60));
    bed.machine.step();
    assert_eq!(bed.machine.figure("dropped_to_guest"), 1);
    let received = bed.machine.guest.receive(0);
    assert_eq!((received.len(), received[0].frame.len()), (1, 60));
}

#[test]
fn a_broken_queue_needs_a_reset_and_then_works_again() {
    for queue in [0, 1] {
        let mut bed = bed(1);
        bed.still_works();
        bed.machine.guest.queues()[queue].corrupt_avail_index(40_000);
        bed.host_sends(0, &FrameHeader::default(), &pattern(60));
        assert!(bed.machine.step().needs_reset);
        assert_eq!(bed.machine.step(), Signals::default(), "it is left alone");
        assert!(!bed.machine.wait(Duration::ZERO).unwrap());
        let features = bed.machine.device.features();
        bed.machine.reset(features);
        bed.machine.guest.offer(0, 4, OFFER_BYTES);
        bed.machine.step();
        bed.still_works();
    }
}

#[test]
fn a_reset_in_flight_loses_the_held_frame_and_nothing_else() {
    let mut bed = bed(1);
    bed.machine.guest.offer(0, 1, OFFER_BYTES);
    bed.host_sends(0, &tcp4_segments(4000), &pattern(4000));
    bed.host_sends(0, &FrameHeader::default(), &pattern(80));
    bed.machine.step();
    assert!(bed.machine.guest.receive(0).is_empty());
    let features = bed.machine.device.features();
    bed.machine.reset(features);
    assert_eq!(bed.machine.figure("dropped_to_guest"), 1);
    bed.machine.guest.offer(0, 1, OFFER_BYTES);
    bed.machine.step();
    assert_eq!(bed.machine.guest.receive(0)[0].frame, pattern(80));
    bed.still_works();
}

#[test]
fn before_the_driver_is_ready_nothing_moves() {
    let mut bed = bed(1);
    bed.machine.device.reset();
    bed.machine
        .guest
        .send(0, &FrameHeader::default(), &pattern(60), &[]);
    assert_eq!(bed.machine.step(), Signals::default());
    assert!(bed.host_takes(0).is_empty());
}

#[test]
fn a_tap_that_is_gone_is_a_pulled_cable() {
    let mut bed = bed(1);
    bed.still_works();
    bed.host.clear();
    bed.machine.guest.offer(0, 4, OFFER_BYTES);
    assert!(bed.machine.step().config);
    assert_eq!(bed.machine.device.config()[6], 0);
    bed.machine
        .guest
        .send(0, &FrameHeader::default(), &pattern(60), &[]);
    bed.machine.step();
    bed.machine.step();
    assert_eq!(bed.machine.figure("dropped_from_guest"), 1);
    assert!(!bed.machine.wait(Duration::ZERO).unwrap(), "it would spin");
}

#[test]
fn a_host_that_takes_nothing_makes_the_guest_wait() {
    let mut bed = bed(1);
    let mut sent = 0u64;
    while bed.machine.figure("transmit_stalls") == 0 {
        while bed
            .machine
            .guest
            .send(0, &FrameHeader::default(), &pattern(1400), &[])
        {
            sent += 1;
        }
        bed.machine.step();
    }
    bed.machine.step();
    assert!(!bed.machine.wait(Duration::ZERO).unwrap(), "it would spin");
    let mut taken = 0;
    bed.machine
        .run_until(|machine| {
            machine.figure("frames_from_guest") == sent || {
                let mut buffer = [0; 2000];
                while rustix::io::read(&bed.host[0], &mut buffer[..]).is_ok() {
                    taken += 1;
                }
                false
            }
        })
        .unwrap();
    taken += bed.host_takes(0).len();
    assert_eq!(
        (
            u64::try_from(taken).unwrap(),
            bed.machine.figure("dropped_from_guest")
        ),
        (sent, 0)
    );
}

#[test]
fn a_flood_is_served_in_turns() {
    let mut bed = bed(1);
    bed.machine.guest.offer(0, 256, OFFER_BYTES);
    for index in 0..200 {
        bed.host_sends(0, &FrameHeader::default(), &pattern(60 + index));
    }
    bed.machine.step();
    let first = bed.machine.guest.receive(0);
    let lengths: Vec<usize> = first.iter().map(|received| received.frame.len()).collect();
    assert_eq!(lengths, (60..260).collect::<Vec<_>>(), "in their order");
}

#[test]
fn a_turn_has_an_end_however_much_there_is() {
    let mut bed = bed(1);
    bed.machine.device.handle().set_link(false);
    bed.machine.step();
    let frame = Buffer {
        address: 0x10_0000,
        len: 65_012,
        writable: false,
    };
    for _ in 0..256 {
        assert!(bed.machine.guest.send_chain(1, &[frame], false));
    }
    bed.machine.work();
    assert_eq!(
        bed.machine.guest.reclaim(0),
        (2_usize << 20).div_ceil(65_000),
        "two mebibytes"
    );
    assert!(
        bed.machine.wait(Duration::ZERO).unwrap(),
        "the rest is not forgotten"
    );
    bed.machine
        .run_until(|machine| machine.figure("dropped_from_guest") == 256)
        .unwrap();
}

#[test]
fn a_flood_of_commands_is_served_in_turns() {
    let mut bed = bed(3);
    for pairs in [3, 1, 3, 1, 3, 2] {
        assert!(bed.machine.guest.command(&[4, 0, pairs, 0]));
    }
    bed.machine.work();
    let answers = |bed: &mut Bed| std::iter::from_fn(|| bed.machine.guest.answer()).count();
    assert_eq!(answers(&mut bed), 4);
    assert!(
        bed.machine.wait(Duration::ZERO).unwrap(),
        "the rest is not forgotten"
    );
    bed.machine.step();
    assert_eq!(answers(&mut bed), 2);
    bed.still_works();
}
