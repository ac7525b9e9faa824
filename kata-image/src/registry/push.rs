//! Writing to a repository: blobs that it lacks, then the manifest.
//!
//! ```text
//!   HEAD: there ─────────────────────────────────────────────────────────► done
//!     │ not there
//!     ▼
//!   POST, naming the repository it comes from: mounted ──────────────────► done
//!     │ an upload begins
//!     ▼
//!   PATCH bytes from offset on ── broke ─► GET: how many came ─► PATCH the rest
//!     │
//!     ▼
//!   PUT, naming the digest ──────────────────────────────────────────────► done
//! ```

use std::io::{self, Read};
use std::sync::Arc;

use ureq::http::{Method, header};

use super::Registries;
use super::client::{Answer, Payload, Request};
use super::error::RegistryError;
use super::session::Session;
use super::url::Url;
use crate::oci::{Blobs, Descriptor};
use crate::reference::Reference;
use crate::transfer::{self, Patience, TransferError, patiently};

/// How a blob came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    Present,
    Mounted,
    Uploaded,
}

/// A repository that is written to.
pub(crate) struct Upload {
    session: Session,
    /// Another repository of the same registry, which has some of the blobs.
    from: Option<String>,
}

impl Upload {
    /// To the repository of a reference, mounting what the repository `from`, a host and a path, has.
    pub(crate) fn new(registries: &Registries, reference: &Reference, from: Option<(&str, &str)>) -> Self {
        let from = from.filter(|(host, path)| *host == reference.host() && *path != reference.path());
        let from = from.map(|(_, path)| path.to_owned());
        Self {
            session: Session::push(registries, reference.host(), reference.path(), from.as_deref()),
            from,
        }
    }

    /// Brings a blob there. `sent` hears of every few bytes.
    pub(crate) fn blob(
        &self,
        blobs: &dyn Blobs,
        descriptor: &Descriptor,
        sent: &mut dyn FnMut(u64),
    ) -> Result<Pushed, TransferError> {
        let mut upload = None;
        let mut patience = self.patience();
        let mut best = 0;
        loop {
            let error = match self.advance(&mut upload, blobs, descriptor, sent) {
                Ok(pushed) => return Ok(pushed),
                Err(error) => error,
            };
            // Going on is no failure.
            let reached = self.resume(&mut upload);
            if reached > best {
                best = reached;
                patience.restore();
            }
            let pause = patience
                .next_pause(error.retry_after())
                .filter(|_| error.is_temporary());
            let Some(pause) = pause else {
                return Err(error);
            };
            log::debug!("{error}; going on at byte {reached} in {pause:?}");
            std::thread::sleep(pause);
        }
    }

    /// Names what was pushed: a manifest or an index under a tag or its digest.
    pub(crate) fn manifest(
        &self,
        identifier: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), TransferError> {
        let request = self
            .session
            .request(Method::PUT, &format!("/manifests/{identifier}"))
            .header(header::CONTENT_TYPE, media_type);
        patiently(self.patience(), || {
            let answer = self.session.send(&request, Payload::Bytes(bytes))?;
            accepted(answer, &request, &[201, 200]).map(drop)
        })
    }

    fn patience(&self) -> Patience {
        self.session.options().patience.clone()
    }

    fn has(&self, descriptor: &Descriptor) -> Result<bool, TransferError> {
        let request = self
            .session
            .request(Method::HEAD, &format!("/blobs/{}", descriptor.digest));
        let answer = self.session.send(&request, Payload::None)?;
        match answer.status {
            200 => Ok(answer.length().is_none_or(|length| length == descriptor.size)),
            404 => Ok(false),
            _ => Err(answer.into_error(&request.what()).into()),
        }
    }

    /// From wherever the upload is to its end.
    fn advance(
        &self,
        upload: &mut Option<(Url, u64)>,
        blobs: &dyn Blobs,
        descriptor: &Descriptor,
        sent: &mut dyn FnMut(u64),
    ) -> Result<Pushed, TransferError> {
        let (url, offset) = match upload.take() {
            Some(known) => known,
            // Also when it is tried again: an answer that was lost may have been that all is there.
            None if self.has(descriptor)? => {
                sent(descriptor.size);
                return Ok(Pushed::Present);
            }
            None => match self.begin(descriptor)? {
                Some(url) => (url, 0),
                None => {
                    sent(descriptor.size);
                    return Ok(Pushed::Mounted);
                }
            },
        };
        *upload = Some((url.clone(), offset));
        let url = if offset < descriptor.size {
            self.send_from(url, offset, blobs, descriptor, sent)?
        } else {
            url
        };
        *upload = Some((url.clone(), descriptor.size));
        let request = Request::new(
            Method::PUT,
            url.with_parameter("digest", descriptor.digest.as_str()),
        )
        .header(header::CONTENT_TYPE, "application/octet-stream");
        let answer = self.session.send(&request, Payload::Bytes(&[]))?;
        accepted(answer, &request, &[201, 204]).map(|_| Pushed::Uploaded)
    }

