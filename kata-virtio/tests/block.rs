//! The block device on files: every request, every refusal, both engines.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use kata_virtio::block::{Block, BuildError, Builder, Engine};
use kata_virtio::mock::Buffer;
use kata_virtio::mock::block::{Answer, Disk, IOERR, OK, UNSUPP, UNTOUCHED, header, kind, range, run_script};
use kata_virtio::{Device, Rate, RateLimit};
use proptest::prelude::*;
use rustix::fs::{FallocateFlags, MemfdFlags, OFlags};

const ENGINES: [Engine; 2] = [Engine::Plain, Engine::IoUring];
const SECTORS: u64 = 2048;

/// A file of a megabyte in which every sector says where it is.
fn file() -> File {
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    (&file).write_all(&content()).unwrap();
    file
}

fn content() -> Vec<u8> {
    let sector = |number: u64| number.to_le_bytes().repeat(64);
    (0..SECTORS).flat_map(sector).collect()
}

fn disk(change: impl Fn(Builder) -> Builder) -> (Disk, File) {
    let file = file();
    let builder = Block::new(file.try_clone().unwrap());
    (Disk::new(change(builder).build().unwrap()).unwrap(), file)
}

/// Runs a test on both engines.
fn both(test: impl Fn(Disk, File)) {
    for engine in ENGINES {
        let (disk, file) = disk(|builder| builder.engine(engine).serial("kata-disk"));
        assert_eq!(disk.bench.device.engine(), engine);
        test(disk, file);
    }
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn failed(answer: &Answer, status: u8) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(
        answer.data.iter().all(|&byte| byte == UNTOUCHED),
        "no data with a failure"
    );
}

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
fn discarded_blocks_are_given_back() {
    both(|mut disk, file| {
        let before = file.metadata().unwrap().blocks();
        let request = [range(8, 8, 0), range(1024, 512, 0)].concat();
        let answer = disk.request(
            0,
            &[&header(kind::DISCARD, 0), &request[..5], &request[5..]],
            &[1],
        );
        assert_eq!(answer.unwrap().status, OK);
        let freed = before - file.metadata().unwrap().blocks();
        assert_eq!(freed, 520, "in units of 512 bytes");
        let bytes = bytes_of(&file);
        assert!(bytes[8 * 512..16 * 512].iter().all(|&byte| byte == 0));
        assert_eq!(bytes[16 * 512..1024 * 512], content()[16 * 512..1024 * 512]);
        assert_eq!(disk.bench.device.counters().discards, 1);
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
fn what_lies_outside_of_the_disk_fails() {
    both(|mut disk, file| {
        for (sector, bytes) in [
            (SECTORS, 512),
            (SECTORS - 1, 1024),
            (u64::MAX, 512),
            (u64::MAX / 512, 512),
        ] {
            failed(&disk.read(sector, bytes).unwrap(), IOERR);
            failed(&disk.write(sector, &vec![9; 1024]).unwrap(), IOERR);
        }
        for range in [
            range(SECTORS, 1, 0),
            range(SECTORS - 1, 2, 0),
            range(u64::MAX, 1, 0),
            range(0, u32::MAX, 0),
        ] {
            for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
                failed(
                    &disk.request(0, &[&header(kind, 0), &range], &[1]).unwrap(),
                    IOERR,
                );
            }
        }
        assert_eq!(bytes_of(&file), content());
        assert_eq!(disk.bench.device.counters().malformed, 16);
    });
}

#[test]
fn data_has_whole_sectors_in_its_own_direction() {
    both(|mut disk, file| {
        for bytes in [0, 1, 511, 513] {
            let room = if bytes == 0 { vec![1] } else { vec![bytes, 1] };
            failed(&disk.request(0, &[&header(kind::IN, 0)], &room).unwrap(), IOERR);
            let data = vec![9; usize::try_from(bytes).unwrap()];
            failed(&disk.write(0, &data).unwrap(), IOERR);
        }
        failed(
            &disk
                .request(0, &[&header(kind::IN, 0), &[0; 512]], &[512, 1])
                .unwrap(),
            IOERR,
        );
        failed(
            &disk
                .request(0, &[&header(kind::OUT, 0), &[9; 512]], &[512, 1])
                .unwrap(),
            IOERR,
        );
        assert_eq!(bytes_of(&file), content());
    });
}

#[test]
fn what_the_device_does_not_know_is_unsupported() {
    both(|mut disk, file| {
        for unknown in [2, 3, 14, u32::MAX] {
            failed(&disk.ask(unknown).unwrap(), UNSUPP);
        }
        for (kind, flags) in [(kind::DISCARD, 1), (kind::DISCARD, 2), (kind::WRITE_ZEROES, 2)] {
            let answer = disk.request(0, &[&header(kind, 0), &range(0, 8, flags)], &[1]);
            failed(&answer.unwrap(), UNSUPP);
        }
        assert_eq!(bytes_of(&file), content());
    });
}

#[test]
fn ranges_are_bounded_and_none_is_touched_when_one_is_refused() {
    both(|mut disk, file| {
        let good = range(0, 8, 0);
        for ranges in [
            [good, range(SECTORS, 1, 0)].concat(),
            good.repeat(17),
            good[..15].to_vec(),
            vec![],
        ] {
            let answer = disk.request(0, &[&header(kind::DISCARD, 0), &ranges], &[1]);
            failed(&answer.unwrap(), IOERR);
        }
        let answer = disk.request(0, &[&header(kind::WRITE_ZEROES, 0), &good.repeat(2)], &[1]);
        failed(&answer.unwrap(), IOERR);
        assert_eq!(bytes_of(&file), content());
    });
}

#[test]
fn features_that_were_not_chosen_do_not_work() {
    let (device, _) = disk(|builder| builder);
    let mut disk = Disk {
        bench: kata_virtio::mock::Bench::with_features(device.bench.device, kata_virtio::COMMON_FEATURES)
            .unwrap(),
    };
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        let answer = disk.request(0, &[&header(kind, 0), &range(0, 8, 0)], &[1]);
        failed(&answer.unwrap(), UNSUPP);
    }
    assert_eq!(disk.write(0, &[1; 512]).unwrap().status, OK, "written through");
}

#[test]
fn a_read_only_disk_is_never_written() {
    for engine in ENGINES {
        let file = file();
        let reader = File::open(format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&file)
        ))
        .unwrap();
        let refused = Block::new(reader.try_clone().unwrap()).build().unwrap_err();
        assert_eq!(refused.to_string(), "the file is not open for writing");
        let device = Block::new(reader).read_only(true).engine(engine).build().unwrap();
        assert_eq!(device.features() >> 5 & 1, 1, "VIRTIO_BLK_F_RO");
        let mut disk = Disk::new(device).unwrap();
        failed(&disk.write(0, &[9; 512]).unwrap(), IOERR);
        for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
            let answer = disk.request(0, &[&header(kind, 0), &range(0, 8, 0)], &[1]);
            failed(&answer.unwrap(), IOERR);
        }
        assert_eq!(disk.read(1, 512).unwrap().data, content()[512..1024]);
        assert_eq!(disk.ask(kind::FLUSH).unwrap().status, OK);
        assert_eq!(bytes_of(&file), content());
    }
}

