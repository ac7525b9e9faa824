//! Files into a running container and out of it.
//!
//! ```text
//!  copy_in:   host tree ──► thread of the runtime ──► one vsock stream ──► worker in the guest ──► container's root
//!  copy_out:  host tree ◄── thread of the runtime ◄── one vsock stream ◄── worker in the guest ◄── container's root
//!             beside it the call to the agent, whose answer is the worker's
//! ```
//!
//! Owns the two halves of a copy and which of their failures is the cause. What travels is not known here.

use std::ffi::OsStr;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::net::Shutdown;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use kata_agent_proto::files::{self, FilesError, Policy, Root, Tally, name_of};
use kata_agent_proto::kata::CopyRequest;
use kata_agent_proto::kata::omission::What;
use kata_vmm::machine::MiB;

use crate::error::{Error, ErrorKind};
use crate::members::{ContainerHandle, Member};
use crate::report::{Copied, CopyProgress, LeftOut, Omitted, Stage};

/// Which way files go, seen from the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

type Progress = Box<dyn FnMut(CopyProgress) + Send>;

/// A copy that begins when it is awaited, see [`ContainerHandle::copy_in`].
///
/// Dropping it before its end ends the copy; what was made until then stays.
#[must_use = "a copy begins when it is awaited"]
pub struct Copying {
    member: Arc<Member>,
    direction: Direction,
    host: PathBuf,
    container: PathBuf,
    progress: Option<Progress>,
    policy: Policy,
}

impl fmt::Debug for Copying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copying")
            .field("direction", &self.direction)
            .field("host", &self.host)
            .field("container", &self.container)
            .finish_non_exhaustive()
    }
}

impl Copying {
    fn new(member: &Arc<Member>, direction: Direction, host: &Path, container: &Path) -> Self {
        Self {
            member: Arc::clone(member),
            direction,
            host: host.to_path_buf(),
            container: container.to_path_buf(),
            progress: None,
            policy: Policy {
                owners: rustix::process::geteuid().is_root(),
                privileges: false,
                limit_bytes: None,
            },
        }
    }

    /// Is told how far the copy has come: every few MiB or few hundred entries, and at its end. It is called on a
    /// thread of the runtime, and the copy waits for it.
    ///
    /// ```no_run
    /// # async fn example(sandbox: &kata_sandbox::Sandbox) -> Result<(), kata_sandbox::Error> {
    /// sandbox.copy_in("data", "/srv").progress(|progress| eprintln!("{progress}")).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn progress(mut self, told: impl FnMut(CopyProgress) + Send + 'static) -> Self {
        self.progress = Some(Box::new(told));
        self
    }

    /// The most that is taken out of a container, which may have, or say that it has, more than the host's disk holds.
    /// It is [`ErrorKind::OutputTooLarge`] beyond it. Each entry counts as 512 bytes beside its contents.
    pub fn limit(mut self, limit: MiB) -> Self {
        self.policy.limit_bytes = Some(limit.bytes());
        self
    }

    /// Also makes device nodes, set-id bits of files and file capabilities on the host. For a container that is
    /// trusted as the caller is: a device node of its choice is a way to the host's disks.
    pub fn keep_privileges(mut self) -> Self {
        self.policy.privileges = true;
        self
    }

    async fn run(self) -> Result<Copied, Error> {
        let what = match self.direction {
            Direction::In => "copy into the container",
            Direction::Out => "copy out of the container",
        };
        let io = |cause: std::io::Error| {
            Error::new(ErrorKind::Io, Stage::Copy, format!("cannot {what}")).with_source(cause)
        };
        let host = absolute(&self.host).map_err(io)?;
        let link = self.member.present()?;
        let (port, stream) = link.stream(Stage::Copy).await?;
        stream.set_nonblocking(false).map_err(io)?;
        let hang_up = HangUp(stream.try_clone().map_err(io)?);
        let source = match self.direction {
            Direction::In => &host,
            Direction::Out => &self.container,
        };
        let name = name_of(source).map(<[u8]>::to_vec);
        let request = CopyRequest {
            container_id: self.member.id.clone(),
            path: self.container.into_os_string().into_vec(),
            name: name.clone().unwrap_or_default(),
            port,
            ..CopyRequest::default()
        };
        let half = Half {
            direction: self.direction,
            host,
            name,
            policy: self.policy,
            stream,
            progress: self.progress,
        };
        let work = tokio::task::spawn_blocking(move || half.run());
        let work = async {
            let worked = work.await;
            hang_up.unless(matches!(worked, Ok(Ok(_))));
            worked
        };
        let call = async {
            let client = &link.client;
            let called = match self.direction {
                Direction::In => link.call(Stage::Copy, what, client.copy_in(request)).await,
                Direction::Out => link.call(Stage::Copy, what, client.copy_out(request)).await,
            };
            hang_up.unless(called.is_ok());
            called
        };
        match tokio::join!(call, work) {
            (called, Ok(worked)) => outcome(called, worked, what),
            (_, Err(cause)) => Err(io(std::io::Error::other(cause))),
        }
    }
}

