//! The host's side of the guest's network: takes, gives and returns bytes, and hands control connections on.
//!
//! It must not know monitors or figures.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use device_guest::pattern::{self, Author, SECTOR_BYTES, Wrong};
use device_guest::phase::{CHUNK_BYTES, PORT, Service};

/// A guest that says nothing for so long never will.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// See the module.
#[derive(Debug)]
pub(crate) struct Host {
    controls: Receiver<TcpStream>,
}

impl Host {
    /// Serves guests on all addresses, for as long as the process lives.
    pub(crate) fn listen() -> io::Result<Self> {
        Self::serve(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?)
    }

    fn serve(listener: TcpListener) -> io::Result<Self> {
        let (sender, controls) = channel();
        std::thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || {
                for stream in listener.incoming() {
                    let sender = sender.clone();
                    let served = stream.and_then(|stream| {
                        std::thread::Builder::new().spawn(move || {
                            if let Err(error) = answer(stream, &sender) {
                                eprintln!("a connection of the guest failed: {error}");
                            }
                        })
                    });
                    if let Err(error) = served {
                        eprintln!("a connection of the guest cannot be served: {error}");
                    }
                }
            })?;
        Ok(Self { controls })
    }

    /// The next control connection.
    ///
    /// # Errors
    /// When none comes in time.
    pub(crate) fn control(&self) -> Result<TcpStream, Box<dyn Error>> {
        let control = self.controls.recv_timeout(PATIENCE);
        control.map_err(|_| format!("it did not connect within {} s", PATIENCE.as_secs()).into())
    }
}

fn answer(mut stream: TcpStream, controls: &Sender<TcpStream>) -> Result<(), Box<dyn Error>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting)?;
    let [service, amount @ ..] = greeting;
    let amount = u64::from_le_bytes(amount);
    match Service::of(service).ok_or("it asks for no service")? {
        // Nobody waits for it when the benchmark is over.
        Service::Control => Ok(controls.send(stream)?),
        Service::Take => {
            receive(&mut stream, amount, pattern::check_stamps)?;
            Ok(stream.write_all(b"!")?)
        }
        Service::Give => send(&mut stream, amount),
        Service::Both => {
            let mut other = stream.try_clone()?;
            let sending = std::thread::spawn(move || send(&mut other, amount).map_err(|e| e.to_string()));
            receive(&mut stream, amount, pattern::check)?;
            sending.join().map_err(|_| "a thread panicked")??;
            Ok(stream.write_all(b"!")?)
        }
        Service::Echo => {
            let mut byte = [0];
            while stream.read(&mut byte)? > 0 {
                stream.write_all(&byte)?;
            }
            Ok(())
        }
    }
}

fn send(stream: &mut TcpStream, bytes: u64) -> Result<(), Box<dyn Error>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    pattern::fill(&mut chunk, 0, Author::HostStream);
    for at in (0..bytes).step_by(CHUNK_BYTES) {
        pattern::stamp(&mut chunk, at / SECTOR_BYTES as u64, Author::HostStream);
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn receive(
    stream: &mut TcpStream,
    bytes: u64,
    check: fn(&[u8], u64, Author) -> Result<(), Wrong>,
) -> Result<(), Box<dyn Error>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    for at in (0..bytes).step_by(CHUNK_BYTES) {
        stream.read_exact(&mut chunk)?;
        check(&chunk, at / SECTOR_BYTES as u64, Author::GuestStream)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(port: u16, service: Service, amount: u64) -> TcpStream {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&[service as u8]).unwrap();
        stream.write_all(&amount.to_le_bytes()).unwrap();
        stream
    }

    #[test]
    fn a_guest_is_given_what_it_asks_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = Host::serve(listener).unwrap();

        let mut chunk = vec![0; CHUNK_BYTES];
        let amount = 2 * CHUNK_BYTES as u64;
        let mut stream = dial(port, Service::Give, amount);
        let mut given = Vec::new();
        stream.read_to_end(&mut given).unwrap();
        assert_eq!(given.len(), 2 * CHUNK_BYTES);
        pattern::check(&given, 0, Author::HostStream).unwrap();

        let mut stream = dial(port, Service::Take, CHUNK_BYTES as u64);
        pattern::fill(&mut chunk, 0, Author::GuestStream);
        stream.write_all(&chunk).unwrap();
        let mut taken = [0];
        stream.read_exact(&mut taken).unwrap();
        assert_eq!(&taken, b"!");

        // What is not the guest's pattern is not taken.
        let mut stream = dial(port, Service::Take, CHUNK_BYTES as u64);
        pattern::fill(&mut chunk, 1, Author::GuestStream);
        stream.write_all(&chunk).unwrap();
        assert!(stream.read_exact(&mut taken).is_err());

        let mut stream = dial(port, Service::Echo, 0);
        stream.write_all(b"e").unwrap();
        stream.read_exact(&mut taken).unwrap();
        assert_eq!(&taken, b"e");

        drop(dial(port, Service::Control, 0));
        assert!(host.control().is_ok());
    }
}
