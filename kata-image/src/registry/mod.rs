//! Registries: the OCI distribution specification 1.1, as a client.
//!
//! Owns connections, credentials, tokens and mirrors. Knows descriptors and documents as bytes; neither layers nor
//! the store.
//!
//! ```text
//!  Repository ── for each mirror, then the registry itself ──► Session: one host, one scope
//!                                                                 │ authorization (auth, credentials)
//!                                                                 ▼
//!                                                              Client: one agent for each host, redirects
//! ```

mod auth;
mod certificates;
pub(crate) mod challenge;
mod client;
mod credentials;
mod error;
mod keeper;
mod push;
mod repository;
mod session;
mod url;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::Certificate;

use auth::Tokens;
use client::Client;
pub use credentials::CredentialsError;
use credentials::{Credentials, Environment, Found};
pub use error::RegistryError;
pub use keeper::KeeperError;
pub(crate) use push::Upload;
pub(crate) use repository::Repository;

use crate::reference::Reference;
use crate::transfer::Patience;

/// How registries are reached: credentials, certificates, mirrors, limits of time.
///
/// Made by default it uses what docker and podman use: their files of credentials, the machine's root certificates
/// and those in `/etc/docker/certs.d` and `/etc/containers/certs.d`, and the proxies of `HTTPS_PROXY`,
/// `HTTP_PROXY` and `NO_PROXY`. Nothing is read before the first request. Clones share connections and tokens.
///
/// Connections are encrypted, but those to hosts that [`plain_http`](Self::plain_http) names and to this machine itself
/// (`localhost`, `127.0.0.0/8`, `::1`), unless [`https`](Self::https) names it or there is a directory of certificates
/// for it. A secure connection that fails never becomes a plain one.
///
/// ```
/// use kata_image::Registries;
///
/// let registries = Registries::new()
///     .plain_http("registry.lan:5000")
///     .mirror("docker.io", "mirror.lan")
///     .credentials("ghcr.io", "somebody", "secret");
/// # drop(registries);
/// ```
#[derive(Clone, Default)]
pub struct Registries {
    options: Arc<Options>,
    state: Arc<State>,
}

impl fmt::Debug for Registries {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(formatter)
    }
}

/// What the caller said.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    root_certificates: Vec<Certificate<'static>>,
    certificate_directories: Vec<PathBuf>,
    plain_http: BTreeSet<String>,
    https: BTreeSet<String>,
    mirrors: BTreeMap<String, Vec<String>>,
    credentials: BTreeMap<String, Credentials>,
    /// Instead of those that the environment names.
    credential_files: Option<Vec<PathBuf>>,
    connect_timeout: Duration,
    stall_timeout: Duration,
    patience: Patience,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root_certificates: Vec::new(),
            certificate_directories: certificates::DIRECTORIES.map(PathBuf::from).to_vec(),
            plain_http: BTreeSet::new(),
            https: BTreeSet::new(),
            mirrors: BTreeMap::new(),
            credentials: BTreeMap::new(),
            credential_files: None,
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
            patience: Patience::default(),
        }
    }
}

/// What requests leave behind for the next ones.
#[derive(Default)]
struct State {
    client: Client,
    tokens: Tokens,
}

impl Registries {
    /// With the defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts one more authority, or several: certificates in PEM.
    ///
    /// # Errors
    /// [`RegistryError::RootCertificate`] when there is no certificate in it, or a broken one.
    pub fn root_certificate(self, pem: &[u8]) -> Result<Self, RegistryError> {
        let more = certificates::parse(pem)
            .map_err(|source| RegistryError::RootCertificate { path: None, source })?;
        Ok(self.with(|options| options.root_certificates.extend(more)))
    }

    /// Looks for certificates in `DIRECTORY/HOST/*.crt` of these directories instead of the usual ones.
    #[must_use]
    pub fn certificate_directories(self, directories: impl IntoIterator<Item = PathBuf>) -> Self {
        let directories = directories.into_iter().collect();
        self.with(|options| options.certificate_directories = directories)
    }

    /// Speaks to this host (and port, as in the reference) without encryption.
    #[must_use]
    pub fn plain_http(self, host: &str) -> Self {
        self.with(|options| options.plain_http.extend([host.to_ascii_lowercase()]))
    }

    /// Speaks to this host with encryption although it is on this machine.
    #[must_use]
    pub fn https(self, host: &str) -> Self {
        self.with(|options| options.https.extend([host.to_ascii_lowercase()]))
    }

    /// Asks `mirror` (a host, a port, maybe a path) before `host` when pulling. Several are asked in the order in which
    /// they were given.
    #[must_use]
    pub fn mirror(self, host: &str, mirror: &str) -> Self {
        let mirror = mirror.trim_end_matches('/').to_owned();
        self.with(|options| options.mirrors.entry(host.to_owned()).or_default().push(mirror))
    }

    /// Uses these credentials for a host, whatever the files say.
    #[must_use]
    pub fn credentials(self, host: &str, user: &str, password: &str) -> Self {
        let credentials = Credentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        };
        self.with(|options| options.credentials.extend([(host.to_owned(), credentials)]))
    }

    /// Looks for credentials in these files, in docker's or podman's format, instead of the usual ones.
    #[must_use]
    pub fn credential_files(self, files: impl IntoIterator<Item = PathBuf>) -> Self {
        let files = files.into_iter().collect();
        self.with(|options| options.credential_files = Some(files))
    }

    /// How long a connection may take until it stands, encryption included. 15 s.
    #[must_use]
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.with(|options| options.connect_timeout = timeout)
    }

    /// How long a registry may send nothing. 30 s. How long a whole transfer takes is not limited.
    #[must_use]
    pub fn stall_timeout(self, timeout: Duration) -> Self {
        self.with(|options| options.stall_timeout = timeout)
    }

    /// How often what failed for now is tried again, and how long to wait before the first time; each further pause is
    /// twice as long. 4 times, 0.25 s. What moves on meanwhile may be tried as often again.
    #[must_use]
    pub fn retries(self, attempts: u32, first_pause: Duration) -> Self {
        self.with(|options| options.patience = Patience::new(attempts, first_pause))
    }

    /// The repository of a reference. Nothing is asked yet.
    pub(crate) fn repository(&self, reference: &Reference) -> Repository {
        Repository::new(self.clone(), reference.clone())
    }

    /// Connections and tokens of other options are not used.
    fn with(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(Arc::make_mut(&mut self.options));
        self.state = Arc::default();
        self
    }
}

impl Options {
    /// Whether a host is spoken to without encryption.
    fn is_plain(&self, authority: &str) -> bool {
        let authority = authority.to_ascii_lowercase();
        let has_certificates = || {
            let mut directories = self.certificate_directories.iter();
            directories.any(|directory| directory.join(&authority).is_dir())
        };
        if self.plain_http.contains(&authority) {
            return true;
        }
        url::is_loopback(&authority) && !self.https.contains(&authority) && !has_certificates()
    }

    fn find_credentials(&self, host: &str, repository: &str) -> Result<Option<Found>, RegistryError> {
        if let Some(credentials) = self.credentials.get(host) {
            return Ok(Some(Found {
                credentials: credentials.clone(),
                origin: "the options".into(),
            }));
        }
        let files = match &self.credential_files {
            Some(files) => files.clone(),
            None => Environment::of_process().files(),
        };
        credentials::find(&files, host, repository).map_err(|source| RegistryError::Credentials {
            host: host.to_owned(),
            source,
        })
    }
}
