//! A repository as a place of blobs: manifests by tag or digest, blobs from any byte on, mirrors first.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ureq::http::{Method, header};

use super::Registries;
use super::client::{Answer, Payload, is_page};
use super::error::RegistryError;
use super::session::Session;
use crate::oci::{Blobs, Descriptor, Digest, Document, media_type};
use crate::reference::Reference;
use crate::transfer::{Patience, TransferError, check_digest, patiently, read_document};

/// The kinds of documents that are understood.
const ACCEPT: [&str; 4] = [
    media_type::OCI_INDEX,
    media_type::OCI_MANIFEST,
    media_type::DOCKER_INDEX,
    media_type::DOCKER_MANIFEST,
];

/// One repository, and the tag or digest that its reference names.
pub(crate) struct Repository {
    registries: Registries,
    reference: Reference,
    /// The mirrors, and the registry itself last.
    sessions: Vec<Session>,
    /// Which of them answered last; those before it have failed.
    first: AtomicUsize,
    /// How often each blob was asked for: one that is asked for again broke off on its way.
    asked: Mutex<HashMap<Digest, usize>>,
}

impl Repository {
    pub(super) fn new(registries: Registries, reference: Reference) -> Self {
        let mirrors = registries.options.mirrors.get(reference.host());
        let servers = mirrors.into_iter().flatten().map(String::as_str);
        let servers = servers.chain([reference.host()]);
        let sessions = servers
            .map(|server| Session::pull(&registries, server, reference.path()))
            .collect();
        Self {
            registries,
            reference,
            sessions,
            first: AtomicUsize::new(0),
            asked: Mutex::default(),
        }
    }

