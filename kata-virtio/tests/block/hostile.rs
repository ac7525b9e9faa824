//! What a hostile driver can try: each row of the threat table in `block`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use kata_virtio::mock::Buffer;
use kata_virtio::mock::block::{Disk, IOERR, OK, UNSUPP, UNTOUCHED, header, kind, range, run_script};
use proptest::prelude::*;

use super::*;

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
