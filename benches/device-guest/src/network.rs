//! The network: streams both ways, alone and together, and round trips.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use device_guest::pattern::{self, Author, SECTOR_BYTES};
use device_guest::phase::{
    CHECKED_BYTES, CHUNK_BYTES, HOST, Outcome, PORT, ROUND_TRIPS, STREAM_BYTES, Service,
};

use crate::{Control, Failure};

/// A host that does not answer for so long never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connects to a service of the host.
pub(crate) fn dial(service: Service, amount: u64) -> io::Result<TcpStream> {
    let address = SocketAddr::from((HOST, PORT));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut greeting = vec![service as u8];
    greeting.extend(amount.to_le_bytes());
    stream.write_all(&greeting)?;
    Ok(stream)
}

pub(crate) fn measure(control: &mut Control) -> Result<(), Failure> {
    control.phase("net_both_ways_checked", both)?;
    control.phase("net_guest_to_host", || {
        let mut stream = dial(Service::Take, STREAM_BYTES)?;
        timed(STREAM_BYTES, || {
            send(&mut stream, STREAM_BYTES)?;
            Ok(stream.read_exact(&mut [0])?)
        })
    })?;
    control.phase("net_host_to_guest", || {
        let mut stream = dial(Service::Give, STREAM_BYTES)?;
        timed(STREAM_BYTES, || {
            receive(&mut stream, STREAM_BYTES, pattern::check_stamps)
        })
    })?;
    control.phase("net_round_trip", round_trips)
}

fn both() -> Result<Outcome, Failure> {
    let mut stream = dial(Service::Both, CHECKED_BYTES)?;
    let mut other = stream.try_clone()?;
    timed(2 * CHECKED_BYTES, || {
        let sending = std::thread::spawn(move || send(&mut other, CHECKED_BYTES));
        receive(&mut stream, CHECKED_BYTES, pattern::check)?;
        sending.join().map_err(|_| "a thread panicked")??;
        // The host has compared everything.
        Ok(stream.read_exact(&mut [0])?)
    })
}

fn round_trips() -> Result<Outcome, Failure> {
    let mut stream = dial(Service::Echo, 0)?;
    let mut times = Vec::new();
    for number in 0..ROUND_TRIPS {
        let [byte, ..] = number.to_le_bytes();
        let mut answer = [!byte];
        let begin = Instant::now();
        stream.write_all(&[byte])?;
        stream.read_exact(&mut answer)?;
        times.push(begin.elapsed());
        if answer != [byte] {
            return Err("another byte came back".into());
        }
    }
    let total: Duration = times.iter().sum();
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(Outcome {
        requests: times.len().try_into()?,
        bytes: times.len().try_into()?,
        nanoseconds: total.as_nanos().try_into()?,
        median: median.as_nanos().try_into()?,
    })
}

fn timed(bytes: u64, body: impl FnOnce() -> Result<(), Failure>) -> Result<Outcome, Failure> {
    let begin = Instant::now();
    body()?;
    Ok(Outcome {
        requests: bytes / CHUNK_BYTES as u64,
        bytes,
        nanoseconds: begin.elapsed().as_nanos().try_into()?,
        median: 0,
    })
}

fn send(stream: &mut TcpStream, bytes: u64) -> Result<(), Failure> {
    let mut chunk = vec![0; CHUNK_BYTES];
    pattern::fill(&mut chunk, 0, Author::GuestStream);
    for at in (0..bytes).step_by(CHUNK_BYTES) {
        pattern::stamp(&mut chunk, at / SECTOR_BYTES as u64, Author::GuestStream);
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn receive(
    stream: &mut TcpStream,
    bytes: u64,
    check: fn(&[u8], u64, Author) -> Result<(), pattern::Wrong>,
) -> Result<(), Failure> {
    let mut chunk = vec![0; CHUNK_BYTES];
    for at in (0..bytes).step_by(CHUNK_BYTES) {
        stream.read_exact(&mut chunk)?;
        check(&chunk, at / SECTOR_BYTES as u64, Author::HostStream)?;
    }
    Ok(())
}
