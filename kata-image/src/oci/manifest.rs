//! Manifests and indexes, of OCI and of docker, which differ by their media types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::platform::Platform;

/// Media types (OCI image specification 1.1, "Media Types"; docker's image manifest version 2, schema 2).
pub(crate) mod media_type {
    pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub(crate) const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub(crate) const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
}

/// Why a document is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// It is not JSON, or a field is missing or of another kind.
    #[error("the {what} is not valid JSON of its kind")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A field has a value that has no meaning here.
    #[error("{field} is {value:?}, which is not understood")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// Its media type is none of a manifest's or an index's.
    #[error("media type {media_type:?} is neither an image's manifest nor an index")]
    MediaType {
        /// The type.
        media_type: String,
    },
    /// There is an index, and no entry of it is for the platform.
    #[error("there is no image for {wanted}, only for {offered}")]
    Platform {
        /// What was asked for.
        wanted: Platform,
        /// What there is, separated by commas.
        offered: String,
    },
    /// A layer is not what the configuration says.
    #[error("the layer unpacks to {received}, and the configuration says {expected}")]
    DiffId {
        /// In the configuration.
        expected: Digest,
        /// As computed.
        received: Digest,
    },
    /// There are more layers than any engine stacks.
    #[error("the image has {layers} layers, and at most {LAYERS_MAX} are accepted")]
    TooManyLayers {
        /// In the manifest.
        layers: usize,
    },
    /// The sizes of the layers do not fit into a number: somebody lies.
    #[error("the layers' sizes add up to more than 2^63 bytes")]
    LayerSizes,
    /// The manifest names more or fewer layers than the configuration.
    #[error("the manifest has {manifest} layers and the configuration {config}")]
    LayerCount {
        /// In the manifest.
        manifest: usize,
        /// In the configuration.
        config: usize,
    },
}

/// As in docker's and podman's storage.
const LAYERS_MAX: usize = 127;

/// A reference to bytes by their digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    /// In bytes.
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Of these bytes.
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// One image: its configuration, and its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    pub(crate) config: Descriptor,
    #[serde(deserialize_with = "super::config::null_is_empty")]
    pub(crate) layers: Vec<Descriptor>,
}

/// Several images, one for each platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(deserialize_with = "super::config::null_is_empty")]
    pub(crate) manifests: Vec<Descriptor>,
}

/// The bytes of a manifest or an index, and what they are said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    /// As its place says; empty where it does not.
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parsed {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// The digest of its bytes.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// Reads it as what it says it is. A document inside that contradicts its place is refused, for
    /// one digest must not mean two things (CVE-2021-41190).
    ///
    /// # Errors
    /// When it is neither a manifest nor an index.
    pub(crate) fn parse(&self) -> Result<Parsed, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
        }
        let probe: Probe = json("manifest", &self.bytes)?;
        let inside = probe.media_type.as_deref().filter(|text| !text.is_empty());
        let outside = Some(self.media_type.as_str()).filter(|text| !text.is_empty());
        let is_index = match (outside, inside) {
            (Some(outside), Some(inside)) if is_index(outside)? != is_index(inside)? => {
                let media_type = format!("{outside} as {inside}");
                return Err(DocumentError::MediaType { media_type });
            }
            (Some(media_type), _) | (None, Some(media_type)) => is_index(media_type)?,
            (None, None) => probe.manifests.is_some(),
        };
        match (is_index, probe.manifests.is_some() && probe.layers.is_some()) {
            (_, true) => Err(DocumentError::MediaType {
                media_type: "both layers and manifests".into(),
            }),
            (true, _) => Ok(Parsed::Index(json("index", &self.bytes)?)),
            (false, _) => {
                let manifest: Manifest = json("manifest", &self.bytes)?;
                manifest.check_layers().map(|()| Parsed::Manifest(manifest))
            }
        }
    }
}

impl Manifest {
    /// Whether this many layers of these sizes can be, before anything is fetched.
    fn check_layers(&self) -> Result<(), DocumentError> {
        check_layer_count(self.layers.len())?;
        let mut sizes = self.layers.iter().map(|layer| layer.size);
        let sum = sizes.try_fold(0u64, u64::checked_add);
        match sum.filter(|bytes| i64::try_from(*bytes).is_ok()) {
            Some(_) => Ok(()),
            None => Err(DocumentError::LayerSizes),
        }
    }
}

/// # Errors
/// When nobody stacks so many layers.
pub(crate) fn check_layer_count(layers: usize) -> Result<(), DocumentError> {
    if layers > LAYERS_MAX {
        return Err(DocumentError::TooManyLayers { layers });
    }
    Ok(())
}

