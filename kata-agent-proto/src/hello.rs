//! The agent's first words: who it is and when it got how far.
//!
//! One length-delimited protobuf message on a connection that the agent makes to
//! [`port::HELLO`](crate::port::HELLO) and then keeps open: its end means that the agent is lost. Nothing else is said there.

use std::io;

use protobuf::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::kata;
use crate::text::printable;

pub use crate::kata::Hello;

/// Version of what this project adds to the agent's API; both sides refuse another one.
pub const PROTOCOL: u32 = 1;

/// Longest hello in bytes.
pub const HELLO_MAX_BYTES: usize = 4096;

/// Why there was no hello.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The connection ended or failed before the hello was complete.
    #[error("no hello from the agent")]
    Io(#[source] io::Error),
    /// The announced length is beyond [`HELLO_MAX_BYTES`].
    #[error("a hello of {length} bytes, where {HELLO_MAX_BYTES} are the most")]
    TooLong {
        /// Announced length in bytes.
        length: u64,
    },
    /// The bytes are no hello.
    #[error("the agent's hello cannot be understood")]
    Malformed(#[source] protobuf::Error),
    /// Something came after the hello, where nothing is said.
    #[error("the agent went on talking after its hello")]
    WentOn,
    /// Host and agent are of different versions.
    #[error("the agent (version {agent_version}) speaks protocol {agent}, this program speaks {PROTOCOL}")]
    Protocol {
        /// The agent's [`PROTOCOL`].
        agent: u32,
        /// The agent's package version.
        agent_version: String,
    },
}

/// Reads the agent's hello and checks its protocol version.
///
/// # Errors
/// See [`HelloError`].
pub async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> Result<Hello, HelloError> {
    let length = read_length(stream).await?;
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= HELLO_MAX_BYTES)
        .ok_or(HelloError::TooLong { length })?;
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.map_err(HelloError::Io)?;
    let mut hello = kata::Hello::parse_from_bytes(&bytes).map_err(HelloError::Malformed)?;
    hello.agent_version = printable(&hello.agent_version);
    hello.kernel_release = printable(&hello.kernel_release);
    if hello.protocol != PROTOCOL {
        return Err(HelloError::Protocol {
            agent: hello.protocol,
            agent_version: hello.agent_version,
        });
    }
    Ok(hello)
}

/// Waits for the end of the connection that the hello came on.
///
/// # Errors
/// [`HelloError::WentOn`] as soon as anything comes but the end; [`HelloError::Io`] when the connection fails, which is
/// an end as well.
pub async fn read_end(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), HelloError> {
    match stream.read(&mut [0]).await.map_err(HelloError::Io)? {
        0 => Ok(()),
        _ => Err(HelloError::WentOn),
    }
}

/// Writes the hello; sets its `protocol`.
///
/// # Errors
/// The stream's.
pub async fn write_hello(stream: &mut (impl AsyncWrite + Unpin), mut hello: Hello) -> io::Result<()> {
    hello.protocol = PROTOCOL;
    let bytes = hello
        .write_length_delimited_to_bytes()
        .map_err(io::Error::other)?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// A protobuf varint of at most two bytes more than [`HELLO_MAX_BYTES`] needs.
async fn read_length(stream: &mut (impl AsyncRead + Unpin)) -> Result<u64, HelloError> {
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let byte = stream.read_u8().await.map_err(HelloError::Io)?;
        length |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(length);
        }
    }
    Err(HelloError::TooLong { length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Hello {
        Hello {
            agent_version: "1.2.3".into(),
            kernel_release: "6.12.0".into(),
            init_start_ns: 1,
            modules_ns: 2,
            mounts_ns: 3,
            ready_ns: 4,
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_hello_arrives_as_it_was_said() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let (sent, got) = tokio::join!(write_hello(&mut near, sample()), read_hello(&mut far));
        sent.expect("written");
        assert_eq!(
            got.expect("a hello"),
            Hello {
                protocol: PROTOCOL,
                ..sample()
            }
        );
    }

    #[tokio::test]
    async fn another_protocol_is_one_clear_error() {
        let hello = Hello {
            protocol: 9,
            ..sample()
        };
        let bytes = hello.write_length_delimited_to_bytes().expect("encoded");
        let error = read_hello(&mut &bytes[..]).await.expect_err("refused");
        assert_eq!(
            error.to_string(),
            "the agent (version 1.2.3) speaks protocol 9, this program speaks 1"
        );
    }

    #[tokio::test]
    async fn a_length_beyond_the_cap_is_refused_before_it_is_read() {
        let mut endless = &[0xff_u8, 0xff, 0xff, 0xff, 0xff][..];
        assert!(matches!(
            read_hello(&mut endless).await,
            Err(HelloError::TooLong { .. })
        ));
        let mut long = &[0x81_u8, 0x20][..];
        assert!(matches!(
            read_hello(&mut long).await,
            Err(HelloError::TooLong { length: 4097 })
        ));
    }

    #[tokio::test]
    async fn after_the_hello_comes_the_end_and_nothing_else() {
        assert!(matches!(read_end(&mut &[][..]).await, Ok(())));
        let mut endless = tokio::io::repeat(0);
        assert!(matches!(read_end(&mut endless).await, Err(HelloError::WentOn)));
    }

    #[tokio::test]
    async fn silence_is_an_error() {
        assert!(matches!(read_hello(&mut &[][..]).await, Err(HelloError::Io(_))));
        assert!(matches!(
            read_hello(&mut &[5_u8, 0][..]).await,
            Err(HelloError::Io(_))
        ));
    }
}
