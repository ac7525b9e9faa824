//! virtio-mmio as a driver meets it: VIRTIO 1.2 §2.1, §2.4, §3.1.1, §4.2.2, and the rows of the threat
//! table in `transport`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::sync::Arc;

use kata_virtio::mock::driver::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use kata_virtio::mock::{Act, Director, Driver, Echo, MEMORY_BYTES, Registers, Rings};
use kata_virtio::{COMMON_FEATURES, Device, Kind, Memory, Meter, Signals};
use virtio_queue::Queue;

const QUEUE: u16 = 0;
const STATUS: u64 = 0x070;
const QUEUE_SELECT: u64 = 0x030;
const QUEUE_READY: u64 = 0x044;
const ACTIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const CONFIG_CHANGE: u32 = 2;

/// A device that nobody has talked to.
fn at_reset() -> (Driver, Director) {
    let (device, director) = Echo::new().unwrap();
    (Driver::at_reset(device).unwrap(), director)
}

/// A device that is served.
fn active() -> (Driver, Director) {
    let (mut driver, director) = at_reset();
    driver.initialise(u64::MAX).unwrap();
    (driver, director)
}

fn figures(driver: &Driver) -> HashMap<&'static str, u64> {
    driver.registers.mmio.figures().into_iter().collect()
}

fn echoes(driver: &mut Driver) {
    assert_eq!(
        driver.request(QUEUE, &[b"hear ", b"me"], &[3, 9]).unwrap(),
        b"hear me"
    );
}

/// An interrupt of a used buffer may still be on its way when the driver has seen the buffer.
fn hears_of_a_change(driver: &mut Driver) {
    while driver.registers.wait().unwrap() & CONFIG_CHANGE == 0 {}
}

#[test]
fn the_registers_say_what_the_device_is() {
    let (mut driver, _director) = at_reset();
    let identity = [0x000, 0x004, 0x008, 0x00c].map(|offset| driver.registers.read(offset));
    assert_eq!(identity, [0x7472_6976, 2, 3, u32::from_le_bytes(*b"kata")]);
    assert_eq!(driver.registers.mmio.kind(), Kind::Console);
    assert_eq!(driver.registers.offered(), COMMON_FEATURES);
    assert_eq!(
        [0, 1, 2, 70].map(|queue| driver.registers.queue_size_max(queue)),
        [16, 8, 0, 0]
    );
    // There are no shared memory regions: their length is -1.
    driver.registers.write(0x0ac, 1);
    let region = [0x0b0, 0x0b4, 0x0b8, 0x0bc].map(|offset| driver.registers.read(offset));
    assert_eq!(region, [u32::MAX; 4]);
    driver.registers.write(0x014, 2);
    assert_eq!(driver.registers.read(0x010), 0, "features have two words");
    assert_eq!(figures(&driver)["accesses_refused"], 0);
}

#[test]
fn a_driver_that_keeps_the_rules_is_served_by_a_thread_of_the_devices_name() {
    let (mut driver, director) = active();
    assert_eq!(driver.registers.status(), ACTIVE);
    echoes(&mut driver);
    let chain = driver.rings.offer_indirect(1, &[b"indirect"], &[8]).unwrap();
    driver.kick(1).unwrap();
    let (head, bytes) = driver.wait_used(1).unwrap();
    assert_eq!(
        (head, driver.rings.written(&chain, bytes)),
        (chain.head, b"indirect".to_vec())
    );
    let story = director.story();
    assert_eq!(
        (story.thread.as_str(), story.activations),
        ("virtio-console", vec![COMMON_FEATURES])
    );
    assert_eq!(driver.registers.mmio.meter().figures(), [("requests", 2)]);
    assert_eq!(figures(&driver)["accesses_refused"], 0);
}

#[test]
fn without_event_indexes_and_by_the_register_it_is_served_as_well() {
    let (mut driver, director) = at_reset();
    driver.initialise(VERSION_1).unwrap();
    for _ in 0..100 {
        let chain = driver.rings.offer(QUEUE, &[b"kick"], &[4]).unwrap();
        driver.registers.notify(QUEUE);
        assert_eq!(driver.wait_used(QUEUE).unwrap(), (chain.head, 4));
    }
    assert_eq!(director.story().activations, [VERSION_1]);
}

