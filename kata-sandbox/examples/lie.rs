//! The agent of a guest that lies, for tests: `lie LIE --channel-fd FD …` as an ordinary process, and without arguments
//! as the first process of a guest whose `/lie` has the lie's name.
//!
//! ```text
//!  dial ──hello──► accept ──each call: an empty answer──► "StatsContainer" ──► the lie, and then nothing more
//! ```
//!
//! An empty message is one of every type, so a sandbox boots and runs what it is asked to; calls that wait for an end are
//! never answered. "as-katas" is no lie: it is an agent without what this project has added to Kata's API, which answers
//! every other call, and says a word on its console.

use std::error::Error;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use kata_agent_proto::{Hello, port, write_hello};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Length of a frame's header, and types of frames (ttrpc PROTOCOL.md).
const HEADER_BYTES: usize = 10;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// The service that Kata's own agent has not, and a `ttrpc.Response` whose status has code 12.
const OWN_SERVICE: &str = "kata.sandbox.v1.Guest";
const UNIMPLEMENTED: [u8; 4] = [0x0a, 2, 0x08, 12];

/// One whose status has code 13.
const INTERNAL: [u8; 4] = [0x0a, 2, 0x08, 13];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let hello = Hello {
        agent_version: "0.0.0".into(),
        kernel_release: "0.0.0".into(),
        ..Hello::default()
    };
    let mut truth = Vec::new();
    runtime.block_on(write_hello(&mut truth, hello))?;
    match &words[..] {
        [lie, option, fd, ..] if option == "--channel-fd" => as_a_process(lie, &truth, fd.parse()?),
        _ => runtime.block_on(as_a_guest(&std::fs::read_to_string("/lie")?, &truth)),
    }
}

/// Connections come over the channel that the process backend has, until the host closes it.
fn as_a_process(lie: &str, truth: &[u8], number: RawFd) -> Result<()> {
    let me = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    let channel = rustix::process::pidfd_getfd(&me, number, PidfdGetfdFlags::empty())?;
    let (ours, theirs) = UnixStream::pair()?;
    let bytes = [0, port::HELLO].map(u32::to_le_bytes).concat();
    let streams = [theirs.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&streams));
    rustix::net::sendmsg(
        &channel,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    drop(theirs);
    let agent = Agent::introduced(lie, truth, ours);
    while let Some((guest_port, stream)) = accepted(&channel)? {
        agent.take(guest_port, stream.into());
    }
    Ok(())
}

/// The next connection; none at the channel's end. Disks are of no use here.
fn accepted(channel: &OwnedFd) -> Result<Option<(u32, OwnedFd)>> {
    loop {
        let mut bytes = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received =
            rustix::net::recvmsg(channel, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
        if received == 0 {
            return Ok(None);
        }
        let stream = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut streams) => streams.next(),
            _ => None,
        });
        let guest_port = bytes.first_chunk().map_or(0, |port| u32::from_le_bytes(*port));
        if let (1.., Some(stream)) = (guest_port, stream) {
            return Ok(Some((guest_port, stream)));
        }
    }
}

/// Connections come over vsock, for as long as the machine runs.
async fn as_a_guest(lie: &str, truth: &[u8]) -> Result<()> {
    let listen = |port| VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port));
    let (calls, streams) = (listen(port::AGENT)?, listen(port::STREAM)?);
    let hello = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port::HELLO)).await?;
    let agent = Agent::introduced(lie, truth, blocking(hello)?);
    loop {
        let (guest_port, (stream, _)) = tokio::select! {
            accepted = calls.accept() => (port::AGENT, accepted?),
            accepted = streams.accept() => (port::STREAM, accepted?),
        };
        agent.take(guest_port, blocking(stream)?);
    }
}

