//! The archives of `docker save` (moby, `image/tarexport`): a manifest of their own, from which one of OCI's kind is
//! made, so that everybody else sees an ordinary image.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::tarball::Tarball;
use super::{Files, LayoutError};
use crate::archive::{self, Compression, Recognized};
use crate::oci::{
    Blobs, ConfigDocument, Descriptor, Digest, Document, DocumentError, Manifest, check_layer_count,
    media_type,
};
use crate::reference::Reference;
use crate::transfer::{Patience, TransferError, read_document};

/// Names the images of the archive.
pub(super) const MANIFEST_FILE: &str = "manifest.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// One image of an archive.
pub(super) struct DockerArchive {
    tarball: Tarball,
    path: PathBuf,
    root: Document,
    /// Members by digest.
    members: HashMap<Digest, String>,
}

impl DockerArchive {
    pub(super) fn open(tarball: Tarball, path: &Path, name: Option<&str>) -> Result<Self, LayoutError> {
        let mut image = Self {
            tarball,
            path: path.to_path_buf(),
            root: Document {
                media_type: media_type::OCI_MANIFEST.into(),
                bytes: Vec::new(),
            },
            members: HashMap::new(),
        };
        let bytes = image.member(MANIFEST_FILE)?;
        let json_error = |member: &str| {
            let (path, member) = (path.to_path_buf(), member.to_owned());
            move |source| LayoutError::Json { path, member, source }
        };
        let entries: Vec<Entry> = serde_json::from_slice(&bytes).map_err(json_error(MANIFEST_FILE))?;
        let entry = image.choose(&entries, name)?;
        let manifest = image.manifest(entry)?;
        image.root.bytes = serde_json::to_vec(&manifest).map_err(json_error(MANIFEST_FILE))?;
        Ok(image)
    }

    fn choose<'a>(&self, entries: &'a [Entry], name: Option<&str>) -> Result<&'a Entry, LayoutError> {
        let tags = |entry: &'a Entry| entry.repo_tags.as_deref().unwrap_or_default();
        let reference = name.and_then(|name| name.parse::<Reference>().ok());
        let is_named = |entry: &&'a Entry| {
            let mut tags = tags(entry).iter();
            tags.any(|tag| {
                Some(tag.as_str()) == name || (reference.is_some() && tag.parse().ok() == reference)
            })
        };
        let found = match (name, entries) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(_), entries) => entries.iter().find(is_named),
        };
        found.ok_or_else(|| LayoutError::Name {
            path: self.path.clone(),
            name: name.map(str::to_owned),
            names: entries.iter().flat_map(tags).cloned().collect(),
        })
    }

    fn manifest(&mut self, entry: &Entry) -> Result<Manifest, LayoutError> {
        let config = self.member(&entry.config)?;
        let place = self.path.display().to_string();
        let document =
            ConfigDocument::parse(&config).map_err(TransferError::document(&place, &entry.config))?;
        let layers = entry.layers.as_deref().unwrap_or_default();
        let diff_ids = &document.rootfs.diff_ids;
        check_layer_count(layers.len()).map_err(TransferError::document(&place, MANIFEST_FILE))?;
        if layers.len() != diff_ids.len() {
            let source = DocumentError::LayerCount {
                manifest: layers.len(),
                config: diff_ids.len(),
            };
            return Err(TransferError::document(&place, MANIFEST_FILE)(source).into());
        }
        let config = Descriptor::of(media_type::OCI_CONFIG, &config);
        self.members.insert(config.digest.clone(), entry.config.clone());
        let mut descriptors = Vec::new();
        for (name, diff_id) in layers.iter().zip(diff_ids) {
            let descriptor = self.layer(name, diff_id)?;
            self.members.insert(descriptor.digest.clone(), name.clone());
            descriptors.push(descriptor);
        }
        Ok(Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            config,
            layers: descriptors,
        })
    }

    /// A plain layer's digest is in the configuration, and checked when it is read; a compressed one is hashed here.
    fn layer(&self, name: &str, diff_id: &Digest) -> Result<Descriptor, LayoutError> {
        let failed = TransferError::file(&self.path);
        let missing = || LayoutError::Member {
            path: self.path.clone(),
            member: name.to_owned(),
        };
        let size = self.tarball.size(name).ok_or_else(missing)?;
        let open = || self.tarball.read(name, 0).map_err(&failed)?.ok_or_else(missing);
        let mut head = Vec::new();
        open()?
            .take(super::tarball::BLOCK_BYTES)
            .read_to_end(&mut head)
            .map_err(&failed)?;
        let (media_type, is_packed) = match archive::recognize(&head) {
            Recognized::Readable(Compression::Gzip) => (media_type::OCI_LAYER_GZIP, true),
            Recognized::Readable(Compression::Zstd) => (media_type::OCI_LAYER_ZSTD, true),
            _ => (media_type::OCI_LAYER, false),
        };
        let digest = if is_packed {
            hash(open()?).map_err(failed)?
        } else {
            diff_id.clone()
        };
        Ok(Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            annotations: Default::default(),
        })
    }

    fn member(&self, name: &str) -> Result<Vec<u8>, LayoutError> {
        let failed = TransferError::file(&self.path);
        let input = self.tarball.read(name, 0).map_err(&failed)?;
        let input = input.ok_or_else(|| LayoutError::Member {
            path: self.path.clone(),
            member: name.to_owned(),
        })?;
        Ok(read_document(
            input,
            &self.path.display().to_string(),
            name,
            failed,
        )?)
    }

    fn missing(&self, descriptor: &Descriptor) -> TransferError {
        TransferError::Missing {
            place: self.path.display().to_string(),
            what: descriptor.digest.to_string(),
        }
    }
}

fn hash(mut input: impl Read) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(Digest::finish(hasher)),
            count => hasher.update(&buffer[..count]),
        }
    }
}

impl Blobs for DockerArchive {
    fn root(&self) -> Result<Document, TransferError> {
        Ok(self.root.clone())
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Document, TransferError> {
        // There is no manifest in it but the one that was made here.
        if self.root.digest() == descriptor.digest {
            return Ok(self.root.clone());
        }
        Err(self.missing(descriptor))
    }

    fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send>, TransferError> {
        let name = self.members.get(&descriptor.digest);
        let name = name.ok_or_else(|| self.missing(descriptor))?;
        let found = self
            .tarball
            .read(name, offset)
            .map_err(TransferError::file(&self.path))?;
        found.ok_or_else(|| self.missing(descriptor))
    }

    fn patience(&self) -> Patience {
        Patience::NONE
    }
}
