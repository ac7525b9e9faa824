//! The console between the mock's queues and descriptors of the host: what each rule says, and what a
//! hostile driver can try (the table in `kata_virtio::console`).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod registers;
mod script;
mod terminal;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use kata_virtio::console::{BACKLOG_BYTES, Console, F_EMERG_WRITE, F_SIZE, Handle, RX_QUEUE, TX_QUEUE};
use kata_virtio::mock::{Bench, Buffer};
use kata_virtio::{COMMON_FEATURES, Device, Kind, Signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

/// A console whose host side is a socket: the other end is ours and does not block.
fn on_socket() -> (Bench<Console>, UnixStream, Handle) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let input = OwnedFd::from(theirs.try_clone().unwrap());
    let (device, handle) = Console::new(theirs.into(), Some(input)).unwrap();
    (Bench::new(device).unwrap(), ours, handle)
}

/// A console whose output is a pipe.
fn on_pipe() -> (Bench<Console>, File) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    let (device, _) = Console::new(write, None).unwrap();
    (Bench::new(device).unwrap(), File::from(read))
}

/// What can be read now.
fn available(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    match from.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    bytes
}

fn figure(device: &impl Device, name: &str) -> u64 {
    let figures = device.meter().figures();
    figures.iter().find(|figure| figure.0 == name).unwrap().1
}

/// Whether the device wants to be polled now.
fn wakes(device: &impl Device) -> bool {
    let events = device.events().unwrap();
    let mut fds = [PollFd::from_borrowed_fd(events, PollFlags::IN)];
    poll(&mut fds, Some(&rustix::time::Timespec::default())).unwrap() > 0
}

/// What a snapshot can store.
fn stored<T: serde::Serialize + serde::de::DeserializeOwned>(state: T) -> T {
    state
}

/// Numbers that no other place of the stream has.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes / 4)
        .flat_map(|index| u32::try_from(index).unwrap().to_le_bytes())
        .collect()
}

