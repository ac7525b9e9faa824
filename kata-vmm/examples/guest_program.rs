//! A program that stands in for a guest on the process backend: the whole contract in one file.
//!
//! It is started with `--channel-fd N [--disk SERIAL=FD]...`. Each packet of the channel is 8 bytes, guest
//! port and host port as little-endian `u32`, with a connected stream beside it: the monitor's are
//! connections to a port of the guest, ours dial a port of the host.
//!
//! The disk `mode` holds one word: `poweroff` (exit code 0), `panic` (another exit code), `wait` (for
//! ever), or `vsock`: dial port 9 of the host, which is refused, and port 8, echo one connection on port 1024, dial port 7 of the host, say `hello`, and obey the
//! word that comes back. The tests of this crate run it.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    eprintln!("init: up");
    let mode = arguments
        .disks
        .get("mode")
        .map(contents)
        .transpose()?
        .unwrap_or_default();
    let mode = match mode.trim() {
        "vsock" => vsock(&arguments.channel)?,
        word => word.to_owned(),
    };
    match mode.as_str() {
        "poweroff" => Ok(ExitCode::SUCCESS),
        "panic" => Ok(ExitCode::from(7)),
        _ => loop {
            std::thread::park();
        },
    }
}

/// What the command line said.
struct Arguments {
    channel: OwnedFd,
    disks: HashMap<String, OwnedFd>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut channel = None;
        let mut disks = HashMap::new();
        while let Some(word) = words.next() {
            let value = words.next().ok_or("an argument has no value")?;
            match word.as_str() {
                "--channel-fd" => channel = Some(inherited(&value)?),
                "--disk" => {
                    let (serial, fd) = value.split_once('=').ok_or("--disk is not SERIAL=FD")?;
                    disks.insert(serial.to_owned(), inherited(fd)?);
                }
                _ => return Err(format!("{word} is not an argument").into()),
            }
        }
        Ok(Self {
            channel: channel.ok_or("--channel-fd is missing")?,
            disks,
        })
    }
}

/// Another descriptor for what the number refers to, without `unsafe`. Sockets cannot be opened by path, so
/// this asks the kernel for a copy through a pidfd of ourselves.
fn inherited(number: &str) -> Result<OwnedFd, Box<dyn Error>> {
    let number: i32 = number.parse()?;
    let ourselves =
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?;
    let flags = rustix::process::PidfdGetfdFlags::empty();
    Ok(rustix::process::pidfd_getfd(&ourselves, number, flags)?)
}

fn contents(file: &OwnedFd) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::from(file.try_clone()?).read_to_string(&mut text)?;
    Ok(text)
}

fn vsock(channel: &OwnedFd) -> Result<String, Box<dyn Error>> {
    eprintln!("init: listening");
    drop(dial(channel, 9)?);
    dial(channel, 8)?;
    let (port, mut stream) = accept(channel)?;
    eprintln!("init: accepted on port {port}");
    io::copy(&mut stream.try_clone()?, &mut stream)?;
    drop(stream);
    let mut stream = dial(channel, 7)?;
    stream.write_all(b"hello\n")?;
    let mut word = String::new();
    stream.read_to_string(&mut word)?;
    stream.shutdown(Shutdown::Both)?;
    Ok(word)
}

/// Waits for a connection to a port of this guest.
fn accept(channel: &OwnedFd) -> Result<(u32, UnixStream), Box<dyn Error>> {
    let mut packet = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(&mut packet)];
    rustix::net::recvmsg(channel, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let stream = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut streams) => streams.next(),
        _ => None,
    });
    let [a, b, c, d, ..] = packet;
    let stream = stream.ok_or("the monitor closed the channel")?;
    Ok((u32::from_le_bytes([a, b, c, d]), stream.into()))
}

/// Connects to a port of the host.
fn dial(channel: &OwnedFd, host_port: u32) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut packet = [0; 8];
    packet[4..].copy_from_slice(&host_port.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let streams = [theirs.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&streams));
    rustix::net::sendmsg(
        channel,
        &[IoSlice::new(&packet)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(ours)
}
