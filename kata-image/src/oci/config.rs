//! An image's configuration: what its container is like unless the caller says otherwise.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::manifest::DocumentError;
use super::platform::Platform;

/// What an image says about its containers (OCI image specification 1.1, "OCI Image Configuration").
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ImageConfig {
    /// The first words of the command.
    pub entrypoint: Vec<String>,
    /// What follows them unless the caller gives arguments.
    pub cmd: Vec<String>,
    /// Names and values.
    pub env: Vec<(String, String)>,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty for root.
    pub user: String,
    /// An absolute path; empty for `/`.
    pub working_dir: String,
    /// Directories whose contents outlive a container, as its author wishes.
    pub volumes: BTreeSet<String>,
    /// `80/tcp`.
    pub exposed_ports: BTreeSet<String>,
    /// The signal that ends it, as a name or a number; empty for SIGTERM.
    pub stop_signal: String,
    /// Whatever its author noted.
    pub labels: BTreeMap<String, String>,
}

/// The document as it is stored. Fields that nobody here asks for are not kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ConfigDocument {
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    #[serde(default)]
    config: Option<Defaults>,
    pub(crate) rootfs: RootfsDocument,
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) history: Vec<serde_json::Value>,
}

/// The layers' digests when unpacked, bottom first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RootfsDocument {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) diff_ids: Vec<Digest>,
}

/// Go writes an empty list as `null`.
pub(super) fn null_is_empty<'a, T: Deserialize<'a>, D: serde::Deserializer<'a>>(
    input: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// Every field may be absent or null.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Defaults {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volumes: Option<BTreeMap<String, Empty>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exposed_ports: Option<BTreeMap<String, Empty>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
}

/// `{}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Empty {}

impl ConfigDocument {
    /// Reads the document.
    ///
    /// # Errors
    /// When it is not JSON, or a field is missing or of another kind.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let document: Self = serde_json::from_slice(bytes).map_err(|source| DocumentError::Json {
            what: "configuration",
            source,
        })?;
        if document.rootfs.kind != "layers" {
            return Err(DocumentError::Field {
                field: "rootfs.type",
                value: document.rootfs.kind,
            });
        }
        Ok(document)
    }

    /// What it says about containers.
    pub(crate) fn image_config(&self) -> ImageConfig {
        let defaults = self.config.clone().unwrap_or_default();
        let pair = |line: &String| {
            let (name, value) = line.split_once('=')?;
            (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
        };
        let keys = |map: Option<BTreeMap<String, Empty>>| map.unwrap_or_default().into_keys().collect();
        ImageConfig {
            entrypoint: defaults.entrypoint.unwrap_or_default(),
            cmd: defaults.cmd.unwrap_or_default(),
            env: defaults.env.unwrap_or_default().iter().filter_map(pair).collect(),
            user: defaults.user.unwrap_or_default(),
            working_dir: defaults.working_dir.unwrap_or_default(),
            volumes: keys(defaults.volumes),
            exposed_ports: keys(defaults.exposed_ports),
            stop_signal: defaults.stop_signal.unwrap_or_default(),
            labels: defaults.labels.unwrap_or_default(),
        }
    }

    /// For which machines it is.
    pub(crate) fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/init"],"Cmd":null,
        "Env":["PATH=/bin","EMPTY=","odd"],"User":"www-data","WorkingDir":"/srv","Volumes":{"/data":{}},
        "ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGQUIT","Labels":{"a":"b"},"Healthcheck":{"Test":[]}},
        "rootfs":{"type":"layers","diff_ids":[]},"history":[]}"#;

    #[test]
    fn what_a_configuration_says_is_read_and_written_again() {
        let document = ConfigDocument::parse(DOCUMENT.as_bytes()).unwrap();
        let config = document.image_config();
        assert_eq!(config.entrypoint, ["/init"]);
        assert!(config.cmd.is_empty());
        let pairs = [
            ("PATH".to_owned(), "/bin".to_owned()),
            ("EMPTY".to_owned(), String::new()),
        ];
        assert_eq!(config.env, pairs);
        assert_eq!(
            (config.user.as_str(), config.working_dir.as_str()),
            ("www-data", "/srv")
        );
        assert!(config.volumes.contains("/data") && config.exposed_ports.contains("80/tcp"));
        assert_eq!(
            (config.stop_signal.as_str(), config.labels["a"].as_str()),
            ("SIGQUIT", "b")
        );
        let again = serde_json::to_vec(&document).unwrap();
        assert_eq!(ConfigDocument::parse(&again).unwrap().image_config(), config);
        let empty =
            r#"{"architecture":"a","os":"b","rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let empty = ConfigDocument::parse(empty.as_bytes()).unwrap();
        assert!(empty.rootfs.diff_ids.is_empty() && empty.image_config() == ImageConfig::default());
    }

    #[test]
    fn what_is_no_configuration_is_refused_by_field() {
        let check = |text: &str, expected: &str| {
            assert_eq!(
                ConfigDocument::parse(text.as_bytes()).unwrap_err().to_string(),
                expected
            );
        };
        check("{}", "the configuration is not valid JSON of its kind");
        check(
            &DOCUMENT.replace("layers", "tree"),
            "rootfs.type is \"tree\", which is not understood",
        );
        assert!(ConfigDocument::parse(DOCUMENT.replace("[\"/init\"]", "7").as_bytes()).is_err());
    }
}
