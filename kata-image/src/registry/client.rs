//! One request and its answer: which agent, which errors, and where redirects may lead.
//!
//! It knows nothing of authorization but that it never leaves the server that it is for.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ureq::http::{self, HeaderMap, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy, SendBody};

use super::Options;
use super::certificates::{self, MachineRoots};
use super::error::RegistryError;
use super::url::{self, Url};
use crate::oci::DOCUMENT_BYTES_MAX;

/// One agent for each server, for each trusts other roots. Every agent has a pool of connections.
#[derive(Default)]
pub(super) struct Client {
    roots: MachineRoots,
    agents: Mutex<HashMap<(bool, String), Agent>>,
}

/// What is sent besides headers.
pub(super) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// So many bytes.
    Stream(&'a mut dyn Read, u64),
}

/// A request that can be sent again, to another address too; its payload is given when it is sent.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: http::Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(header::HeaderName, String)>,
}

/// What a server answered; its body is yet to be read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// Where it came from in the end.
    pub(super) url: Url,
    body: Body,
}

const REDIRECTS_MAX: usize = 5;
const ERROR_BYTES_MAX: u64 = 64 << 10;
const IDLE_CONNECTIONS_MAX: usize = 16;
const USER_AGENT: &str = concat!("kata-rs/", env!("CARGO_PKG_VERSION"));

impl Request {
    pub(super) fn new(method: http::Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: Vec::new(),
        }
    }

    pub(super) fn header(mut self, name: header::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// For messages: the method and the path.
    pub(super) fn what(&self) -> String {
        let path = self.url.path.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method)
    }
}

impl Client {
    /// Sends a request; where it only reads, redirects are followed. `authorization` goes to its server alone.
    pub(super) fn send(
        &self,
        options: &Options,
        request: &Request,
        authorization: Option<&str>,
        payload: Payload<'_>,
    ) -> Result<Answer, RegistryError> {
        let first = self.exchange(options, request, authorization, payload)?;
        if !matches!(request.method, http::Method::GET | http::Method::HEAD) {
            return Ok(first);
        }
        let (mut answer, mut next) = (first, request.clone());
        for _ in 0..REDIRECTS_MAX {
            let Some(target) = answer.redirect(options)? else {
                return Ok(answer);
            };
            next.url = target;
            let authorization = authorization.filter(|_| next.url.is_same_server(&request.url));
            answer = self.exchange(options, &next, authorization, Payload::None)?;
        }
        match answer.redirect(options)? {
            None => Ok(answer),
            Some(target) => Err(RegistryError::Redirect {
                host: request.url.authority.clone(),
                to: target.without_query(),
                why: "after five other redirects",
            }),
        }
    }

    fn exchange(
        &self,
        options: &Options,
        request: &Request,
        authorization: Option<&str>,
        payload: Payload<'_>,
    ) -> Result<Answer, RegistryError> {
        let host = &request.url.authority;
        let agent = self.agent(options, &request.url)?;
        let mut builder = http::Request::builder()
            .method(request.method.clone())
            .uri(request.url.to_string());
        let authorization = authorization.map(|value| (header::AUTHORIZATION, value));
        let headers = request
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str()));
        for (name, value) in headers.chain(authorization) {
            builder = builder.header(name, value);
        }
        let failed = |error| failure(host, options.stall_timeout, error);
        let answer = match payload {
            Payload::None => agent.run(builder.body(()).map_err(|error| failed(error.into()))?),
            Payload::Bytes(bytes) => agent.run(builder.body(bytes).map_err(|error| failed(error.into()))?),
            Payload::Stream(stream, length) => {
                let mut stream = stream;
                let body = SendBody::from_reader(&mut stream);
                let builder = builder.header(header::CONTENT_LENGTH, length);
                agent.run(builder.body(body).map_err(|error| failed(error.into()))?)
            }
        };
        let (parts, body) = answer.map_err(failed)?.into_parts();
        log::trace!(
            "{} {}: {}",
            request.method,
            request.url.without_query(),
            parts.status
        );
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            url: request.url.clone(),
            body,
        })
    }

    fn agent(&self, options: &Options, url: &Url) -> Result<Agent, RegistryError> {
        let key = (url.secure, url.authority.clone());
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&key) {
            return Ok(agent.clone());
        }
        let agent = self.new_agent(options, url)?;
        agents.insert(key, agent.clone());
        Ok(agent)
    }

    fn new_agent(&self, options: &Options, url: &Url) -> Result<Agent, RegistryError> {
        let roots = if url.secure {
            certificates::roots(&self.roots, options, &url.authority)?
        } else {
            Vec::new()
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(provider)
            .build();
        // No proxy can reach what is on this machine; Go's clients leave it out too.
        let proxy = Proxy::try_from_env().filter(|_| !url::is_loopback(&url.authority));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .tls_config(tls)
            .proxy(proxy)
            .user_agent(USER_AGENT)
            .accept_encoding("identity")
            .timeout_connect(Some(options.connect_timeout))
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_per_read(Some(options.stall_timeout))
            .timeout_per_write(Some(options.stall_timeout))
            .timeout_recv_response(Some(options.stall_timeout * 4))
            .max_idle_connections(IDLE_CONNECTIONS_MAX)
            .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
            .build();
        Ok(config.new_agent())
    }
}

