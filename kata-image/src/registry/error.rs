//! What can go wrong between here and a registry, in words that say what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::credentials::CredentialsError;
use crate::transfer::TransferError;

/// Why a registry did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// It wants credentials, or other ones.
    #[error("{host} does not allow {what} ({tried}){detail}")]
    Unauthorized {
        /// The registry.
        host: String,
        /// What was asked for: `to pull library/debian`.
        what: String,
        /// Which credentials were tried, by where they came from.
        tried: String,
        /// What it said, in brackets; empty if nothing.
        detail: String,
    },
    /// It knows the caller, who must not do this.
    #[error("{host} forbids {what} ({tried}){detail}")]
    Forbidden {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// Which credentials were tried, by where they came from.
        tried: String,
        /// What it said, in brackets; empty if nothing.
        detail: String,
    },
    /// A credential was refused that an upload began with; a new one is asked for.
    #[error("{host} no longer accepts the credentials of this upload")]
    Expired {
        /// The registry.
        host: String,
    },
    /// It asks for credentials in a way that is not known here.
    #[error("{host} asks for credentials by {challenge:?}, which is not understood")]
    Challenge {
        /// The registry.
        host: String,
        /// Its `WWW-Authenticate`.
        challenge: String,
    },
    /// The server that gives out tokens did not give one.
    #[error("{realm} gives no token for {host}")]
    Token {
        /// The registry.
        host: String,
        /// The server.
        realm: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// Stored credentials cannot be read.
    #[error("cannot read the credentials for {host}")]
    Credentials {
        /// The registry.
        host: String,
        /// Why.
        #[source]
        source: CredentialsError,
    },
    /// It has answered enough for now.
    #[error("{host} limits how often it may be asked{}", after(*.retry_after))]
    RateLimited {
        /// The registry.
        host: String,
        /// When to come back, if it said so.
        retry_after: Option<Duration>,
    },
    /// Its certificate was signed by nobody that is trusted here.
    #[error(
        "the certificate of {host} is signed by an unknown authority: add the authority's certificate with \
         Registries::root_certificate, or as /etc/docker/certs.d/{host}/ca.crt"
    )]
    UnknownAuthority {
        /// The registry.
        host: String,
    },
    /// TLS failed for another reason.
    #[error("no secure connection to {host}{hint}")]
    Tls {
        /// The registry.
        host: String,
        /// What may help; empty if nothing is known.
        hint: &'static str,
        /// Why.
        #[source]
        source: ureq::Error,
    },
    /// An extra root certificate is none.
    #[error("the root certificate{} cannot be read", from(.path))]
    RootCertificate {
        /// Its file, if it came from one.
        path: Option<PathBuf>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody is there.
    #[error("cannot connect to {host}")]
    Connect {
        /// Whom.
        host: String,
        /// Why.
        #[source]
        source: ureq::Error,
    },
    /// It sent nothing for too long.
    #[error("{host} sent nothing for {} s", .limit.as_secs_f32())]
    Stalled {
        /// The registry.
        host: String,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("the connection to {host} failed")]
    Connection {
        /// The registry.
        host: String,
        /// Why.
        #[source]
        source: ureq::Error,
    },
    /// An answer that means nothing here.
    #[error("{host} answers {status} to {what}{detail}")]
    Status {
        /// The registry.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The request.
        what: String,
        /// What it said, in brackets; empty if nothing.
        detail: String,
    },
    /// Somebody answered, but no registry.
    #[error("what answers for {host} is no registry: {what} came as {content_type:?} (a proxy's page?)")]
    NoRegistry {
        /// Who should have answered.
        host: String,
        /// What was asked for.
        what: String,
        /// What came instead.
        content_type: String,
    },
    /// An answer contradicts the protocol.
    #[error("{host} breaks the protocol: {what}")]
    Protocol {
        /// The registry.
        host: String,
        /// How.
        what: String,
    },
    /// It sends the caller to where nobody may go.
    #[error("{host} sends us to {to}, {why}")]
    Redirect {
        /// The registry.
        host: String,
        /// The address.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// No mirror has it, and neither has the registry itself.
    #[error("neither {mirrors}")]
    Mirrors {
        /// The mirrors, and what each of them said.
        mirrors: String,
        /// What the registry itself said.
        #[source]
        source: Arc<TransferError>,
    },
    /// What is to be pushed cannot be read.
    #[error("cannot read what is to be pushed")]
    Source(#[source] Arc<TransferError>),
}

fn after(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |pause| {
        format!(", and wants to be asked again in {} s", pause.as_secs())
    })
}

fn from(path: &Option<PathBuf>) -> String {
    path.as_ref()
        .map_or_else(String::new, |path| format!(" {}", path.display()))
}

/// The longest that a registry may ask us to wait and still be waited for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

impl RegistryError {
    /// Whether the same request may have a better answer later.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            Self::RateLimited { retry_after, .. } => retry_after.is_none_or(|pause| pause <= RETRY_AFTER_MAX),
            Self::Status { status, .. } => matches!(status, 408 | 500 | 502 | 503 | 504),
            Self::Stalled { .. } | Self::Connection { .. } | Self::Expired { .. } => true,
            Self::Connect { source, .. } => !is_refusal(source),
            Self::Token { source, .. } => source.is_temporary(),
            Self::Mirrors { source, .. } | Self::Source(source) => source.is_temporary(),
            _ => false,
        }
    }

    /// How long the registry wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => *retry_after,
            Self::Token { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}

/// A port that nobody listens on and a name that does not exist are answers; waiting does not change them.
fn is_refusal(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound => true,
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}
