//! How a call can end badly, and the watch on the connection under the calls.
//!
//! Owns the translation from ttrpc's errors, which are partly text, to a typed one. Must not know any
//! particular request.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use ttrpc::Code;
use ttrpc::proto::Status;

use crate::failure::{Failed, FailureKind};
use crate::frames::{Breach, Frames};
use crate::text::printable;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The agent says what is wrong.
    #[error("{kind}: {subject}")]
    Failed {
        /// What went wrong.
        kind: FailureKind,
        /// What the kind speaks about.
        subject: String,
    },
    /// No such container or process; also after it was removed.
    #[error("no such container or process")]
    NotFound,
    /// The agent does not offer this method.
    #[error("the agent does not offer this method")]
    Unimplemented,
    /// A stream that is read by calls has come to its end.
    #[error("the stream has ended")]
    EndOfStream,
    /// The deadline of [`Client::with_deadline`](crate::Client::with_deadline) passed.
    #[error("the agent did not answer in time")]
    DeadlineExceeded,
    /// The connection to the agent is lost. The request may or may not have been carried out.
    #[error("the connection to the agent is lost")]
    Closed,
    /// The connection to the agent was lost while an answer was coming, to this request or another.
    #[error("the connection to the agent ended in the middle of an answer")]
    Cut,
    /// The agent sent what no agent sends. The connection is lost, and the agent cannot be trusted.
    #[error("the agent broke the protocol: {what}")]
    Broken {
        /// What it sent.
        what: String,
    },
    /// Any other answer.
    #[error("the agent answered with status {code}: {message}")]
    Status {
        /// Number of the gRPC status code.
        code: i32,
        /// The agent's words.
        message: String,
    },
}

