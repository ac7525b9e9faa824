//! The console behind registers, with a worker of its own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use kata_virtio::console::{Console, RX_QUEUE, TX_QUEUE};
use kata_virtio::mock::Driver;

#[test]
fn it_talks_both_ways_and_tells_its_size() {
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let input = theirs.try_clone().unwrap();
    let (device, handle) = Console::new(theirs.into(), Some(input.into())).unwrap();
    let mut driver = Driver::new(device).unwrap();
    driver.request(TX_QUEUE, &[b"ping"], &[]).unwrap();
    let mut ping = [0; 4];
    host.read_exact(&mut ping).unwrap();
    assert_eq!(&ping, b"ping");

    let chain = driver.rings.offer(RX_QUEUE, &[], &[64]).unwrap();
    driver.kick(RX_QUEUE).unwrap();
    host.write_all(b"pong").unwrap();
    let (head, bytes) = driver.wait_used(RX_QUEUE).unwrap();
    assert_eq!(
        (head, driver.rings.written(&chain, bytes)),
        (chain.head, b"pong".to_vec())
    );

    handle.set_size(80, 25);
    while driver.registers.config(0, 4) != [80, 0, 25, 0] {
        driver.registers.wait().unwrap();
    }
    driver.registers.write_config(8, &u32::from(b'!').to_le_bytes());
    host.read_exact(&mut ping[..1]).unwrap();
    assert_eq!(ping[0], b'!');

    driver.initialise(u64::MAX).unwrap();
    driver.request(TX_QUEUE, &[b"and "], &[]).unwrap();
    host.read_exact(&mut ping).unwrap();
    assert_eq!(&ping, b"and ");
}

#[test]
fn last_words_need_no_driver() {
    let (mut host, theirs) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let (device, _) = Console::new(theirs.into(), None).unwrap();
    let mut driver = Driver::at_reset(device).unwrap();
    for byte in *b"no driver" {
        driver.registers.write_config(8, &u32::from(byte).to_le_bytes());
    }
    // Not the emergency's bytes: without a driver they have no effect.
    driver.registers.write_config(0, &[b'?'; 4]);
    let mut words = [0; 9];
    host.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"no driver");
    assert_eq!(driver.registers.status(), 0);
}
