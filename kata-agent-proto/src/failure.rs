//! Failures that the caller can act upon: a kind and what it speaks about.
//!
//! They travel as a [`kata::Failure`] in the `details` of a ttrpc status. This
//! module owns that encoding on both sides; it must not know which request failed.

use std::fmt;

use protobuf::{EnumOrUnknown, Message};
use ttrpc::Code;
use ttrpc::proto::{Any, Status};

use crate::kata;
use crate::kata::failure::Kind;
use crate::text::printable;

/// Type URL of the `Any` in a status' details.
const TYPE_URL: &str = "type.googleapis.com/kata.sandbox.v1.Failure";

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// The program is not in the container's `PATH`, or its path does not exist.
    NotFound,
    /// The program exists but may not be executed.
    NotExecutable,
    /// The working directory does not exist.
    NoSuchDirectory,
    /// The user is not in the image's passwd file.
    NoSuchUser,
    /// The group is not in the image's group file.
    NoSuchGroup,
    /// No disk has the serial.
    NoSuchDisk,
    /// A storage could not be mounted.
    Mount,
    /// The request asks for what the agent cannot do.
    Unsupported,
    /// A field of the request has no meaning.
    Invalid,
    /// A standard stream that the request names was not connected in time.
    NoSuchStream,
    /// A container or process of that name exists.
    AlreadyExists,
    /// The process has not been started, or has ended.
    NotRunning,
    /// The container could not be created, for a reason that is only text.
    Container,
    /// The guest could not do it, for a reason that is only text.
    Guest,
    /// The guest has no network interface of that name or address.
    NoSuchInterface,
    /// A file or directory does not exist.
    NoSuchFile,
    /// A path leads through a file, or a directory cannot take the place of a file.
    NotADirectory,
    /// A file system is full.
    NoSpace,
    /// A file could not be read or made, for a reason that is only text.
    File,
    /// A stream of files is not one.
    Malformed,
    /// A kind that this version does not know.
    Unknown(i32),
}

/// The kinds in wire order, with the status code that accompanies each and the words for people.
const KINDS: [(FailureKind, Kind, Code, &str); 20] = [
    (
        FailureKind::NotFound,
        Kind::NOT_FOUND,
        Code::FAILED_PRECONDITION,
        "no such program",
    ),
    (
        FailureKind::NotExecutable,
        Kind::NOT_EXECUTABLE,
        Code::FAILED_PRECONDITION,
        "not an executable program",
    ),
    (
        FailureKind::NoSuchDirectory,
        Kind::NO_SUCH_DIRECTORY,
        Code::FAILED_PRECONDITION,
        "no such directory",
    ),
    (
        FailureKind::NoSuchUser,
        Kind::NO_SUCH_USER,
        Code::FAILED_PRECONDITION,
        "no such user",
    ),
    (
        FailureKind::NoSuchGroup,
        Kind::NO_SUCH_GROUP,
        Code::FAILED_PRECONDITION,
        "no such group",
    ),
    (
        FailureKind::NoSuchDisk,
        Kind::NO_SUCH_DISK,
        Code::FAILED_PRECONDITION,
        "no such disk",
    ),
    (
        FailureKind::Mount,
        Kind::MOUNT,
        Code::FAILED_PRECONDITION,
        "cannot mount",
    ),
    (
        FailureKind::Unsupported,
        Kind::UNSUPPORTED,
        Code::UNIMPLEMENTED,
        "not supported",
    ),
    (
        FailureKind::Invalid,
        Kind::INVALID,
        Code::INVALID_ARGUMENT,
        "invalid request",
    ),
    (
        FailureKind::NoSuchStream,
        Kind::NO_SUCH_STREAM,
        Code::FAILED_PRECONDITION,
        "no such stream",
    ),
    (
        FailureKind::AlreadyExists,
        Kind::ALREADY_EXISTS,
        Code::ALREADY_EXISTS,
        "already exists",
    ),
    (
        FailureKind::NotRunning,
        Kind::NOT_RUNNING,
        Code::FAILED_PRECONDITION,
        "not running",
    ),
    (
        FailureKind::Container,
        Kind::CONTAINER,
        Code::INTERNAL,
        "cannot create the container",
    ),
    (
        FailureKind::Guest,
        Kind::GUEST,
        Code::INTERNAL,
        "the guest cannot do it",
    ),
    (
        FailureKind::NoSuchInterface,
        Kind::NO_SUCH_INTERFACE,
        Code::FAILED_PRECONDITION,
        "no such network interface",
    ),
    (
        FailureKind::NoSuchFile,
        Kind::NO_SUCH_FILE,
        Code::FAILED_PRECONDITION,
        "no such file or directory",
    ),
    (
        FailureKind::NotADirectory,
        Kind::NOT_A_DIRECTORY,
        Code::FAILED_PRECONDITION,
        "not a directory",
    ),
    (
        FailureKind::NoSpace,
        Kind::NO_SPACE,
        Code::RESOURCE_EXHAUSTED,
        "no space left",
    ),
    (FailureKind::File, Kind::FILE, Code::INTERNAL, "cannot copy"),
    (
        FailureKind::Malformed,
        Kind::MALFORMED,
        Code::INVALID_ARGUMENT,
        "a broken stream of files",
    ),
];