impl Answer {
    pub(super) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The length that it announces.
    pub(super) fn length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }

    /// Whether the end of the body can be told from the end of the connection.
    pub(super) fn is_framed(&self) -> bool {
        self.headers.contains_key(header::CONTENT_LENGTH)
            || self.headers.contains_key(header::TRANSFER_ENCODING)
    }

    /// Where it sends the caller, if that is somewhere to go.
    fn redirect(&self, options: &Options) -> Result<Option<Url>, RegistryError> {
        if !matches!(self.status, 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        self.location(options).map(Some)
    }

    /// Its `Location`.
    pub(super) fn location(&self, options: &Options) -> Result<Url, RegistryError> {
        let host = || self.url.authority.clone();
        let Some(location) = self.header(header::LOCATION) else {
            return Err(RegistryError::Protocol {
                host: host(),
                what: "it sends us elsewhere and does not say where".into(),
            });
        };
        let refused = |to: String, why| RegistryError::Redirect {
            host: host(),
            to,
            why,
        };
        let target = self
            .url
            .join(location)
            .ok_or_else(|| refused(location.escape_debug().take(200).collect(), "which is no address"))?;
        if !target.secure && !options.is_plain(&target.authority) {
            return Err(refused(target.without_query(), "which is not encrypted"));
        }
        Ok(target)
    }

    /// The body as it comes.
    pub(super) fn into_reader(self) -> impl Read + Send + 'static {
        self.body.into_with_config().limit(u64::MAX).reader()
    }

    /// The whole body of a document.
    pub(super) fn into_document(self, options: &Options, what: &str) -> Result<Vec<u8>, RegistryError> {
        let host = self.url.authority.clone();
        let mut bytes = Vec::new();
        let reader = self.into_reader();
        let read = reader.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|error| failure(&host, options.stall_timeout, ureq::Error::from(error)))?;
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(RegistryError::Protocol {
                host,
                what: format!("{what} has more than {DOCUMENT_BYTES_MAX} bytes"),
            });
        }
        Ok(bytes)
    }

    /// The error that an answer is which is none of those hoped for.
    pub(super) fn into_error(self, what: &str) -> RegistryError {
        let host = self.url.authority.clone();
        if self.status == 429 {
            let retry_after = self
                .header(header::RETRY_AFTER)
                .and_then(|text| text.trim().parse().ok());
            let retry_after = retry_after.map(Duration::from_secs);
            return RegistryError::RateLimited { host, retry_after };
        }
        let content_type = self.header(header::CONTENT_TYPE).unwrap_or_default().to_owned();
        let status = self.status;
        // A page with the status of a failing server says less than the status.
        if is_page(&content_type) && status < 500 {
            let what = what.to_owned();
            return RegistryError::NoRegistry {
                host,
                what,
                content_type,
            };
        }
        RegistryError::Status {
            host,
            status,
            what: what.to_owned(),
            detail: self.detail(),
        }
    }

    /// What the registry says about its refusal (OCI distribution specification, "Error Codes"), in brackets.
    pub(super) fn detail(self) -> String {
        let mut bytes = Vec::new();
        // A body that cannot be read says nothing; the status has been said.
        self.into_reader()
            .take(ERROR_BYTES_MAX)
            .read_to_end(&mut bytes)
            .ok();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |field: &str| value["errors"][0][field].as_str().unwrap_or_default();
        let words = [
            text("code"),
            text("message"),
            value["details"].as_str().unwrap_or_default(),
        ];
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let text = match (words.as_slice(), std::str::from_utf8(&bytes)) {
            // Servers that are no registries say what they have to say in a line of text.
            ([], Ok(text)) if !text.starts_with(['<', '{']) => text.trim().to_owned(),
            _ => words.join(": "),
        };
        if text.is_empty() {
            return text;
        }
        let clean: String = text
            .chars()
            .filter(|letter| !letter.is_control())
            .take(300)
            .collect();
        format!(" ({clean})")
    }
}

/// Whether a body is something for people.
pub(super) fn is_page(content_type: &str) -> bool {
    content_type
        .trim_start()
        .to_ascii_lowercase()
        .starts_with("text/html")
}

/// What a failed exchange means.
fn failure(host: &str, stall_timeout: Duration, error: ureq::Error) -> RegistryError {
    let host = host.to_owned();
    match &error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) | ureq::Error::HostNotFound => {
            RegistryError::Connect { host, source: error }
        }
        ureq::Error::ConnectProxyFailed(_) | ureq::Error::ConnectionFailed => {
            RegistryError::Connect { host, source: error }
        }
        ureq::Error::Timeout(_) => RegistryError::Stalled {
            host,
            limit: stall_timeout,
        },
        ureq::Error::Rustls(tls) => tls_failure(host, tls.clone(), error),
        ureq::Error::Tls(_) | ureq::Error::Pem(_) => RegistryError::Tls {
            host,
            hint: "",
            source: error,
        },
        ureq::Error::Io(io_error) => match inner_tls(io_error) {
            Some(tls) => tls_failure(host, tls, error),
            None if is_unreachable(io_error) => RegistryError::Connect { host, source: error },
            None => RegistryError::Connection { host, source: error },
        },
        _ => RegistryError::Connection { host, source: error },
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
    )
}

fn inner_tls(error: &io::Error) -> Option<rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>().cloned()
}

fn tls_failure(host: String, tls: rustls::Error, source: ureq::Error) -> RegistryError {
    use rustls::{CertificateError, Error};
    match tls {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            RegistryError::UnknownAuthority { host }
        }
        Error::InvalidMessage(_) => RegistryError::Tls {
            host,
            hint: ": it may speak plain HTTP, which Registries::plain_http allows",
            source,
        },
        _ => RegistryError::Tls {
            host,
            hint: "",
            source,
        },
    }
}
