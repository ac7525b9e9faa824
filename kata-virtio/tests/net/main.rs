//! The network device by the mock driver: what it offers, and frames both ways.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod bed;
mod hostile;
mod script;
mod tap;
mod vhost_user;

use std::time::{Duration, Instant};

use bed::{Bed, MAC, OFFER_BYTES, bed, bed_with, pattern, sockets, tcp4_segments};
use kata_virtio::mock::net::{Machine, Received};
use kata_virtio::net::{DATA_VALID, Error, Features, FrameHeader, HEADER_BYTES, Net};
use kata_virtio::{COMMON_FEATURES, Device, Rate, RateLimit, Signals};

#[test]
fn it_offers_what_it_was_made_of() {
    let (_host, tap) = sockets(3);
    let device = Net::new(tap).unwrap();
    let base = Features::CSUM
        | Features::GUEST_CSUM
        | Features::HOST_TSO4
        | Features::HOST_TSO6
        | Features::HOST_ECN
        | Features::HOST_UFO
        | Features::GUEST_TSO4
        | Features::GUEST_TSO6
        | Features::GUEST_ECN
        | Features::GUEST_UFO
        | Features::MRG_RXBUF
        | Features::STATUS;
    let several = Features::MQ | Features::CTRL_VQ;
    assert_eq!(device.features(), COMMON_FEATURES | (base | several).bits());
    assert_eq!(device.queue_sizes(), [256, 256, 256, 256, 256, 256, 64]);
    let device = device.queue_pairs(1).unwrap().mac(MAC).mtu(1400).unwrap();
    let device = device.queue_size(512).unwrap();
    let all = base | Features::MAC | Features::MTU;
    assert_eq!(device.features(), COMMON_FEATURES | all.bits());
    assert_eq!(device.queue_sizes(), [512, 512]);
    assert_eq!(device.config(), [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0x78, 5]);
}

#[test]
fn settings_that_make_no_sense_are_errors() {
    let net = || Net::new(sockets(2).1).unwrap();
    let error = net().queue_pairs(3).unwrap_err();
    assert_eq!(
        error.to_string(),
        "3 pairs of queues, where the tap allows 1 to 2"
    );
    assert!(matches!(net().queue_pairs(0), Err(Error::QueuePairs { .. })));
    assert!(matches!(net().mtu(67), Err(Error::Mtu { mtu: 67 })));
    assert!(matches!(
        net().queue_size(100),
        Err(Error::QueueSize { size: 100 })
    ));
    assert!(matches!(net().queue_size(0), Err(Error::QueueSize { size: 0 })));
}

#[test]
fn frames_of_the_guest_arrive_however_they_are_cut() {
    let mut bed = bed(1);
    let frame = pattern(1514);
    let cuts: [&[usize]; 5] = [&[], &[12], &[5], &[1, 2, 3, 12, 500, 1525], &[12, 26, 1000]];
    for cuts in cuts {
        assert!(bed.machine.guest.send(0, &FrameHeader::default(), &frame, cuts));
        assert!(bed.machine.step().queue(1));
        let taken = bed.host_takes(0);
        assert_eq!((taken.len(), &taken[0].frame), (1, &frame), "{cuts:?}");
    }
    assert_eq!(bed.machine.figure("frames_from_guest"), 5);
    assert_eq!(bed.machine.figure("bytes_from_guest"), 5 * 1514);
}

#[test]
fn a_segmented_frame_of_64_kib_passes_as_one_both_ways() {
    let mut bed = bed(1);
    let (frame, header) = (pattern(65_226), tcp4_segments(65_226));
    let cuts: Vec<usize> = (1..16).map(|part| part * 4096).collect();
    assert!(bed.machine.guest.send(0, &header, &frame, &cuts));
    bed.machine.step();
    assert_eq!(
        bed.host_takes(0),
        [Received {
            header,
            frame: frame.clone()
        }]
    );

    bed.machine.guest.offer(0, 100, OFFER_BYTES);
    bed.host_sends(0, &header, &frame);
    assert!(bed.machine.step().queue(0));
    let received = bed.machine.guest.receive(0);
    let buffers = u16::try_from((frame.len() + HEADER_BYTES).div_ceil(1526)).unwrap();
    assert_eq!(received[0].header.num_buffers, buffers);
    assert_eq!(received[0].header.gso_size, header.gso_size);
    assert!(received[0].frame == frame);
    assert_eq!(bed.machine.figure("bytes_to_guest"), 65_226);
}

