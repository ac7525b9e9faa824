//! Addresses, and which of them may be asked without encryption. No connection is made here.

use std::fmt;
use std::net::IpAddr;

/// An address of a server and of something on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) secure: bool,
    /// Host, and port where it is not the usual one.
    pub(super) authority: String,
    /// Path and query, from the slash on.
    pub(super) path: String,
}

impl Url {
    /// An absolute one. User names in it are refused, fragments are dropped.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let rest = rest.split('#').next()?;
        let (authority, path) = match rest.find(['/', '?']) {
            Some(end) => rest.split_at(end),
            None => (rest, "/"),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let default_port = if secure { ":443" } else { ":80" };
        let authority = authority.strip_suffix(default_port).unwrap_or(authority);
        let is_clean = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        (crate::reference::is_host(authority) && is_clean(path)).then(|| Self {
            secure,
            authority: authority.to_ascii_lowercase(),
            path: format!("{slash}{path}"),
        })
    }

    /// What a `Location` means that came from here (RFC 3986, section 5.2; no dot segments).
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        if location.contains("://") && !location.starts_with(['/', '?']) {
            return Self::parse(location);
        }
        let scheme = if self.secure { "https" } else { "http" };
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        let path = self.path.split('?').next()?;
        let base = match location.as_bytes().first()? {
            b'/' => "",
            b'?' => path,
            _ => &path[..=path.rfind('/')?],
        };
        Self::parse(&format!("{scheme}://{}{base}{location}", self.authority))
    }

    /// The same with one more parameter.
    pub(super) fn with_parameter(mut self, name: &str, value: &str) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        self.path = format!("{}{separator}{name}={}", self.path, encode(value));
        self
    }

    /// Whether what may be sent to one may be sent to the other.
    pub(super) fn is_same_server(&self, other: &Self) -> bool {
        self.secure == other.secure && self.authority == other.authority
    }

    /// Without its query, in which there may be secrets.
    pub(super) fn without_query(&self) -> String {
        let text = self.to_string();
        text.split('?').next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.authority, self.path)
    }
}

/// For a query or a form (RFC 3986, section 2.3: the unreserved ones stay).
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Host without port and brackets.
pub(super) fn bare_host(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

/// Whether what is sent there stays on this machine.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = bare_host(authority);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(base: &str, location: &str) -> Option<String> {
        Some(Url::parse(base)?.join(location)?.to_string())
    }

    #[test]
    fn locations_are_resolved_against_where_they_came_from() {
        let base = "https://r.io/v2/a/blobs/uploads/?x=1";
        for (location, expected) in [
            ("https://cdn.io/x?sig=1#f", Some("https://cdn.io/x?sig=1")),
            ("HTTPS://CDN.io:443/X", Some("https://cdn.io/X")),
            ("//cdn.io/x", Some("https://cdn.io/x")),
            ("/v2/x", Some("https://r.io/v2/x")),
            ("id", Some("https://r.io/v2/a/blobs/uploads/id")),
            ("?y=2", Some("https://r.io/v2/a/blobs/uploads/?y=2")),
            ("https://cdn.io?x", Some("https://cdn.io/?x")),
            ("https://user:pw@cdn.io/x", None),
            ("file:///etc/passwd", None),
            ("https://a b/x", None),
            ("https://r.io/a\r\nX: y", None),
            ("", None),
        ] {
            assert_eq!(joined(base, location).as_deref(), expected, "{location}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "127.0.0.1.example.com",
            "localhost.example.com",
            "10.0.0.1",
            "[::2]:1",
            "127.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn parameters_are_encoded() {
        let url = Url::parse("https://a/t?x=1").unwrap();
        let url = url.with_parameter("scope", "repository:a/b:pull,push");
        assert_eq!(url.path, "/t?x=1&scope=repository%3Aa%2Fb%3Apull%2Cpush");
        assert_eq!(url.without_query(), "https://a/t");
    }
}
