//! Names of images as people write them: `debian`, `ghcr.io/a/b:1.2`, `host:5000/x@sha256:…`.
//!
//! Owns the grammar and its defaults (docker.io, `library/`, `latest`), as docker and containerd have them
//! (distribution/reference, `reference.go` and `normalize.go`). Knows no files and no connections.

use std::fmt;
use std::str::FromStr;

use crate::oci::{Digest, DigestError};

/// The registry that a name without a host is looked for in.
pub(crate) const DEFAULT_HOST: &str = "docker.io";
/// Another name of it, in old references and configuration files.
const LEGACY_DEFAULT_HOST: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// The most bytes that a repository's path may have.
const PATH_BYTES_MAX: usize = 255;
/// The most bytes that a tag may have.
const TAG_BYTES_MAX: usize = 128;

/// A host, a repository in it, and a tag or a digest or both. It is always whole: what the text left out is filled in.
///
/// ```
/// use kata_image::Reference;
///
/// let reference: Reference = "debian".parse()?;
/// assert_eq!(reference.to_string(), "docker.io/library/debian:latest");
/// assert_eq!(reference.familiar(), "debian:latest");
///
/// let reference: Reference = "127.0.0.1:5000/team/app:1.2".parse()?;
/// assert_eq!(reference.host(), "127.0.0.1:5000");
/// assert_eq!(reference.path(), "team/app");
/// assert_eq!(reference.tag(), Some("1.2"));
/// # Ok::<(), kata_image::ReferenceError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    host: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// There is nothing, or nothing before the tag or digest.
    #[error("{text:?} names no repository")]
    Empty {
        /// The text.
        text: String,
    },
    /// Repositories are written in lower case.
    #[error("{text:?} has upper case letters; a repository's name must be in lower case")]
    UpperCase {
        /// The text.
        text: String,
    },
    /// A part does not follow the grammar.
    #[error("{part:?} in {text:?} is not a valid {what}")]
    Part {
        /// The whole text.
        text: String,
        /// Which part: `host`, `repository name`, `tag`.
        what: &'static str,
        /// The part.
        part: String,
    },
    /// What follows the `@` is no digest.
    #[error("{text:?} does not end in a digest")]
    Digest {
        /// The whole text.
        text: String,
        /// What is expected.
        #[source]
        source: DigestError,
    },
    /// It is longer than registries accept.
    #[error("the {what} in {text:?} has more than {limit} bytes")]
    TooLong {
        /// The whole text.
        text: String,
        /// Which part.
        what: &'static str,
        /// The most that it may have.
        limit: usize,
    },
    /// 64 hexadecimal digits alone could be the id of an image, which only the engine that has it can resolve.
    #[error(
        "{text:?} is an image's id, not a name: ids mean something only to the engine that has the image"
    )]
    Id {
        /// The text.
        text: String,
    },
}

impl Reference {
    /// Host and port of the registry, as written: `docker.io`, `127.0.0.1:5000`, `[::1]:5000`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository within the registry: `library/debian`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag. `latest` where the text had neither tag nor digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest. Where there is one it decides, whatever the tag says.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Host and repository, without tag and digest: `docker.io/library/debian`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// The shortest text that means the same: `debian:latest`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let name = if self.host == DEFAULT_HOST {
            let short = self.path.strip_prefix(OFFICIAL_PREFIX);
            // `library/a/b` is not official, and neither is what would read as a host or an id.
            let short = short.filter(|short| !short.contains('/') && !is_id(short));
            let short = short.unwrap_or(&self.path);
            if split_host(short) == (DEFAULT_HOST, short) {
                short.to_owned()
            } else {
                self.name()
            }
        } else {
            self.name()
        };
        format!("{name}{}", self.suffix())
    }

    /// The same repository with a digest instead of a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// What a registry is asked for: the digest, else the tag.
    pub(crate) fn identifier(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}"));
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}"));
        tag.unwrap_or_default() + &digest.unwrap_or_default()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}{}", self.host, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Parser { text }.parse()
    }
}

/// The text, so that every error can show it.
struct Parser<'a> {
    text: &'a str,
}