#[test]
fn chains_without_a_request_come_back_unused() {
    both(|mut disk, _| {
        let head = header(kind::IN, 0);
        let cuts: [(&[&[u8]], &[u32]); 4] = [
            (&[&head], &[]),
            (&[&head[..15]], &[512, 1]),
            (&[], &[513]),
            (&[&head], &[0]),
        ];
        for (readable, writable) in cuts {
            let answer = disk.request(0, readable, writable).unwrap();
            assert_eq!(answer.used, 0);
            assert!(answer.data.iter().all(|&byte| byte == UNTOUCHED));
        }
        assert_eq!(disk.bench.device.counters().malformed, 4);
        assert_eq!(disk.read(0, 512).unwrap().status, OK, "the device lives");
    });
}

/// The chain of these buffers is returned, with so many bytes written.
fn offered(disk: &mut Disk, buffers: &[Buffer]) -> u32 {
    let head = disk.bench.rings.queue(0).add(buffers).unwrap();
    let used = disk
        .bench
        .run_until(|rings| rings.used(0).filter(|(used, _)| *used == head));
    used.unwrap().1
}

#[test]
fn buffers_in_the_wrong_order_or_outside_of_memory() {
    both(|mut disk, file| {
        let rings = &mut disk.bench.rings;
        let (head, data) = (rings.readable(&header(kind::OUT, 0)), rings.readable(&[9; 512]));
        let status = rings.writable(1);
        let outside = |writable| Buffer {
            address: 1 << 40,
            len: 512,
            writable,
        };
        assert_eq!(offered(&mut disk, &[head, status, data, status]), 0, "order");
        assert_eq!(offered(&mut disk, &[outside(false), data, status]), 0, "header");
        assert_eq!(offered(&mut disk, &[head, data, outside(true)]), 0, "status");
        assert_eq!(offered(&mut disk, &[head, outside(false), status]), 1, "data");
        assert_eq!(disk.bench.rings.read(status.address, 1), [IOERR]);
        let end = Buffer {
            address: u64::MAX - 100,
            len: 4096,
            writable: false,
        };
        assert_eq!(offered(&mut disk, &[head, end, status]), 1, "wraps");
        assert_eq!(bytes_of(&file), content());
        assert_eq!(disk.bench.device.counters().malformed, 5);
    });
}

