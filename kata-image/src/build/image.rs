//! An image wherever it is: what it is made of, and where it can be written to.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::write;
use super::{BuildError, ImageBuilder};
use crate::layout::{self, LayoutError};
use crate::oci::{
    Blobs, ConfigDocument, Descriptor, Digest, Document, DocumentError, ImageConfig, Manifest, Parsed,
    Platform,
};
use crate::progress::{Progress, Stage};
use crate::reference::Reference;
use crate::registry::{Registries, Upload};
use crate::transfer::{self, TransferError, Verified, small_blob};

/// One image for one platform: in a registry, in a file, or made here. Its layers are read when they are asked for,
/// and everything that is read is checked against its digest.
pub struct Image {
    blobs: Arc<dyn Blobs + Send>,
    document: Document,
    manifest: Manifest,
    config: ConfigDocument,
    config_bytes: Vec<u8>,
}

/// What a manifest says about a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageLayer {
    /// Of the layer as it is stored.
    pub digest: Digest,
    /// As it is stored.
    pub size_bytes: u64,
    /// What it is and how it is packed.
    pub media_type: String,
}

impl fmt::Debug for Image {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Image").field(&self.digest()).finish()
    }
}

/// The most indexes that lead from one to another.
const INDEXES_MAX: usize = 4;

impl Image {
    /// Begins an image.
    pub fn builder() -> ImageBuilder {
        ImageBuilder::default()
    }

    /// An image of a registry. Its manifest and configuration are read, no layer yet.
    ///
    /// # Errors
    /// When the registry does not give it, it is not for that platform, or it is not what its digests say.
    pub fn pull(
        registries: &Registries,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<Self, TransferError> {
        Self::new(Box::new(registries.repository(reference)), platform)
    }

    /// An image of an OCI layout, a directory or an archive, or of an archive of `docker save`: of that name, or the
    /// only one. A compressed archive is unpacked into a file without a name in `temporary`.
    ///
    /// # Errors
    /// When there is no such image in it, or it is not what its digests say.
    pub fn open(
        path: impl AsRef<Path>,
        name: Option<&str>,
        platform: &Platform,
        temporary: impl AsRef<Path>,
    ) -> Result<Self, LayoutError> {
        let blobs = layout::open(path.as_ref(), name, temporary.as_ref())?;
        Ok(Self::new(blobs, platform)?)
    }

    /// Whether there is an OCI layout or an archive of one or of `docker save` at `path`: by an archive's first member,
    /// or by a file in a directory. An archive that begins with a directory, such as `./`, is taken for a root
    /// filesystem; [`open`](Self::open) looks closer.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn is_at(path: impl AsRef<Path>) -> io::Result<bool> {
        Ok(layout::recognize(path.as_ref())?.is_some())
    }

    /// The image of a place for a platform.
    pub(crate) fn new(blobs: Box<dyn Blobs + Send>, platform: &Platform) -> Result<Self, TransferError> {
        let blobs: Arc<dyn Blobs + Send> = Arc::from(blobs);
        let mut document = blobs.root()?;
        for _ in 0..INDEXES_MAX {
            let digest = document.digest();
            let failed = TransferError::document("the image", digest.as_str());
            match document.parse().map_err(&failed)? {
                Parsed::Index(index) => {
                    let chosen = index.choose(platform).map_err(&failed)?;
                    document = transfer::document(&*blobs, chosen)?;
                }
                Parsed::Manifest(manifest) => return Self::of_manifest(blobs, document, manifest),
            }
        }
        let source = DocumentError::MediaType {
            media_type: "an index in an index in an index".into(),
        };
        Err(TransferError::document("the image", document.digest().as_str())(
            source,
        ))
    }

