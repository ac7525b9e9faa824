//! A guest's driver in memory: drives the devices through real virtqueues, without a guest.
//!
//! For tests, benchmarks and examples, here and in programs that embed a device. Knows what a driver
//! knows: queues, packets and its own sockets. It is not a model driver: what a hostile one may do, it
//! does on request ([`vsock::Guest::send_raw`], [`vsock::Guest::hold_receive_buffers`],
//! [`Rings::forge`], [`Registers::write`]).
//!
//! - [`Driver`] drives any device behind the registers of virtio-mmio, served by its own thread.
//! - [`Bench`] drives any device with its queues at hand, in one thread.
//! - What a driver of one kind of device knows is in that device's room here.
//!
//! Any device, in one thread:
//!
//! ```
//! use kata_virtio::mock::Bench;
//! use kata_virtio::rng::{REQUEST_QUEUE, Rng};
//!
//! let mut bench = Bench::new(Rng::new()?)?;
//! let entropy = bench.request(REQUEST_QUEUE, &[], &[32])?;
//! assert_eq!(entropy.len(), 32);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The socket device:
//!
//! ```
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//!
//! use kata_virtio::mock::vsock::{Machine, Socket};
//! use kata_virtio::vsock::Vsock;
//!
//! # fn main() -> std::io::Result<()> {
//! let (device, handle) = Vsock::new(3)?;
//! let mut machine = Machine::new(device)?;
//! machine.guest.listen(1024);
//!
//! let (mut host, stream) = UnixStream::pair()?;
//! handle.connect(7, 1024, stream);
//! host.write_all(b"ping")?;
//!
//! let socket = Socket { guest_port: 1024, host_port: 7 };
//! machine.run_until(|guest| guest.received(socket) == b"ping")?;
//! machine.guest.write(socket, b"pong");
//! machine.step();
//!
//! let mut answer = [0; 4];
//! host.read_exact(&mut answer)?;
//! assert_eq!(&answer, b"pong");
//! assert_eq!(handle.counters().connections_open, 1);
//! # Ok(())
//! # }
//! ```

pub mod balloon;
mod bench;
pub mod block;
pub mod console;
pub mod driver;
mod echo;
mod hostile;
pub mod net;
mod ring;
mod rings;
pub mod rng;
mod script;
pub mod vsock;

pub use bench::Bench;
pub use driver::{Driver, Registers};
pub use echo::{Act, Director, Echo, Story};
pub use hostile::{run_queue, run_transport};
pub use ring::{Buffer, DriverQueue};
pub use rings::{Chain, MEMORY_BYTES, Rings};