impl IntoFuture for Copying {
    type Output = Result<Copied, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// Ends the stream, and with it both sides of a copy, when one of them fails or nobody waits any more.
struct HangUp(UnixStream);

impl HangUp {
    fn unless(&self, is_fine: bool) {
        if !is_fine {
            // One that is closed already needs nothing.
            let _ = self.0.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        self.unless(false);
    }
}

/// The host's half of a copy.
struct Half {
    direction: Direction,
    host: PathBuf,
    name: Option<Vec<u8>>,
    policy: Policy,
    stream: UnixStream,
    progress: Option<Progress>,
}

impl Half {
    fn run(mut self) -> Result<Tally, FilesError> {
        let root = Root::own()?;
        let watch = &mut |entries, bytes| {
            if let Some(told) = &mut self.progress {
                told(CopyProgress { entries, bytes });
            }
        };
        match self.direction {
            Direction::In => files::send(&root, &self.host, &self.stream, watch),
            Direction::Out => {
                let name = self.name.as_deref();
                files::receive(&root, &self.host, name, self.policy, &self.stream, watch)
            }
        }
    }
}

/// From the working directory, with its end as it is written: what it means there is for [`files`] to know.
fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    if path.is_absolute() {
        return Ok(path.to_path_buf());
    }
    Ok(std::env::current_dir()?.join(path))
}

/// Of two failures the one that is not only the other's echo.
fn outcome(
    called: Result<(), Error>,
    worked: Result<Tally, FilesError>,
    what: &str,
) -> Result<Copied, Error> {
    match (called, worked) {
        (Ok(()), Ok(tally)) => Ok(copied(tally)),
        (Err(error), Ok(_) | Err(FilesError::Stream(_))) => Err(error),
        (_, Err(cause)) => Err(failed(cause, what)),
    }
}

fn failed(cause: FilesError, what: &str) -> Error {
    let kind = match &cause {
        FilesError::NoSuchFile(_) => ErrorKind::NoSuchFile,
        FilesError::NotADirectory(_) => ErrorKind::NotADirectory,
        FilesError::NoSpace(_) => ErrorKind::NoSpace,
        FilesError::TooMuch(_) => ErrorKind::OutputTooLarge,
        FilesError::Malformed(_) | FilesError::Stream(_) => ErrorKind::Agent,
        _ => ErrorKind::Io,
    };
    let place = match kind {
        ErrorKind::Agent => "",
        _ => "on the host, ",
    };
    Error::new(kind, Stage::Copy, format!("cannot {what}: {place}{cause}")).with_source(cause)
}

fn copied(tally: Tally) -> Copied {
    let omitted = tally.omitted.into_iter().map(|omission| LeftOut {
        path: PathBuf::from(OsStr::from_bytes(&omission.path)),
        what: match omission.what.enum_value_or_default() {
            What::SOCKET => Omitted::Socket,
            What::DEVICE => Omitted::Device,
            What::SET_ID => Omitted::SetId,
            What::PSEUDO => Omitted::KernelFiles,
            What::HARD_LINK => Omitted::HardLink,
            What::ATTRIBUTE => Omitted::Attribute,
            What::UNSPECIFIED => Omitted::Unknown,
        },
    });
    Copied {
        entries: tally.entries,
        bytes: tally.bytes,
        left_out: omitted.collect(),
        left_out_count: tally.omissions,
    }
}

impl ContainerHandle {
    /// Copies a file or a directory of the host, whole, into the container: owners, modes, times, links, holes and
    /// extended attributes are kept. The container may be running, paused, or only created.
    ///
    /// Where it goes is as `docker cp -a` has it. A destination that is a directory gets the source under its own name,
    /// or only its contents where the source ends in `/.`; one that is not there becomes what the source is; a file is
    /// replaced by a file. A destination's parent has to be there, and a destination that ends in `/` has to be a
    /// directory. A link at the end of the source is copied as a link; a link at the end of the destination is followed,
    /// and leads nowhere out of the container.
    ///
    /// Memory does not grow with what is copied, and the copy is only as fast as the container's disk.
    ///
    /// ```no_run
    /// # async fn example(container: &kata_sandbox::ContainerHandle) -> Result<(), kata_sandbox::Error> {
    /// let copied = container.copy_in("site", "/srv/www").await?;
    /// println!("{} files and directories, {} bytes", copied.entries, copied.bytes);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchFile`], [`ErrorKind::NotADirectory`] or [`ErrorKind::NoSpace`] with the path, on the host or
    /// in the container; [`ErrorKind::InvalidState`] when the container has ended or ends meanwhile;
    /// [`ErrorKind::Unsupported`] for an agent that cannot do it. The sandbox goes on, and what was copied stays.
    pub fn copy_in(&self, host: impl AsRef<Path>, container: impl AsRef<Path>) -> Copying {
        Copying::new(&self.0, Direction::In, host.as_ref(), container.as_ref())
    }

