//! The console on a pseudo-terminal that programs of the host attach to and leave.

use std::fs::File;
use std::io::{Read, Write};

use kata_virtio::Device;
use kata_virtio::console::{Console, RX_QUEUE, TX_QUEUE};
use kata_virtio::mock::Bench;
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::{figure, wakes};

/// A console on a terminal to which nobody is attached, and the terminal's path.
fn on_terminal() -> (Bench<Console>, String) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    drop(attach(&path));
    let input = master.try_clone().unwrap();
    let (device, _) = Console::new(master, Some(input)).unwrap();
    (Bench::new(device).unwrap(), path)
}

/// A program that opens the terminal.
fn attach(path: &str) -> File {
    let terminal = File::options().read(true).write(true).open(path).unwrap();
    let mut settings = tcgetattr(&terminal).unwrap();
    settings.make_raw();
    tcsetattr(&terminal, OptionalActions::Now, &settings).unwrap();
    terminal
}

/// Steps as long as the device asks for it, which is not for ever.
fn settle(bench: &mut Bench<Console>) {
    let turns = (0..20).take_while(|_| wakes(&bench.device) && bench.step().is_ok());
    assert!(turns.count() < 20, "it spins");
}

#[test]
fn a_terminal_that_nobody_has_open_costs_nothing() {
    let (mut bench, path) = on_terminal();
    let chain = bench.rings.offer(RX_QUEUE, &[], &[16]).unwrap();
    for _ in 0..64 {
        bench.request(TX_QUEUE, &[&[b'o'; 4096]], &[]).unwrap();
    }
    settle(&mut bench);
    assert!(!bench.device.drained(), "its last words are kept");
    assert_eq!(figure(&bench.device, "errors"), 0);
    assert_eq!(bench.rings.used(RX_QUEUE), None);

    let mut terminal = attach(&path);
    terminal.write_all(b"hello").unwrap();
    let used = bench.run_until(|rings| rings.used(RX_QUEUE)).unwrap();
    assert_eq!(used, (chain.head, 5));
    assert_eq!(bench.rings.written(&chain, 5), b"hello");
    let mut bytes = [0; 4096];
    while !bench.device.drained() {
        assert!(terminal.read(&mut bytes).unwrap() > 0);
        settle(&mut bench);
    }
    drop(terminal);
    settle(&mut bench);
}

#[test]
fn programs_come_and_go() {
    let (mut bench, path) = on_terminal();
    for _ in 0..3 {
        let chain = bench.rings.offer(RX_QUEUE, &[], &[16]).unwrap();
        bench.step().unwrap();
        settle(&mut bench);
        let mut terminal = attach(&path);
        terminal.write_all(b"in").unwrap();
        let used = bench.run_until(|rings| rings.used(RX_QUEUE)).unwrap();
        assert_eq!(used, (chain.head, 2));
        bench.request(TX_QUEUE, &[b"out"], &[]).unwrap();
        let mut bytes = [0; 3];
        terminal.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"out");
    }
}
