//! The balloon between the mock's queues and memory of the host: what each rule says, and what a hostile
//! driver can try (the table in `kata_virtio::balloon`).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod own_queues;
mod questions;
mod registers;
mod script;

use std::fs::File;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use kata_virtio::balloon::{
    Balloon, DEFLATE_QUEUE, F_DEFLATE_ON_OOM, F_PAGE_POISON, F_REPORTING, F_STATS_VQ, Handle, INFLATE_QUEUE,
    PAGE_BYTES, REPORTING_QUEUE, REPORTING_QUEUE_BY_THE_BOOK, STATISTICS_QUEUE,
};
use kata_virtio::mock::{Bench, Buffer, MEMORY_BYTES};
use kata_virtio::{COMMON_FEATURES, Device, Kind, Memory, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap};

const MIB: u32 = 1 << 20;

/// A balloon whose driver chose everything but the poison, as Linux does without `init_on_free`.
fn balloon() -> (Bench<Balloon>, Handle) {
    let (device, handle) = Balloon::new().unwrap();
    let features = device.features() & !F_PAGE_POISON;
    (Bench::with_features(device, features).unwrap(), handle)
}

fn figure(bench: &Bench<Balloon>, name: &str) -> u64 {
    let figures = bench.device.meter().figures();
    figures.iter().find(|figure| figure.0 == name).unwrap().1
}

/// Whether the device wants to be polled now.
fn wakes(device: &impl Device) -> bool {
    let events = device.events().unwrap();
    let mut fds = [PollFd::from_borrowed_fd(events, PollFlags::IN)];
    poll(&mut fds, Some(&rustix::time::Timespec::default())).unwrap() > 0
}

/// Bytes of the host that the guest's memory takes.
fn resident(bench: &Bench<Balloon>) -> u64 {
    resident_of(bench.rings.memory_file())
}

fn resident_of(file: &File) -> u64 {
    u64::try_from(rustix::fs::fstat(file).unwrap().st_blocks).unwrap() * 512
}

/// Makes memory resident, far from the rings.
fn fill(bench: &Bench<Balloon>, start: u64, bytes: u32) {
    let bytes = usize::try_from(bytes).unwrap();
    bench.rings.write(start, &vec![0xa5; bytes]);
}

fn free(start: u64, len: u32) -> Buffer {
    Buffer {
        address: start,
        len,
        writable: true,
    }
}

/// Offers a chain of free pages and runs the device until it is returned.
fn report(bench: &mut Bench<Balloon>, queue: u16, buffers: &[Buffer]) {
    let head = bench.rings.queue(queue).add(buffers).unwrap();
    let used = bench.run_until(|rings| rings.used(queue)).unwrap();
    assert_eq!(used, (head, 0));
}