#[test]
fn a_frame_that_lacks_buffers_waits_and_nothing_is_spun_on() {
    let mut bed = bed(1);
    let frame = pattern(4000);
    bed.host_sends(0, &FrameHeader::default(), &pattern(60));
    bed.host_sends(0, &tcp4_segments(4000), &frame);
    for _ in 0..3 {
        assert_eq!(bed.machine.step(), Signals::default());
    }
    assert!(!bed.machine.wait(Duration::ZERO).unwrap(), "it would spin");
    assert!(bed.machine.figure("receive_stalls") > 0);

    // The first fits, the second needs three.
    for (offered, arrived) in [(1, 1), (1, 0), (1, 0), (1, 1)] {
        bed.machine.guest.offer(0, offered, OFFER_BYTES);
        assert!(
            bed.machine.guest.queues()[0].wants_kick(),
            "the driver is asked to kick"
        );
        bed.machine.work();
        assert!(!bed.machine.wait(Duration::ZERO).unwrap(), "it would spin");
        assert_eq!(bed.machine.guest.receive(0).len(), arrived);
    }
    assert_eq!(bed.machine.figure("dropped_to_guest"), 0);
}

#[test]
fn without_mergeable_buffers_a_frame_takes_one_or_is_dropped() {
    let mut bed = bed_with(Features::GUEST_CSUM | Features::GUEST_TSO4);
    bed.machine.guest.offer(0, 1, OFFER_BYTES);
    bed.machine.guest.offer(0, 1, 65_562);
    bed.host_sends(0, &FrameHeader::default(), &pattern(1514));
    bed.machine.step();
    let received = bed.machine.guest.receive(0);
    assert_eq!(received[0].header.num_buffers, 1);
    bed.host_sends(0, &tcp4_segments(65_000), &pattern(65_000));
    bed.machine.step();
    assert_eq!(bed.machine.guest.receive(0)[0].frame.len(), 65_000);
    bed.machine.guest.offer(0, 1, OFFER_BYTES);
    bed.host_sends(0, &FrameHeader::default(), &pattern(1515));
    bed.machine.step();
    assert_eq!(bed.machine.figure("dropped_to_guest"), 1);
    bed.host_sends(0, &FrameHeader::default(), &pattern(64));
    bed.machine.step();
    assert_eq!(
        bed.machine.guest.receive(0).len(),
        1,
        "the buffer was not used up"
    );
}

#[test]
fn what_the_driver_did_not_take_is_not_given_to_it() {
    let mut bed = bed_with(Features::MRG_RXBUF);
    bed.machine.guest.offer(0, 4, OFFER_BYTES);
    bed.host_sends(0, &tcp4_segments(1514), &pattern(1514));
    let valid = FrameHeader {
        flags: DATA_VALID,
        ..FrameHeader::default()
    };
    bed.host_sends(0, &valid, &pattern(64));
    bed.machine.step();
    let received = bed.machine.guest.receive(0);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].header.flags, 0, "VIRTIO 1.2 §5.1.6.4.1");
    assert_eq!(bed.machine.figure("dropped_to_guest"), 1);
}

