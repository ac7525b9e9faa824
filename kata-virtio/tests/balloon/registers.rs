//! The balloon behind registers, with a worker of its own.

use std::sync::mpsc::channel;
use std::time::Duration;

use kata_virtio::balloon::{Balloon, INFLATE_QUEUE, PAGE_BYTES, STATISTICS_QUEUE};
use kata_virtio::mock::Driver;

use super::{entry, numbers};

const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn it_asks_and_is_answered() {
    let (device, handle) = Balloon::new().unwrap();
    let mut driver = Driver::new(device).unwrap();
    handle.set_target_bytes(2 * PAGE_BYTES);
    while driver.registers.config(0, 4) != [2, 0, 0, 0] {
        driver.registers.wait().unwrap();
    }
    driver
        .request(INFLATE_QUEUE, &[&numbers([4096, 4097])], &[])
        .unwrap();
    driver.registers.write_config(4, &2u32.to_le_bytes());
    // The answer to a later request follows the write.
    driver.request(INFLATE_QUEUE, &[&numbers([4098])], &[]).unwrap();
    assert_eq!(driver.registers.config(4, 4), [2, 0, 0, 0]);
    assert_eq!(handle.actual_bytes(), 2 * PAGE_BYTES);
    let figures = driver.registers.mmio.meter().figures();
    assert!(
        figures.contains(&("inflated_bytes", 3 * PAGE_BYTES)),
        "{figures:?}"
    );

    driver
        .rings
        .offer(STATISTICS_QUEUE, &[&entry(4, 1)], &[])
        .unwrap();
    driver.kick(STATISTICS_QUEUE).unwrap();
    // A turn later the device holds it.
    driver.request(INFLATE_QUEUE, &[&numbers([4099])], &[]).unwrap();
    let (sender, receiver) = channel();
    handle.statistics(move |statistics| sender.send(statistics).unwrap());
    driver.wait_used(STATISTICS_QUEUE).unwrap();
    driver
        .rings
        .offer(STATISTICS_QUEUE, &[&entry(4, 2)], &[])
        .unwrap();
    driver.kick(STATISTICS_QUEUE).unwrap();
    let statistics = receiver.recv_timeout(DEADLINE).unwrap();
    assert_eq!(statistics.free_bytes, Some(2));
}