impl FailureKind {
    fn row(self) -> Option<&'static (FailureKind, Kind, Code, &'static str)> {
        KINDS.iter().find(|row| row.0 == self)
    }

    /// Number on the wire.
    #[must_use]
    pub fn number(self) -> i32 {
        match self {
            FailureKind::Unknown(number) => number,
            known => known.row().map_or(0, |row| row.1 as i32),
        }
    }

    /// The kind with this number on the wire.
    #[must_use]
    pub fn from_number(number: i32) -> FailureKind {
        KINDS
            .iter()
            .find(|row| row.1 as i32 == number)
            .map_or(FailureKind::Unknown(number), |row| row.0)
    }

    /// The ttrpc status code that a failure of this kind carries.
    #[must_use]
    pub fn code(self) -> Code {
        self.row().map_or(Code::UNKNOWN, |row| row.2)
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FailureKind::Unknown(number) => write!(f, "failure {number}"),
            known => f.write_str(known.row().map_or("failure", |row| row.3)),
        }
    }
}

/// A failure with its kind, as the agent reports it and the client receives it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {subject}")]
pub struct Failed {
    /// What went wrong.
    pub kind: FailureKind,
    /// What the kind speaks about: the program, directory, user, serial.
    pub subject: String,
}

impl Failed {
    /// A failure of this kind about this subject.
    #[must_use]
    pub fn new(kind: FailureKind, subject: impl Into<String>) -> Self {
        Failed {
            kind,
            subject: subject.into(),
        }
    }

    /// The ttrpc status that carries this failure.
    #[must_use]
    pub fn to_status(&self) -> Status {
        let message = kata::Failure {
            kind: EnumOrUnknown::from_i32(self.kind.number()),
            subject: self.subject.clone(),
            ..Default::default()
        };
        let mut status = ttrpc::get_status(self.kind.code(), self);
        // Writing to memory fails only for messages above 2 GiB.
        if let Ok(value) = message.write_to_bytes() {
            status.details.push(Any {
                type_url: TYPE_URL.into(),
                value,
                ..Default::default()
            });
        }
        status
    }

    /// The failure in a status, if it carries one.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        let detail = status.details.iter().find(|detail| detail.type_url == TYPE_URL)?;
        let message = kata::Failure::parse_from_bytes(&detail.value).ok()?;
        Some(Failed::new(
            FailureKind::from_number(message.kind.value()),
            printable(&message.subject),
        ))
    }
}

impl From<Failed> for ttrpc::Error {
    fn from(failed: Failed) -> Self {
        ttrpc::Error::RpcStatus(failed.to_status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_wire() {
        for (kind, ..) in KINDS {
            let failed = Failed::new(kind, "subject");
            assert_eq!(Failed::from_status(&failed.to_status()), Some(failed));
        }
    }

    #[test]
    fn the_table_has_every_declared_kind() {
        use protobuf::Enum;
        let declared = Kind::VALUES
            .iter()
            .filter(|kind| **kind != Kind::UNSPECIFIED)
            .count();
        assert_eq!(declared, KINDS.len());
    }

    #[test]
    fn a_kind_of_a_later_version_stays_a_failure() {
        let failed = Failed::new(FailureKind::Unknown(99), "x");
        assert_eq!(Failed::from_status(&failed.to_status()), Some(failed.clone()));
        assert_eq!(failed.to_string(), "failure 99: x");
    }

    #[test]
    fn a_plain_status_has_no_failure() {
        assert_eq!(
            Failed::from_status(&ttrpc::get_status(Code::NOT_FOUND, "container")),
            None
        );
    }
}