impl<'a> Parser<'a> {
    fn parse(&self) -> Result<Reference, ReferenceError> {
        let (rest, digest) = self.split_digest()?;
        let (name, tag) = self.split_tag(rest)?;
        let text = || self.text.to_owned();
        if name.is_empty() {
            return Err(ReferenceError::Empty { text: text() });
        }
        if is_id(name) {
            return Err(ReferenceError::Id { text: text() });
        }
        let (host, path) = split_host(name);
        if !is_host(host) {
            return Err(self.part("host", host));
        }
        self.check_path(path)?;
        let path = if host == DEFAULT_HOST && !path.contains('/') {
            format!("{OFFICIAL_PREFIX}{path}")
        } else {
            path.to_owned()
        };
        if path.len() > PATH_BYTES_MAX {
            return Err(self.too_long("repository name", PATH_BYTES_MAX));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        let host = host.to_owned();
        Ok(Reference {
            host,
            path,
            tag,
            digest,
        })
    }

    fn split_digest(&self) -> Result<(&'a str, Option<Digest>), ReferenceError> {
        let Some((rest, digest)) = self.text.split_once('@') else {
            return Ok((self.text, None));
        };
        let digest = digest.parse().map_err(|source| ReferenceError::Digest {
            text: self.text.to_owned(),
            source,
        })?;
        Ok((rest, Some(digest)))
    }

    /// A colon behind the last slash begins a tag; one before it, a port.
    fn split_tag(&self, rest: &'a str) -> Result<(&'a str, Option<&'a str>), ReferenceError> {
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let Some(colon) = rest[last..].find(':').map(|colon| last + colon) else {
            return Ok((rest, None));
        };
        let (name, tag) = (&rest[..colon], &rest[colon + 1..]);
        if !is_tag(tag) {
            return Err(self.part("tag", tag));
        }
        if tag.len() > TAG_BYTES_MAX {
            return Err(self.too_long("tag", TAG_BYTES_MAX));
        }
        Ok((name, Some(tag)))
    }

    fn check_path(&self, path: &str) -> Result<(), ReferenceError> {
        if path.is_empty() {
            let text = self.text.to_owned();
            return Err(ReferenceError::Empty { text });
        }
        if path.split('/').all(is_component) {
            return Ok(());
        }
        if path.to_ascii_lowercase().split('/').all(is_component) {
            let text = self.text.to_owned();
            return Err(ReferenceError::UpperCase { text });
        }
        Err(self.part("repository name", path))
    }

    fn part(&self, what: &'static str, part: &str) -> ReferenceError {
        ReferenceError::Part {
            text: self.text.to_owned(),
            what,
            part: part.to_owned(),
        }
    }

    fn too_long(&self, what: &'static str, limit: usize) -> ReferenceError {
        ReferenceError::TooLong {
            text: self.text.to_owned(),
            what,
            limit,
        }
    }
}

/// What stands before the first slash is a host if it looks like one: it has a dot, a port or upper case letters,
/// or is `localhost`.
fn split_host(name: &str) -> (&str, &str) {
    let is_host = |first: &str| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    match name.split_once('/') {
        Some((LEGACY_DEFAULT_HOST, path)) => (DEFAULT_HOST, path),
        Some((first, path)) if is_host(first) => (first, path),
        _ => (DEFAULT_HOST, name),
    }
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `domain` of the grammar: names joined by dots or an IPv6 address in brackets, and maybe a port.
pub(crate) fn is_host(host: &str) -> bool {
    let (name, port) = match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => (&host[..colon], Some(&host[colon + 1..])),
        _ => (host, None),
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => {
            !address.is_empty()
                && address
                    .bytes()
                    .all(|byte| byte.is_ascii_hexdigit() || byte == b':')
        }
        None => name.split('.').all(is_label),
    };
    is_name && port.is_none_or(is_port)
}

/// `path-component`: words of lower case letters and digits, joined by `.`, `_`, `__` or dashes.
fn is_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let Some(last) = component.bytes().last() else {
        return false;
    };
    if !is_word(last)
        || !component.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
    {
        return false;
    }
    let separators = component.split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    let is_separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    separators.into_iter().all(is_separator)
}

