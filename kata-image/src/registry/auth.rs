//! Tokens: which are known, how a new one is asked for (distribution's token authentication specification and its
//! OAuth 2 form), and what is sent with a request.
//!
//! ```text
//!   no authorization ── 401, challenge ──► Basic: user and password
//!          ▲                          └──► Bearer: realm gives a token ──► sent until it expires or a 401 comes
//!          └────────────────────────────────────────── 401 again: Unauthorized ◄─────────────┘
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde::Deserialize;
use ureq::http::{Method, header};

use super::challenge::Challenge;
use super::client::{Payload, Request};
use super::credentials::{Credentials, Found};
use super::error::RegistryError;
use super::session::Session;
use super::url::{Url, encode};

/// The authorizations that are known, by server and scope. Who asks for one first gets it for all.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<(String, String), Slot>>);

/// The authorization of one scope.
pub(super) type Slot = Arc<Mutex<Option<Authorization>>>;

/// What is sent as `Authorization`.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) header: String,
    expires: Option<Instant>,
}

/// A token of which nothing is said lasts so long (distribution specification, "Token Response Fields").
const DEFAULT_LIFETIME_S: u64 = 60;
/// The client's name in OAuth 2.
const CLIENT_ID: &str = "kata-rs";

impl Tokens {
    pub(super) fn slot(&self, authority: &str, scope: &str) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots
            .entry((authority.to_owned(), scope.to_owned()))
            .or_default()
            .clone()
    }
}

impl Authorization {
    pub(super) fn is_valid(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Follows the challenges of a server.
pub(super) struct Authorizer<'a> {
    pub(super) session: &'a Session,
    pub(super) found: Option<Found>,
    /// What the server said with its challenge.
    pub(super) detail: String,
}

impl Authorizer<'_> {
    /// A new authorization.
    pub(super) fn authorize(
        &self,
        header: &str,
        challenges: &[Challenge],
    ) -> Result<Authorization, RegistryError> {
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        if let Some((realm, service, scope)) = bearer {
            return self.token(realm, service.as_deref(), scope.as_deref());
        }
        if !challenges.contains(&Challenge::Basic) {
            return Err(RegistryError::Challenge {
                host: self.session.host().to_owned(),
                challenge: header.chars().take(200).collect(),
            });
        }
        match &self.found {
            Some(Found {
                credentials: Credentials::Password { user, password },
                ..
            }) => Ok(Authorization {
                header: basic(user, password),
                expires: None,
            }),
            _ => Err(self.unauthorized()),
        }
    }

    /// Another authorization would be needed.
    pub(super) fn unauthorized(&self) -> RegistryError {
        RegistryError::Unauthorized {
            host: self.session.host().to_owned(),
            what: self.session.purpose(),
            tried: tried(self.found.as_ref()),
            detail: self.detail.clone(),
        }
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        asked_scope: Option<&str>,
    ) -> Result<Authorization, RegistryError> {
        let options = self.session.options();
        let host = self.session.host().to_owned();
        let url = Url::parse(realm).ok_or_else(|| RegistryError::Challenge {
            host: host.clone(),
            challenge: realm.chars().take(200).collect(),
        })?;
        if !url.secure && !options.is_plain(&url.authority) {
            let to = url.without_query();
            return Err(RegistryError::Redirect {
                host,
                to,
                why: "which is not encrypted, for a token",
            });
        }
        let scopes = self.session.scopes_with(asked_scope);
        self.ask(&url, service, &scopes).map_err(|error| match error {
            RegistryError::Unauthorized { .. } => error,
            source => RegistryError::Token {
                host,
                realm: url.without_query(),
                source: Box::new(source),
            },
        })
    }

    fn ask(
        &self,
        realm: &Url,
        service: Option<&str>,
        scopes: &[String],
    ) -> Result<Authorization, RegistryError> {
        let credentials = self.found.as_ref().map(|found| &found.credentials);
        let answer = match credentials {
            Some(Credentials::IdentityToken(token)) => {
                let form = form(token, service, scopes);
                let request = Request::new(Method::POST, realm.clone())
                    .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                self.session
                    .send_plainly(&request, None, Payload::Bytes(form.as_bytes()))?
            }
            credentials => {
                let mut url = realm.clone();
                if let Some(service) = service {
                    url = url.with_parameter("service", service);
                }
                for scope in scopes {
                    url = url.with_parameter("scope", scope);
                }
                let mut authorization = None;
                if let Some(Credentials::Password { user, password }) = credentials {
                    url = url.with_parameter("account", user);
                    authorization = Some(basic(user, password));
                }
                let request = Request::new(Method::GET, url);
                self.session
                    .send_plainly(&request, authorization.as_deref(), Payload::None)?
            }
        };
        match answer.status {
            200 => {}
            401 | 403 => return Err(self.unauthorized()),
            // The OAuth 2 form's answer to a wrong refresh token.
            400 if matches!(credentials, Some(Credentials::IdentityToken(_))) => {
                return Err(self.unauthorized());
            }
            _ => return Err(answer.into_error("the request for a token")),
        }
        let content_type = answer.header(header::CONTENT_TYPE).unwrap_or_default().to_owned();
        let bytes = answer.into_document(self.session.options(), "a token")?;
        parse(&bytes).ok_or_else(|| {
            let host = realm.authority.clone();
            if super::client::is_page(&content_type) {
                let what = "a token".into();
                return RegistryError::NoRegistry {
                    host,
                    what,
                    content_type,
                };
            }
            let what = "its answer has no token".into();
            RegistryError::Protocol { host, what }
        })
    }
}

fn parse(bytes: &[u8]) -> Option<Authorization> {
    let answer: TokenAnswer = serde_json::from_slice(bytes).ok()?;
    let filled = |token: Option<String>| token.filter(|token| !token.is_empty());
    let token = filled(answer.token).or_else(|| filled(answer.access_token))?;
    let is_clean = token.bytes().all(|byte| byte.is_ascii_graphic());
    // Nine tenths: the server's clock began before the answer came.
    let lifetime = answer.expires_in.unwrap_or_default().max(DEFAULT_LIFETIME_S) / 10 * 9;
    is_clean.then(|| Authorization {
        header: format!("Bearer {token}"),
        expires: Instant::now().checked_add(Duration::from_secs(lifetime)),
    })
}

fn form(token: &str, service: Option<&str>, scopes: &[String]) -> String {
    let mut form = format!(
        "grant_type=refresh_token&refresh_token={}&client_id={CLIENT_ID}&scope={}",
        encode(token),
        encode(&scopes.join(" "))
    );
    if let Some(service) = service {
        form = format!("{form}&service={}", encode(service));
    }
    form
}

fn basic(user: &str, password: &str) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {text}")
}

/// Which credentials were tried, for people.
pub(super) fn tried(found: Option<&Found>) -> String {
    match found {
        Some(found) => format!("with the credentials of {}", found.origin),
        None => "without credentials: none are known".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_under_both_names() {
        for text in [
            r#"{"token":"t","expires_in":300}"#,
            r#"{"access_token":"t"}"#,
            r#"{"token":"","access_token":"t"}"#,
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap().header, "Bearer t", "{text}");
        }
        for text in [
            "",
            "{}",
            r#"{"token":""}"#,
            r#"{"token":"a\r\nX: y"}"#,
            r#"{"token":1}"#,
            "<html>",
        ] {
            assert!(parse(text.as_bytes()).is_none(), "{text}");
        }
        let forever = parse(format!(r#"{{"token":"t","expires_in":{}}}"#, u64::MAX).as_bytes()).unwrap();
        assert!(forever.is_valid());
    }
}