    /// Asks one server after another, from one on.
    fn first_answer<T>(
        &self,
        first: usize,
        ask: impl Fn(&Session) -> Result<T, TransferError>,
    ) -> Result<T, TransferError> {
        let mut failures = Vec::new();
        for (index, session) in self.sessions.iter().enumerate().skip(first) {
            let error = match ask(session) {
                Ok(answer) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let is_last = index + 1 == self.sessions.len();
            if !is_last {
                log::warn!("mirror {}: {}", session.host(), chain(&error));
                failures.push(format!("mirror {} ({})", session.host(), chain(&error)));
            } else if failures.is_empty() {
                return Err(error);
            } else {
                failures.push(format!("{} itself", session.host()));
                let mirrors = format!("{} has {}", failures.join(" nor "), self.reference);
                let source = Arc::new(error);
                return Err(RegistryError::Mirrors { mirrors, source }.into());
            }
        }
        // There is always the registry itself.
        Err(TransferError::Missing {
            place: self.reference.name(),
            what: self.reference.identifier().to_owned(),
        })
    }

    fn first(&self) -> usize {
        self.first.load(Ordering::Relaxed)
    }

    fn times_asked(&self, digest: &Digest) -> usize {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let times = asked.entry(digest.clone()).or_default();
        let before = *times;
        *times += 1;
        before
    }

    fn manifest(&self, session: &Session, identifier: &str) -> Result<Document, TransferError> {
        let request = session
            .request(Method::GET, &format!("/manifests/{identifier}"))
            .header(header::ACCEPT, ACCEPT.join(", "));
        let answer = session.send(&request, Payload::None)?;
        let content_type = answer.header(header::CONTENT_TYPE).unwrap_or_default().to_owned();
        if answer.status != 200 || is_page(&content_type) {
            return Err(refused(session, answer, &request.what(), identifier));
        }
        let host = session.host().to_owned();
        let failed = |source: io::Error| {
            TransferError::from(RegistryError::Connection {
                host: host.clone(),
                source: source.into(),
            })
        };
        let bytes = read_document(answer.into_reader(), &session.place(), identifier, failed)?;
        // Some say only that it is JSON; what is inside tells more.
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        let is_vague = matches!(
            kind,
            "application/json" | "application/octet-stream" | "text/plain"
        );
        let media_type = if is_vague { String::new() } else { content_type };
        Ok(Document { media_type, bytes })
    }

    fn blob_of(
        session: &Session,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Box<dyn Read + Send>, TransferError> {
        let mut request = session.request(Method::GET, &format!("/blobs/{}", descriptor.digest));
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        let answer = session.send(&request, Payload::None)?;
        let left = descriptor.size.saturating_sub(offset);
        let (expected, skip) = match answer.status {
            200 => (descriptor.size, offset),
            206 if offset > 0 && starts_at(&answer, offset) => (left, 0),
            206 => {
                return Err(TransferError::from(RegistryError::Protocol {
                    host: session.host().to_owned(),
                    what: format!("it was asked for bytes from {offset} on and sends others"),
                }));
            }
            _ => {
                return Err(refused(
                    session,
                    answer,
                    &request.what(),
                    descriptor.digest.as_str(),
                ));
            }
        };
        if let Some(length) = answer.length().filter(|length| *length != expected) {
            return Err(TransferError::Size {
                digest: descriptor.digest.clone(),
                expected: descriptor.size,
                received: length.saturating_add(offset - skip),
            });
        }
        let is_framed = answer.is_framed();
        let reader = answer.into_reader();
        let mut reader: Box<dyn Read + Send> = if is_framed {
            Box::new(reader)
        } else {
            Box::new(Unframed {
                reader,
                left: expected,
            })
        };
        io::copy(&mut reader.by_ref().take(skip), &mut io::sink()).map_err(|source| {
            TransferError::from(RegistryError::Connection {
                host: session.host().to_owned(),
                source: source.into(),
            })
        })?;
        Ok(reader)
    }
}

impl Blobs for Repository {
    fn root(&self) -> Result<Document, TransferError> {
        let identifier = self.reference.identifier();
        patiently(self.patience(), || {
            self.first_answer(self.first(), |session| {
                let document = self.manifest(session, identifier)?;
                if let Some(digest) = self.reference.digest() {
                    check_digest(digest, &document.bytes)?;
                }
                Ok(document)
            })
        })
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Document, TransferError> {
        let identifier = descriptor.digest.as_str();
        patiently(self.patience(), || {
            self.first_answer(self.first(), |session| {
                let document = self.manifest(session, identifier)?;
                check_digest(&descriptor.digest, &document.bytes)?;
                Ok(document)
            })
        })
    }

    fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send>, TransferError> {
        // A mirror whose connections break is left for the next one.
        let first = self.first() + self.times_asked(&descriptor.digest);
        let first = first.min(self.sessions.len() - 1);
        self.first_answer(first, |session| Self::blob_of(session, descriptor, offset))
    }

    fn patience(&self) -> Patience {
        self.registries.options.patience.clone()
    }

    fn repository(&self) -> Option<(&str, &str)> {
        Some((self.reference.host(), self.reference.path()))
    }
}

/// What an answer means that is not the document or blob.
fn refused(session: &Session, answer: Answer, request: &str, what: &str) -> TransferError {
    let content_type = answer.header(header::CONTENT_TYPE).unwrap_or_default();
    if answer.status == 404 && !is_page(content_type) {
        return TransferError::Missing {
            place: session.place(),
            what: what.to_owned(),
        };
    }
    answer.into_error(request).into()
}

fn starts_at(answer: &Answer, offset: u64) -> bool {
    let range = answer.header(header::CONTENT_RANGE).unwrap_or_default();
    let start = range
        .strip_prefix("bytes ")
        .and_then(|range| range.split('-').next());
    start.is_some_and(|start| start.parse() == Ok(offset))
}

/// An error with its causes, for a log and for a list of failures.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A body that ends with its connection: an early end is a broken connection.
struct Unframed<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Unframed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if count == 0 && !buffer.is_empty() && self.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}