/// `tag`, without its length.
fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(is_word) && bytes.all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        match text.parse::<Reference>() {
            Ok(reference) => reference.to_string(),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        for (text, expected, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            (
                "docker.io/debian",
                "docker.io/library/debian:latest",
                "debian:latest",
            ),
            (
                "index.docker.io/debian",
                "docker.io/library/debian:latest",
                "debian:latest",
            ),
            (
                "docker.io/library/debian",
                "docker.io/library/debian:latest",
                "debian:latest",
            ),
            (
                "someone/app",
                "docker.io/someone/app:latest",
                "someone/app:latest",
            ),
            (
                "library/a/b",
                "docker.io/library/a/b:latest",
                "library/a/b:latest",
            ),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            (
                "localhost:5000/app",
                "localhost:5000/app:latest",
                "localhost:5000/app:latest",
            ),
            ("host:5000/a/b/c:v1", "host:5000/a/b/c:v1", "host:5000/a/b/c:v1"),
            ("Host/app", "Host/app:latest", "Host/app:latest"),
            ("[::1]:5000/app:x", "[::1]:5000/app:x", "[::1]:5000/app:x"),
            ("[fe80::1]/app:x", "[fe80::1]/app:x", "[fe80::1]/app:x"),
            (
                "a__b/c--d/e.f",
                "docker.io/a__b/c--d/e.f:latest",
                "a__b/c--d/e.f:latest",
            ),
            (
                "xn--n3h.com/myimage:xn",
                "xn--n3h.com/myimage:xn",
                "xn--n3h.com/myimage:xn",
            ),
            ("test:5000", "docker.io/library/test:5000", "test:5000"),
        ] {
            assert_eq!(full(text), expected, "{text}");
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), familiar, "{text}");
            assert_eq!(full(familiar), expected, "{text}");
        }
    }

    #[test]
    fn a_digest_stands_alone_or_behind_a_tag() {
        let alone: Reference = format!("debian@sha256:{HEX}").parse().unwrap();
        assert_eq!(
            alone.to_string(),
            format!("docker.io/library/debian@sha256:{HEX}")
        );
        assert_eq!((alone.tag(), alone.digest().unwrap().hex()), (None, HEX));
        let both: Reference = format!("h:1/a:b@sha256:{HEX}").parse().unwrap();
        assert_eq!(both.to_string(), format!("h:1/a:b@sha256:{HEX}"));
        assert_eq!(both.identifier(), format!("sha256:{HEX}"));
        assert_eq!(both.tag(), Some("b"));
    }

    #[test]
    fn what_is_no_reference_says_why() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_path = "a/".repeat(128) + "a";
        for (text, expected) in [
            ("", "\"\" names no repository"),
            (":tag", "\":tag\" names no repository"),
            ("host:5000/", "\"host:5000/\" names no repository"),
            (
                "Debian",
                "\"Debian\" has upper case letters; a repository's name must be in lower case",
            ),
            (
                "h.io/A/b",
                "\"h.io/A/b\" has upper case letters; a repository's name must be in lower case",
            ),
            ("a//b", "\"a//b\" in \"a//b\" is not a valid repository name"),
            ("/a", "\"/a\" in \"/a\" is not a valid repository name"),
            ("a_", "\"a_\" in \"a_\" is not a valid repository name"),
            ("a___b", "\"a___b\" in \"a___b\" is not a valid repository name"),
            ("a..b", "\"a..b\" in \"a..b\" is not a valid repository name"),
            ("a.b./c", "\"a.b.\" in \"a.b./c\" is not a valid host"),
            ("-a.b/c", "\"-a.b\" in \"-a.b/c\" is not a valid host"),
            ("[::1/c", "\"[::1\" in \"[::1/c\" is not a valid host"),
            ("../etc", "\"..\" in \"../etc\" is not a valid host"),
            (
                "a/../b",
                "\"a/../b\" in \"a/../b\" is not a valid repository name",
            ),
            ("a:", "\"\" in \"a:\" is not a valid tag"),
            ("a:.x", "\".x\" in \"a:.x\" is not a valid tag"),
            ("a:b:c", "\"b:c\" in \"a:b:c\" is not a valid tag"),
            ("a@sha256:1", "\"a@sha256:1\" does not end in a digest"),
            ("a b", "\"a b\" in \"a b\" is not a valid repository name"),
            ("https://a/b", "\"https:\" in \"https://a/b\" is not a valid host"),
            (
                &long_tag,
                &format!("the tag in \"{long_tag}\" has more than 128 bytes"),
            ),
            (
                &long_path,
                &format!("the repository name in \"{long_path}\" has more than 255 bytes"),
            ),
            (
                HEX,
                &format!(
                    "\"{HEX}\" is an image's id, not a name: ids mean something only to the engine that has the image"
                ),
            ),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert_eq!(error, expected);
        }
    }

    proptest! {
        #[test]
        fn what_the_grammar_allows_is_read_and_written_back(
            host in "([a-z0-9]([a-z0-9-]{0,5}[a-z0-9])?\\.){1,2}[a-z]{2,3}(:[0-9]{1,5})?",
            path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,5}){0,3}",
            tag in proptest::option::of("[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}"),
            digest in proptest::option::of(proptest::collection::vec(any::<u8>(), 3)),
        ) {
            prop_assume!(host != LEGACY_DEFAULT_HOST && host != DEFAULT_HOST);
            let digest = digest.map(|bytes| Digest::of(&bytes));
            let suffix = tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default()
                + &digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
            let text = format!("{host}/{path}{suffix}");
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.host(), &host);
            prop_assert_eq!(reference.path(), &path);
            prop_assert_eq!(reference.digest(), digest.as_ref());
            let written = reference.to_string();
            let defaulted = if suffix.is_empty() { ":latest" } else { "" };
            prop_assert_eq!(&written, &format!("{text}{defaulted}"));
        }

        #[test]
        fn any_text_is_refused_or_reads_the_same_again(text in "[a-zA-Z0-9_.:/@\\[\\]-]{0,40}|\\PC{0,30}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            }
        }
    }
}