impl Index {
    /// The first image for a platform.
    ///
    /// # Errors
    /// With what there is instead.
    pub(crate) fn choose(&self, wanted: &Platform) -> Result<&Descriptor, DocumentError> {
        let fits = |entry: &&Descriptor| match &entry.platform {
            Some(platform) => wanted.accepts(platform),
            // An index of one image need not say for which platform it is: its configuration does.
            None => self.manifests.len() == 1,
        };
        self.manifests.iter().find(fits).ok_or_else(|| {
            let offered: Vec<String> = self
                .manifests
                .iter()
                .filter_map(|entry| Some(entry.platform.as_ref()?.to_string()))
                .collect();
            let offered = if offered.is_empty() {
                "no platform that it names".into()
            } else {
                offered.join(", ")
            };
            DocumentError::Platform {
                wanted: wanted.clone(),
                offered,
            }
        })
    }
}

fn is_index(media_type: &str) -> Result<bool, DocumentError> {
    // Parameters, such as a charset, say nothing about the kind.
    match media_type.split(';').next().unwrap_or_default().trim() {
        media_type::OCI_INDEX | media_type::DOCKER_INDEX => Ok(true),
        media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Ok(false),
        _ => Err(DocumentError::MediaType {
            media_type: media_type.to_owned(),
        }),
    }
}

fn json<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes).map_err(|source| DocumentError::Json { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(media_type: &str, text: &str) -> Document {
        Document {
            media_type: media_type.into(),
            bytes: text.into(),
        }
    }

    fn entry(os: &str, architecture: &str) -> String {
        let digest = Digest::of(architecture.as_bytes());
        format!(
            r#"{{"mediaType":"{}","digest":"{digest}","size":7,"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#,
            media_type::OCI_MANIFEST
        )
    }

    #[test]
    fn an_index_is_searched_for_the_platform() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{},{}]}}"#,
            entry("linux", "arm64"),
            entry("linux", "amd64")
        );
        let Parsed::Index(index) = document(media_type::OCI_INDEX, &text).parse().unwrap() else {
            panic!("an index");
        };
        let amd64 = Platform {
            os: "linux".into(),
            architecture: "amd64".into(),
            variant: None,
        };
        assert_eq!(index.choose(&amd64).unwrap().digest, Digest::of(b"amd64"));
        let s390x = Platform {
            architecture: "s390x".into(),
            ..amd64
        };
        let error = index.choose(&s390x).unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no image for linux/s390x, only for linux/arm64, linux/amd64"
        );
    }

    #[test]
    fn layers_that_nobody_stacks_are_refused_before_they_are_fetched() {
        let layer = |size: u64| entry("linux", "x").replace("\"size\":7", &format!("\"size\":{size}"));
        let manifest = |layers: &[String]| {
            let config = entry("linux", "x");
            let layers = layers.join(",");
            let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}]}}"#);
            document("", &text).parse()
        };
        assert!(manifest(&vec![layer(7); LAYERS_MAX]).is_ok());
        let error = manifest(&vec![layer(7); LAYERS_MAX + 1]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image has 128 layers, and at most 127 are accepted"
        );
        let half = layer(u64::MAX / 4 + 1);
        assert!(manifest(std::slice::from_ref(&half)).is_ok());
        for layers in [vec![half.clone(), half], vec![layer(u64::MAX), layer(1)]] {
            assert!(matches!(manifest(&layers), Err(DocumentError::LayerSizes)));
        }
    }

    #[test]
    fn a_document_that_can_be_read_two_ways_is_refused() {
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{0},"layers":[]}}"#,
            entry("linux", "x")
        );
        assert!(matches!(document("", &manifest).parse(), Ok(Parsed::Manifest(_))));
        assert!(matches!(
            document(media_type::DOCKER_MANIFEST, &manifest).parse(),
            Ok(Parsed::Manifest(_))
        ));
        assert!(document(media_type::OCI_INDEX, &manifest).parse().is_err());
        let both = manifest.replace("\"layers\"", "\"manifests\":[],\"layers\"");
        assert!(document("", &both).parse().is_err());
        let lying = manifest.replacen('{', &format!(r#"{{"mediaType":"{}","#, media_type::OCI_INDEX), 1);
        let error = document(media_type::OCI_MANIFEST, &lying)
            .parse()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("manifest.v1+json as application/vnd.oci.image.index.v1+json"),
            "{error}"
        );
        let error = document("text/html", &manifest).parse().unwrap_err().to_string();
        assert_eq!(
            error,
            "media type \"text/html\" is neither an image's manifest nor an index"
        );
    }
}
