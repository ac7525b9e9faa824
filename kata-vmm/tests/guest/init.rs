//! The whole userspace of a test guest: PID 1 of an initramfs, compiled static by the test with `rustc`.
//!
//! It prints one line, loads `/modules/*.ko` in the order of their names, and does what the word in
//! `/mode` says: `poweroff`, `panic` (it exits, which a kernel does not survive), `wait` (for ever),
//! `clock` (sleeps, tells which clock the kernel trusts, and powers off), `last words` (384 KiB to port 7 of the host, and power off), or `vsock` (below). It must not know the
//! monitor.
//!
//! `vsock`: echoes one connection on port 1024, then dials port 7 of the host, says `hello`, and obeys
//! the one word that comes back: `poweroff` or `panic`.

use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn reboot(command: c_int) -> c_int;
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const c_void, length: c_uint) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn accept(fd: c_int, address: *mut c_void, length: *mut c_uint) -> c_int;
    fn connect(fd: c_int, address: *const c_void, length: c_uint) -> c_int;
}

const SYS_FINIT_MODULE: c_long = 313;
const RB_POWER_OFF: c_int = 0x4321_fedc;
const AF_VSOCK: c_int = 40;
const SOCK_STREAM: c_int = 1;
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

/// `struct sockaddr_vm` of linux/vm_sockets.h.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        Self {
            family: AF_VSOCK as u16,
            reserved: 0,
            port,
            cid,
            flags: 0,
            zero: [0; 3],
        }
    }
}

fn main() {
    println!("init: up");
    load_modules();
    let mode = fs::read_to_string("/mode").unwrap_or_default();
    match mode.trim() {
        "vsock" => obey(&vsock()),
        "clock" => {
            clock();
            obey("poweroff");
        }
        "last words" => {
            dial(7).write_all(&[b'w'; 384 << 10]).unwrap();
            obey("poweroff");
        }
        word => obey(word),
    }
}

fn obey(word: &str) {
    match word {
        "poweroff" => {
            // SAFETY: no memory is passed.
            unsafe { reboot(RB_POWER_OFF) };
        }
        "panic" => std::process::exit(7),
        _ => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
    }
}

fn load_modules() {
    let mut paths: Vec<_> = fs::read_dir("/modules")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    for path in paths {
        let file = File::open(&path).unwrap();
        let parameters = CString::default();
        // SAFETY: the descriptor is open and the parameters are a terminated string.
        let answer = unsafe {
            let parameters: *const c_char = parameters.as_ptr();
            syscall(SYS_FINIT_MODULE, file.as_raw_fd(), parameters, 0 as c_int)
        };
        if answer != 0 {
            println!("init: {}: {}", path.display(), std::io::Error::last_os_error());
        }
    }
}

fn clock() {
    // Longer than the kernel takes to judge its clocks.
    std::thread::sleep(Duration::from_millis(1500));
    let (kind, target) = (c"sysfs", c"/dev");
    // SAFETY: the strings are terminated, and sysfs takes no data.
    let answer = unsafe { mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
    assert_eq!(answer, 0);
    let path = "/dev/devices/system/clocksource/clocksource0/current_clocksource";
    println!("init: slept by {}", fs::read_to_string(path).unwrap());
}

fn vsock() -> String {
    let mut stream = accept_one(1024);
    println!("init: accepted");
    let mut bytes = [0; 4096];
    loop {
        let count = stream.read(&mut bytes).unwrap();
        if count == 0 {
            break;
        }
        stream.write_all(&bytes[..count]).unwrap();
    }
    drop(stream);
    let mut stream = dial(7);
    stream.write_all(b"hello\n").unwrap();
    let mut word = String::new();
    stream.read_to_string(&mut word).unwrap();
    word
}

fn accept_one(port: u32) -> File {
    let address = Address::new(ANY, port);
    // SAFETY: the address outlives the calls and its size is right; accept may ignore the peer's address.
    unsafe {
        let fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        assert!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
        assert_eq!(
            bind(fd, (&raw const address).cast(), size_of::<Address>() as c_uint),
            0
        );
        assert_eq!(listen(fd, 1), 0);
        println!("init: listening");
        announce();
        File::from_raw_fd(accept(fd, std::ptr::null_mut(), std::ptr::null_mut()))
    }
}

/// Dials port 8 of the host and closes: a listener is there now. Port 9 is refused.
fn announce() {
    match try_dial(9) {
        Ok(_) => println!("init: port 9 took the dial"),
        Err(cause) => assert_eq!(cause.kind(), std::io::ErrorKind::ConnectionReset, "{cause}"),
    }
    drop(dial(8));
}

fn dial(port: u32) -> File {
    try_dial(port).unwrap()
}

fn try_dial(port: u32) -> std::io::Result<File> {
    let address = Address::new(HOST, port);
    // SAFETY: the address outlives the call and its size is right.
    unsafe {
        let fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        let stream = File::from_raw_fd(fd);
        match connect(fd, (&raw const address).cast(), size_of::<Address>() as c_uint) {
            0 => Ok(stream),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}
