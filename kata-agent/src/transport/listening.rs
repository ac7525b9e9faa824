//! The carrier of an ordinary process that anybody may drive: a Unix socket with the agent's API, and nothing else.
//!
//! Owns the socket and its file, which is gone at the end. Must not know what the connections are for.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use kata_agent_proto::port;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use super::Incoming;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A socket that listens, made before the process leaves the namespaces that it was started in.
pub(crate) struct Listening {
    socket: OwnedFd,
    file: Option<SocketFile>,
}

/// The file of a socket. Its directory is held open: by its path it is out of sight later.
struct SocketFile {
    directory: OwnedFd,
    name: std::ffi::OsString,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty());
    }
}

impl Listening {
    /// Listens at an address: `unix://PATH`, or `unix://@NAME` for a name that is no file.
    pub(crate) fn at(address: &str) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, format!("{address}: {what}"));
        let place = address
            .strip_prefix("unix://")
            .ok_or_else(|| invalid("not unix://PATH or unix://@NAME"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let file = match place.strip_prefix('@') {
            Some(name) => {
                let name = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
                rustix::net::bind(&socket, &name)?;
                None
            }
            None => {
                let path = Path::new(place);
                let name = path.file_name().ok_or_else(|| invalid("no file"))?.to_owned();
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let directory = rustix::fs::open(parent.unwrap_or(Path::new(".")), directory, Mode::empty())?;
                // The file gets the mode that the socket has.
                rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
                rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
                Some(SocketFile { directory, name })
            }
        };
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Listening { socket, file })
    }

    /// Takes connections from now on.
    pub(crate) fn start(self) -> io::Result<Listener> {
        let listener = std::os::unix::net::UnixListener::from(self.socket);
        Ok(Listener {
            listener: UnixListener::from_std(listener)?,
            _file: self.file,
        })
    }
}

/// See the module.
pub(crate) struct Listener {
    listener: UnixListener,
    _file: Option<SocketFile>,
}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<Incoming> {
        let (stream, _) = self.listener.accept().await?;
        Ok(Incoming {
            guest_port: port::AGENT,
            host_port: 0,
            stream,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_owners_and_gone_at_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.sock");
        let listening = Listening::at(&format!("unix://{}", path.display())).expect("listens");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let listener = listening.start().expect("started");
        let (accepted, connected) = tokio::join!(listener.accept(), tokio::net::UnixStream::connect(&path));
        connected.expect("connected");
        assert_eq!(accepted.expect("accepted").guest_port, port::AGENT);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for address in ["", "/run/x", "vsock://3:1024", "unix://", "unix:///"] {
            assert!(Listening::at(address).is_err(), "{address}");
        }
    }
}
