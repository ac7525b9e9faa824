//! Images of several layers, with a configuration: from a registry, a layout or an archive of either kind.
//!
//! ```text
//!  record says so, layers are intact ─────────────────────────────────────────────────────► open them
//!  otherwise: lock ─► look again ─► manifest ─► configuration ─► layers, several at once ─► record ─► open
//!                                                                └─ merged, where they cannot be stacked
//! ```
//!
//! What a place gives is checked here against what its documents say; how bytes come is not known here.

use std::path::{Path, PathBuf};

use super::index::{self, ImageRecord, Key, Stored};
use super::layers::{StoredLayer, Wanted, chain};
use super::{Rootfs, Store, StoreError};
use crate::build::Image;
use crate::image_source::ImageSource;
use crate::oci::{Digest, DocumentError, ImageConfig, Platform};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::registry::Registries;
use crate::source::Source;
use crate::transfer::TransferError;

/// The most layers that are attached one by one; an image of more is merged into one. Each is a device of the
/// machine, and some machines have room for 24 in all.
const STACKED_MAX: usize = 12;

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PullPolicy {
    /// When the store has no image of this name.
    #[default]
    Missing,
    /// Each time: a tag may mean another image by now. What is here already is not downloaded again.
    Always,
    /// Never: without an image in the store it is an error.
    Never,
}

/// How an image is got: when, for which machine, with which registries.
///
/// ```
/// use kata_image::{Pull, PullPolicy, Registries};
///
/// let pull = Pull::default().policy(PullPolicy::Always).registries(Registries::default());
/// ```
#[derive(Debug, Clone)]
#[must_use = "options do nothing until they are given to a store"]
pub struct Pull {
    policy: PullPolicy,
    platform: Platform,
    registries: Registries,
    hash_trees: bool,
}

impl Default for Pull {
    fn default() -> Self {
        Self {
            policy: PullPolicy::default(),
            platform: Platform::host(),
            registries: Registries::default(),
            hash_trees: false,
        }
    }
}

impl Pull {
    /// When a registry is asked.
    pub fn policy(mut self, policy: PullPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// For which machine; this one by default.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// How registries are reached.
    pub fn registries(mut self, registries: Registries) -> Self {
        self.registries = registries;
        self
    }

    /// Whether every layer comes with its dm-verity [hash tree](Rootfs::hash_tree); none does by default. A tree takes
    /// one 128th of its image and is made once, in the time that it takes to hash the image twice.
    pub fn hash_trees(mut self, wanted: bool) -> Self {
        self.hash_trees = wanted;
        self
    }

    /// The most layers that are attached one by one: a hash tree is a device too.
    fn stacked_max(&self) -> usize {
        if self.hash_trees {
            STACKED_MAX / 2
        } else {
            STACKED_MAX
        }
    }
}

/// An image that is ready to be attached to a machine.
///
/// While it, or a descriptor made from its files, is open, no [`prune`](Store::prune) takes its files.
#[derive(Debug)]
#[non_exhaustive]
pub struct ReadyImage {
    /// Its layers, the lowest first; at least one, and at most twelve, or six with hash trees.
    pub layers: Vec<Rootfs>,
    /// What its author says about its containers; nothing where the source was a directory or archive of files.
    pub config: ImageConfig,
    /// `sha256:` and the digest of its manifest, or of its only layer where it has none.
    pub digest: String,
    /// Whether all of it was there already.
    pub cached: bool,
}

impl From<Rootfs> for ReadyImage {
    fn from(rootfs: Rootfs) -> Self {
        Self {
            digest: rootfs.digest.clone(),
            cached: rootfs.cached,
            config: ImageConfig::default(),
            layers: vec![rootfs],
        }
    }
}

/// Which image is asked for, and what is known without opening its place.
struct Asked<'a> {
    key: Key,
    /// For people.
    name: String,
    /// Of the layout or archive; empty for a registry, where a name is all there is.
    fingerprint: String,
    pull: &'a Pull,
    may_be_stale: bool,
}