#[test]
fn frames_beyond_the_mtu_are_not_given_to_the_driver() {
    let (host, tap) = sockets(1);
    let device = Net::new(tap).unwrap().mtu(1000).unwrap();
    let mut bed = Bed {
        machine: Machine::new(device).unwrap(),
        host,
    };
    bed.machine.guest.offer(0, 10, OFFER_BYTES);
    bed.host_sends(0, &FrameHeader::default(), &pattern(1018));
    bed.host_sends(0, &FrameHeader::default(), &pattern(1019));
    bed.host_sends(0, &tcp4_segments(4000), &pattern(4000));
    bed.machine.step();
    let lengths: Vec<usize> = bed
        .machine
        .guest
        .receive(0)
        .iter()
        .map(|received| received.frame.len())
        .collect();
    assert_eq!(lengths, [1018, 4000]);
}

#[test]
fn pulling_the_cable_is_a_change_of_configuration() {
    let mut bed = bed(1);
    let handle = bed.machine.device.handle();
    let status = |bed: &Bed| bed.machine.device.config()[6];
    assert_eq!((status(&bed), handle.link_up()), (1, true));
    std::thread::spawn({
        let handle = handle.clone();
        move || handle.set_link(false)
    })
    .join()
    .unwrap();
    assert!(bed.machine.wait(Duration::from_secs(20)).unwrap());
    let mut told = bed.machine.step();
    assert!(told.config);
    assert_eq!(status(&bed), 0);
    bed.machine
        .guest
        .send(0, &FrameHeader::default(), &pattern(60), &[]);
    bed.machine.guest.offer(0, 1, OFFER_BYTES);
    bed.host_sends(0, &FrameHeader::default(), &pattern(90));
    assert!(!bed.machine.step().config, "it is said once");
    assert_eq!(bed.host_takes(0), []);
    assert_eq!(bed.machine.figure("dropped_from_guest"), 1);
    assert!(bed.machine.guest.receive(0).is_empty());
    handle.set_link(true);
    told = bed.machine.step();
    assert!(told.config);
    assert_eq!(bed.machine.guest.receive(0)[0].frame, pattern(90));
    bed.still_works();
}

#[test]
fn a_rate_makes_frames_wait_and_loses_none() {
    let (host, tap) = sockets(1);
    let slow = RateLimit {
        bytes: None,
        operations: Some(Rate {
            per_second: 200,
            burst: 2,
        }),
    };
    let device = Net::new(tap).unwrap().rate_limit(slow, slow).unwrap();
    let mut bed = Bed {
        machine: Machine::new(device).unwrap(),
        host,
    };
    bed.machine.guest.offer(0, 10, OFFER_BYTES);
    let start = Instant::now();
    for bytes in 60..66 {
        bed.host_sends(0, &FrameHeader::default(), &pattern(bytes));
        bed.machine
            .guest
            .send(0, &FrameHeader::default(), &pattern(bytes), &[]);
    }
    bed.machine.step();
    assert_eq!(
        (bed.host_takes(0).len(), bed.machine.guest.receive(0).len()),
        (2, 2)
    );
    assert_eq!(bed.machine.figure("throttled"), 2);
    let both = |machine: &mut Machine| {
        machine.figure("frames_from_guest") == 6 && machine.figure("frames_to_guest") == 6
    };
    bed.machine.run_until(both).unwrap();
    assert!(
        start.elapsed() >= Duration::from_millis(20),
        "four more at 200 per second"
    );
    let lengths: Vec<usize> = bed.host_takes(0).iter().map(|taken| taken.frame.len()).collect();
    assert_eq!(lengths, [62, 63, 64, 65], "in their order");
}

