//! Images made here: from directories and archives, alone or on top of another image.
//!
//! Owns the configuration, the order of layers, and that the same input gives the same digests: nothing of the clock
//! or of this machine goes into an image. Where images go to is [`image`]'s; how a directory becomes a tar archive,
//! [`directory`]'s.

mod assembled;
mod directory;
mod image;
mod packing;
mod write;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::archive::ArchiveError;
use crate::oci::{Descriptor, Document, DocumentError, Manifest, Platform, media_type};
use crate::progress::{Progress, Stage};
use crate::transfer::TransferError;
use assembled::Assembled;
pub use image::{Image, ImageLayer};
use packing::Packed;

/// Why an image cannot be made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// What goes into a layer cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// A file changed while it was read.
    #[error("{} changed while it was read", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// An archive that was to be a layer is none, or compressed in a way that images do not know.
    #[error("{} cannot be a layer: it is no tar archive, plain or packed with gzip or zstd", .path.display())]
    NotAnArchive {
        /// The file.
        path: PathBuf,
    },
    /// An archive that was to be a layer is broken.
    #[error("{} cannot be a layer", .path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ArchiveError,
    },
    /// A layer, a layout or an archive cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// What should be a layout to add to is none.
    #[error("{} is no image layout that can be added to", .path.display())]
    Layout {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The base, or what is written, cannot be read.
    #[error("cannot read the image")]
    Transfer(#[from] TransferError),
    /// The base's configuration cannot be built on.
    #[error("the base image cannot be built on")]
    Base(#[source] DocumentError),
}

/// How layers are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LayerCompression {
    /// Not at all.
    None,
    /// What every engine reads.
    #[default]
    Gzip,
    /// Smaller and faster to unpack; engines since about 2021 read it.
    Zstd,
}

/// Makes an [`Image`].
///
/// ```no_run
/// use kata_image::{Image, Registries};
///
/// let image = Image::builder()
///     .directory("rootfs")
///     .entrypoint(["/usr/bin/server"])
///     .env("PORT", "80")
///     .build(&mut |_| {})?;
/// image.write_layout("layout", Some("latest"), &mut |_| {})?;
/// image.push(&Registries::new(), &"127.0.0.1:5000/server:1".parse()?, &mut |_| {})?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct ImageBuilder {
    base: Option<Image>,
    layers: Vec<LayerSource>,
    compression: LayerCompression,
    owner: Option<(u32, u32)>,
    platform: Option<Platform>,
    created: Option<String>,
    temporary: Option<PathBuf>,
    /// What goes into the configuration's `config`, by its names.
    settings: BTreeMap<&'static str, Value>,
    env: Vec<(String, String)>,
    labels: BTreeMap<String, String>,
    exposed_ports: Vec<String>,
    volumes: Vec<String>,
}

#[derive(Debug)]
enum LayerSource {
    Directory(PathBuf),
    Archive(PathBuf),
}

impl ImageBuilder {
    /// Builds on an image: its layers come first, and its configuration is changed by what is set here.
    pub fn base(mut self, image: Image) -> Self {
        self.base = Some(image);
        self
    }

    /// Adds a layer of everything in a directory: owners, modes, times in seconds, attributes, hard links and devices.
    /// The directory itself is not in it, nor are sockets. A file `.wh.NAME` deletes NAME of the layers below.
    pub fn directory(mut self, path: impl AsRef<Path>) -> Self {
        self.layers
            .push(LayerSource::Directory(path.as_ref().to_path_buf()));
        self
    }

    /// Adds a tar archive as a layer, plain or packed with gzip or zstd; a packed one is taken as it is.
    pub fn archive(mut self, path: impl AsRef<Path>) -> Self {
        self.layers
            .push(LayerSource::Archive(path.as_ref().to_path_buf()));
        self
    }

    /// How the layers of directories and plain archives are packed. gzip.
    pub fn compression(mut self, compression: LayerCompression) -> Self {
        self.compression = compression;
        self
    }

