//! Who asks: credentials from docker's and podman's files, and from the programs that those name.
//!
//! Formats: docker's `config.json` (docker/cli `cli/config/configfile`) and podman's `auth.json`
//! (containers-auth.json(5)), which differ by podman's keys that may go on with a path.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use super::keeper::{self, KeeperError};

/// What proves who asks. Its debug output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// For the server that gives out tokens (docker's `identitytoken`, OAuth 2's refresh token).
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => write!(formatter, "Password of {user:?}"),
            Self::IdentityToken(_) => formatter.write_str("IdentityToken"),
        }
    }
}

/// Credentials, and where they came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) credentials: Credentials,
    /// For people: `the options`, a file's name.
    pub(super) origin: String,
}

/// Why stored credentials cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file is there and cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not JSON of its kind.
    #[error("{} is not a valid file of credentials", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// An entry is not `user:password` in base64.
    #[error("the entry for {host} in {} is not valid", .path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry's key.
        host: String,
    },
    /// The program that keeps them failed.
    #[error("{} names a program that gives no credentials", .path.display())]
    Program {
        /// The file that names it.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeeperError,
    },
}

/// What the environment says about where credentials are.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    pub(super) registry_auth_file: Option<PathBuf>,
    pub(super) runtime_directory: Option<PathBuf>,
    pub(super) config_home: Option<PathBuf>,
    pub(super) docker_config: Option<PathBuf>,
    pub(super) home: Option<PathBuf>,
}

impl Environment {
    /// This process's.
    pub(super) fn of_process() -> Self {
        let path = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self {
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            runtime_directory: path("XDG_RUNTIME_DIR"),
            config_home: path("XDG_CONFIG_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            home: path("HOME"),
        }
    }

    /// The files to look into, the first that knows the registry decides.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let home = |name: &str| self.home.as_ref().map(|home| home.join(name));
        let podman = match &self.registry_auth_file {
            Some(file) => vec![Some(file.clone())],
            None => {
                let runtime = self.runtime_directory.as_ref();
                let config = self.config_home.clone().or_else(|| home(".config"));
                vec![
                    runtime.map(|directory| directory.join("containers/auth.json")),
                    config.map(|directory| directory.join("containers/auth.json")),
                ]
            }
        };
        let docker = self.docker_config.clone().or_else(|| home(".docker"));
        let docker = docker.map(|directory| directory.join("config.json"));
        podman.into_iter().chain([docker]).flatten().collect()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// The credentials for a repository of a host in these files.
///
/// # Errors
/// When a file is there and cannot be used: what it would say is not guessed.
pub(super) fn find(
    files: &[PathBuf],
    host: &str,
    repository: &str,
) -> Result<Option<Found>, CredentialsError> {
    for path in files {
        if let Some(credentials) = find_in(path, host, repository)? {
            let origin = path.display().to_string();
            return Ok(Some(Found { credentials, origin }));
        }
    }
    Ok(None)
}

fn find_in(path: &Path, host: &str, repository: &str) -> Result<Option<Credentials>, CredentialsError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            let path = path.to_path_buf();
            return Err(CredentialsError::Read { path, source });
        }
    };
    let file: ConfigFile = serde_json::from_slice(&text).map_err(|source| CredentialsError::Json {
        path: path.to_path_buf(),
        source,
    })?;
    let keys = keys(host, repository);
    let helped = keys
        .iter()
        .find_map(|key| Some((key, file.cred_helpers.get(key)?)));
    if let Some((key, program)) = helped {
        return ask(path, program, key);
    }
    let entry = keys.iter().find_map(|key| Some((key, lookup(&file.auths, key)?)));
    if let Some((key, entry)) = entry
        && let Some(credentials) = entry.credentials().ok_or_else(|| CredentialsError::Entry {
            path: path.to_path_buf(),
            host: key.clone(),
        })?
    {
        return Ok(Some(credentials));
    }
    match (&file.creds_store, keys.last()) {
        (Some(program), Some(key)) if !program.is_empty() => ask(path, program, key),
        _ => Ok(None),
    }
}

fn ask(path: &Path, program: &str, key: &str) -> Result<Option<Credentials>, CredentialsError> {
    keeper::get(program, key).map_err(|source| CredentialsError::Program {
        path: path.to_path_buf(),
        source,
    })
}

/// The keys that mean a repository, the most exact first: podman's with paths, then the host, under all the
/// names that the default registry has.
fn keys(host: &str, repository: &str) -> Vec<String> {
    let whole = format!("{host}/{repository}");
    let mut keys = vec![whole.clone()];
    let slashes = whole
        .rmatch_indices('/')
        .map(|(index, _)| whole[..index].to_owned());
    keys.extend(slashes);
    if host == crate::reference::DEFAULT_HOST {
        keys.push("index.docker.io".into());
        keys.push("registry-1.docker.io".into());
        // What `docker login` writes.
        keys.push("https://index.docker.io/v1/".into());
    }
    keys
}

