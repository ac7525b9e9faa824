//! A disk of files that come and go: what is where, what is not, and when.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use kata_virtio::Device;
use kata_virtio::block::{Block, BuildError, Extent, SHELF_BYTES, Shelf, ShelfError, ShelfState};
use kata_virtio::mock::block::{Disk, IOERR, OK, header, kind, range};
use proptest::prelude::*;
use rustix::fs::{FlockOperation, MemfdFlags, flock};

use super::*;

/// Sectors before the first extent.
const LABEL: u64 = 2048;

/// A file of so many bytes, none of which is zero.
fn filled(byte: u8, bytes: usize) -> File {
    let file = File::from(rustix::fs::memfd_create("layer", MemfdFlags::CLOEXEC).unwrap());
    (&file).write_all(&vec![byte; bytes]).unwrap();
    file
}

fn shelf_disk(engine: Engine) -> (Shelf, Disk) {
    let shelf = Shelf::new();
    let device = Block::of_shelf(&shelf)
        .serial("shelf")
        .engine(engine)
        .build()
        .unwrap();
    assert_eq!(device.engine(), engine);
    (shelf, Disk::new(device).unwrap())
}

fn on_both(test: impl Fn(Shelf, Disk)) {
    for engine in ENGINES {
        let (shelf, disk) = shelf_disk(engine);
        test(shelf, disk);
    }
}

#[test]
fn it_is_a_large_read_only_disk_of_one_serial() {
    on_both(|_, mut disk| {
        assert_eq!(disk.bench.device.sectors(), SHELF_BYTES / 512);
        assert_eq!(disk.bench.device.features() >> 5 & 1, 1, "VIRTIO_BLK_F_RO");
        let answer = disk.request(0, &[&header(kind::GET_ID, 0)], &[20, 1]).unwrap();
        assert_eq!(&answer.data[..6], b"shelf\0");
        assert_eq!(disk.ask(kind::FLUSH).unwrap().status, OK);
        failed(&disk.write(LABEL, &[1; 512]).unwrap(), IOERR);
        for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
            let answer = disk.request(0, &[&header(kind, 0), &range(LABEL, 8, 0)], &[1]);
            failed(&answer.unwrap(), IOERR);
        }
    });
}

#[test]
fn files_are_there_from_when_they_are_added_until_they_are_taken_away() {
    on_both(|shelf, mut disk| {
        failed(&disk.read(LABEL, 512).unwrap(), IOERR);
        let (one, two) = (shelf.add(file()).unwrap(), shelf.add(filled(2, 4096)).unwrap());
        assert_eq!((one.offset, one.bytes), (1 << 20, 1 << 20));
        assert_eq!((two.offset, two.bytes), (2 << 20, 4096));
        assert_eq!(
            disk.read(LABEL + 7, 1024).unwrap().data,
            content()[7 * 512..9 * 512]
        );
        assert_eq!(disk.read(2 * LABEL, 4096).unwrap().data, [2; 4096]);
        shelf.remove(one.offset).unwrap();
        failed(&disk.read(LABEL + 7, 512).unwrap(), IOERR);
        assert_eq!(disk.read(2 * LABEL, 512).unwrap().status, OK);
        let again = shelf.remove(one.offset).unwrap_err();
        assert_eq!(again.to_string(), "no extent begins at 1048576");
        let three = shelf.add(filled(3, 512)).unwrap();
        assert_eq!(three.offset, 3 << 20, "a place is not used again");
        assert_eq!(disk.bench.device.counters().errors, 2);
        let figures = disk.bench.device.meter().figures();
        assert!(figures.contains(&("extents", 2)) && figures.contains(&("extent_bytes", 4608)));
    });
}

