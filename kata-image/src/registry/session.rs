//! A repository on one server: its address, what may be done there, and requests with the right authorization.

use std::sync::PoisonError;

use ureq::http::{Method, header};

use super::auth::{Authorizer, Slot, tried};
use super::challenge;
use super::client::{Answer, Payload, Request};
use super::error::RegistryError;
use super::url::Url;
use super::{Options, Registries};
use crate::reference::DEFAULT_HOST;

/// Where the default registry's interface is.
const DEFAULT_API_HOST: &str = "registry-1.docker.io";

/// A repository on a registry or on a mirror of it.
pub(super) struct Session {
    registries: Registries,
    /// As in references and in files of credentials.
    host: String,
    /// The repository's path on this server.
    repository: String,
    base: Url,
    scopes: Vec<String>,
    is_push: bool,
}

impl Session {
    /// To read from a server: a host, a port, maybe a path before the repository's.
    pub(super) fn pull(registries: &Registries, server: &str, repository: &str) -> Self {
        let (host, prefix) = server.split_once('/').unwrap_or((server, ""));
        let repository = if prefix.is_empty() {
            repository.to_owned()
        } else {
            format!("{prefix}/{repository}")
        };
        let authority = if host == DEFAULT_HOST {
            DEFAULT_API_HOST
        } else {
            host
        };
        let base = Url {
            secure: !registries.options.is_plain(authority),
            authority: authority.to_ascii_lowercase(),
            path: format!("/v2/{repository}"),
        };
        Self {
            registries: registries.clone(),
            host: host.to_owned(),
            scopes: vec![format!("repository:{repository}:pull")],
            repository,
            base,
            is_push: false,
        }
    }

    /// To write, and to mount from another repository of the server.
    pub(super) fn push(registries: &Registries, host: &str, repository: &str, from: Option<&str>) -> Self {
        let mut session = Self::pull(registries, host, repository);
        session.scopes = vec![format!("repository:{repository}:pull,push")];
        session
            .scopes
            .extend(from.map(|from| format!("repository:{from}:pull")));
        session.is_push = true;
        session
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn options(&self) -> &Options {
        &self.registries.options
    }

    /// For messages: where things are.
    pub(super) fn place(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// For messages: what the scope allows.
    pub(super) fn purpose(&self) -> String {
        let verb = if self.is_push { "push to" } else { "pull" };
        format!("to {verb} {}", self.repository)
    }

    /// A request for something of the repository: `/manifests/latest`.
    pub(super) fn request(&self, method: Method, path: &str) -> Request {
        let mut url = self.base.clone();
        url.path.push_str(path);
        Request::new(method, url)
    }

    /// The scopes to ask a token for: ours, and what the server says it takes besides.
    pub(super) fn scopes_with(&self, asked: Option<&str>) -> Vec<String> {
        let ours = format!("repository:{}:", self.repository);
        let asked = asked.unwrap_or_default().split(' ');
        let more = asked.filter(|scope| !scope.is_empty() && !scope.starts_with(&ours));
        self.scopes
            .iter()
            .cloned()
            .chain(more.map(str::to_owned))
            .collect()
    }

    /// Sends a request with the authorization that is known, and once more with a new one if that is asked for.
    ///
    /// # Errors
    /// When no answer comes, or it is that this is not allowed. Other answers are the caller's to judge.
    pub(super) fn send(&self, request: &Request, mut payload: Payload<'_>) -> Result<Answer, RegistryError> {
        if !request.url.is_same_server(&self.base) {
            return self.send_plainly(request, None, payload);
        }
        let slot = self
            .registries
            .state
            .tokens
            .slot(&self.base.authority, &self.scopes.join(" "));
        let known = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = known.filter(|authorization| authorization.is_valid());
        let known = known.map(|authorization| authorization.header);
        let again = match &mut payload {
            Payload::None => Some(Payload::None),
            Payload::Bytes(bytes) => Some(Payload::Bytes(bytes)),
            Payload::Stream(..) => None,
        };
        let answer = self.send_plainly(request, known.as_deref(), payload)?;
        if !matches!(answer.status, 401 | 403) || !answer.url.is_same_server(&self.base) {
            return Ok(answer);
        }
        let found = self.options().find_credentials(&self.host, &self.repository)?;
        if answer.status == 403 {
            return Err(RegistryError::Forbidden {
                host: self.host.clone(),
                what: self.purpose(),
                tried: tried(found.as_ref()),
                detail: answer.detail(),
            });
        }
        let mut authorizer = Authorizer {
            session: self,
            found,
            detail: String::new(),
        };
        let fresh = renew(&mut authorizer, &slot, known.as_deref(), answer)?;
        let Some(payload) = again else {
            let host = self.host.clone();
            return Err(RegistryError::Expired { host });
        };
        let answer = self.send_plainly(request, Some(&fresh), payload)?;
        if answer.status == 401 && answer.url.is_same_server(&self.base) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
            authorizer.detail = answer.detail();
            return Err(authorizer.unauthorized());
        }
        Ok(answer)
    }

    /// Sends a request as it is.
    pub(super) fn send_plainly(
        &self,
        request: &Request,
        authorization: Option<&str>,
        payload: Payload<'_>,
    ) -> Result<Answer, RegistryError> {
        let client = &self.registries.state.client;
        client.send(self.options(), request, authorization, payload)
    }
}

/// The authorization that a refusal asks for, in place of the one that was refused. Who comes second takes what another
/// thread has fetched meanwhile.
fn renew(
    authorizer: &mut Authorizer<'_>,
    slot: &Slot,
    refused: Option<&str>,
    answer: Answer,
) -> Result<String, RegistryError> {
    let headers = answer.headers.get_all(header::WWW_AUTHENTICATE).iter();
    let headers: Vec<_> = headers.filter_map(|value| value.to_str().ok()).collect();
    let header = headers.join(", ");
    authorizer.detail = answer.detail();
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    match &*slot {
        Some(other) if refused != Some(&other.header) && other.is_valid() => Ok(other.header.clone()),
        _ => {
            let fresh = authorizer.authorize(&header, &challenge::parse(&header))?;
            Ok(slot.insert(fresh).header.clone())
        }
    }
}