/// Old files have addresses as keys: `https://host/v1/`.
fn lookup<'a>(entries: &'a HashMap<String, Entry>, key: &str) -> Option<&'a Entry> {
    let plain = |name: &'a str| {
        let name = name
            .strip_prefix("https://")
            .or_else(|| name.strip_prefix("http://"))?;
        let name = name.trim_end_matches('/');
        Some(
            name.strip_suffix("/v1")
                .or_else(|| name.strip_suffix("/v2"))
                .unwrap_or(name),
        )
    };
    entries.get(key).or_else(|| {
        entries
            .iter()
            .find(|(name, _)| plain(name) == Some(key))
            .map(|(_, entry)| entry)
    })
}

impl Entry {
    /// `None` when it is malformed, `Some(None)` when it says nothing: its secret is kept elsewhere.
    fn credentials(&self) -> Option<Option<Credentials>> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.identitytoken) {
            return Some(Some(Credentials::IdentityToken(token)));
        }
        if let Some(auth) = filled(&self.auth) {
            let text = base64::engine::general_purpose::STANDARD
                .decode(auth.trim())
                .ok()?;
            let text = String::from_utf8(text).ok()?;
            let (user, password) = text.split_once(':')?;
            return Some(Some(Credentials::Password {
                user: user.to_owned(),
                // docker's oldest versions padded it.
                password: password.trim_end_matches('\0').to_owned(),
            }));
        }
        let pair = filled(&self.username).zip(filled(&self.password));
        Some(pair.map(|(user, password)| Credentials::Password { user, password }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(texts: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let directory = tempfile::tempdir().unwrap();
        let write = |(index, text): (usize, &&str)| {
            let path = directory.path().join(index.to_string());
            std::fs::write(&path, text).unwrap();
            path
        };
        let paths = texts.iter().enumerate().map(write).collect();
        (directory, paths)
    }

    fn user(texts: &[&str], host: &str, repository: &str) -> Option<String> {
        let (_directory, paths) = files(texts);
        match find(&paths, host, repository).unwrap()?.credentials {
            Credentials::Password { user, password } => Some(format!("{user}:{password}")),
            Credentials::IdentityToken(token) => Some(format!("token {token}")),
        }
    }

    #[test]
    fn the_longest_key_and_the_first_file_win() {
        // a:b, c:d, e:f
        let podman =
            r#"{"auths":{"h.io":{"auth":"YTpi"},"h.io/team":{"auth":"Yzpk"},"h.io/team/x":{"auth":"ZTpm"}}}"#;
        let docker = r#"{"auths":{"h.io":{"auth":"Zzpo"},"g.io":{"username":"i","password":"j"}},"other":1}"#;
        let texts = [podman, docker];
        assert_eq!(user(&texts, "h.io", "team/x").as_deref(), Some("e:f"));
        assert_eq!(user(&texts, "h.io", "team/x/y").as_deref(), Some("e:f"));
        assert_eq!(user(&texts, "h.io", "team/z").as_deref(), Some("c:d"));
        assert_eq!(user(&texts, "h.io", "teams").as_deref(), Some("a:b"));
        assert_eq!(user(&texts, "g.io", "x").as_deref(), Some("i:j"));
        assert_eq!(user(&texts, "io", "x"), None);
        assert_eq!(user(&[], "h.io", "x"), None);
    }

    #[test]
    fn the_default_registry_is_known_by_its_old_names() {
        for key in [
            "docker.io",
            "index.docker.io",
            "https://index.docker.io/v1/",
            "registry-1.docker.io",
        ] {
            let text = format!(r#"{{"auths":{{"{key}":{{"auth":"YTpi"}}}}}}"#);
            assert_eq!(
                user(&[&text], "docker.io", "library/x").as_deref(),
                Some("a:b"),
                "{key}"
            );
        }
        let old = r#"{"auths":{"https://h.io/v2/":{"identitytoken":"t","auth":"YTo="}}}"#;
        assert_eq!(user(&[old], "h.io", "x").as_deref(), Some("token t"));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_shows_no_secret() {
        let (_directory, paths) = files(&["{", r#"{"auths":{"h.io":{"auth":"c2VjcmV0"}}}"#]);
        let error = find(&paths, "h.io", "x").unwrap_err();
        assert!(matches!(error, CredentialsError::Json { .. }), "{error}");
        let error = find(&paths[1..], "h.io", "x").unwrap_err().to_string();
        assert_eq!(
            error,
            format!("the entry for h.io in {} is not valid", paths[1].display())
        );
        let (user, password) = ("u".into(), "secret".into());
        assert_eq!(
            format!("{:?}", Credentials::Password { user, password }),
            "Password of \"u\""
        );
        let empty = r#"{"auths":{"h.io":{}}}"#;
        assert_eq!(self::user(&[empty], "h.io", "x"), None);
    }

    #[test]
    fn files_are_looked_for_where_podman_and_docker_have_them() {
        let mut environment = Environment {
            runtime_directory: Some("/run/user/1".into()),
            home: Some("/h".into()),
            ..Environment::default()
        };
        let expected = [
            "/run/user/1/containers/auth.json",
            "/h/.config/containers/auth.json",
            "/h/.docker/config.json",
        ];
        assert_eq!(environment.files(), expected.map(PathBuf::from));
        environment.registry_auth_file = Some("/a.json".into());
        environment.docker_config = Some("/d".into());
        assert_eq!(
            environment.files(),
            ["/a.json", "/d/config.json"].map(PathBuf::from)
        );
    }
}