#[test]
fn a_read_may_touch_several_extents_and_the_zeroes_before_them() {
    on_both(|shelf, mut disk| {
        for byte in [1, 2, 3] {
            shelf.add(filled(byte, 1 << 20)).unwrap();
        }
        let answer = disk.read(LABEL - 1, 3 << 9).unwrap();
        assert_eq!(answer.status, OK);
        assert_eq!(answer.data[..512], [0; 512]);
        assert_eq!(answer.data[512..], [1; 1024]);
        // The whole of the second with an end of both neighbours, cut anywhere.
        let bytes = (1 << 20) + 1024;
        let answer = disk
            .request(
                0,
                &[&header(kind::IN, 2 * LABEL - 1)],
                &[100, 512, bytes - 612, 1],
            )
            .unwrap();
        assert_eq!((answer.status, answer.used), (OK, bytes + 1));
        assert!(answer.data[..512].iter().all(|&byte| byte == 1));
        assert!(answer.data[512..512 + (1 << 20)].iter().all(|&byte| byte == 2));
        assert!(answer.data[512 + (1 << 20)..].iter().all(|&byte| byte == 3));
        assert_eq!(disk.read(0, 4096).unwrap().data, [0; 4096]);
    });
}

#[test]
fn what_nobody_has_fails_whole() {
    on_both(|shelf, mut disk| {
        let extent = shelf.add(filled(1, 1024)).unwrap();
        let end = (extent.offset + extent.bytes) / 512;
        for (sector, bytes) in [
            (end, 512),
            (end - 1, 1024),
            (end - 2, 4096),
            (LABEL - 1, 4096),
            (2 * LABEL - 1, 512),
            (2 * LABEL, 512),
            (SHELF_BYTES / 512 - 1, 512),
        ] {
            failed(&disk.read(sector, bytes).unwrap(), IOERR);
        }
        assert_eq!(disk.bench.device.counters().errors, 7);
        for (sector, bytes) in [(SHELF_BYTES / 512 - 1, 1024), (u64::MAX, 512)] {
            failed(&disk.read(sector, bytes).unwrap(), IOERR);
        }
        assert_eq!(disk.bench.device.counters().malformed, 2);
        assert_eq!(disk.read(end - 2, 1024).unwrap().data, [1; 1024]);
    });
}

#[test]
fn an_extent_whose_file_was_cut_short_fails_and_the_others_do_not() {
    on_both(|shelf, mut disk| {
        let cut = filled(1, 1 << 20);
        let (one, two) = (
            shelf.add(cut.try_clone().unwrap()).unwrap(),
            shelf.add(filled(2, 512)).unwrap(),
        );
        cut.set_len(4096).unwrap();
        assert_eq!(disk.read(one.offset / 512, 4096).unwrap().status, OK);
        for bytes in [4608, 8192] {
            assert_eq!(disk.read(one.offset / 512, bytes).unwrap().status, IOERR);
        }
        assert_eq!(disk.read(two.offset / 512 - 1, 1024).unwrap().status, IOERR);
        assert_eq!(disk.read(two.offset / 512, 512).unwrap().data, [2; 512]);
    });
}

#[test]
fn what_cannot_be_an_extent_is_refused() {
    let shelf = Shelf::new();
    let refused = |file| shelf.add(file).unwrap_err().to_string();
    assert_eq!(refused(filled(1, 511)), "a file of 511 bytes has no sector");
    assert_eq!(
        refused(File::open("/dev/zero").unwrap()),
        "cannot use the file as an extent"
    );
    let writer = File::options().write(true).open("/dev/null").unwrap();
    assert_eq!(refused(writer), "the file is not open for reading");
    let huge = filled(1, 512);
    huge.set_len(SHELF_BYTES).unwrap();
    assert!(matches!(
        shelf.add(huge),
        Err(ShelfError::Full { bytes: SHELF_BYTES })
    ));
    assert_eq!(shelf.add(filled(1, 1000)).unwrap().bytes, 512, "whole sectors");
    for (builder, wanted) in [
        (Block::of_shelf(&shelf).read_only(false), "written"),
        (Block::of_shelf(&shelf).direct(true), "read past the page cache"),
    ] {
        let refused = builder.build().unwrap_err();
        assert!(matches!(refused, BuildError::Shelf { wanted: found } if found == wanted));
    }
}

#[test]
fn a_file_is_closed_once_it_is_taken_away() {
    on_both(|shelf, mut disk| {
        let file = filled(1, 4096);
        let other = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let lock = |file: &File| flock(file, FlockOperation::NonBlockingLockExclusive);
        lock(&file).unwrap();
        let extent = shelf.add(file).unwrap();
        assert_eq!(disk.read(extent.offset / 512, 4096).unwrap().status, OK);
        assert!(lock(&other).is_err(), "it holds the lock");
        shelf.remove(extent.offset).unwrap();
        lock(&other).unwrap();
    });
}

