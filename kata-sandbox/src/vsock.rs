//! The guest's vsock as a socket of the host, for programs that know Firecracker's and Cloud Hypervisor's.
//!
//! Owns the socket's file and the reading of the line that a client begins with. A client's own connection is handed
//! to the monitor; nothing of it passes through here. Must not know what the ports are for.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind};
use crate::link::Link;
use crate::report::Stage;
use crate::sandbox::Sandbox;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Clients that have not said which port they want; beyond them nobody is accepted.
const MOST_WAITING: usize = 64;
/// How long a client may take to say it.
const PATIENCE: Duration = Duration::from_secs(10);
/// `CONNECT 4294967295\n`, and room for spaces.
const LINE_MAX_BYTES: usize = 32;

impl Sandbox {
    /// Offers the guest's vsock at a Unix socket, as Firecracker and Cloud Hypervisor do: a client writes
    /// `CONNECT <port>\n`, reads `OK <its own port>\n` once the guest has accepted, and is connected to that port
    /// of the guest from then on. Port 1024 is the agent's API, so that `kata-agent-ctl --hybrid-vsock` can drive it.
    ///
    /// The socket's file belongs to this process's user alone (mode 0600), and is removed when the sandbox ends or this
    /// value is dropped. Whoever may open it may do in the sandbox what the owner may. On the process backend
    /// `OK` comes before it is known whether anybody listens.
    ///
    /// # Errors
    /// When the file exists, or cannot be made.
    pub async fn serve_vsock(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let (listener, file) = bind(path).map_err(|cause| {
            Error::new(
                ErrorKind::Io,
                Stage::Exit,
                format!("cannot listen at {}", path.display()),
            )
            .with_source(cause)
        })?;
        tokio::spawn(serve(listener, file, self.link()));
        Ok(())
    }
}

/// The file of a socket, removed with this.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let same = |found: fs::Metadata| (found.dev(), found.ino()) == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(same) {
            // Nobody is left to be told of a directory that became read-only.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the mode that the socket has, from its first moment.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let made = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: std::path::absolute(path)?,
        inode: (made.dev(), made.ino()),
    };
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((UnixListener::from_std(socket.into())?, file))
}

async fn serve(listener: UnixListener, file: SocketFile, link: Arc<Link>) {
    let waiting = Arc::new(Semaphore::new(MOST_WAITING));
    let accepting = async {
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&waiting).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let link = Arc::clone(&link);
                    tokio::spawn(async move {
                        let _place = place;
                        connect(stream, &link).await;
                    });
                }
                Err(error) => {
                    // Descriptors are short, for example; they come back.
                    tracing::warn!(path = %file.path.display(), %error, "cannot accept a client of the vsock");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = link.over() => {}
    }
}

/// Connects one client to the port that it asks for.
async fn connect(mut stream: UnixStream, link: &Link) {
    match tokio::time::timeout(PATIENCE, read_port(&mut stream)).await {
        Ok(Ok(Some(port))) => {
            if let Err(error) = link.pass_on(port, &stream).await {
                tracing::debug!(port, %error, "the monitor takes no connection");
            }
        }
        Ok(Ok(None)) => tracing::debug!("a client of the vsock asked for no port"),
        Ok(Err(error)) => tracing::debug!(%error, "a client of the vsock went away"),
        Err(_) => tracing::debug!("a client of the vsock said nothing"),
    }
}

/// Reads one line and no byte more; none when it is another than `CONNECT <port>`.
async fn read_port(stream: &mut UnixStream) -> io::Result<Option<u32>> {
    let mut line = Vec::new();
    while line.len() < LINE_MAX_BYTES {
        match stream.read_u8().await? {
            b'\n' => return Ok(port_of(&line)),
            byte => line.push(byte),
        }
    }
    Ok(None)
}

fn port_of(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let port = words
        .next()
        .filter(|word| word.eq_ignore_ascii_case("connect"))
        .and(words.next());
    let port = port?.parse().ok();
    port.filter(|_| words.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connect_with_one_port_is_understood() {
        assert_eq!(port_of(b"CONNECT 1024"), Some(1024));
        assert_eq!(port_of(b"connect  7 "), Some(7));
        for line in [
            "",
            "CONNECT",
            "CONNECT x",
            "CONNECT -1",
            "CONNECT 4294967296",
            "CONNECT 1 2",
            "OK 1",
        ] {
            assert_eq!(port_of(line.as_bytes()), None, "{line}");
        }
        assert_eq!(port_of(b"CONNECT \xff"), None);
    }

    #[tokio::test]
    async fn a_line_is_read_and_no_byte_more() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        theirs.try_write(b"CONNECT 5\nrest").unwrap();
        assert_eq!(read_port(&mut ours).await.unwrap(), Some(5));
        let mut rest = [0; 4];
        ours.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"rest");
        theirs.try_write(&[b'x'; 100]).unwrap();
        assert_eq!(read_port(&mut ours).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_file_is_the_owners_and_goes_away_unless_it_is_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let (listener, file) = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop((listener, file));
        assert!(!path.exists());
        let (listener, file) = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another").unwrap();
        drop((listener, file));
        assert!(path.exists());
    }
}