#[test]
fn features_that_were_not_offered_or_are_too_few_are_refused() {
    for features in [
        0,
        EVENT_IDX,
        VERSION_1 | 1,
        VERSION_1 | 1 << 34,
        VERSION_1 | 1 << 40,
        u64::MAX,
    ] {
        let (mut driver, director) = at_reset();
        assert!(driver.registers.add_status(ACKNOWLEDGE));
        assert!(driver.registers.add_status(DRIVER));
        driver.registers.choose(features);
        assert!(!driver.registers.add_status(FEATURES_OK), "{features:#x}");
        assert!(driver.registers.go().is_err());
        assert_eq!(driver.registers.status(), ACKNOWLEDGE | DRIVER);
        assert!(director.story().activations.is_empty());
        // The driver may choose again.
        driver.registers.choose(VERSION_1);
        assert!(driver.registers.add_status(FEATURES_OK));
    }
}

#[test]
fn features_are_chosen_in_their_time_only() {
    let (mut driver, director) = at_reset();
    driver.registers.choose(u64::MAX);
    driver.registers.negotiate(VERSION_1).unwrap();
    driver.registers.choose(COMMON_FEATURES);
    driver.registers.go().unwrap();
    driver.registers.choose(COMMON_FEATURES);
    assert_eq!(director.story().activations, [VERSION_1]);
    assert_eq!(driver.registers.mmio.state().features, VERSION_1);
    let refused = figures(&driver)["accesses_refused"];
    driver.registers.write(0x024, 2);
    driver.registers.write(0x020, 0);
    assert_eq!(
        figures(&driver)["accesses_refused"],
        refused,
        "a word that does not exist is written as 0"
    );
    driver.registers.write(0x020, 1);
    assert_eq!(figures(&driver)["accesses_refused"], refused + 1);
}

#[test]
fn steps_out_of_order_change_nothing() {
    let (mut driver, _director) = at_reset();
    for bits in [DRIVER, FEATURES_OK, DRIVER_OK, ACKNOWLEDGE << 4, ACKNOWLEDGE << 8] {
        driver.registers.write(STATUS, bits);
        assert_eq!(driver.registers.status(), 0, "{bits:#x}");
    }
    driver.registers.write(STATUS, ACKNOWLEDGE);
    driver.registers.write(STATUS, ACKNOWLEDGE | DRIVER_OK);
    driver.registers.write(STATUS, ACKNOWLEDGE | DRIVER);
    driver.registers.write(STATUS, ACKNOWLEDGE);
    driver.registers.write(STATUS, DRIVER);
    assert_eq!(driver.registers.status(), ACKNOWLEDGE | DRIVER);
    driver.registers.write(STATUS, ACKNOWLEDGE | DRIVER | NEEDS_RESET);
    assert_eq!(
        driver.registers.status(),
        ACKNOWLEDGE | DRIVER,
        "the device alone says that"
    );
}

#[test]
fn a_driver_that_has_given_up_must_reset() {
    let (mut driver, _director) = at_reset();
    driver.registers.negotiate(u64::MAX).unwrap();
    assert!(driver.registers.add_status(FAILED));
    assert!(driver.registers.go().is_err());
    driver.initialise(u64::MAX).unwrap();
    echoes(&mut driver);
}

