//! Every request, as a driver makes it.

use std::time::{Duration, Instant};

use kata_virtio::Device;
use kata_virtio::mock::block::{Disk, IOERR, OK, header, kind, range};

use super::*;

#[test]
fn what_is_written_is_read() {
    both(|mut disk, file| {
        let answer = disk.read(3, 1024).unwrap();
        assert_eq!((answer.status, answer.used), (OK, 1025));
        assert_eq!(answer.data, content()[3 * 512..5 * 512]);
        let answer = disk.write(SECTORS - 1, &[7; 512]).unwrap();
        assert_eq!((answer.status, answer.used), (OK, 1));
        assert_eq!(disk.read(SECTORS - 1, 512).unwrap().data, [7; 512]);
        assert_eq!(bytes_of(&file)[1023 * 1024 + 512..], [7; 512]);
        assert_eq!(disk.ask(kind::FLUSH).unwrap().status, OK);
        let counters = disk.bench.device.counters();
        assert_eq!(
            (
                counters.requests,
                counters.reads,
                counters.writes,
                counters.flushes
            ),
            (4, 2, 1, 1)
        );
        assert_eq!((counters.bytes_read, counters.bytes_written), (1536, 512));
        assert_eq!((counters.errors, counters.malformed), (0, 0));
        let figures = disk.bench.device.meter().figures();
        assert_eq!(figures[0], ("requests", 4));
    });
}

#[test]
fn the_serial_is_told_in_twenty_bytes() {
    both(|mut disk, _| {
        let answer = disk.request(0, &[&header(kind::GET_ID, 0)], &[7, 13, 1]).unwrap();
        assert_eq!((answer.status, answer.used), (OK, 21));
        assert_eq!(answer.data, *b"kata-disk\0\0\0\0\0\0\0\0\0\0\0");
        failed(
            &disk.request(0, &[&header(kind::GET_ID, 0)], &[19, 1]).unwrap(),
            IOERR,
        );
    });
}

#[test]
fn zeroes_are_written_with_and_without_unmapping() {
    both(|mut disk, file| {
        for (sector, flags) in [(1, 0), (8, 1)] {
            let zeroes = range(sector, 3, flags);
            let answer = disk
                .request(0, &[&header(kind::WRITE_ZEROES, 0), &zeroes], &[1])
                .unwrap();
            assert_eq!((answer.status, answer.used), (OK, 1));
        }
        let bytes = bytes_of(&file);
        let zero = |from: usize, to: usize| bytes[from * 512..to * 512].iter().all(|&byte| byte == 0);
        assert!(zero(0, 4) && zero(8, 11), "sector 0 holds zeroes anyway");
        assert_eq!(bytes[4 * 512..8 * 512], content()[4 * 512..8 * 512]);
        assert_eq!(bytes[11 * 512..], content()[11 * 512..]);
        assert_eq!(u64::try_from(bytes.len()).unwrap(), SECTORS * 512);
    });
}

#[test]
fn queues_are_served_on_their_own() {
    for engine in ENGINES {
        let (mut disk, _) = disk(|builder| builder.queues(4).engine(engine));
        assert_eq!(disk.bench.device.queue_sizes(), [256; 4]);
        // One that the driver does not use.
        disk.bench.queues[1] = virtio_queue::QueueT::new(256).unwrap();
        for queue in [3, 0, 2, 3] {
            let answer = disk
                .request(queue, &[&header(kind::IN, queue.into())], &[512, 1])
                .unwrap();
            assert_eq!(answer.data, u64::from(queue).to_le_bytes().repeat(64));
        }
        let chains: Vec<_> = (0..40u16)
            .map(|number| {
                let queue = [0, 2, 3][usize::from(number % 3)];
                let head = header(kind::IN, number.into());
                (
                    number,
                    queue,
                    disk.bench.rings.offer(queue, &[&head], &[512, 1]).unwrap(),
                )
            })
            .collect();
        let mut left = chains;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !left.is_empty() {
            assert!(Instant::now() < deadline);
            disk.bench.step().unwrap();
            for queue in [0, 2, 3] {
                while let Some((head, used)) = disk.bench.rings.used(queue) {
                    let place = left
                        .iter()
                        .position(|(_, on, chain)| (*on, chain.head) == (queue, head))
                        .unwrap();
                    let (number, _, chain) = left.swap_remove(place);
                    let answer = disk.answer(&chain, used);
                    assert_eq!(answer.data, u64::from(number).to_le_bytes().repeat(64));
                }
            }
        }
    }
}

#[test]
fn signals_are_for_drivers_that_wait() {
    both(|mut disk, _| {
        disk.bench.rings.queue(0).ask_for_signal();
        let ask = |disk: &mut Disk| {
            disk.bench
                .rings
                .offer(0, &[&header(kind::FLUSH, 0)], &[1])
                .unwrap()
        };
        let mut signalled = 0;
        for round in 0..4 {
            ask(&mut disk);
            let deadline = Instant::now() + Duration::from_secs(20);
            while disk.bench.device.counters().flushes <= round {
                signalled += u32::from(disk.bench.step().unwrap().queue(0));
                assert!(Instant::now() < deadline);
            }
        }
        assert_eq!(signalled, 1, "it asked for one");
    });
}