    /// Copies a file or a directory out of the container to the host: as [`copy_in`](Self::copy_in), the other way.
    ///
    /// What comes is not trusted. Nothing is made outside of the destination, through no link that comes with it;
    /// device nodes, set-id bits of files and file capabilities are left out
    /// ([`Copied::left_out`]), unless [`keep_privileges`](Copying::keep_privileges) asks for them; owners are kept if
    /// the caller is root. How much comes is bounded by [`limit`](Copying::limit) only.
    ///
    /// ```no_run
    /// # async fn example(container: &kata_sandbox::ContainerHandle) -> Result<(), kata_sandbox::Error> {
    /// container.copy_out("/var/log/.", "logs").limit(kata_sandbox::MiB(64)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`copy_in`](Self::copy_in), and [`ErrorKind::OutputTooLarge`] beyond the limit.
    pub fn copy_out(&self, container: impl AsRef<Path>, host: impl AsRef<Path>) -> Copying {
        Copying::new(&self.0, Direction::Out, host.as_ref(), container.as_ref())
    }
}

impl crate::Sandbox {
    /// Copies a file or a directory of the host into the sandbox's first container; see
    /// [`ContainerHandle::copy_in`].
    ///
    /// ```no_run
    /// # async fn example(sandbox: &kata_sandbox::Sandbox) -> Result<(), kata_sandbox::Error> {
    /// sandbox.copy_in("site", "/srv/www").progress(|progress| eprintln!("{progress}")).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn copy_in(&self, host: impl AsRef<Path>, container: impl AsRef<Path>) -> Copying {
        self.container().copy_in(host, container)
    }

    /// Copies a file or a directory of the sandbox's first container to the host; see [`ContainerHandle::copy_out`].
    ///
    /// ```no_run
    /// # async fn example(sandbox: &kata_sandbox::Sandbox) -> Result<(), kata_sandbox::Error> {
    /// sandbox.copy_out("/var/log/.", "logs").limit(kata_sandbox::MiB(64)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub fn copy_out(&self, container: impl AsRef<Path>, host: impl AsRef<Path>) -> Copying {
        self.container().copy_out(container, host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> Error {
        Error::new(ErrorKind::NoSpace, Stage::Copy, "the agent says so")
    }

    #[test]
    fn the_cause_is_not_its_echo() {
        let echo = || Err(FilesError::Stream(std::io::ErrorKind::BrokenPipe.into()));
        assert_eq!(
            outcome(Err(error()), echo(), "copy").unwrap_err().kind(),
            ErrorKind::NoSpace
        );
        let cause = || Err(FilesError::NoSuchFile("/x".into()));
        let failed = outcome(Err(error()), cause(), "copy").unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::NoSuchFile);
        assert_eq!(
            failed.to_string(),
            "copy: cannot copy: on the host, /x: no such file or directory"
        );
        assert_eq!(
            outcome(Ok(()), echo(), "copy").unwrap_err().kind(),
            ErrorKind::Agent
        );
        assert!(outcome(Ok(()), Ok(Tally::default()), "copy").is_ok());
    }

    #[test]
    fn a_path_keeps_its_end() {
        let here = std::env::current_dir().unwrap();
        for (path, end) in [("a/", "/a/"), ("a/.", "/a/."), (".", "/.")] {
            let found = absolute(Path::new(path))
                .unwrap()
                .into_os_string()
                .into_string()
                .unwrap();
            assert_eq!(found, format!("{}{end}", here.display()));
        }
        assert_eq!(absolute(Path::new("/x/.")).unwrap(), Path::new("/x/."));
    }
}