/// Reading and writing are the same for every stream socket.
fn blocking(stream: VsockStream) -> Result<UnixStream> {
    let stream = UnixStream::from(OwnedFd::from(stream));
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// The agent, with the connection that its hello went over.
struct Agent {
    lie: String,
    hello: UnixStream,
}

impl Agent {
    /// Says a true hello, or what it says in its place.
    fn introduced(lie: &str, truth: &[u8], mut hello: UnixStream) -> Arc<Self> {
        let words = match lie {
            "no-hello" => Vec::new(),
            "half-a-hello" => truth[..truth.len() / 2].to_vec(),
            "garbage-for-a-hello" => [&[20][..], &[0xff; 20]].concat(),
            "a-hello-without-an-end" => vec![0xff; 1 << 16],
            _ => truth.to_vec(),
        };
        // A host that has heard enough hangs up.
        let _ = hello.write_all(&words);
        if lie == "half-a-hello" {
            let _ = hello.shutdown(Shutdown::Both);
        }
        if lie == "as-katas" {
            eprintln!("an agent of Kata's");
        }
        let agent = Arc::new(Self {
            lie: lie.to_owned(),
            hello,
        });
        if lie == "goes-on-behind-its-hello" {
            let agent = Arc::clone(&agent);
            std::thread::spawn(move || flood(&agent.hello, &[0; 4096]));
        }
        agent
    }

    /// Serves calls, and keeps every other connection open without a word.
    fn take(self: &Arc<Self>, guest_port: u32, stream: UnixStream) {
        let agent = Arc::clone(self);
        std::thread::spawn(move || match guest_port {
            port::AGENT if agent.lie != "silent" => agent.serve(stream),
            _ => {
                let _held = stream;
                loop {
                    std::thread::park();
                }
            }
        });
    }

    fn serve(&self, mut stream: UnixStream) {
        let mut made = Making::default();
        // The host's end is this one's.
        while let Ok((number, request)) = request(&mut stream) {
            let asks = |name: &str| request.windows(name.len()).any(|part| part == name.as_bytes());
            if self.lie == "as-katas" && !asks("GetOOMEvent") {
                let answer = if asks(OWN_SERVICE) {
                    &UNIMPLEMENTED[..]
                } else {
                    &[]
                };
                let header = frame(answer.len().try_into().unwrap_or(0), number, RESPONSE);
                if stream.write_all(&[&header, answer].concat()).is_err() {
                    return;
                }
                continue;
            }
            if self.lie.starts_with("hangs") {
                let answers = made.answers(&self.lie, number, &asks);
                if stream.write_all(&answers).is_err() {
                    return;
                }
                continue;
            }
            if asks("StatsContainer") {
                return self.lie_to(number, stream);
            }
            let waits = ["WaitProcess", "Receipt", "GetOOMEvent"].into_iter().any(asks);
            if !waits && stream.write_all(&frame(0, number, RESPONSE)).is_err() {
                return;
            }
        }
    }

    /// The answer to request `number`, which is none.
    fn lie_to(&self, number: u32, mut stream: UnixStream) {
        let longest = [&frame(u32::MAX, number, RESPONSE)[..], &[0; 1 << 12]].concat();
        match self.lie.as_str() {
            "garbage" => flood(&stream, b"this is no frame, and neither is this: "),
            "absurd-length" => flood(&stream, &longest),
            "answers-that-nobody-asked-for" => flood(&stream, &frame(0, number + 1000, RESPONSE)),
            "requests-of-its-own" => flood(&stream, &frame(0, 2, REQUEST)),
            "goes-on-after-its-hello" => flood(&self.hello, &[0; 4096]),
            "ends-within-an-answer" => {
                let _ = stream.write_all(&[&frame(100, number, RESPONSE)[..], b"half"].concat());
            }
            // "ends-between-answers"; "silent-later" keeps the connection.
            _ => {}
        }
        if self.lie == "silent-later" || self.lie.starts_with("goes-on") {
            loop {
                std::thread::park();
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// What became of the containers that an agent is asked for which hangs.
#[derive(Default)]
struct Making {
    /// How many it was asked for.
    asked: u32,
    /// The request for the second, which is never made.
    second: Option<u32>,
}

impl Making {
    /// The answers to a request. "hangs-at-a-creation" makes the second container for ever, and any other only once it
    /// was asked to remove that one; "hangs-at-a-removal" starts none, and answers no removal.
    fn answers(&mut self, lie: &str, number: u32, asks: &impl Fn(&str) -> bool) -> Vec<u8> {
        let failed = |number| [&frame(4, number, RESPONSE)[..], &INTERNAL].concat();
        let done = |number| frame(0, number, RESPONSE);
        if asks("WaitProcess") || asks("GetOOMEvent") {
            return Vec::new();
        }
        if lie == "hangs-at-a-removal" {
            return match () {
                () if asks("StartContainer") => failed(number),
                () if asks("RemoveContainer") => Vec::new(),
                () => done(number),
            };
        }
        if asks("CreateContainer") {
            self.asked += 1;
            if self.asked == 2 {
                self.second = Some(number);
            }
            return match self.second {
                Some(_) => Vec::new(),
                None => done(number),
            };
        }
        match self.second.take_if(|_| asks("RemoveContainer")) {
            Some(second) => [failed(second), done(number)].concat(),
            None => done(number),
        }
    }
}

fn frame(length: u32, stream: u32, kind: u8) -> Vec<u8> {
    [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[kind, 0]].concat()
}

/// The next request and its number.
fn request(stream: &mut UnixStream) -> std::io::Result<(u32, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let [a, b, c, d, e, f, g, h, ..] = header;
    let length = u32::from_be_bytes([a, b, c, d]);
    let mut message = Vec::new();
    stream.take(length.into()).read_to_end(&mut message)?;
    Ok((u32::from_be_bytes([e, f, g, h]), message))
}

/// Writes the same again and again, until nobody takes it any more.
fn flood(mut stream: &UnixStream, words: &[u8]) {
    let many = words.repeat(1 + (1 << 12) / words.len());
    while stream.write_all(&many).is_ok() {}
}