#[test]
fn a_shelf_goes_on_where_another_was() {
    let shelf = Shelf::new();
    let layers = [filled(1, 4096), filled(2, 2 << 20), filled(3, 512)];
    let extents: Vec<Extent> = layers
        .iter()
        .map(|file| shelf.add(file.try_clone().unwrap()).unwrap())
        .collect();
    shelf.remove(extents[1].offset).unwrap();
    let state = shelf.state();
    let kept = || vec![layers[0].try_clone().unwrap(), layers[2].try_clone().unwrap()];
    let other = Shelf::restore(&state, kept()).unwrap();
    assert_eq!(other.state(), state);
    let mut disk = Disk::new(Block::of_shelf(&other).build().unwrap()).unwrap();
    assert_eq!(disk.read(extents[2].offset / 512, 512).unwrap().data, [3; 512]);
    failed(&disk.read(extents[1].offset / 512, 512).unwrap(), IOERR);
    assert_eq!(other.add(filled(4, 512)).unwrap().offset, state.next);
    // With other files, or fewer, it is none.
    let refused = |state: &ShelfState, files| matches!(Shelf::restore(state, files), Err(ShelfError::State));
    assert!(refused(&state, vec![filled(1, 4096)]));
    assert!(refused(&state, vec![filled(1, 4096), filled(1, 4096)]));
    let impossible = ShelfState { next: 512, ..state };
    assert!(refused(&impossible, kept()));
}

/// What is read while files come and go is what was there all the time, or an error, and never another's.
#[test]
fn readers_and_changes_do_not_meet() {
    for engine in ENGINES {
        let (shelf, mut disk) = shelf_disk(engine);
        let stays = shelf.add(filled(0xaa, 1 << 20)).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..2000u32 {
                    let byte = u8::try_from(round % 100 + 1).unwrap();
                    let extent = shelf.add(filled(byte, 4096)).unwrap();
                    shelf.remove(extent.offset).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            let mut place = LABEL * 2;
            while !done.load(Ordering::Acquire) {
                assert_eq!(disk.read(stays.offset / 512, 8192).unwrap().data, [0xaa; 8192]);
                let answer = disk.read(place, 4096).unwrap();
                match answer.status {
                    OK => assert!(
                        answer
                            .data
                            .iter()
                            .all(|byte| *byte == answer.data[0] && *byte != 0xaa)
                    ),
                    status => assert_eq!(status, IOERR),
                }
                place += LABEL;
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any reads of any extents are what a file with the same bytes would give.
    #[test]
    fn any_reads_are_right(
        sizes in prop::collection::vec(1usize..5000, 1..4),
        gone in 0usize..5,
        reads in prop::collection::vec((0u64..18_000, 1u32..2100), 1..12),
        plain in any::<bool>(),
    ) {
        let (shelf, mut disk) = shelf_disk(if plain { Engine::Plain } else { Engine::IoUring });
        // Of each sector, what its bytes are.
        let mut model: Vec<Option<u8>> = vec![None; 21_000];
        model[..2048].fill(Some(0));
        for (number, sectors) in sizes.iter().enumerate() {
            let byte = u8::try_from(number + 1).unwrap();
            let extent = shelf.add(filled(byte, sectors * 512)).unwrap();
            let start = usize::try_from(extent.offset / 512).unwrap();
            if number == gone {
                shelf.remove(extent.offset).unwrap();
            } else {
                model[start..start + sectors].fill(Some(byte));
            }
        }
        for (sector, count) in reads {
            let start = usize::try_from(sector).unwrap();
            let wanted = &model[start..start + usize::try_from(count).unwrap()];
            let wanted: Option<Vec<u8>> = wanted.iter().copied().collect();
            let answer = disk.read(sector, count * 512).unwrap();
            match wanted {
                Some(bytes) => {
                    let right = answer.data.chunks(512).zip(bytes).all(|(sector, byte)| sector == [byte; 512]);
                    prop_assert!(answer.status == OK && right);
                }
                None => prop_assert_eq!(answer.status, IOERR),
            }
        }
    }
}