impl CallError {
    /// What kind of failure the agent named, if it named one.
    #[must_use]
    pub fn kind(&self) -> Option<FailureKind> {
        match self {
            CallError::Failed { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    fn from_status(status: &Status) -> Self {
        if let Some(Failed { kind, subject }) = Failed::from_status(status) {
            return CallError::Failed { kind, subject };
        }
        match status.code.enum_value() {
            Ok(Code::NOT_FOUND) if is_generated(&status.message) => CallError::Unimplemented,
            Ok(Code::INVALID_ARGUMENT) if is_unknown_service(&status.message) => CallError::Unimplemented,
            Ok(Code::NOT_FOUND) => CallError::NotFound,
            Ok(Code::INTERNAL) if is_end_of_stream(&status.message) => CallError::EndOfStream,
            Ok(Code::UNIMPLEMENTED) => CallError::Unimplemented,
            Ok(Code::DEADLINE_EXCEEDED) => CallError::DeadlineExceeded,
            _ => CallError::Status {
                code: status.code.value(),
                message: printable(&status.message),
            },
        }
    }
}

/// What generated code answers for a method of a service that its author left out: an agent that is not
/// [`offered`](crate::offered) says "not found" where it means "not offered".
fn is_generated(message: &str) -> bool {
    message.starts_with('/') && message.ends_with(" is not supported")
}

/// What a server answers for a service that it has not, as Kata's agent has not the one that this project adds: the
/// words of the library that both are made with.
fn is_unknown_service(message: &str) -> bool {
    message.ends_with(" service does not exist")
}

/// Kata's agent has only words for it: of a pipe, and of a terminal. A backtrace may follow them.
fn is_end_of_stream(message: &str) -> bool {
    matches!(message.lines().next(), Some("read meet eof" | "eof"))
}

impl From<ttrpc::Error> for CallError {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => CallError::from_status(&status),
            ttrpc::Error::Socket(_)
            | ttrpc::Error::Nix(_)
            | ttrpc::Error::LocalClosed
            | ttrpc::Error::RemoteClosed
            | ttrpc::Error::Eof => CallError::Closed,
            // What is left is a message that could not be encoded or decoded.
            ttrpc::Error::Others(message) => CallError::Status {
                code: Code::INTERNAL as i32,
                message: printable(&message),
            },
        }
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The other side closed it, or it was lost.
    Closed,
    /// The same, with a part of an answer still to come.
    Cut,
    /// The other side broke the protocol.
    Broken(Breach),
}

impl From<End> for CallError {
    fn from(end: End) -> Self {
        match end {
            End::Closed => CallError::Closed,
            End::Cut => CallError::Cut,
            End::Broken(breach) => CallError::Broken {
                what: breach.to_string(),
            },
        }
    }
}

/// A stream that tells when and how its reading half came to an end, which a breach of the protocol is, too.
#[derive(Debug)]
pub(crate) struct Watched<S> {
    stream: S,
    frames: Frames,
    ended: watch::Sender<Option<End>>,
}

impl<S> Watched<S> {
    pub(crate) fn new(stream: S) -> (Self, watch::Receiver<Option<End>>) {
        let (ended, receiver) = watch::channel(None);
        let frames = Frames::default();
        let watched = Watched {
            stream,
            frames,
            ended,
        };
        (watched, receiver)
    }

    fn end(&self, end: End) {
        self.ended.send_if_modified(|first| {
            let new = first.is_none();
            if new {
                *first = Some(end);
            }
            new
        });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        if result.is_err() || (buf.filled().len() == before && buf.remaining() > 0) {
            self.end(match self.frames.is_within_answer() {
                true => End::Cut,
                false => End::Closed,
            });
            return Poll::Ready(result);
        }
        if let Err(breach) = self.frames.received(&buf.filled()[before..]) {
            buf.set_filled(before);
            let error = io::Error::new(io::ErrorKind::InvalidData, breach.to_string());
            self.end(End::Broken(breach));
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.frames.sent(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let taken = left.min(buf.len());
            self.frames.sent(&buf[..taken]);
            left -= taken;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_without_a_failure_becomes_its_code() {
        let error = |code| CallError::from(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "words")));
        assert_eq!(error(Code::NOT_FOUND), CallError::NotFound);
        assert_eq!(error(Code::UNIMPLEMENTED), CallError::Unimplemented);
        assert_eq!(error(Code::DEADLINE_EXCEEDED), CallError::DeadlineExceeded);
        assert_eq!(
            error(Code::INTERNAL),
            CallError::Status {
                code: 13,
                message: "words".into()
            }
        );
    }

    #[test]
    fn the_words_of_katas_agent_are_understood() {
        let error = |code, words| CallError::from(ttrpc::Error::RpcStatus(ttrpc::get_status(code, words)));
        let unsupported = "/grpc.AgentService/ResizeVolume is not supported";
        assert_eq!(error(Code::NOT_FOUND, unsupported), CallError::Unimplemented);
        let unknown = "kata.Guest service does not exist";
        assert_eq!(error(Code::INVALID_ARGUMENT, unknown), CallError::Unimplemented);
        for words in [
            "read meet eof",
            "eof",
            "read meet eof\n\nStack backtrace:\n   0: x",
        ] {
            assert_eq!(error(Code::INTERNAL, words), CallError::EndOfStream, "{words}");
        }
        for words in ["eof of what", "No such file", ""] {
            assert!(
                matches!(error(Code::INTERNAL, words), CallError::Status { .. }),
                "{words}"
            );
        }
    }

    #[test]
    fn a_failure_keeps_its_kind_whatever_the_code() {
        let error = CallError::from(ttrpc::Error::from(Failed::new(
            FailureKind::Unsupported,
            "seccomp",
        )));
        assert_eq!(error.kind(), Some(FailureKind::Unsupported));
        assert_eq!(error.to_string(), "not supported: seccomp");
    }

    #[tokio::test]
    async fn the_watch_reports_the_end_of_the_stream() {
        use tokio::io::AsyncReadExt;
        let (near, far) = tokio::io::duplex(16);
        let (mut watched, ended) = Watched::new(near);
        assert_eq!(*ended.borrow(), None);
        drop(far);
        assert_eq!(
            watched.read(&mut [0; 4]).await.expect("end of file is no error"),
            0
        );
        assert_eq!(*ended.borrow(), Some(End::Closed));
    }
}
