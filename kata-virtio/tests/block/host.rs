//! What the host does to the device: limits, cut files, direct I/O, the ends of things.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use kata_virtio::block::{Block, BuildError, Builder, Engine};
use kata_virtio::mock::Buffer;
use kata_virtio::mock::block::{Disk, IOERR, OK, UNTOUCHED, header, kind, range};
use kata_virtio::{Device, Rate, RateLimit};
use rustix::fs::{FallocateFlags, MemfdFlags, OFlags};

use super::*;

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
fn holes_of_the_host_read_as_zeroes() {
    both(|mut disk, file| {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, hole, 0, 8192).unwrap();
        assert_eq!(disk.read(1, 512).unwrap().data, [0; 512]);
    });
}
