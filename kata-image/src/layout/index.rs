//! An OCI image layout: which image of it is meant, and where its blobs are.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Files, LayoutError};
use crate::oci::{Blobs, Descriptor, Digest, Document, Index, media_type};
use crate::reference::Reference;
use crate::transfer::{Patience, TransferError, read_document, small_blob};

/// `oci-layout`, which says that the rest follows the specification.
pub(crate) const LAYOUT_FILE: &str = "oci-layout";
/// `index.json`, which names the images.
pub(crate) const INDEX_FILE: &str = "index.json";
/// The only version there is.
pub(crate) const LAYOUT_VERSION: &str = "1.0.0";
/// The tag or the whole name of an image (OCI image specification, "Pre-Defined Annotation Keys").
pub(crate) const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// The whole name, as containerd and docker write it.
const CONTAINERD_NAME_ANNOTATION: &str = "io.containerd.image.name";

/// The contents of `oci-layout`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayoutFile {
    pub(crate) image_layout_version: String,
}

/// The contents of `index.json`.
pub(crate) type IndexFile = Index;

/// One image, or an index of images, of a layout.
pub(super) struct Layout<F> {
    files: F,
    path: PathBuf,
    root: Document,
}

impl<F: Files> Layout<F> {
    pub(super) fn open(files: F, path: &Path, name: Option<&str>) -> Result<Self, LayoutError> {
        let mut layout = Self {
            files,
            path: path.to_path_buf(),
            root: Document {
                media_type: String::new(),
                bytes: Vec::new(),
            },
        };
        let version: LayoutFile = layout.json(LAYOUT_FILE)?.0;
        if version.image_layout_version != LAYOUT_VERSION {
            return Err(LayoutError::Version {
                path: layout.path,
                version: version.image_layout_version,
            });
        }
        let (index, bytes): (IndexFile, _) = layout.json(INDEX_FILE)?;
        layout.root = layout.choose(&index, bytes, name)?;
        Ok(layout)
    }

    fn json<T: for<'a> Deserialize<'a>>(&self, member: &str) -> Result<(T, Vec<u8>), LayoutError> {
        let bytes = self.member(member)?.ok_or_else(|| LayoutError::Member {
            path: self.path.clone(),
            member: member.to_owned(),
        })?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok((value, bytes)),
            Err(source) => Err(LayoutError::Json {
                path: self.path.clone(),
                member: member.to_owned(),
                source,
            }),
        }
    }

    fn member(&self, name: &str) -> Result<Option<Vec<u8>>, TransferError> {
        let file = self.path.join(name);
        let failed = TransferError::file(&file);
        let Some(input) = self.files.read(name, 0).map_err(&failed)? else {
            return Ok(None);
        };
        read_document(input, &self.path.display().to_string(), name, failed).map(Some)
    }

    /// The document of the image that is meant: of that name, or the only one. Images without names are taken as one
    /// for several platforms.
    fn choose(&self, index: &IndexFile, bytes: Vec<u8>, name: Option<&str>) -> Result<Document, LayoutError> {
        let matching: Vec<_> = match name {
            Some(name) => index
                .manifests
                .iter()
                .filter(|entry| is_named(entry, name))
                .collect(),
            None => index.manifests.iter().collect(),
        };
        match (name, matching.as_slice()) {
            (_, [entry]) => Ok(self.document(entry)?),
            (None, [_, ..]) if matching.iter().all(|entry| names(&entry.annotations).is_empty()) => {
                Ok(Document {
                    media_type: media_type::OCI_INDEX.into(),
                    bytes,
                })
            }
            // One name for several platforms.
            (Some(_), [_, ..]) => {
                let manifests = matching.into_iter().cloned().collect();
                let index = IndexFile {
                    manifests,
                    ..index.clone()
                };
                let bytes = serde_json::to_vec(&index).map_err(|source| LayoutError::Json {
                    path: self.path.clone(),
                    member: INDEX_FILE.into(),
                    source,
                })?;
                let media_type = media_type::OCI_INDEX.into();
                Ok(Document { media_type, bytes })
            }
            _ => Err(LayoutError::Name {
                path: self.path.clone(),
                name: name.map(str::to_owned),
                names: index
                    .manifests
                    .iter()
                    .flat_map(|entry| names(&entry.annotations))
                    .collect(),
            }),
        }
    }
}

impl<F: Files> Blobs for Layout<F> {
    fn root(&self) -> Result<Document, TransferError> {
        Ok(self.root.clone())
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Document, TransferError> {
        Ok(Document {
            media_type: descriptor.media_type.clone(),
            bytes: small_blob(self, descriptor)?,
        })
    }

    fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send>, TransferError> {
        let name = blob_name(&descriptor.digest);
        let found = self.files.read(&name, offset);
        found
            .map_err(TransferError::file(&self.path.join(&name)))?
            .ok_or_else(|| TransferError::Missing {
                place: self.path.display().to_string(),
                what: descriptor.digest.to_string(),
            })
    }

    fn patience(&self) -> Patience {
        Patience::NONE
    }
}

/// Where a blob is in a layout.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The names that an entry of the index has.
fn names(annotations: &BTreeMap<String, String>) -> Vec<String> {
    let mut names: Vec<_> = [CONTAINERD_NAME_ANNOTATION, NAME_ANNOTATION]
        .iter()
        .filter_map(|key| annotations.get(*key).cloned())
        .collect();
    names.dedup();
    names
}

/// Whether an entry is meant by a name: the same text, or references that mean the same.
fn is_named(entry: &Descriptor, name: &str) -> bool {
    let reference = name.parse::<Reference>().ok();
    names(&entry.annotations)
        .iter()
        .any(|known| known == name || (reference.is_some() && known.parse().ok() == reference))
}