#[test]
fn queues_are_set_up_between_features_and_driver_ok_only() {
    let (mut driver, director) = at_reset();
    let areas = driver.rings.queues()[0].addresses();
    assert!(!driver.registers.set_up_at(QUEUE, 16, areas), "before features");
    driver.registers.negotiate(u64::MAX).unwrap();
    assert!(!driver.registers.set_up_at(2, 16, areas), "no such queue");
    assert!(driver.registers.set_up_at(QUEUE, 16, areas));
    // A queue that is ready keeps what it has, until the driver takes it back.
    driver.registers.set_up_at(QUEUE, 4, [0x10, 0x20, 0x30]);
    let ring = driver.registers.mmio.state().queues[0];
    assert_eq!((ring.size, ring.areas), (16, areas));
    driver.registers.write(QUEUE_READY, 0);
    assert_eq!(driver.registers.read(QUEUE_READY), 0);
    assert!(driver.registers.set_up_at(QUEUE, 16, areas));
    driver.registers.go().unwrap();
    let refused = figures(&driver)["accesses_refused"];
    driver.registers.set_up_at(QUEUE, 4, [0x10, 0x20, 0x30]);
    driver.registers.write(QUEUE_READY, 0);
    assert_eq!(driver.registers.read(QUEUE_READY), 1);
    assert!(
        !driver
            .registers
            .set_up_at(1, 8, driver.rings.queues()[1].addresses())
    );
    assert_eq!(figures(&driver)["accesses_refused"], refused + 8 + 1 + 8);
    echoes(&mut driver);
    assert_eq!(director.story().requests, 1);
}

#[test]
fn rings_that_cannot_be_are_not_ready() {
    let (mut driver, _director) = at_reset();
    driver.registers.negotiate(u64::MAX).unwrap();
    let end = u64::try_from(MEMORY_BYTES).unwrap();
    for bad in [
        [0x1008, 0x2000, 0x3000],
        [0x1000, 0x2001, 0x3000],
        [0x1000, 0x2000, 0x3002],
        [0x1000, 0, 0x3000],
        [end - 16, 0x2000, 0x3000],
        [0x1000, end, 0x3000],
        [0x1000, 0x2000, u64::MAX - 3],
    ] {
        assert!(!driver.registers.set_up_at(QUEUE, 16, bad), "{bad:x?}");
    }
    for size in [0, 3, 17, 32, 0x1_0010] {
        driver.registers.set_up_at(QUEUE, size, [0x1008, 0, 0]);
        assert_eq!(driver.registers.mmio.state().queues[0].size, 16, "{size}");
    }
    assert!(driver.registers.set_up_at(QUEUE, 4, [0x1000, 0x2000, 0x3000]));
}

#[test]
fn kicks_of_queues_left_out_or_missing_are_nothing() {
    let (mut driver, director) = at_reset();
    driver.registers.notify(QUEUE);
    driver.registers.negotiate(u64::MAX).unwrap();
    assert!(driver.registers.set_up(1, &driver.rings.queues()[1]));
    driver.registers.go().unwrap();
    driver.registers.notify(QUEUE);
    driver.registers.notify(2);
    driver.registers.write(0x050, 0x1_0001);
    assert_eq!(figures(&driver)["accesses_refused"], 2);
    assert_eq!(driver.request(1, &[b"one"], &[3]).unwrap(), b"one");
    assert_eq!(director.story().requests, 1);
}

#[test]
fn accesses_that_no_register_has_read_zeroes_and_write_nothing() {
    let (mut driver, _director) = active();
    let before = driver.registers.mmio.state();
    let mut accesses = 0;
    for offset in (0..0x140).chain([0xffe, 0x1000, u64::MAX - 1, u64::MAX]) {
        for width in [0, 1, 2, 3, 4, 5, 8, 16] {
            let registers = (0..0x100).contains(&offset) && offset % 4 == 0 && width == 4;
            let fields = (0x100..0x10c).contains(&offset) && [1, 2, 4, 8].contains(&width);
            if registers || fields && offset - 0x100 + width <= 12 {
                continue;
            }
            let mut data = vec![0xaa; usize::try_from(width).unwrap()];
            driver.registers.mmio.write(offset, &data);
            driver.registers.mmio.read(offset, &mut data);
            assert!(data.iter().all(|&byte| byte == 0), "{offset:#x} {width}");
            accesses += 2;
        }
    }
    assert_eq!(figures(&driver)["accesses_refused"], accesses);
    let write_only = [
        0x014, 0x020, 0x024, 0x030, 0x038, 0x050, 0x064, 0x080, 0x0a4, 0x0ac,
    ];
    assert!(
        write_only
            .iter()
            .all(|&offset| driver.registers.read(offset) == 0)
    );
    for read_only in [
        0x000, 0x004, 0x008, 0x00c, 0x010, 0x034, 0x060, 0x0b0, 0x0c0, 0x0fc,
    ] {
        driver.registers.write(read_only, 1);
    }
    assert_eq!(figures(&driver)["accesses_refused"], accesses + 20);
    assert_eq!(driver.registers.mmio.state(), before);
    echoes(&mut driver);
}