#[test]
fn the_driver_says_how_many_pairs_it_uses() {
    let mut bed = bed(3);
    let send = |bed: &mut Bed, pair| {
        bed.machine
            .guest
            .send(pair, &FrameHeader::default(), &pattern(60), &[]);
        bed.machine.step();
        bed.host_takes(pair).len()
    };
    assert_eq!([send(&mut bed, 0), send(&mut bed, 1)], [1, 0]);
    let command = |bed: &mut Bed, bytes: &[u8]| {
        assert!(bed.machine.guest.command(bytes));
        assert!(bed.machine.step().queue(6), "the driver waits for the answer");
        bed.machine.guest.answer().unwrap()
    };
    assert_eq!(command(&mut bed, &[4, 0, 2, 0]), 0);
    assert_eq!(bed.host_takes(1).len(), 1, "what waited goes now");
    assert_eq!([send(&mut bed, 1), send(&mut bed, 2)], [1, 0]);
    for refused in [
        &[4, 0, 4, 0][..],
        &[4, 0, 0, 0],
        &[4, 0, 0xff, 0xff],
        &[0, 0, 1],
        &[4, 1, 2, 0],
        &[9, 9],
    ] {
        assert_eq!(command(&mut bed, refused), 1, "{refused:?}");
    }
    assert_eq!(bed.machine.device.state().queue_pairs, 2);
    assert_eq!(command(&mut bed, &[4, 0, 1, 0]), 0);
    assert_eq!(send(&mut bed, 1), 0);
    assert_eq!(bed.malformed(), 0);
    assert!(bed.machine.guest.command(&[4]));
    bed.machine.step();
    assert_eq!(bed.malformed(), 1);
}

#[test]
fn without_a_control_queue_the_started_pairs_are_served() {
    let mut bed = bed(2);
    bed.machine.queues[4] = virtio_queue::QueueT::new(64).unwrap();
    bed.machine
        .guest
        .send(1, &FrameHeader::default(), &pattern(60), &[]);
    bed.machine.step();
    assert_eq!(bed.host_takes(1).len(), 1);
}

#[test]
fn state_goes_on_in_another_device() {
    let mut bed = bed(2);
    bed.machine.guest.command(&[4, 0, 2, 0]);
    bed.machine.step();
    bed.machine.device.handle().set_link(false);
    bed.machine.step();
    let state = bed.machine.device.state();
    let (host, tap) = sockets(2);
    let mut next = Net::new(tap).unwrap().mac(MAC);
    next.restore(&state).unwrap();
    assert_eq!(next.state(), state);
    assert_eq!(next.config()[6], 0);
    next.handle().set_link(true);
    bed.machine.device = next;
    bed.host = host;
    assert!(bed.machine.step().config);
    bed.machine
        .guest
        .send(1, &FrameHeader::default(), &pattern(60), &[]);
    bed.machine.step();
    assert_eq!(bed.host_takes(1).len(), 1);
    let mut small = Net::new(sockets(1).1).unwrap();
    assert!(matches!(
        small.restore(&state),
        Err(Error::QueuePairs { wanted: 2, most: 1 })
    ));
}

#[test]
fn a_saturated_pair_leaves_the_other_its_share_of_the_rate() {
    let (host, tap) = sockets(2);
    let slow = RateLimit {
        bytes: None,
        operations: Some(Rate {
            per_second: 2000,
            burst: 1,
        }),
    };
    let device = Net::new(tap).unwrap().rate_limit(slow, slow).unwrap();
    let mut bed = Bed {
        machine: Machine::new(device).unwrap(),
        host,
    };
    bed.machine.guest.command(&[4, 0, 2, 0]);
    let mut taken = [[0; 2]; 2];
    let mut both = |machine: &mut Machine| {
        for (pair, taken) in taken.iter_mut().enumerate() {
            while machine
                .guest
                .send(pair, &FrameHeader::default(), &pattern(60), &[])
            {}
            machine.guest.offer(pair, 4, OFFER_BYTES);
            let message = [0; HEADER_BYTES + 60];
            while rustix::io::write(&bed.host[pair], &message).is_ok() {}
            let mut buffer = [0; 100];
            while rustix::io::read(&bed.host[pair], &mut buffer[..]).is_ok() {
                taken[0] += 1;
            }
            taken[1] += machine.guest.receive(pair).len();
        }
        taken.iter().flatten().all(|count| *count >= 10)
    };
    let served = bed.machine.run_until(&mut both);
    assert!(served.is_ok(), "{taken:?}");
    assert!(taken.iter().flatten().all(|count| *count <= 20), "{taken:?}");
}