#[test]
fn chains_that_do_not_end_come_back() {
    both(|mut disk, _| {
        let rings = &mut disk.bench.rings;
        let head = rings.readable(&header(kind::IN, 0));
        let tail = rings.writable(513);
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        rings.forge(0, 0, head, NEXT, 1);
        rings.forge(0, 1, tail, NEXT | WRITE, 1);
        rings.publish(0, 0);
        disk.bench.step().unwrap();
        assert_eq!(disk.bench.device.counters().malformed, 1);
        assert_eq!(disk.bench.rings.read(tail.address, 513), [UNTOUCHED; 513]);
    });
}

#[test]
fn more_descriptors_than_anybody_needs() {
    both(|mut disk, _| {
        let small: Vec<u32> = std::iter::repeat_n(1, 513).collect();
        let offer = |disk: &mut Disk, sizes: &[u32]| {
            let chain = disk
                .bench
                .rings
                .offer_indirect(0, &[&header(kind::IN, 1)], sizes)
                .unwrap();
            let used = disk.bench.run_until(|rings| rings.used(0)).unwrap().1;
            disk.answer(&chain, used)
        };
        assert_eq!(offer(&mut disk, &small).used, 0, "514 in an indirect table");
        let many: Vec<u32> = std::iter::repeat_n(2, 256).chain([1]).collect();
        let answer = offer(&mut disk, &many);
        assert_eq!((answer.status, answer.used), (OK, 513));
        assert_eq!(answer.data, content()[512..1024]);
    });
}