#[test]
fn the_configuration_is_read_and_written_by_fields() {
    let (mut driver, director) = at_reset();
    assert_eq!(driver.registers.config(0, 12), (1..=12).collect::<Vec<u8>>());
    let mut field = [0; 8];
    driver.registers.mmio.read(0x104, &mut field);
    assert_eq!(field, [5, 6, 7, 8, 9, 10, 11, 12]);
    driver.registers.write_config(0, &[99]);
    assert_eq!(director.story().config_writes, [], "there is no driver yet");
    driver.registers.negotiate(u64::MAX).unwrap();
    driver.registers.write_config(1, &[20]);
    assert_eq!(
        driver.registers.config(0, 3),
        [1, 20, 3],
        "at rest it is written at once"
    );
    driver.registers.go().unwrap();
    for byte in 0..200 {
        driver.registers.write_config(8, &[byte, 0, 0, byte]);
    }
    driver.registers.mmio.pause().unwrap();
    driver.registers.write_config(2, &[30, 40]);
    assert_eq!(
        driver.registers.config(0, 12),
        [1, 20, 30, 40, 5, 6, 7, 8, 199, 0, 0, 199]
    );
    let story = director.story();
    assert_eq!(story.config_writes.len(), 202, "none is lost, however many come");
    assert_eq!(story.config_writes[201], (2, vec![30, 40]));
}

#[test]
fn a_new_configuration_is_another_generation_and_an_interrupt() {
    let (mut driver, director) = active();
    let before = driver.registers.read(0x0fc);
    director.direct(Act::Configure(vec![7; 20]));
    hears_of_a_change(&mut driver);
    assert_ne!(driver.registers.read(0x0fc), before);
    assert_eq!(driver.registers.config(0, 20), [7; 20]);
    director.direct(Act::Configure(vec![8; 2]));
    hears_of_a_change(&mut driver);
    let mut beyond = [1; 4];
    driver.registers.mmio.read(0x100, &mut beyond);
    assert_eq!(beyond, [0; 4], "the configuration has become shorter");
}

#[test]
fn interrupts_that_nobody_acknowledges_are_raised_all_the_same() {
    let (mut driver, _director) = active();
    for round in 1..=3 {
        driver.rings.queue(QUEUE).ask_for_signal();
        let chain = driver.rings.offer(QUEUE, &[b"?"], &[1]).unwrap();
        driver.registers.notify(QUEUE);
        // What is kicked before a pause is served before it.
        driver.registers.mmio.pause().unwrap();
        assert_eq!(driver.rings.used(QUEUE), Some((chain.head, 1)));
        assert_eq!(
            (driver.registers.read(0x060), figures(&driver)["interrupts"]),
            (1, round)
        );
        driver.registers.mmio.resume().unwrap();
    }
    driver.registers.write(0x064, 2);
    assert_eq!(driver.registers.read(0x060), 1, "only what is acknowledged goes");
    driver.registers.write(0x064, 1);
    assert_eq!(driver.registers.read(0x060), 0);
}

/// A device with any queues, that does nothing.
struct Idle(Vec<u16>);

impl Device for Idle {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.0.clone()
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn process(&mut self, _: &Memory, _: &mut [&mut Queue]) -> Signals {
        Signals::default()
    }

    fn reset(&mut self) {}

    fn meter(&self) -> Arc<dyn Meter> {
        Arc::new(Echo::new().unwrap().1)
    }
}