impl Asked<'_> {
    fn failed(&self, source: TransferError) -> StoreError {
        StoreError::Transfer {
            name: self.name.clone(),
            source: Box::new(source),
        }
    }

    /// An index is searched for the platform; an image that stands alone is for the one that it is for.
    fn check_platform(&self, image: &Image) -> Result<(), StoreError> {
        let (wanted, offered) = (&self.pull.platform, image.platform());
        if wanted.accepts(&offered) {
            return Ok(());
        }
        let error = DocumentError::Platform {
            wanted: wanted.clone(),
            offered: offered.to_string(),
        };
        Err(self.failed(TransferError::document(&self.name, "configuration")(error)))
    }
}

impl Store {
    /// The image of `source`: the one that is here if it still is what the source has, else a new one.
    ///
    /// Of a registry's image the [`PullPolicy`] says when the registry is asked. When several ask for the same
    /// at once, in this process or others, one fetches each layer and the others wait for it.
    ///
    /// # Errors
    ///
    /// As [`rootfs`](Self::rootfs); with [`StoreError::Transfer`] when the image cannot be fetched or is not
    /// what its documents say, [`StoreError::HashTree`] when a ready image can have none, and [`StoreError::NotStored`] when it is not here and may not be fetched.
    pub fn image(
        &self,
        source: &ImageSource,
        pull: &Pull,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ReadyImage, StoreError> {
        let mut image: ReadyImage = match source {
            ImageSource::Files(source) => self.rootfs(source, progress)?.into(),
            ImageSource::Registry(reference) => self.of_registry(reference, pull, progress)?,
            ImageSource::Layout { path, name } => self.of_layout(path, name.as_deref(), pull, progress)?,
        };
        for layer in image.layers.iter_mut().filter(|_| pull.hash_trees) {
            layer.hash_tree = Some(self.hash_tree(layer, progress)?);
        }
        Ok(image)
    }

    fn of_registry(
        &self,
        reference: &Reference,
        pull: &Pull,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ReadyImage, StoreError> {
        let name = reference.to_string();
        let asked = Asked {
            key: Key::of_image("registry", &name, &pull.platform),
            fingerprint: String::new(),
            // What a digest names is always the same.
            may_be_stale: pull.policy == PullPolicy::Always && reference.digest().is_none(),
            name,
            pull,
        };
        let open = || {
            Image::pull(&pull.registries, reference, &pull.platform).map_err(|source| asked.failed(source))
        };
        self.fetched(&asked, open, progress)
    }

    fn of_layout(
        &self,
        path: &Path,
        name: Option<&str>,
        pull: &Pull,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ReadyImage, StoreError> {
        // Its metadata tell whether it changed, whatever is in it.
        let source = super::canonical(&match path.is_dir() {
            true => Source::Directory(path.to_path_buf()),
            false => Source::Archive(path.to_path_buf()),
        })?;
        let path = source.path().to_path_buf();
        let whole = match name {
            Some(name) => format!("{}:{name}", path.display()),
            None => path.display().to_string(),
        };
        let asked = Asked {
            key: Key::of_image("layout", &whole, &pull.platform),
            name: whole,
            fingerprint: self.fingerprint(&source)?.digest,
            pull,
            may_be_stale: false,
        };
        let open = || {
            let failed = |source| StoreError::Layout {
                path: path.clone(),
                source: Box::new(source),
            };
            Image::open(&path, name, &pull.platform, self.tmp()).map_err(failed)
        };
        self.fetched(&asked, open, progress)
    }

    fn fetched(
        &self,
        asked: &Asked<'_>,
        open: impl FnOnce() -> Result<Image, StoreError>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ReadyImage, StoreError> {
        if let Some(image) = self.known(asked, None)? {
            return Ok(image);
        }
        if asked.pull.policy == PullPolicy::Never && asked.fingerprint.is_empty() {
            return Err(StoreError::NotStored {
                name: asked.name.clone(),
            });
        }
        let _lock = self.lock(&asked.key)?;
        // Whoever held the lock may have fetched it.
        if let Some(image) = self.known(asked, None)? {
            return Ok(image);
        }
        let image = open()?;
        let digest = image.digest();
        if let Some(image) = self.known(asked, Some(&digest))? {
            return Ok(image);
        }
        asked.check_platform(&image)?;
        let diff_ids = image.diff_ids();
        let wanted = image
            .layer_descriptors()
            .iter()
            .cloned()
            .zip(diff_ids.iter().cloned())
            .collect();
        let stack = self.layers(image.place(), &asked.name, &topmost(wanted), progress)?;
        let (ids, layers) = self.stacked_or_merged(asked, stack, diff_ids, progress)?;
        let record = ImageRecord {
            name: asked.name.clone(),
            fingerprint: asked.fingerprint.clone(),
            manifest: digest.clone(),
            config: image.config_document().clone(),
            layers: ids,
        };
        let path = self.record_path(&asked.key);
        record
            .write(&path, &self.tmp())
            .map_err(|source| self.io_error(&path, source))?;
        self.keep_to_limit()?;
        Ok(ReadyImage {
            layers,
            config: record.config.image_config(),
            digest: digest.to_string(),
            cached: false,
        })
    }

    /// The image that a record tells of, if its layers are intact, and if it is the one with `digest`. Where the place
    /// was not asked and there is none, the record has to be of the same source, and a name that always asks has none.
    fn known(&self, asked: &Asked<'_>, digest: Option<&Digest>) -> Result<Option<ReadyImage>, StoreError> {
        if asked.may_be_stale && digest.is_none() {
            return Ok(None);
        }
        let path = self.record_path(&asked.key);
        let record = ImageRecord::read(&path).map_err(|source| self.io_error(&path, source))?;
        let Some(record) = record
            .filter(|record| record.fingerprint == asked.fingerprint || digest.is_some())
            .filter(|record| digest.is_none_or(|digest| *digest == record.manifest))
        else {
            return Ok(None);
        };
        let stack = {
            let _sweeps_wait = self.hold()?;
            self.stored_layers(&record.layers)?
        };
        let Some(stack) = stack else { return Ok(None) };
        // What was stacked without hash trees may be too much with them.
        let (ids, layers) = if stack.len() <= asked.pull.stacked_max() {
            unzip(stack)
        } else {
            self.one_of(asked, stack, &record.layers, &mut |_| ())?
        };
        if record.fingerprint == asked.fingerprint && record.layers == ids {
            index::touch(&path);
        } else {
            let record = ImageRecord {
                fingerprint: asked.fingerprint.clone(),
                layers: ids,
                ..record.clone()
            };
            record
                .write(&path, &self.tmp())
                .map_err(|source| self.io_error(&path, source))?;
        }
        Ok(Some(ReadyImage {
            layers,
            config: record.config.image_config(),
            digest: record.manifest.to_string(),
            cached: true,
        }))
    }

    /// What an image is attached as, with what stands for it in the store: its layers, or one that is made of them.
    fn stacked_or_merged(
        &self,
        asked: &Asked<'_>,
        stack: Vec<StoredLayer>,
        diff_ids: &[Digest],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<Digest>, Vec<Rootfs>), StoreError> {
        if stack.len() <= asked.pull.stacked_max() && self.can_stack(&asked.name, &stack)? {
            return Ok(unzip(stack));
        }
        self.one_of(asked, stack, diff_ids, progress)
    }

    /// One layer that is made of them all.
    fn one_of(
        &self,
        asked: &Asked<'_>,
        stack: Vec<StoredLayer>,
        diff_ids: &[Digest],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Vec<Digest>, Vec<Rootfs>), StoreError> {
        let chain = chain(diff_ids);
        let merged = self.merged(&asked.name, &chain, &stack, progress)?;
        Ok((vec![chain], vec![merged]))
    }

    fn record_path(&self, key: &Key) -> PathBuf {
        self.directory.join("names").join(format!("{}.json", key.name()))
    }
}

fn unzip(stack: Vec<StoredLayer>) -> (Vec<Digest>, Vec<Rootfs>) {
    stack
        .into_iter()
        .map(|layer| (layer.diff_id, layer.rootfs))
        .unzip()
}

/// A layer that occurs twice is decided where it is on top; below it has nothing to say.
fn topmost(wanted: Vec<Wanted>) -> Vec<Wanted> {
    let is_last = |index: usize| {
        !wanted[index + 1..]
            .iter()
            .any(|(_, later)| *later == wanted[index].1)
    };
    let kept: Vec<bool> = (0..wanted.len()).map(is_last).collect();
    wanted
        .into_iter()
        .zip(kept)
        .filter_map(|(wanted, kept)| kept.then_some(wanted))
        .collect()
}