    fn of_manifest(
        blobs: Arc<dyn Blobs + Send>,
        document: Document,
        manifest: Manifest,
    ) -> Result<Self, TransferError> {
        let config_bytes = small_blob(&*blobs, &manifest.config)?;
        let digest = manifest.config.digest.to_string();
        let failed = TransferError::document("the image", &digest);
        let config = ConfigDocument::parse(&config_bytes).map_err(&failed)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(failed(DocumentError::LayerCount {
                manifest: manifest.layers.len(),
                config: config.rootfs.diff_ids.len(),
            }));
        }
        Ok(Self {
            blobs,
            document,
            manifest,
            config,
            config_bytes,
        })
    }

    /// The digest of its manifest, which names it for ever.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.document.digest()
    }

    /// What it says about its containers.
    #[must_use]
    pub fn config(&self) -> ImageConfig {
        self.config.image_config()
    }

    /// For which machines it is.
    #[must_use]
    pub fn platform(&self) -> Platform {
        self.config.platform()
    }

    /// Its layers, bottom first.
    #[must_use]
    pub fn layers(&self) -> Vec<ImageLayer> {
        let layer = |descriptor: &Descriptor| ImageLayer {
            digest: descriptor.digest.clone(),
            size_bytes: descriptor.size,
            media_type: descriptor.media_type.clone(),
        };
        self.manifest.layers.iter().map(layer).collect()
    }

    /// The bytes of a layer as they are stored; `None` when there is no such layer.
    #[must_use]
    pub fn layer(&self, index: usize) -> Option<Verified<'_>> {
        let descriptor = self.manifest.layers.get(index)?;
        Some(transfer::open(&*self.blobs, descriptor))
    }

    /// Writes it into an OCI image layout, which is made or added to. An image that has the name already loses it.
    ///
    /// # Errors
    /// When it cannot be read, or the layout not be written.
    pub fn write_layout(
        &self,
        directory: impl AsRef<Path>,
        name: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), BuildError> {
        write::layout(self, directory.as_ref(), name, progress)
    }

    /// Writes it as a tar archive of an OCI image layout. Whatever was at `path` is replaced when all is written.
    ///
    /// # Errors
    /// When it cannot be read, or the archive not be written.
    pub fn write_archive(
        &self,
        path: impl AsRef<Path>,
        name: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), BuildError> {
        write::archive(self, path.as_ref(), name, progress)
    }

    /// Writes it to a registry: the blobs that are not there, then the manifest under the reference's tag and digest.
    /// Blobs of a base in the same registry are mounted, not sent.
    ///
    /// # Errors
    /// When it cannot be read, the registry does not take it, or the reference has another digest than it.
    pub fn push(
        &self,
        registries: &Registries,
        reference: &Reference,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), TransferError> {
        if let Some(digest) = reference.digest() {
            transfer::check_digest(digest, &self.document.bytes)?;
        }
        let upload = Upload::new(registries, reference, self.blobs.repository());
        let mut done = Done::new(self, Stage::Uploading);
        for descriptor in self.descriptors() {
            let pushed = upload.blob(&*self.blobs, descriptor, &mut |bytes| {
                done.report(bytes, progress)
            })?;
            log::debug!("{}: {pushed:?}", descriptor.digest);
            done.finish(descriptor, progress);
        }
        let digest = self.digest();
        let identifier = reference.tag().unwrap_or(digest.as_str());
        upload.manifest(identifier, self.manifest_type(), &self.document.bytes)
    }

    /// The place that it comes from.
    pub(crate) fn place(&self) -> &dyn Blobs {
        &*self.blobs
    }

    /// Its layers' digests when unpacked, bottom first.
    pub(crate) fn diff_ids(&self) -> &[Digest] {
        &self.config.rootfs.diff_ids
    }

    /// Its configuration as it is stored.
    pub(crate) fn config_document(&self) -> &ConfigDocument {
        &self.config
    }

    pub(super) fn blobs(&self) -> Arc<dyn Blobs + Send> {
        Arc::clone(&self.blobs)
    }

    pub(crate) fn layer_descriptors(&self) -> &[Descriptor] {
        &self.manifest.layers
    }

    pub(super) fn config_bytes(&self) -> &[u8] {
        &self.config_bytes
    }

    /// The manifest itself, as an entry of an index.
    pub(super) fn manifest_descriptor(&self) -> Descriptor {
        let mut descriptor = Descriptor::of(self.manifest_type(), &self.document.bytes);
        descriptor.platform = Some(self.platform());
        descriptor
    }

    pub(super) fn manifest_bytes(&self) -> &[u8] {
        &self.document.bytes
    }

    /// Layers and configuration, each once.
    pub(super) fn descriptors(&self) -> Vec<&Descriptor> {
        let mut seen = std::collections::HashSet::new();
        let all = self.manifest.layers.iter().chain([&self.manifest.config]);
        all.filter(|descriptor| seen.insert(&descriptor.digest)).collect()
    }

    fn manifest_type(&self) -> &str {
        let inside = self.manifest.media_type.as_deref();
        inside.unwrap_or(match self.document.media_type.as_str() {
            "" => crate::oci::media_type::OCI_MANIFEST,
            outside => outside,
        })
    }
}

/// How much of an image is transferred.
pub(super) struct Done {
    stage: Stage,
    total_bytes: u64,
    /// Of the blobs that are done.
    done_bytes: u64,
    layers: u64,
    /// What is no layer.
    config: Digest,
    reported_bytes: u64,
}

/// Between two reports.
const REPORT_BYTES: u64 = 1 << 20;

impl Done {
    pub(super) fn new(image: &Image, stage: Stage) -> Self {
        let sizes = image.descriptors().into_iter().map(|descriptor| descriptor.size);
        Self {
            stage,
            total_bytes: sizes.fold(0, u64::saturating_add),
            done_bytes: 0,
            layers: 0,
            config: image.manifest.config.digest.clone(),
            reported_bytes: 0,
        }
    }

    /// So many bytes of the blob that is next.
    pub(super) fn report(&mut self, bytes: u64, progress: &mut dyn FnMut(Progress)) {
        let done_bytes = self.done_bytes.saturating_add(bytes);
        if done_bytes >= self.reported_bytes.saturating_add(REPORT_BYTES) {
            self.tell(done_bytes, progress);
        }
    }

    pub(super) fn finish(&mut self, descriptor: &Descriptor, progress: &mut dyn FnMut(Progress)) {
        self.done_bytes = self.done_bytes.saturating_add(descriptor.size);
        self.layers += u64::from(descriptor.digest != self.config);
        self.tell(self.done_bytes, progress);
    }

    fn tell(&mut self, done_bytes: u64, progress: &mut dyn FnMut(Progress)) {
        self.reported_bytes = done_bytes;
        progress(Progress {
            stage: self.stage,
            done_bytes,
            total_bytes: Some(self.total_bytes),
            entries: self.layers,
        });
    }
}