#[test]
fn queues_that_cannot_be_are_the_embedders_mistake() {
    let memory = || Memory::clone(&Rings::new(&[]).unwrap().memory());
    for sizes in [vec![12], vec![256, 0], vec![16; 65]] {
        let error = Registers::new(Box::new(Idle(sizes)), memory()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
    let mut most = Driver::new(Idle(vec![2; 64])).unwrap();
    assert_eq!(
        (most.registers.mmio.kicks().len(), most.registers.status()),
        (64, ACTIVE)
    );
}

#[test]
fn a_broken_queue_is_told_and_healed_by_a_reset() {
    let (mut driver, director) = active();
    echoes(&mut driver);
    driver.rings.queue(QUEUE).corrupt_avail_index(9999);
    driver.registers.kick(QUEUE).unwrap();
    hears_of_a_change(&mut driver);
    assert_eq!(driver.registers.status(), ACTIVE | NEEDS_RESET);
    assert!(driver.registers.mmio.is_broken());
    driver.initialise(u64::MAX).unwrap();
    assert_eq!(driver.registers.status(), ACTIVE);
    echoes(&mut driver);
    assert_eq!(director.story().resets, 1);
}

#[test]
fn a_device_that_asks_for_a_reset_is_left_alone_until_then() {
    let (mut driver, director) = active();
    director.direct(Act::AskForReset);
    hears_of_a_change(&mut driver);
    driver.rings.offer(QUEUE, &[b"?"], &[1]).unwrap();
    driver.registers.kick(QUEUE).unwrap();
    director.direct(Act::AskForReset);
    // A worker that stops and begins looks at everything.
    driver.registers.mmio.pause().unwrap();
    driver.registers.mmio.resume().unwrap();
    driver.registers.mmio.pause().unwrap();
    assert_eq!(director.story().requests, 0);
    assert_eq!(driver.registers.interrupted(), None, "it is told once");
    driver.registers.mmio.resume().unwrap();
    driver.initialise(u64::MAX).unwrap();
    echoes(&mut driver);
}

#[test]
fn a_device_without_its_hosts_side_is_broken_but_not_lost() {
    let (mut driver, director) = active();
    director.direct(Act::FailPoll);
    hears_of_a_change(&mut driver);
    assert!(driver.registers.mmio.is_broken());
    driver.initialise(u64::MAX).unwrap();
    echoes(&mut driver);
}

#[test]
fn a_device_that_panics_is_lost_and_its_transport_is_not() {
    let (mut driver, director) = active();
    director.direct(Act::Panic);
    hears_of_a_change(&mut driver);
    assert_eq!(driver.registers.status(), ACTIVE | NEEDS_RESET);
    driver.registers.write_config(0, &[1]);
    assert!(driver.registers.mmio.pause().is_err());
    driver.registers.mmio.resume().unwrap();
    assert!(director.is_dropped());
    driver.registers.reset();
    assert_eq!(driver.registers.status(), NEEDS_RESET);
    driver.initialise(u64::MAX).unwrap();
    driver.registers.notify(QUEUE);
    assert_eq!(driver.registers.status(), ACTIVE | NEEDS_RESET);
    let states: Vec<_> = driver
        .registers
        .mmio
        .state()
        .queues
        .iter()
        .map(|queue| queue.next_avail)
        .collect();
    assert_eq!(states, [0, 0]);
}

#[test]
fn a_reset_in_flight_leaves_everything_as_at_the_beginning() {
    let (mut driver, director) = at_reset();
    let untouched = driver.registers.mmio.state();
    for round in 1..=50 {
        driver.initialise(u64::MAX).unwrap();
        director.direct(Act::Configure(vec![9]));
        for _ in 0..8 {
            driver.rings.offer(QUEUE, &[&[1; 4096]], &[4096]).unwrap();
            driver.registers.kick(QUEUE).unwrap();
        }
        driver.registers.reset();
        assert_eq!(driver.registers.status(), 0);
        let mut state = driver.registers.mmio.state();
        state.config_generation = untouched.config_generation;
        assert_eq!(state, untouched);
        assert_eq!(director.story().resets, round);
        assert_eq!(driver.registers.config(0, 12).len(), 12);
        driver.registers.interrupted();
    }
    driver.initialise(u64::MAX).unwrap();
    echoes(&mut driver);
}

#[test]
fn a_pause_keeps_positions_and_kicks() {
    let (mut driver, director) = active();
    for round in 0..40 {
        echoes(&mut driver);
        driver.registers.mmio.pause().unwrap();
        let state = driver.registers.mmio.state();
        assert_eq!(state.queues[0].next_avail, 2 * round + 1);
        assert_eq!((state.queues[0].next_used, state.status), (2 * round + 1, ACTIVE));
        let chain = driver.rings.offer(QUEUE, &[b"later"], &[5]).unwrap();
        driver.kick(QUEUE).unwrap();
        assert_eq!(driver.rings.used(QUEUE), None);
        driver.registers.mmio.resume().unwrap();
        assert_eq!(driver.wait_used(QUEUE).unwrap(), (chain.head, 5));
    }
    assert_eq!(
        (director.story().resets, director.story().activations.len()),
        (0, 1)
    );
}

#[test]
fn a_pause_waits_for_what_is_in_flight_and_takes_nothing_more() {
    let (mut driver, director) = active();
    director.direct(Act::Linger);
    let chains = [b"one", b"two"].map(|sent| {
        let chain = driver.rings.offer(QUEUE, &[sent], &[3]).unwrap();
        driver.registers.notify(QUEUE);
        chain
    });
    driver.registers.mmio.pause().unwrap();
    let ring = driver.registers.mmio.state().queues[0];
    assert_eq!((ring.next_avail, ring.next_used, ring.ready), (2, 2, true));
    for chain in &chains {
        assert_eq!(driver.rings.used(QUEUE), Some((chain.head, 3)));
    }
    assert!(
        driver.registers.interrupted().is_some(),
        "the driver hears of the answers"
    );
    assert_eq!(director.story().requests, 2);
    // It lingers on: what comes now is answered at the next pause.
    driver.registers.mmio.resume().unwrap();
    let chain = driver.rings.offer(QUEUE, &[b"three"], &[5]).unwrap();
    driver.registers.notify(QUEUE);
    driver.registers.mmio.pause().unwrap();
    assert_eq!(driver.rings.used(QUEUE), Some((chain.head, 5)));
    driver.initialise(u64::MAX).unwrap();
    driver.registers.mmio.resume().unwrap();
    echoes(&mut driver);
}

#[test]
fn a_device_that_becomes_active_while_paused_is_served_from_the_resume_on() {
    let (mut driver, director) = at_reset();
    driver.registers.mmio.pause().unwrap();
    driver.initialise(u64::MAX).unwrap();
    let chain = driver.rings.offer(QUEUE, &[b"soon"], &[4]).unwrap();
    driver.kick(QUEUE).unwrap();
    assert_eq!(
        (director.story().requests, director.story().activations.len()),
        (0, 1)
    );
    driver.registers.mmio.resume().unwrap();
    assert_eq!(driver.wait_used(QUEUE).unwrap(), (chain.head, 4));
}

#[test]
fn the_state_says_what_the_driver_said() {
    fn keeps<T: serde::Serialize + serde::de::DeserializeOwned>(state: T) -> T {
        state
    }
    let (mut driver, _director) = active();
    echoes(&mut driver);
    driver.registers.write(QUEUE_SELECT, 1);
    let state = keeps(driver.registers.mmio.state());
    assert_eq!(
        (state.device, state.status, state.features),
        (3, ACTIVE, COMMON_FEATURES)
    );
    assert_eq!((state.queue_select, state.driver_features_select), (1, 1));
    let queue = state.queues[0];
    assert_eq!(
        (queue.size, queue.ready, queue.next_avail, queue.next_used),
        (16, true, 1, 1)
    );
    assert_eq!(queue.areas, driver.rings.queues()[0].addresses());
    echoes(&mut driver);
}
