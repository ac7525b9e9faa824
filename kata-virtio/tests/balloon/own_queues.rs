//! A driver that gives away the memory of its own queues.

use kata_virtio::balloon::{INFLATE_QUEUE, REPORTING_QUEUE};
use kata_virtio::mock::Buffer;

use super::{balloon, free, numbers, report};

#[test]
fn it_finds_zeroes_there_and_can_start_again() {
    let (mut bench, _) = balloon();
    let [table, _, used] = bench.rings.queue(REPORTING_QUEUE).addresses();
    let own = Buffer {
        address: 0,
        len: u32::try_from(used + 0x10_0000).unwrap() & !0xfff,
        writable: true,
    };
    bench.rings.queue(REPORTING_QUEUE).add(&[own]).unwrap();
    // Its available index is behind what the device has taken.
    assert!(bench.step().unwrap().needs_reset);
    assert_eq!(bench.rings.read(table, 16), [0; 16]);

    bench.reset();
    report(&mut bench, REPORTING_QUEUE, &[free(1 << 24, 1 << 20)]);
    bench.request(INFLATE_QUEUE, &[&numbers([4096])], &[]).unwrap();
}