#[test]
fn it_is_a_console_of_one_port() {
    let (bench, _, _) = on_socket();
    assert_eq!(bench.device.kind(), Kind::Console);
    assert_eq!(bench.device.features(), COMMON_FEATURES | F_SIZE | F_EMERG_WRITE);
    assert_eq!(bench.device.queue_sizes(), [16, 64]);
    assert_eq!(bench.device.config(), [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn output_reaches_the_host_in_order() {
    let (mut bench, host, _) = on_socket();
    let first = bench.rings.offer(TX_QUEUE, &[b"one ", b"two "], &[]).unwrap();
    let second = bench
        .rings
        .offer_indirect(TX_QUEUE, &[b"three ", b"four"], &[])
        .unwrap();
    bench.step().unwrap();
    assert_eq!(available(&host), b"one two three four");
    assert_eq!(bench.rings.used(TX_QUEUE), Some((first.head, 0)));
    assert_eq!(bench.rings.used(TX_QUEUE), Some((second.head, 0)));
    assert_eq!(figure(&bench.device, "bytes_from_guest"), 18);
}

#[test]
fn output_goes_to_files_and_pipes() {
    let (mut bench, pipe) = on_pipe();
    bench.request(TX_QUEUE, &[b"to a pipe"], &[]).unwrap();
    assert_eq!(available(&pipe), b"to a pipe");

    let file = rustix::fs::memfd_create("console", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut reader = File::from(file.try_clone().unwrap());
    let (device, _) = Console::new(file, None).unwrap();
    let mut bench = Bench::new(device).unwrap();
    bench.request(TX_QUEUE, &[b"to a ", b"file"], &[]).unwrap();
    std::io::Seek::rewind(&mut reader).unwrap();
    assert_eq!(available(&reader), b"to a file");
}

#[test]
fn input_is_read_only_into_a_buffer() {
    let (mut bench, mut host, _) = on_socket();
    host.write_all(b"hello").unwrap();
    bench.step().unwrap();
    assert!(!wakes(&bench.device), "the guest has no buffer yet");

    let chain = bench.rings.offer(RX_QUEUE, &[], &[2, 16]).unwrap();
    let signals = bench.step().unwrap();
    assert!(signals.queue(RX_QUEUE));
    assert_eq!(bench.rings.used(RX_QUEUE), Some((chain.head, 5)));
    assert_eq!(bench.rings.written(&chain, 5), b"hello");

    let chain = bench.rings.offer(RX_QUEUE, &[], &[4]).unwrap();
    bench.step().unwrap();
    assert!(!wakes(&bench.device), "there is nothing to read");
    host.write_all(b"again").unwrap();
    assert!(wakes(&bench.device), "there is, and a buffer for it");
    bench.step().unwrap();
    assert_eq!(bench.rings.used(RX_QUEUE), Some((chain.head, 4)));
    assert_eq!(bench.rings.written(&chain, 4), b"agai");
    assert!(!wakes(&bench.device), "the rest waits for a buffer");
    let last = bench.request(RX_QUEUE, &[], &[8]).unwrap();
    assert_eq!(last, b"n");
}

#[test]
fn the_end_of_the_input_is_not_the_end_of_the_output() {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (device, _) = Console::new(theirs.into(), Some(read)).unwrap();
    let mut bench = Bench::new(device).unwrap();
    drop(write);
    bench.rings.offer(RX_QUEUE, &[], &[8]).unwrap();
    bench.step().unwrap();
    assert!(!wakes(&bench.device), "a hang-up is looked at once");
    assert_eq!(bench.rings.used(RX_QUEUE), None);
    bench.request(TX_QUEUE, &[b"still here"], &[]).unwrap();
    assert_eq!(available(&ours), b"still here");
    assert_eq!(figure(&bench.device, "errors"), 0);
}

#[test]
fn a_console_that_nobody_reads_keeps_its_last_words() {
    let (mut bench, pipe) = on_pipe();
    let sent = pattern(1 << 20);
    for part in sent.chunks(4096) {
        bench.request(TX_QUEUE, &[part], &[]).unwrap();
    }
    assert!(!bench.device.drained());
    assert!(!wakes(&bench.device), "nobody reads");
    let mut read = available(&pipe);
    let at_first = read.len();
    assert_eq!(read, &sent[..at_first], "what was in time arrives");
    assert!(wakes(&bench.device), "the pipe has room");
    while !bench.device.drained() {
        bench.step().unwrap();
        read.extend(available(&pipe));
    }
    let tail = &read[at_first..];
    assert_eq!(tail.len(), BACKLOG_BYTES);
    assert_eq!(tail, &sent[sent.len() - tail.len()..], "and so do the newest");
    let dropped = u64::try_from(sent.len() - read.len()).unwrap();
    assert_eq!(figure(&bench.device, "bytes_dropped"), dropped);
    assert!(!wakes(&bench.device));
}

#[test]
fn a_console_without_a_reader_goes_on() {
    let (mut bench, pipe) = on_pipe();
    drop(pipe);
    bench.request(TX_QUEUE, &[b"nobody"], &[]).unwrap();
    bench.request(TX_QUEUE, &[b"there"], &[]).unwrap();
    assert!(bench.device.drained() && !wakes(&bench.device));
    assert_eq!(figure(&bench.device, "bytes_dropped"), 11);
    assert_eq!(figure(&bench.device, "errors"), 1);

    let (mut bench, host, _) = on_socket();
    drop(host);
    bench.request(TX_QUEUE, &[&pattern(100_000)], &[]).unwrap();
    assert!(bench.device.drained() && !wakes(&bench.device));
    assert_eq!(figure(&bench.device, "bytes_dropped"), 100_000);
}

#[test]
fn a_full_disk_costs_what_did_not_fit() {
    let (device, _) = Console::new(
        File::options().write(true).open("/dev/full").unwrap().into(),
        None,
    )
    .unwrap();
    let mut bench = Bench::new(device).unwrap();
    for count in 1..4 {
        bench.request(TX_QUEUE, &[b"x"], &[]).unwrap();
        assert_eq!(figure(&bench.device, "errors"), count);
        assert_eq!(figure(&bench.device, "bytes_dropped"), count);
    }
}

#[test]
fn a_long_chain_takes_turns() {
    let file = rustix::fs::memfd_create("console", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let reader = File::from(file.try_clone().unwrap());
    let (device, _) = Console::new(file, None).unwrap();
    let mut bench = Bench::new(device).unwrap();
    let sent = pattern(1 << 20);
    let chain = bench
        .rings
        .offer(TX_QUEUE, &[&sent[..5], &sent[5..]], &[])
        .unwrap();
    bench.step().unwrap();
    assert_eq!(bench.rings.used(TX_QUEUE), None, "a turn has an end");
    assert!(wakes(&bench.device), "and the next one comes at once");
    let used = bench.run_until(|rings| rings.used(TX_QUEUE)).unwrap();
    assert_eq!(used, (chain.head, 0));
    let mut read = vec![0; sent.len()];
    std::os::unix::fs::FileExt::read_exact_at(&reader, &mut read, 0).unwrap();
    assert!(read == sent);
    assert_eq!(reader.metadata().unwrap().len(), 1 << 20);
}

#[test]
fn a_chain_that_changes_between_turns_is_judged_anew() {
    let (device, _) = Console::new(
        File::options().write(true).open("/dev/null").unwrap().into(),
        None,
    )
    .unwrap();
    let mut bench = Bench::new(device).unwrap();
    let chain = bench.rings.offer(TX_QUEUE, &[&pattern(1 << 20)], &[]).unwrap();
    bench.step().unwrap();
    assert_eq!(bench.rings.used(TX_QUEUE), None);
    let taken = figure(&bench.device, "bytes_from_guest");
    let shorter = bench.rings.readable(b"short");
    bench.rings.forge(TX_QUEUE, chain.head, shorter, 0, 0);
    bench.step().unwrap();
    assert_eq!(bench.rings.used(TX_QUEUE), Some((chain.head, 0)));
    assert_eq!(
        figure(&bench.device, "bytes_from_guest"),
        taken,
        "it is behind its end"
    );
    bench.request(TX_QUEUE, &[b"next"], &[]).unwrap();
    assert_eq!(
        figure(&bench.device, "bytes_from_guest"),
        taken + 4,
        "and the next is whole"
    );
}

#[test]
fn a_flood_of_output_does_not_keep_input_away() {
    let (mut bench, mut host, _) = on_socket();
    host.write_all(b"stop").unwrap();
    let sent = vec![b'y'; 4 << 20];
    bench.rings.offer(TX_QUEUE, &[&sent], &[]).unwrap();
    let chain = bench.rings.offer(RX_QUEUE, &[], &[16]).unwrap();
    bench.step().unwrap();
    assert_eq!(bench.rings.used(TX_QUEUE), None);
    assert_eq!(bench.rings.used(RX_QUEUE), Some((chain.head, 4)));
}

#[test]
fn the_driver_learns_the_size_of_the_terminal() {
    let (mut bench, _, handle) = on_socket();
    handle.set_size(132, 50);
    assert!(wakes(&bench.device));
    assert!(bench.step().unwrap().config);
    assert_eq!(bench.device.config()[..4], [132, 0, 50, 0]);
    assert_eq!(handle.size(), (132, 50));
    assert!(!bench.step().unwrap().config, "once");
    handle.set_size(132, 50);
    assert!(!wakes(&bench.device), "it is what it was");
}

#[test]
fn emergency_writes_need_no_driver() {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    let (mut device, _) = Console::new(write, None).unwrap();
    for byte in b"panic" {
        device.write_config(8, &u32::from(*byte).to_le_bytes());
    }
    device.write_config(6, &[0, 0, b'!']);
    let before = device.config();
    device.write_config(0, &[7; 8]);
    device.write_config(9, &[7; 3]);
    assert_eq!(device.config(), before);
    assert_eq!(available(File::from(read)), b"panic!");
}

#[test]
fn the_driver_is_signalled_when_it_waits() {
    let (mut bench, _host, _) = on_socket();
    bench.rings.offer(TX_QUEUE, &[b"a"], &[]).unwrap();
    assert!(bench.work().queue(TX_QUEUE), "the first");
    bench.rings.offer(TX_QUEUE, &[b"b"], &[]).unwrap();
    assert!(!bench.work().queue(TX_QUEUE), "it has not asked again");
    while bench.rings.used(TX_QUEUE).is_some() {}
    bench.rings.queue(TX_QUEUE).ask_for_signal();
    bench.rings.offer(TX_QUEUE, &[b"c"], &[]).unwrap();
    assert!(bench.rings.queue(TX_QUEUE).wants_kick());
    assert!(bench.work().queue(TX_QUEUE));
}

#[test]
fn it_works_without_event_indices() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (device, _) = Console::new(theirs.into(), None).unwrap();
    let mut bench = Bench::with_features(device, 1 << 32).unwrap();
    for _ in 0..100 {
        bench.rings.offer(TX_QUEUE, &[b"."], &[]).unwrap();
        assert!(bench.step().unwrap().queue(TX_QUEUE));
        assert!(bench.rings.used(TX_QUEUE).is_some());
    }
    assert_eq!(available(&ours), [b'.'; 100]);
}

#[test]
fn chains_of_the_wrong_kind_are_returned() {
    let (mut bench, mut host, _) = on_socket();
    host.write_all(b"kept").unwrap();
    let write_only = bench.rings.offer(TX_QUEUE, &[], &[64]).unwrap();
    let read_only = bench.rings.offer(RX_QUEUE, &[b"x"], &[]).unwrap();
    let empty = Buffer {
        address: 0x8000,
        len: 0,
        writable: true,
    };
    let empty = bench.rings.queue(RX_QUEUE).add(&[empty]).unwrap();
    assert!(!bench.step().unwrap().needs_reset);
    assert_eq!(bench.rings.used(TX_QUEUE), Some((write_only.head, 0)));
    assert_eq!(bench.rings.used(RX_QUEUE), Some((read_only.head, 0)));
    assert_eq!(bench.rings.used(RX_QUEUE), Some((empty, 0)));
    assert_eq!(figure(&bench.device, "malformed"), 3);
    assert_eq!(bench.request(RX_QUEUE, &[], &[8]).unwrap(), b"kept");
}

#[test]
fn buffers_outside_of_memory_cost_no_byte_of_the_host() {
    let (mut bench, mut host, _) = on_socket();
    host.write_all(b"kept").unwrap();
    for address in [1 << 40, (64 << 20) - 8, u64::MAX - 3] {
        for (queue, writable) in [(TX_QUEUE, false), (RX_QUEUE, true)] {
            let buffer = Buffer {
                address,
                len: 4096,
                writable,
            };
            let head = bench.rings.queue(queue).add(&[buffer]).unwrap();
            assert!(!bench.step().unwrap().needs_reset);
            assert_eq!(bench.rings.used(queue), Some((head, 0)));
        }
    }
    assert_eq!(figure(&bench.device, "malformed"), 6);
    assert_eq!(bench.request(RX_QUEUE, &[], &[8]).unwrap(), b"kept");
}

#[test]
fn chains_that_do_not_end_are_refused() {
    let next = u16::try_from(VRING_DESC_F_NEXT).unwrap();
    for place in [0, 64, u16::MAX] {
        let (mut bench, mut host, _) = on_socket();
        host.write_all(b"kept").unwrap();
        let buffer = bench.rings.readable(b"again");
        bench.rings.forge(TX_QUEUE, 0, buffer, next, place);
        bench.rings.publish(TX_QUEUE, 0);
        let buffer = bench.rings.writable(8);
        let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
        bench.rings.forge(RX_QUEUE, 0, buffer, next | write, place);
        bench.rings.publish(RX_QUEUE, 0);
        assert!(!bench.step().unwrap().needs_reset);
        assert_eq!(figure(&bench.device, "malformed"), 2, "next {place}");
        assert!(available(&host).is_empty());
        assert_eq!(figure(&bench.device, "bytes_to_guest"), 0);
    }

    let (mut bench, host, _) = on_socket();
    let buffer = bench.rings.readable(b"x");
    let table = bench.rings.place(16 * 20_000);
    bench
        .rings
        .queue(TX_QUEUE)
        .add_indirect(table, &vec![buffer; 20_000])
        .unwrap();
    assert!(!bench.step().unwrap().needs_reset);
    assert!(available(&host).is_empty());
    assert_eq!(figure(&bench.device, "malformed"), 1);
}

#[test]
fn a_broken_queue_is_dead_until_the_reset() {
    for queue in [RX_QUEUE, TX_QUEUE] {
        let (mut bench, mut host, _) = on_socket();
        host.write_all(b"kept").unwrap();
        bench.rings.queue(queue).corrupt_avail_index(30_000);
        let needs_reset = Signals {
            needs_reset: true,
            ..Signals::default()
        };
        assert_eq!(bench.step().unwrap(), needs_reset);
        bench.rings.offer(TX_QUEUE, &[b"not this"], &[]);
        assert_eq!(bench.step().unwrap(), Signals::default());
        bench.reset();
        bench.request(TX_QUEUE, &[b"but this"], &[]).unwrap();
        assert_eq!(available(&host), b"but this");
        assert_eq!(bench.request(RX_QUEUE, &[], &[9]).unwrap(), b"kept");
    }
}

#[test]
fn heads_out_of_range_break_the_queue() {
    let (mut bench, _host, _) = on_socket();
    bench.rings.publish(TX_QUEUE, 64);
    assert!(bench.step().unwrap().needs_reset);
    let (mut bench, mut host, _) = on_socket();
    host.write_all(b"x").unwrap();
    let buffer = bench.rings.writable(8);
    let write = u16::try_from(VRING_DESC_F_WRITE).unwrap();
    bench.rings.forge(RX_QUEUE, 15, buffer, write, 0);
    bench.rings.publish(RX_QUEUE, 16);
    assert!(bench.step().unwrap().needs_reset);
}

#[test]
fn a_reset_forgets_the_rest_of_a_chain() {
    let file = rustix::fs::memfd_create("console", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let reader = File::from(file.try_clone().unwrap());
    let (device, handle) = Console::new(file, None).unwrap();
    handle.set_size(80, 25);
    let mut bench = Bench::new(device).unwrap();
    bench.rings.offer(TX_QUEUE, &[&pattern(1 << 20)], &[]).unwrap();
    bench.step().unwrap();
    let before = reader.metadata().unwrap().len();
    assert!(before < 1 << 20);
    bench.reset();
    bench.step().unwrap();
    assert_eq!(reader.metadata().unwrap().len(), before);
    bench.request(TX_QUEUE, &[b"whole"], &[]).unwrap();
    assert_eq!(reader.metadata().unwrap().len(), before + 5);
    assert_eq!(
        bench.device.config()[..4],
        [80, 0, 25, 0],
        "the terminal is what it was"
    );
    assert_eq!(figure(&bench.device, "device_resets"), 1);
}

#[test]
fn a_console_goes_on_elsewhere() {
    let (mut bench, pipe) = on_pipe();
    let sent = pattern(1 << 20);
    bench.rings.offer(TX_QUEUE, &[&sent], &[]).unwrap();
    bench.step().unwrap();
    let state = bench.device.state();
    drop(pipe);

    let file = rustix::fs::memfd_create("console", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let reader = File::from(file.try_clone().unwrap());
    let (mut device, _) = Console::new(file, None).unwrap();
    device.restore(&stored(state));
    bench.device = device;
    bench.run_until(|rings| rings.used(TX_QUEUE)).unwrap();
    let len = usize::try_from(reader.metadata().unwrap().len()).unwrap();
    let mut read = vec![0; len];
    std::os::unix::fs::FileExt::read_exact_at(&reader, &mut read, 0).unwrap();
    assert!(len > BACKLOG_BYTES && read == sent[sent.len() - len..]);
}

#[test]
fn sockets_keep_their_flags() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let kept = theirs.try_clone().unwrap();
    let (_device, _) = Console::new(theirs.into(), None).unwrap();
    let flags = rustix::fs::fcntl_getfl(kept.as_fd()).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    drop(ours);
}