    /// Gives everything in directories to this user and group, whoever it belongs to here.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// The first words of the command. As with docker, it forgets the base's arguments.
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.settings.entry("Cmd").or_insert(Value::Null);
        self.set("Entrypoint", strings(words))
    }

    /// The command, or what follows the entrypoint, unless a container is given arguments.
    pub fn cmd<S: Into<String>>(self, words: impl IntoIterator<Item = S>) -> Self {
        self.set("Cmd", strings(words))
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Who runs the command: `user`, `uid`, `user:group`, `uid:gid`.
    pub fn user(self, user: impl Into<String>) -> Self {
        self.set("User", user.into().into())
    }

    /// Where the command begins: an absolute path.
    pub fn working_dir(self, path: impl Into<String>) -> Self {
        self.set("WorkingDir", path.into().into())
    }

    /// Notes something.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Says that the container listens there: `80/tcp`.
    pub fn exposed_port(mut self, port: impl Into<String>) -> Self {
        self.exposed_ports.push(port.into());
        self
    }

    /// Says that a directory's contents are to outlive a container.
    pub fn volume(mut self, path: impl Into<String>) -> Self {
        self.volumes.push(path.into());
        self
    }

    /// The signal that ends the container, as a name or a number.
    pub fn stop_signal(self, signal: impl Into<String>) -> Self {
        self.set("StopSignal", signal.into().into())
    }

    /// For which machines the image is. The base's, else this machine's.
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// When it was made (RFC 3339, `2026-01-31T12:00:00Z`). Not said unless set here: the same input at another time is
    /// the same image.
    pub fn created(mut self, time: impl Into<String>) -> Self {
        self.created = Some(time.into());
        self
    }

    /// Where layers are kept until the image is dropped, in files without names. The system's temporary directory.
    pub fn temporary_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.temporary = Some(path.into());
        self
    }

    /// Packs the layers. Of a base nothing is read but its manifest and configuration, which has happened.
    ///
    /// # Errors
    /// When a directory or archive cannot be read, or its layer not be written.
    pub fn build(self, progress: &mut dyn FnMut(Progress)) -> Result<Image, BuildError> {
        let mut assembled = Assembled::default();
        let mut packed = Vec::new();
        let temporary = self.temporary.clone().unwrap_or_else(std::env::temp_dir);
        let mut told = Progress {
            stage: Stage::Packing,
            done_bytes: 0,
            total_bytes: None,
            entries: 0,
        };
        for source in &self.layers {
            let before_bytes = told.done_bytes;
            let mut report = |bytes| {
                told.done_bytes = before_bytes + bytes;
                progress(told);
            };
            packed.push(match source {
                LayerSource::Directory(path) => {
                    packing::directory(path, self.owner, self.compression, &temporary, &mut report)?
                }
                LayerSource::Archive(path) => {
                    packing::archive(path, self.compression, &temporary, &mut report)?
                }
            });
            told.entries += 1;
            progress(told);
        }
        let config = to_bytes(&self.config(&packed)?);
        let config_descriptor = Descriptor::of(media_type::OCI_CONFIG, &config);
        assembled.insert_bytes(&config_descriptor, config);
        let mut layers = Vec::new();
        if let Some(base) = &self.base {
            layers.extend(base.layer_descriptors().iter().map(as_oci_layer));
            assembled.set_base(base);
        }
        for layer in packed {
            layers.push(layer.descriptor.clone());
            assembled.insert_file(&layer.descriptor, layer.file);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            config: config_descriptor,
            layers,
        };
        let document = Document {
            media_type: media_type::OCI_MANIFEST.into(),
            bytes: serde_json::to_vec(&manifest).map_err(|source| {
                BuildError::Base(DocumentError::Json {
                    what: "manifest",
                    source,
                })
            })?,
        };
        assembled.set_root(document);
        Ok(Image::new(Box::new(assembled), &Platform::host())?)
    }

    fn set(mut self, name: &'static str, value: Value) -> Self {
        self.settings.insert(name, value);
        self
    }

    /// The configuration: the base's whole document with what is set here, so that nothing that only others understand
    /// is lost.
    fn config(&self, packed: &[Packed]) -> Result<Value, BuildError> {
        let mut document = match &self.base {
            Some(base) => serde_json::from_slice(base.config_bytes()).map_err(|source| {
                BuildError::Base(DocumentError::Json {
                    what: "configuration",
                    source,
                })
            })?,
            None => json!({"rootfs": {"type": "layers", "diff_ids": []}}),
        };
        // A structure may be written as a list, and be read as one; it is not built on.
        if !document.is_object() || !document["rootfs"].is_object() {
            return Err(BuildError::Base(DocumentError::Field {
                field: "rootfs",
                value: "no object".into(),
            }));
        }
        let platform = match (&self.platform, &self.base) {
            (Some(platform), _) => Some(platform.clone()),
            (None, Some(_)) => None,
            (None, None) => Some(Platform::host()),
        };
        if let Some(platform) = platform {
            set_or_remove(&mut document, "os", Some(platform.os.into()));
            set_or_remove(&mut document, "architecture", Some(platform.architecture.into()));
            set_or_remove(&mut document, "variant", platform.variant.map(Value::from));
        }
        set_or_remove(&mut document, "created", self.created.clone().map(Value::from));
        let known = document["rootfs"]["diff_ids"].take();
        let mut diff_ids = known.as_array().cloned().unwrap_or_default();
        diff_ids.extend(packed.iter().map(|layer| layer.diff_id.to_string().into()));
        document["rootfs"]["diff_ids"] = diff_ids.into();
        // A history has one entry for each layer, or there is none.
        if let Some(history) = document.get_mut("history").and_then(Value::as_array_mut) {
            history.extend(packed.iter().map(|_| json!({"created_by": "kata-image"})));
        }
        self.change_config(&mut document);
        Ok(document)
    }

    fn change_config(&self, document: &mut Value) {
        if !document["config"].is_object() {
            document["config"] = json!({});
        }
        let config = &mut document["config"];
        for (name, value) in &self.settings {
            set_or_remove(config, name, Some(value.clone()).filter(|value| !value.is_null()));
        }
        if !self.env.is_empty() {
            let known = config["Env"].as_array().cloned().unwrap_or_default();
            let mut lines: Vec<String> = known
                .iter()
                .filter_map(|line| Some(line.as_str()?.to_owned()))
                .collect();
            for (name, value) in &self.env {
                let prefix = format!("{name}=");
                lines.retain(|line| !line.starts_with(&prefix));
                lines.push(format!("{prefix}{value}"));
            }
            config["Env"] = lines.into();
        }
        let sets = [("ExposedPorts", &self.exposed_ports), ("Volumes", &self.volumes)];
        for (field, names) in sets {
            for name in names {
                config[field][name.as_str()] = json!({});
            }
        }
        for (name, value) in &self.labels {
            config["Labels"][name.as_str()] = value.as_str().into();
        }
    }
}

fn strings<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Value {
    words.into_iter().map(|word| Value::from(word.into())).collect()
}

fn set_or_remove(object: &mut Value, name: &str, value: Option<Value>) {
    if let Some(object) = object.as_object_mut() {
        match value {
            Some(value) => drop(object.insert(name.to_owned(), value)),
            None => drop(object.remove(name)),
        }
    }
}

fn to_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// A layer under the name that an OCI manifest gives its kind; the bytes are the same.
fn as_oci_layer(layer: &Descriptor) -> Descriptor {
    let media_type = match layer.media_type.as_str() {
        media_type::DOCKER_LAYER_GZIP => media_type::OCI_LAYER_GZIP,
        media_type::DOCKER_LAYER => media_type::OCI_LAYER,
        other => other,
    };
    Descriptor {
        media_type: media_type.to_owned(),
        ..layer.clone()
    }
}