    /// `None` when the blob was mounted.
    fn begin(&self, descriptor: &Descriptor) -> Result<Option<Url>, TransferError> {
        let mut request = self.session.request(Method::POST, "/blobs/uploads/");
        if let Some(from) = &self.from {
            let url = request.url.with_parameter("mount", descriptor.digest.as_str());
            request.url = url.with_parameter("from", from);
        }
        let answer = self.session.send(&request, Payload::Bytes(&[]))?;
        let answer = accepted(answer, &request, &[202, 201])?;
        if answer.status == 201 && self.from.is_some() {
            return Ok(None);
        }
        Ok(Some(answer.location(self.session.options())?))
    }

    /// Sends all bytes from one on; where the upload goes on.
    fn send_from(
        &self,
        url: Url,
        offset: u64,
        blobs: &dyn Blobs,
        descriptor: &Descriptor,
        sent: &mut dyn FnMut(u64),
    ) -> Result<Url, TransferError> {
        let source_error = |error: TransferError| TransferError::from(RegistryError::Source(Arc::new(error)));
        let mut reader = transfer::open(blobs, descriptor);
        // What went before is read again, so that the whole is checked.
        if let Err(error) = io::copy(&mut reader.by_ref().take(offset), &mut io::sink()) {
            return Err(source_error(reader.failure(error)));
        }
        let mut request =
            Request::new(Method::PATCH, url).header(header::CONTENT_TYPE, "application/octet-stream");
        if offset > 0 {
            let range = format!("{offset}-{}", descriptor.size - 1);
            request = request.header(header::CONTENT_RANGE, range);
        }
        let mut counted = Counted {
            reader,
            sent,
            failure: None,
        };
        let stream = Payload::Stream(&mut counted, descriptor.size - offset);
        let answer = self.session.send(&request, stream);
        if let Some(error) = counted.failure {
            return Err(source_error(counted.reader.failure(error)));
        }
        let answer = accepted(answer?, &request, &[202, 201, 204])?;
        counted.reader.finish().map_err(source_error)?;
        match answer.header(header::LOCATION) {
            Some(_) => Ok(answer.location(self.session.options())?),
            None => Ok(request.url),
        }
    }

    /// Asks how far an upload has come; one that cannot be asked begins anew.
    fn resume(&self, upload: &mut Option<(Url, u64)>) -> u64 {
        let Some((url, _)) = upload.take() else {
            return 0;
        };
        let request = Request::new(Method::GET, url);
        let answer = match self.session.send(&request, Payload::None) {
            Ok(answer) => answer,
            Err(error) => {
                log::debug!("the upload cannot be taken up: {error}");
                return 0;
            }
        };
        if !matches!(answer.status, 204 | 202) {
            return 0;
        }
        let last = answer
            .header(header::RANGE)
            .unwrap_or_default()
            .rsplit('-')
            .next()
            .unwrap_or_default();
        // `0-0` is what an empty upload has, and one of a single byte: taken as none.
        let offset = last
            .parse()
            .map_or(0, |last: u64| if last == 0 { 0 } else { last.saturating_add(1) });
        let url = match answer.header(header::LOCATION) {
            Some(_) => answer.location(self.session.options()).ok(),
            None => Some(request.url.clone()),
        };
        *upload = url.filter(|_| offset > 0).map(|url| (url, offset));
        upload.as_ref().map_or(0, |(_, offset)| *offset)
    }
}

/// One of these answers, or an error.
fn accepted(answer: Answer, request: &Request, statuses: &[u16]) -> Result<Answer, TransferError> {
    if statuses.contains(&answer.status) {
        return Ok(answer);
    }
    Err(answer.into_error(&request.what()).into())
}

/// Tells of what is read, and keeps the error that ended it.
struct Counted<'a, 'b> {
    reader: transfer::Verified<'a>,
    sent: &'b mut dyn FnMut(u64),
    failure: Option<io::Error>,
}

impl Read for Counted<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(count) => {
                (self.sent)(self.reader.received_bytes());
                Ok(count)
            }
            Err(error) => {
                let kind = error.kind();
                self.failure = Some(error);
                Err(kind.into())
            }
        }
    }
}
