//! The entropy source, driven with its queue at hand and behind registers: each row of its threat table.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::path::Path;

use kata_virtio::mock::rng::run_script;
use kata_virtio::mock::{Bench, Buffer, Driver, MEMORY_BYTES};
use kata_virtio::rng::{REQUEST_QUEUE, Rng};
use kata_virtio::{COMMON_FEATURES, Device, Signals};
use proptest::prelude::*;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn bench() -> Bench<Rng> {
    Bench::new(Rng::new().unwrap()).unwrap()
}

fn figures(bench: &Bench<Rng>) -> HashMap<&'static str, u64> {
    bench.device.meter().figures().into_iter().collect()
}

/// Not what the mock's buffers begin with, nor anything that is not random: with a chance of one in 2⁶⁴.
fn looks_random(bytes: &[u8]) -> bool {
    let mut counts = HashMap::new();
    for byte in bytes {
        *counts.entry(byte).or_insert(0) += 1;
    }
    let most = counts.values().max().copied().unwrap_or(0);
    most <= bytes.len() / 8 + 8
}

#[test]
fn a_request_is_filled() {
    let mut bench = bench();
    let first = bench.request(REQUEST_QUEUE, &[], &[64]).unwrap();
    let second = bench.request(REQUEST_QUEUE, &[], &[64]).unwrap();
    assert_eq!((first.len(), second.len()), (64, 64));
    assert!(looks_random(&first) && looks_random(&second));
    assert_ne!(first, second);
    assert_eq!(figures(&bench)["bytes_given"], 128);
}

#[test]
fn buffers_are_filled_in_order_and_readable_ones_are_left_alone() {
    let mut bench = bench();
    let chain = bench
        .rings
        .offer(REQUEST_QUEUE, &[b"mine"], &[5000, 1, 300])
        .unwrap();
    let used = bench.run_until(|rings| rings.used(REQUEST_QUEUE)).unwrap();
    assert_eq!(used, (chain.head, 5301));
    assert_eq!(bench.rings.read(chain.buffers[0].address, 4), b"mine");
    let written = bench.rings.written(&chain, 5301);
    assert!(written.chunks(512).all(looks_random));
}

#[test]
fn an_indirect_request_is_filled() {
    let mut bench = bench();
    let chain = bench
        .rings
        .offer_indirect(REQUEST_QUEUE, &[], &[100, 200])
        .unwrap();
    let used = bench.run_until(|rings| rings.used(REQUEST_QUEUE)).unwrap();
    assert_eq!(used, (chain.head, 300));
}

#[test]
fn a_huge_request_gets_64_kib_and_nothing_behind_it() {
    let mut bench = bench();
    let chain = bench.rings.offer(REQUEST_QUEUE, &[], &[1 << 20]).unwrap();
    let used = bench.run_until(|rings| rings.used(REQUEST_QUEUE)).unwrap();
    assert_eq!(used, (chain.head, 64 << 10));
    let behind = bench.rings.read(chain.buffers[0].address + (64 << 10), 4096);
    assert!(behind.iter().all(|&byte| byte == 0xee));
}

#[test]
fn a_turn_has_an_end_and_the_rest_follows() {
    let mut bench = bench();
    for _ in 0..8 {
        bench.rings.offer(REQUEST_QUEUE, &[], &[64 << 10]).unwrap();
    }
    let signals = bench.step().unwrap();
    assert!(signals.queue(REQUEST_QUEUE));
    assert_eq!(figures(&bench)["requests"], 4);
    let mut used = 0;
    bench
        .run_until(|rings| {
            used += std::iter::from_fn(|| rings.used(REQUEST_QUEUE)).count();
            (used == 8).then_some(())
        })
        .unwrap();
}

#[test]
fn requests_that_are_none_come_back_unused() {
    let mut bench = bench();
    assert_eq!(
        bench.request(REQUEST_QUEUE, &[b"only readable"], &[]).unwrap(),
        []
    );
    assert_eq!(bench.request(REQUEST_QUEUE, &[], &[0]).unwrap(), []);
    let outside = u64::try_from(MEMORY_BYTES).unwrap();
    for address in [outside, outside - 8, u64::MAX - 8] {
        let buffer = Buffer {
            address,
            len: 16,
            writable: true,
        };
        let head = bench.rings.queue(REQUEST_QUEUE).add(&[buffer]).unwrap();
        bench.step().unwrap();
        assert_eq!(bench.rings.used(REQUEST_QUEUE), Some((head, 0)));
    }
    assert_eq!(figures(&bench)["requests_malformed"], 5);
    assert_eq!(bench.request(REQUEST_QUEUE, &[], &[16]).unwrap().len(), 16);
}

#[test]
fn a_loop_is_cut_off() {
    let mut bench = bench();
    let buffer = bench.rings.writable(16);
    bench.rings.forge(REQUEST_QUEUE, 0, buffer, NEXT | WRITE, 1);
    bench.rings.forge(REQUEST_QUEUE, 1, buffer, NEXT | WRITE, 0);
    bench.rings.publish(REQUEST_QUEUE, 0);
    bench.step().unwrap();
    assert_eq!(figures(&bench)["requests"], 1);
    // The ring ends the walk after as many descriptors as it has.
    assert!(figures(&bench)["bytes_given"] <= 8 * 16);
}

#[test]
fn a_broken_queue_is_dead_until_the_reset() {
    let breaks: [fn(&mut Bench<Rng>); 2] = [
        |bench| bench.rings.queue(REQUEST_QUEUE).corrupt_avail_index(1000),
        |bench| bench.rings.publish(REQUEST_QUEUE, 8),
    ];
    for break_it in breaks {
        let mut bench = bench();
        break_it(&mut bench);
        assert!(bench.step().unwrap().needs_reset);
        assert_eq!(bench.step().unwrap(), Signals::default());
        bench.reset();
        assert_eq!(bench.request(REQUEST_QUEUE, &[], &[16]).unwrap().len(), 16);
    }
}

#[test]
fn a_queue_that_is_not_ready_is_left_alone() {
    let mut bench = bench();
    bench.queues[0] = virtio_queue::QueueT::new(8).unwrap();
    bench.rings.offer(REQUEST_QUEUE, &[], &[16]).unwrap();
    assert_eq!(bench.step().unwrap(), Signals::default());
}

#[test]
fn behind_registers_it_is_the_same_device_with_and_without_event_indexes() {
    for features in [u64::MAX, 1 << 32] {
        let mut driver = Driver::with_features(Rng::new().unwrap(), features).unwrap();
        assert_eq!(driver.registers.offered(), COMMON_FEATURES);
        for _ in 0..100 {
            let bytes = driver.request(REQUEST_QUEUE, &[], &[48]).unwrap();
            assert!(bytes.len() == 48 && looks_random(&bytes));
        }
    }
}

/// What the fuzzer has found worth keeping, as an ordinary test.
#[test]
fn the_corpus_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/rng");
    let files = std::fs::read_dir(corpus).unwrap();
    let scripts = files.map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    assert!(scripts.map(|script| run_script(&script)).count() >= 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_script_holds(script in prop::collection::vec(any::<u8>(), 0..400)) {
        run_script(&script);
    }
}