#[test]
fn a_broken_queue_is_dead_until_the_reset() {
    both(|mut disk, _| {
        disk.bench.rings.queue(0).corrupt_avail_index(1000);
        assert!(disk.bench.step().unwrap().needs_reset);
        assert!(!disk.bench.step().unwrap().needs_reset, "once is enough");
        disk.bench.reset();
        assert_eq!(disk.read(1, 512).unwrap().data, content()[512..1024]);
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

#[test]
fn a_file_that_was_cut_short_fails_reads_and_not_the_device() {
    both(|mut disk, file| {
        file.set_len(5 * 512 + 100).unwrap();
        assert_eq!(disk.read(4, 512).unwrap().status, OK);
        for sector in [5, 6, 100] {
            let answer = disk.read(sector, 512).unwrap();
            assert_eq!((answer.status, answer.used), (IOERR, 0));
        }
        assert_eq!(disk.bench.device.counters().errors, 3);
    });
}

#[test]
fn a_full_host_fails_writes_and_not_the_device() {
    // A file that may not grow is as good as a full file system.
    both(|mut disk, file| {
        file.set_len(0).unwrap();
        let seals = rustix::fs::SealFlags::GROW;
        // Only memfds made for it can be sealed; this one was not: it says EPERM.
        assert!(rustix::fs::fcntl_add_seals(&file, seals).is_err());
        assert_eq!(disk.write(0, &[1; 512]).unwrap().status, OK, "it grows again");
    });
    for engine in ENGINES {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("disk", flags).unwrap());
        file.set_len(1 << 20).unwrap();
        let device = Block::new(file.try_clone().unwrap())
            .engine(engine)
            .build()
            .unwrap();
        let mut disk = Disk::new(device).unwrap();
        file.set_len(4096).unwrap();
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::GROW).unwrap();
        assert_eq!(disk.write(0, &[1; 512]).unwrap().status, OK);
        assert_eq!(disk.write(64, &[1; 512]).unwrap().status, IOERR);
        assert_eq!(disk.read(0, 512).unwrap().data, [1; 512]);
        assert_eq!(disk.bench.device.counters().errors, 1);
    }
}

#[test]
fn reads_wait_for_their_rate_and_then_go_on() {
    let limit = RateLimit {
        operations: Some(Rate {
            per_second: 20,
            burst: 2,
        }),
        bytes: None,
    };
    for engine in ENGINES {
        let (mut disk, _) = disk(|builder| builder.engine(engine).rate_limit(limit));
        for _ in 0..2 {
            assert_eq!(disk.read(0, 512).unwrap().status, OK);
        }
        let start = Instant::now();
        disk.bench
            .rings
            .offer(0, &[&header(kind::IN, 0)], &[512, 1])
            .unwrap();
        disk.bench.step().unwrap();
        assert!(disk.bench.rings.used(0).is_none(), "the burst is used up");
        assert_eq!(disk.bench.device.counters().throttled, 1);
        assert!(disk.bench.device.drained(), "it stays in the queue");
        disk.bench.run_until(|rings| rings.used(0)).unwrap();
        assert!(
            start.elapsed() > Duration::from_millis(20),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_reset_waits_for_the_kernel() {
    for _ in 0..50 {
        let (mut disk, file) = disk(|builder| builder.engine(Engine::IoUring));
        let chains: Vec<_> = (0..60)
            .map(|number| {
                disk.bench
                    .rings
                    .offer(0, &[&header(kind::OUT, number), &[5; 512]], &[1])
                    .unwrap()
            })
            .collect();
        disk.bench.work();
        disk.bench.device.reset();
        assert!(disk.bench.device.drained());
        let before = bytes_of(&file);
        let statuses: Vec<_> = chains.iter().map(|chain| disk.answer(chain, 0).status).collect();
        disk.bench.reset();
        assert_eq!(disk.read(100, 512).unwrap().data, content()[51200..51712]);
        assert_eq!(bytes_of(&file), before, "nothing is written behind a reset");
        assert!(statuses.iter().all(|&status| status == OK || status == UNTOUCHED));
    }
}

#[test]
fn a_device_that_ends_waits_for_the_kernel() {
    let (mut disk, file) = disk(|builder| builder.engine(Engine::IoUring));
    for number in 0..60 {
        disk.bench
            .rings
            .offer(0, &[&header(kind::OUT, number), &[5; 512]], &[1])
            .unwrap();
    }
    disk.bench.work();
    drop(disk);
    assert!(bytes_of(&file)[..60 * 512].iter().all(|&byte| byte == 5));
}

#[test]
fn the_driver_chooses_when_writes_are_durable() {
    both(|mut disk, _| {
        let device = &mut disk.bench.device;
        assert_eq!(device.config()[32], 1, "write-back at first");
        device.write_config(30, &[1, 1, 0, 1]);
        assert_eq!(device.config()[32], 0);
        assert!(!device.state().writeback);
        assert_eq!(disk.write(0, &[1; 512]).unwrap().status, OK);
        disk.bench.reset();
        assert_eq!(disk.bench.device.config()[32], 1);
    });
}

#[test]
fn what_was_negotiated_survives_in_another_device() {
    let (mut disk, _) = disk(|builder| builder);
    disk.bench.device.write_config(32, &[0]);
    let state = disk.bench.device.state();
    let (mut other, _) = self::disk(|builder| builder);
    other.bench.device.reset();
    other.bench.device.restore(state);
    assert_eq!(other.bench.device.state(), state);
    assert_eq!(other.bench.device.config()[32], 0);
}

/// A file on a file system with direct I/O: beside the build, since /tmp may be in memory.
fn disk_file() -> Option<File> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let mut file = File::from(rustix::fs::open(directory, flags, mode).ok()?);
    file.write_all(&content()).unwrap();
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    Some(file)
}

#[test]
fn direct_input_and_output_takes_any_buffer_and_whole_blocks() {
    for engine in [Engine::Plain, Engine::IoUring, Engine::Auto] {
        let Some(file) = disk_file() else {
            eprintln!("skipped: no file without a name can be made in the build directory");
            return;
        };
        let device = match Block::new(file.try_clone().unwrap())
            .direct(true)
            .engine(engine)
            .build()
        {
            Err(BuildError::File(cause)) => {
                eprintln!("skipped: no direct I/O in the build directory: {cause}");
                return;
            }
            device => device.unwrap(),
        };
        let block = u32::from_le_bytes(device.config()[20..24].try_into().unwrap());
        let mut disk = Disk::new(device).unwrap();
        let sectors = u64::from(block / 512);
        // Odd places: the header is in one piece with the data.
        let data = vec![3; usize::try_from(block).unwrap()];
        let request = [&header(kind::OUT, 2 * sectors)[..], &data].concat();
        assert_eq!(
            disk.request(0, &[&request[..17], &request[17..]], &[1])
                .unwrap()
                .status,
            OK
        );
        let answer = disk
            .request(0, &[&header(kind::IN, 2 * sectors)], &[3, block - 3, 1])
            .unwrap();
        assert_eq!((answer.status, answer.data), (OK, data));
        // Even ones.
        let rings = &mut disk.bench.rings;
        let place = rings.place(2 * 8192).next_multiple_of(4096);
        let (head, status) = (rings.readable(&header(kind::IN, 0)), rings.writable(1));
        let even = Buffer {
            address: place,
            len: block,
            writable: true,
        };
        assert_eq!(offered(&mut disk, &[head, even, status]), block + 1);
        assert_eq!(
            disk.bench.rings.read(place, block),
            content()[..usize::try_from(block).unwrap()]
        );
        if block > 512 {
            failed(&disk.read(1, 512).unwrap(), IOERR);
        }
    }
}

#[test]
fn what_cannot_be_a_disk_is_refused() {
    let error = |builder: Builder| builder.build().unwrap_err();
    let text = |builder: Builder| error(builder).to_string();
    assert_eq!(
        text(Block::new(File::open("/").unwrap()).read_only(true)),
        "cannot use the file as a disk"
    );
    let zero = File::options().read(true).write(true).open("/dev/zero").unwrap();
    assert!(matches!(error(Block::new(zero)), BuildError::File(_)));
    assert_eq!(
        text(Block::new(file()).queues(0)),
        "0 queues, where 1 to 32 are possible"
    );
    assert!(matches!(
        error(Block::new(file()).queues(33)),
        BuildError::Queues { queues: 33 }
    ));
    for serial in ["a serial", "123456789012345678901", "ä"] {
        assert!(matches!(
            error(Block::new(file()).serial(serial)),
            BuildError::Serial { .. }
        ));
    }
    let writer = File::options().write(true).open("/dev/null").unwrap();
    assert_eq!(text(Block::new(writer)), "the file is not open for reading");
}

#[test]
fn a_file_that_is_no_multiple_of_a_sector_loses_its_end() {
    let file = file();
    file.set_len(1000).unwrap();
    let mut disk = Disk::new(Block::new(file).build().unwrap()).unwrap();
    assert_eq!(disk.bench.device.sectors(), 1);
    failed(&disk.read(1, 512).unwrap(), IOERR);
    assert_eq!(disk.read(0, 512).unwrap().status, OK);
}

#[test]
fn the_corpus_of_scripts_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/block");
    let files = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let run = |path| {
        let mut script = Vec::new();
        File::open(path).unwrap().read_to_end(&mut script).unwrap();
        run_script(&script);
    };
    assert!(files.map(run).count() >= 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_script_holds(script in prop::collection::vec(any::<u8>(), 0..300)) {
        run_script(&script);
    }

    /// However the driver cuts a request, it is the same request.
    #[test]
    fn any_cut_is_the_same_request(
        sector in 0..SECTORS - 8,
        sectors in 1usize..8,
        mut cuts in prop::collection::vec(1usize..4112, 0..6),
        write: bool,
    ) {
        let (mut disk, _) = disk(|builder| builder);
        let len = sectors * 512;
        let kind = if write { kind::OUT } else { kind::IN };
        let mut all = header(kind, sector).to_vec();
        let mut room = len + 1;
        if write {
            all.resize(16 + len, 0x77);
            room = 1;
        }
        cuts.sort_unstable();
        let (mut readable, mut rest, mut at) = (Vec::new(), &all[..], 0);
        let (mut writable, mut free) = (Vec::new(), room);
        for cut in cuts {
            let (now, later) = rest.split_at((cut - at).min(rest.len()));
            readable.push(now);
            rest = later;
            let taken = (cut - at).min(free);
            writable.push(u32::try_from(taken).unwrap());
            (at, free) = (cut, free - taken);
        }
        readable.push(rest);
        writable.push(u32::try_from(free).unwrap());
        let answer = disk.request(0, &readable, &writable).unwrap();
        prop_assert_eq!(answer.status, OK);
        let first = usize::try_from(sector).unwrap() * 512;
        let read = disk.read(sector, u32::try_from(len).unwrap()).unwrap().data;
        match write {
            true => prop_assert_eq!(read, vec![0x77; len]),
            false => {
                prop_assert_eq!(&answer.data, &content()[first..first + len]);
                prop_assert_eq!(answer.data, read);
            }
        }
    }
}

#[test]
fn holes_of_the_host_read_as_zeroes() {
    both(|mut disk, file| {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, hole, 0, 8192).unwrap();
        assert_eq!(disk.read(1, 512).unwrap().data, [0; 512]);
    });
}