fn numbers(pages: impl IntoIterator<Item = u32>) -> Vec<u8> {
    pages.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// An entry of statistics.
fn entry(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn it_is_a_balloon() {
    let (device, _) = Balloon::new().unwrap();
    assert_eq!(device.kind(), Kind::Balloon);
    let without = COMMON_FEATURES | F_STATS_VQ | F_DEFLATE_ON_OOM;
    assert_eq!(device.features(), without | F_REPORTING | F_PAGE_POISON);
    assert_eq!(device.queue_sizes(), [32; 5]);
    assert_eq!(device.config(), [0; 16]);
    let device = device.without_reporting();
    assert_eq!(device.features(), without);
    assert_eq!(device.queue_sizes(), [32; 3]);
}

#[test]
fn reported_pages_leave_the_host() {
    let (mut bench, _) = balloon();
    fill(&bench, u64::from(16 * MIB), 32 * MIB);
    let before = resident(&bench);
    let buffers: Vec<Buffer> = (0..8)
        .map(|index| free(u64::from((16 + 4 * index) * MIB), 2 * MIB))
        .collect();
    report(&mut bench, REPORTING_QUEUE, &buffers);
    assert_eq!(before - resident(&bench), 16 << 20);
    assert_eq!(bench.rings.read(u64::from(16 * MIB), 4), [0; 4]);
    assert_eq!(
        bench.rings.read(u64::from(18 * MIB), 4),
        [0xa5; 4],
        "its neighbour"
    );
    assert_eq!(figure(&bench, "reported_bytes"), 16 << 20);
    assert_eq!(figure(&bench, "discarded_bytes"), 16 << 20);
    assert_eq!(figure(&bench, "errors") + figure(&bench, "malformed"), 0);
}

#[test]
fn reports_come_by_any_of_the_numbers_in_use() {
    for queue in [REPORTING_QUEUE, REPORTING_QUEUE_BY_THE_BOOK] {
        let (mut bench, _) = balloon();
        report(&mut bench, queue, &[free(1 << 24, 1 << 16)]);
        assert_eq!(figure(&bench, "reported_bytes"), 1 << 16);
    }
    let (device, _) = Balloon::new().unwrap();
    let mut bench = Bench::with_features(device, COMMON_FEATURES | F_REPORTING).unwrap();
    report(&mut bench, STATISTICS_QUEUE, &[free(1 << 24, 1 << 16)]);
    assert_eq!(figure(&bench, "reported_bytes"), 1 << 16);
}

#[test]
fn a_driver_without_the_feature_reports_nothing() {
    let (device, _) = Balloon::new().unwrap();
    let mut bench = Bench::with_features(device, COMMON_FEATURES).unwrap();
    for queue in [STATISTICS_QUEUE, REPORTING_QUEUE, REPORTING_QUEUE_BY_THE_BOOK] {
        bench.rings.queue(queue).add(&[free(1 << 24, 1 << 16)]).unwrap();
        assert_eq!(bench.step().unwrap(), Signals::default());
        assert_eq!(bench.rings.used(queue), None);
    }
    assert_eq!(figure(&bench, "discarded_bytes"), 0);
}

#[test]
fn inflated_pages_leave_the_host() {
    let (mut bench, _) = balloon();
    fill(&bench, u64::from(16 * MIB), 4 * MIB);
    // Linux hands them out from the top, and buffers may be cut inside of a number.
    let pages = numbers((4096..4352).rev());
    let (first, second) = pages.split_at(514);
    let buffers = [first, second].map(|part| bench.rings.readable(part));
    let before = resident(&bench);
    let head = bench.rings.queue(INFLATE_QUEUE).add(&buffers).unwrap();
    bench.step().unwrap();
    assert_eq!(bench.rings.used(INFLATE_QUEUE), Some((head, 0)));
    assert_eq!(before - resident(&bench), 1 << 20);
    assert_eq!(bench.rings.read(u64::from(17 * MIB), 1), [0xa5]);
    assert_eq!(figure(&bench, "inflated_bytes"), 1 << 20);
    bench
        .request(DEFLATE_QUEUE, &[&numbers(4096..4100)], &[])
        .unwrap();
    assert_eq!(figure(&bench, "deflated_bytes"), 4 * PAGE_BYTES);
    assert_eq!(figure(&bench, "malformed"), 0);
}

#[test]
fn pages_come_back_as_zeroes() {
    let (mut bench, _) = balloon();
    fill(&bench, u64::from(16 * MIB), MIB);
    bench.request(INFLATE_QUEUE, &[&numbers([4096])], &[]).unwrap();
    assert_eq!(bench.rings.read(u64::from(16 * MIB), 4096), [0; 4096]);
    bench.rings.write(u64::from(16 * MIB), b"used again");
    assert_eq!(bench.rings.read(u64::from(16 * MIB), 10), b"used again");
}

#[test]
fn the_target_reaches_the_driver_and_its_answer_the_host() {
    let (mut bench, handle) = balloon();
    handle.set_target_bytes(10 * PAGE_BYTES + 17);
    assert_eq!(handle.target_bytes(), 10 * PAGE_BYTES);
    assert!(wakes(&bench.device));
    assert!(bench.step().unwrap().config);
    assert_eq!(bench.device.config()[..8], [10, 0, 0, 0, 0, 0, 0, 0]);
    assert!(!bench.step().unwrap().config, "once");
    bench.device.write_config(4, &7u32.to_le_bytes());
    assert_eq!(handle.actual_bytes(), 7 * PAGE_BYTES);
    bench.device.write_config(0, &9u32.to_le_bytes());
    assert_eq!(bench.device.config()[..8], [10, 0, 0, 0, 7, 0, 0, 0]);
    handle.set_target_bytes(u64::MAX);
    assert_eq!(handle.target_bytes(), u64::from(u32::MAX) * PAGE_BYTES);
    bench.reset();
    assert_eq!(handle.actual_bytes(), 0, "another driver, an empty balloon");
}

#[test]
fn statistics_are_asked_for_and_delivered() {
    let (mut bench, handle) = balloon();
    let first = bench.rings.offer(STATISTICS_QUEUE, &[&entry(4, 1)], &[]).unwrap();
    bench.step().unwrap();
    assert_eq!(
        bench.rings.used(STATISTICS_QUEUE),
        None,
        "held until somebody asks"
    );

    let (sender, receiver) = channel();
    let also = sender.clone();
    handle.statistics(move |statistics| sender.send(statistics).unwrap());
    handle.statistics(move |statistics| also.send(statistics).unwrap());
    assert!(wakes(&bench.device));
    assert!(bench.step().unwrap().queue(STATISTICS_QUEUE));
    assert_eq!(bench.rings.used(STATISTICS_QUEUE), Some((first.head, 0)));
    assert!(receiver.try_recv().is_err(), "what it said before is old");

    let bytes = [entry(4, 5000), entry(6, 7000), entry(99, 1)].concat();
    bench.rings.offer(STATISTICS_QUEUE, &[&bytes], &[]).unwrap();
    bench.step().unwrap();
    assert_eq!(bench.rings.used(STATISTICS_QUEUE), None);
    for _ in 0..2 {
        let statistics = receiver.try_recv().unwrap();
        assert_eq!(statistics.free_bytes, Some(5000));
        assert_eq!(statistics.available_bytes, Some(7000));
        assert_eq!(statistics.total_bytes, None);
    }
    let gone = receiver.recv_timeout(Duration::ZERO);
    assert_eq!(gone, Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_second_buffer_for_statistics_is_returned() {
    let (mut bench, _) = balloon();
    bench.rings.offer(STATISTICS_QUEUE, &[&entry(4, 1)], &[]).unwrap();
    let second = bench.rings.offer(STATISTICS_QUEUE, &[&entry(4, 2)], &[]).unwrap();
    bench.step().unwrap();
    assert_eq!(bench.rings.used(STATISTICS_QUEUE), Some((second.head, 0)));
    assert_eq!(bench.rings.used(STATISTICS_QUEUE), None);
    assert_eq!(figure(&bench, "malformed"), 1);
}

#[test]
fn a_poison_keeps_reported_pages() {
    let (device, _) = Balloon::new().unwrap();
    let mut bench = Bench::new(device).unwrap();
    fill(&bench, u64::from(16 * MIB), MIB);
    bench.device.write_config(12, &0xaaaa_aaaa_u32.to_le_bytes());
    report(&mut bench, REPORTING_QUEUE, &[free(1 << 24, MIB)]);
    assert_eq!(bench.rings.read(1 << 24, 4), [0xa5; 4]);
    assert_eq!(
        (figure(&bench, "kept_bytes"), figure(&bench, "discarded_bytes")),
        (1 << 20, 0)
    );
    // Inflated ones are the host's all the same.
    bench.request(INFLATE_QUEUE, &[&numbers([4096])], &[]).unwrap();
    assert_eq!(bench.rings.read(1 << 24, 4), [0; 4]);
    bench.device.write_config(12, &[0; 4]);
    report(&mut bench, REPORTING_QUEUE, &[free(1 << 24, MIB)]);
    assert_eq!(figure(&bench, "discarded_bytes"), (1 << 20) + PAGE_BYTES);
}

#[test]
fn what_is_not_the_guests_stays() {
    let (mut bench, _) = balloon();
    let end = u64::try_from(MEMORY_BYTES).unwrap();
    fill(&bench, end - u64::from(MIB), MIB);
    let before = resident(&bench);
    let buffers = [
        free(end - 4096, 4 * MIB),
        free(1 << 50, 4096),
        free(u64::MAX - 4095, 4095),
    ];
    report(&mut bench, REPORTING_QUEUE, &buffers);
    assert_eq!(before - resident(&bench), 4096, "the part inside");
    assert_eq!(figure(&bench, "malformed"), 2);
    assert_eq!(bench.rings.memory_file().metadata().unwrap().len(), end);
    let pages = numbers([u32::MAX, u32::try_from(end / PAGE_BYTES).unwrap(), 0x2000]);
    bench.request(INFLATE_QUEUE, &[&pages], &[]).unwrap();
    assert_eq!(figure(&bench, "inflated_bytes"), PAGE_BYTES);
    assert_eq!(figure(&bench, "malformed"), 4);
    assert_eq!(figure(&bench, "errors"), 0);
}

#[test]
fn parts_of_pages_stay() {
    let (mut bench, _) = balloon();
    fill(&bench, 1 << 24, MIB);
    let before = resident(&bench);
    report(&mut bench, REPORTING_QUEUE, &[free((1 << 24) + 1, 3 * 4096 - 2)]);
    assert_eq!(before - resident(&bench), 4096);
    report(&mut bench, REPORTING_QUEUE, &[free((1 << 24) + 0x4001, 4096)]);
    assert_eq!(before - resident(&bench), 4096);
    assert_eq!(figure(&bench, "malformed"), 1, "no whole page in it");
}

#[test]
fn requests_of_the_wrong_form_are_returned() {
    let (mut bench, _) = balloon();
    for queue in [INFLATE_QUEUE, DEFLATE_QUEUE] {
        bench.request(queue, &[b"12345"], &[]).unwrap();
        bench.request(queue, &[], &[8]).unwrap();
    }
    bench.request(REPORTING_QUEUE, &[b"1234"], &[]).unwrap();
    bench.request(STATISTICS_QUEUE, &[], &[10]).unwrap();
    for queue in [INFLATE_QUEUE, STATISTICS_QUEUE] {
        let outside = Buffer {
            address: 1 << 40,
            len: 40,
            writable: false,
        };
        let head = bench.rings.queue(queue).add(&[outside]).unwrap();
        let used = bench.run_until(|rings| rings.used(queue)).unwrap();
        assert_eq!(used, (head, 0));
    }
    assert_eq!(figure(&bench, "malformed"), 8);
    assert_eq!(figure(&bench, "discarded_bytes"), 0);
}

#[test]
fn endless_tables_are_cut_off() {
    let (mut bench, _) = balloon();
    let table = bench.rings.place(16 * 4096);
    let buffers = vec![free(1 << 24, 4096); 4096];
    bench
        .rings
        .queue(REPORTING_QUEUE)
        .add_indirect(table, &buffers)
        .unwrap();
    bench.run_until(|rings| rings.used(REPORTING_QUEUE)).unwrap();
    assert_eq!(
        (figure(&bench, "malformed"), figure(&bench, "reported_bytes")),
        (1, 0)
    );
    let buffers: Vec<Buffer> = (0..32)
        .map(|index| free((1 << 24) + 8192 * index, 4096))
        .collect();
    bench
        .rings
        .queue(REPORTING_QUEUE)
        .add_indirect(table, &buffers)
        .unwrap();
    bench.run_until(|rings| rings.used(REPORTING_QUEUE)).unwrap();
    assert_eq!(figure(&bench, "reported_bytes"), 32 * 4096);
}

#[test]
fn a_report_of_everything_takes_turns() {
    let (mut bench, _) = balloon();
    // Four times all the memory there is, most of it nowhere.
    let buffers = [
        free(0x10_0000, 63 * MIB),
        free(1 << 32, u32::MAX - 4095 - 63 * MIB),
    ];
    let head = bench.rings.queue(REPORTING_QUEUE).add(&buffers).unwrap();
    bench.step().unwrap();
    assert_eq!(bench.rings.used(REPORTING_QUEUE), None, "a turn has an end");
    assert!(wakes(&bench.device), "and the next one comes at once");
    let used = bench.run_until(|rings| rings.used(REPORTING_QUEUE)).unwrap();
    assert_eq!(used, (head, 0));
    assert_eq!(figure(&bench, "discarded_bytes"), 63 << 20);
    assert!(!wakes(&bench.device));
}

#[test]
fn a_flood_of_page_numbers_takes_turns() {
    let (mut bench, _) = balloon();
    // Every second page, so that none can be merged, again and again.
    let pages = numbers((0..16384).map(|index| 4096 + index * 2 % 8192));
    bench.rings.offer(INFLATE_QUEUE, &[&pages], &[]).unwrap();
    let mut turns = 1;
    while bench.rings.used(INFLATE_QUEUE).is_none() {
        bench.step().unwrap();
        turns += 1;
        assert!(
            figure(&bench, "inflated_bytes") <= turns * 512 * PAGE_BYTES,
            "512 calls a turn"
        );
    }
    assert_eq!(figure(&bench, "inflated_bytes"), 16384 * PAGE_BYTES);
    assert!(turns > 32);
}

#[test]
fn a_chain_that_changes_between_turns_is_judged_anew() {
    let (mut bench, _) = balloon();
    let head = bench
        .rings
        .queue(REPORTING_QUEUE)
        .add(&[free(0x10_0000, u32::MAX - 4095)])
        .unwrap();
    bench.step().unwrap();
    assert_eq!(bench.rings.used(REPORTING_QUEUE), None);
    let write = u16::try_from(virtio_bindings::virtio_ring::VRING_DESC_F_WRITE).unwrap();
    bench
        .rings
        .forge(REPORTING_QUEUE, head, free(0x10_0000, 4096), write, 0);
    bench.step().unwrap();
    assert_eq!(
        bench.rings.used(REPORTING_QUEUE),
        Some((head, 0)),
        "less than was done is done"
    );
    report(&mut bench, REPORTING_QUEUE, &[free(0x10_0000, 8192)]);
    assert_eq!(
        figure(&bench, "reported_bytes"),
        (63 << 20) + 8192,
        "and the next begins at its beginning"
    );
}

#[test]
fn a_broken_queue_is_dead_until_the_reset() {
    for queue in 0..5 {
        let (mut bench, handle) = balloon();
        bench.rings.queue(queue).corrupt_avail_index(30_000);
        assert!(bench.step().unwrap().needs_reset);
        bench.rings.queue(0).add(&[free(1 << 24, 4096)]);
        assert_eq!(bench.step().unwrap(), Signals::default());
        bench.reset();
        report(&mut bench, REPORTING_QUEUE, &[free(1 << 24, 4096)]);
        handle.set_target_bytes(1 << 20);
        assert!(bench.step().unwrap().config);
    }
}

#[test]
fn heads_out_of_range_break_the_queue() {
    for queue in [INFLATE_QUEUE, DEFLATE_QUEUE, STATISTICS_QUEUE, REPORTING_QUEUE] {
        let (mut bench, _) = balloon();
        bench.rings.publish(queue, 32);
        assert!(bench.step().unwrap().needs_reset, "{queue}");
    }
}

#[test]
fn a_balloon_goes_on_elsewhere() {
    let (mut bench, handle) = balloon();
    handle.set_target_bytes(3 * PAGE_BYTES);
    bench.device.write_config(4, &2u32.to_le_bytes());
    let held = bench.rings.offer(STATISTICS_QUEUE, &[&entry(4, 1)], &[]).unwrap();
    let head = bench
        .rings
        .queue(REPORTING_QUEUE)
        .add(&[free(0x10_0000, u32::MAX - 4095)])
        .unwrap();
    bench.step().unwrap();
    let (mut device, handle) = Balloon::new().unwrap();
    device.restore(&stored(bench.device.state()));
    assert_eq!(device.state(), bench.device.state());
    bench.device = device;
    assert_eq!(
        (handle.target_bytes(), handle.actual_bytes()),
        (3 * PAGE_BYTES, 2 * PAGE_BYTES)
    );
    let used = bench.run_until(|rings| rings.used(REPORTING_QUEUE)).unwrap();
    assert_eq!(used, (head, 0));
    assert_eq!(
        figure(&bench, "reported_bytes"),
        0,
        "the guest's memory was done before"
    );
    handle.statistics(|_| {});
    bench.step().unwrap();
    assert_eq!(bench.rings.used(STATISTICS_QUEUE), Some((held.head, 0)));
}

/// What a snapshot can store.
fn stored<T: serde::Serialize + serde::de::DeserializeOwned>(state: T) -> T {
    state
}

/// Guest memory of these mappings, one after the other from 16 MiB on, 1 MiB each, below it the mock's own.
fn memory_of(bench: &Bench<Balloon>, mappings: &[(ProtFlags, MapFlags, Option<&File>)]) -> Memory {
    let own = bench.rings.memory_file().try_clone().unwrap();
    let own = vm_memory::MmapRegion::from_file(FileOffset::new(own, 0), 16 << 20).unwrap();
    let mut regions = vec![GuestRegionMmap::new(own, GuestAddress(0)).unwrap()];
    for (index, (prot, flags, file)) in (16u64..).zip(mappings) {
        let mut builder = MmapRegionBuilder::new(1 << 20)
            .with_mmap_prot(i32::try_from(prot.bits()).unwrap())
            .with_mmap_flags(i32::try_from(flags.bits()).unwrap());
        if let Some(file) = file {
            builder = builder.with_file_offset(FileOffset::new(file.try_clone().unwrap(), 1 << 20));
        }
        let region = GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(index << 20));
        regions.push(region.unwrap());
    }
    Memory::from_regions(regions).unwrap()
}

/// Two MiB of 0x77, as a template has them.
fn template() -> File {
    let file = File::from(memfd_create("template", MemfdFlags::CLOEXEC).unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0x77; 2 << 20], 0).unwrap();
    file
}

fn process(bench: &mut Bench<Balloon>, memory: &Memory) {
    let mut queues: Vec<_> = bench.queues.iter_mut().collect();
    assert!(!bench.device.process(memory, &mut queues).needs_reset);
}

#[test]
fn each_mapping_is_given_back_in_its_way() {
    let (mut bench, _) = balloon();
    let (both, file) = (ProtFlags::READ | ProtFlags::WRITE, template());
    let shared = template();
    let memory = memory_of(
        &bench,
        &[
            (both, MapFlags::PRIVATE, Some(&file)),
            (both, MapFlags::SHARED, Some(&shared)),
            (both, MapFlags::PRIVATE | MapFlags::from_bits_retain(0x20), None),
            (ProtFlags::READ, MapFlags::SHARED, Some(&file)),
            (both, MapFlags::SHARED | MapFlags::from_bits_retain(0x20), None),
        ],
    );
    for region in [16u64, 17, 18, 20] {
        memory
            .write_slice(&vec![0xa5; 1 << 20], GuestAddress(region << 20))
            .unwrap();
    }
    bench
        .rings
        .queue(REPORTING_QUEUE)
        .add(&[free(1 << 24, 5 * MIB)])
        .unwrap();
    process(&mut bench, &memory);
    assert_eq!(resident_of(&file), 2 << 20, "a template is never touched");
    assert_eq!(resident_of(&shared), 1 << 20);
    let found: Vec<u8> = (16u64..21)
        .map(|region| memory.read_obj(GuestAddress((region << 20) + 4096)).unwrap())
        .collect();
    assert_eq!(found, [0x77, 0, 0, 0x77, 0xa5]);
    assert_eq!(figure(&bench, "discarded_bytes"), 3 << 20);
    assert_eq!(figure(&bench, "errors"), 2);
}

#[test]
fn who_counts_on_zeroes_finds_no_template() {
    let (device, _) = Balloon::new().unwrap();
    let mut bench = Bench::new(device).unwrap();
    let (both, file) = (ProtFlags::READ | ProtFlags::WRITE, template());
    let memory = memory_of(&bench, &[(both, MapFlags::PRIVATE, Some(&file))]);
    memory
        .write_slice(&vec![0; 1 << 20], GuestAddress(1 << 24))
        .unwrap();
    bench
        .rings
        .queue(REPORTING_QUEUE)
        .add(&[free(1 << 24, MIB)])
        .unwrap();
    process(&mut bench, &memory);
    let found: u8 = memory.read_obj(GuestAddress(1 << 24)).unwrap();
    assert_eq!((found, figure(&bench, "kept_bytes")), (0, 1 << 20));
}
