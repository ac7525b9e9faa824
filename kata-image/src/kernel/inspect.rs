//! One kernel file: what it is, what it says of itself, what it can do.
//!
//! ```text
//!  file ─┬─ ELF: banner, PVH note, embedded configuration
//!        └─ bzImage: release in its header; unpacked only when no configuration lies beside it
//!  configuration: <file>.config, config-<release> beside it, config beside it, /boot/config-<release>, embedded
//!  modules: <directory above>/{lib,usr/lib}/modules/<release>, or those that an initramfs beside it brings
//! ```
//!
//! What none of them says stays unknown. It must not know where kernels are looked for.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::configuration::{Configuration, Setting, find};
use super::elf::{self, segments};
use super::features::{Ability, Feature};
use super::vmlinux::{ExtractError, check_image, extract_vmlinux};
use crate::guest::Asset;

/// A kernel file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    path: PathBuf,
    release: Option<String>,
    configuration: Option<Configuration>,
    /// Whether the file has the entry, where that could be seen.
    pvh: Option<bool>,
    modules: Option<PathBuf>,
    has_initramfs: bool,
}

/// Why a kernel does not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The file cannot be read.
    #[error("cannot read the kernel {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is no kernel, or a broken one.
    #[error("{} is no kernel that can be read", .path.display())]
    Extract {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ExtractError,
    },
    /// Nothing says how it was configured, and nobody chose it.
    #[error("the configuration of {} is unknown", .path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
    },
    /// A sandbox needs what it does not have.
    #[error("the kernel {} cannot run a sandbox: it lacks {}", .path.display(), options(.missing))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Options of its configuration, without `CONFIG_`: those that are off, and those that are modules where
        /// there are no modules.
        missing: Vec<&'static str>,
    },
}

fn options(missing: &[&str]) -> String {
    let names: Vec<String> = missing.iter().map(|option| format!("CONFIG_{option}")).collect();
    names.join(", ")
}

/// The entry's address is a note of this owner and type (Xen public/elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`).
const PVH_NOTE: (&[u8], u32) = (b"Xen", 18);

/// What every kernel says first, and the release after it (Linux `init/version.c`).
const BANNER: &[u8] = b"Linux version ";

/// Where a bzImage says where its version is, less one sector (Linux Documentation/arch/x86/boot.rst,
/// `kernel_version`).
const KERNEL_VERSION: usize = 0x20e;
const SECTOR_BYTES: usize = 0x200;

impl Kernel {
    /// Looks at a kernel, an ELF file or a bzImage.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is no kernel.
    pub fn inspect(path: impl AsRef<Path>) -> Result<Self, KernelError> {
        Self::inspect_with(path.as_ref(), Path::new("/boot"))
    }

    pub(super) fn inspect_with(path: &Path, boot: &Path) -> Result<Self, KernelError> {
        let bytes = fs::read(path).map_err(|source| KernelError::Read {
            path: path.to_owned(),
            source,
        })?;
        let refused = |source| KernelError::Extract {
            path: path.to_owned(),
            source,
        };
        // A configuration beside it makes no kernel of a file.
        check_image(&bytes).map_err(refused)?;
        let release = release(&bytes);
        let beside = beside(path, release.as_deref(), boot);
        let vmlinux = if beside.is_none() || segments(&bytes).is_some() {
            Some(extract_vmlinux(&bytes).map_err(refused)?)
        } else {
            None
        };
        let segments = vmlinux.as_deref().and_then(segments);
        Ok(Self {
            modules: release.as_deref().and_then(|release| modules(path, release)),
            release: release.or_else(|| vmlinux.as_deref().and_then(banner)),
            configuration: beside.or_else(|| Configuration::embedded(vmlinux.as_deref()?)),
            pvh: segments.map(|segments| elf::has_note(&segments, PVH_NOTE.0, PVH_NOTE.1)),
            has_initramfs: path.with_file_name(Asset::Initramfs.file_name()).is_file(),
            path: path.to_owned(),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `uname -r` says in the guest, as far as the file tells.
    #[must_use]
    pub fn release(&self) -> Option<&str> {
        self.release.as_deref()
    }

    /// The tree of its modules, `…/lib/modules/<release>`, where there is one.
    #[must_use]
    pub fn modules(&self) -> Option<&Path> {
        self.modules.as_deref()
    }

    /// Whether its configuration was found. Without it most abilities are unknown.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.configuration.is_some()
    }

    /// Whether it has a feature.
    #[must_use]
    pub fn ability(&self, feature: Feature) -> Ability {
        let told = self.configuration.as_ref();
        match (feature, self.pvh) {
            (Feature::Pvh, Some(true)) => Ability::BuiltIn,
            (Feature::Pvh, Some(false)) => Ability::Missing,
            _ => told.map_or(Ability::Unknown, |told| feature.in_configuration(told)),
        }
    }

    /// All features, each with whether it has it.
    pub fn abilities(&self) -> impl Iterator<Item = (Feature, Ability)> {
        Feature::ALL
            .iter()
            .map(|feature| (*feature, self.ability(*feature)))
    }

    /// Whether it can run a sandbox, as far as is known: what is unknown counts as there.
    ///
    /// # Errors
    ///
    /// [`KernelError::Unusable`] with the options that are missing.
    pub fn check(&self) -> Result<(), KernelError> {
        self.check_with(self.modules.is_some() || self.has_initramfs)
    }

    /// As [`check`](Self::check), for one that is booted with an initramfs, which brings its modules.
    pub(crate) fn check_with_initramfs(&self) -> Result<(), KernelError> {
        self.check_with(true)
    }

    fn check_with(&self, modules: bool) -> Result<(), KernelError> {
        let missing: Vec<&'static str> = Feature::ALL
            .iter()
            .filter(|feature| feature.is_needed())
            .flat_map(|feature| self.lacks(*feature, modules))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(KernelError::Unusable {
            path: self.path.clone(),
            missing,
        })
    }

    /// The options of a feature that are not to be had.
    fn lacks(&self, feature: Feature, modules: bool) -> Vec<&'static str> {
        if (feature, self.pvh) == (Feature::Pvh, Some(false)) {
            return feature.options().to_vec();
        }
        let Some(configuration) = &self.configuration else {
            return Vec::new();
        };
        let least = if modules {
            Setting::Module
        } else {
            Setting::BuiltIn
        };
        let options = feature.options().iter().copied();
        options
            .filter(|option| configuration.setting(option) < least)
            .collect()
    }
}

/// What the file says of its release.
fn release(bytes: &[u8]) -> Option<String> {
    if segments(bytes).is_some() {
        return banner(bytes);
    }
    let header = bytes.get(KERNEL_VERSION..)?.first_chunk()?;
    let at = usize::from(u16::from_le_bytes(*header)).checked_add(SECTOR_BYTES)?;
    word(bytes.get(at..)?)
}

fn banner(vmlinux: &[u8]) -> Option<String> {
    let at = find(vmlinux, BANNER)?;
    word(vmlinux.get(at + BANNER.len()..)?)
}

/// The first word of a text, if it can be a release.
fn word(text: &[u8]) -> Option<String> {
    const LONGEST: usize = 64;
    let text = text.get(..LONGEST).unwrap_or(text);
    let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
    let word = std::str::from_utf8(text.get(..end)?).ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || ".+-_~".contains(c);
    (word.starts_with(|c: char| c.is_ascii_digit()) && word.chars().all(plain)).then(|| word.to_owned())
}

/// The configuration that lies beside a kernel, or in /boot under its release.
fn beside(path: &Path, release: Option<&str>, boot: &Path) -> Option<Configuration> {
    let mut named = path.as_os_str().to_owned();
    named.push(".config");
    let of_release = release.map(|release| format!("config-{release}"));
    let places = [
        Some(PathBuf::from(named)),
        of_release.as_ref().map(|name| path.with_file_name(name)),
        Some(path.with_file_name("config")),
        of_release.as_ref().map(|name| boot.join(name)),
    ];
    places
        .into_iter()
        .flatten()
        .filter_map(|place| fs::read_to_string(place).ok())
        .find_map(|text| Configuration::parse(&text))
}

/// The modules of a kernel that lies in the directory `boot` of a system.
fn modules(path: &Path, release: &str) -> Option<PathBuf> {
    let root = path.parent()?.parent()?;
    // Packages of a merged-/usr distribution name the directory that /lib points to.
    ["lib/modules", "usr/lib/modules"]
        .map(|parent| root.join(parent).join(release))
        .into_iter()
        .find(|directory| directory.is_dir())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::configuration::tests::embed;
    use super::super::elf::tests::{note_of, program};
    use super::*;

    /// An ELF kernel of release 6.1.2-x; with a PVH entry or without; with these bytes in it.
    pub(in crate::kernel) fn vmlinux(pvh: bool, also: &[u8]) -> Vec<u8> {
        let note = note_of(b"Xen", if pvh { 18 } else { 6 }, &[0; 4]);
        let code = [b"...Linux version 6.1.2-x (gcc)", also].concat();
        program(&[(1, &code), (4, &note)])
    }

    /// A configuration with everything that a sandbox needs, but for these; modules by `m`.
    pub(in crate::kernel) fn config(value: &str, without: &[&str]) -> String {
        Feature::ALL
            .iter()
            .flat_map(|feature| feature.options())
            .filter(|option| !without.contains(option))
            .map(|option| format!("CONFIG_{option}={value}\n"))
            .collect()
    }

    fn inspect(directory: &Path, image: &[u8]) -> Kernel {
        let path = directory.join("boot/vmlinux");
        fs::create_dir_all(directory.join("boot")).unwrap();
        fs::write(&path, image).unwrap();
        Kernel::inspect_with(&path, Path::new("/nonexistent")).unwrap()
    }

    #[test]
    fn a_kernel_that_carries_its_configuration_tells_everything() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = inspect(
            directory.path(),
            &vmlinux(true, &embed(&config("y", &["EXT4_FS"]))),
        );
        assert_eq!(kernel.release(), Some("6.1.2-x"));
        assert!(kernel.is_known());
        assert_eq!(kernel.ability(Feature::Pvh), Ability::BuiltIn);
        assert_eq!(kernel.ability(Feature::Ext4), Ability::Missing);
        kernel.check().unwrap();
    }

    #[test]
    fn what_nobody_says_is_unknown_and_not_guessed() {
        let directory = tempfile::tempdir().unwrap();
        let kernel = inspect(directory.path(), &vmlinux(true, b""));
        assert!(!kernel.is_known());
        let known: Vec<Feature> = kernel
            .abilities()
            .filter(|(_, ability)| *ability != Ability::Unknown)
            .map(|(feature, _)| feature)
            .collect();
        assert_eq!(known, [Feature::Pvh]);
    }

    #[test]
    fn a_kernel_that_cannot_run_a_sandbox_is_refused_by_the_names_of_options() {
        let directory = tempfile::tempdir().unwrap();
        let text = config("y", &["EROFS_FS", "VIRTIO_VSOCKETS", "EXT4_FS"]);
        let kernel = inspect(directory.path(), &vmlinux(false, &embed(&text)));
        let error = kernel.check().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the kernel {} cannot run a sandbox: it lacks CONFIG_PVH, CONFIG_VIRTIO_VSOCKETS, CONFIG_EROFS_FS",
                kernel.path().display()
            )
        );
    }

    #[test]
    fn modules_count_where_there_are_modules() {
        let directory = tempfile::tempdir().unwrap();
        let text = config("y", &["OVERLAY_FS"]) + "CONFIG_OVERLAY_FS=m\n";
        let image = vmlinux(true, &embed(&text));
        let without = inspect(directory.path(), &image);
        assert_eq!(without.ability(Feature::Overlay), Ability::Module);
        let error = without.check().unwrap_err();
        assert!(matches!(error, KernelError::Unusable { missing, .. } if missing == ["OVERLAY_FS"]));
        let tree = directory.path().join("lib/modules/6.1.2-x");
        fs::create_dir_all(&tree).unwrap();
        let with = inspect(directory.path(), &image);
        assert_eq!(with.modules(), Some(tree.as_path()));
        with.check().unwrap();
    }

    #[test]
    fn a_configuration_beside_a_kernel_is_its() {
        let directory = tempfile::tempdir().unwrap();
        let boot = directory.path().join("boot");
        fs::create_dir_all(&boot).unwrap();
        for name in ["vmlinux.config", "config-6.1.2-x", "config"] {
            fs::write(boot.join(name), config("y", &[])).unwrap();
            assert!(
                inspect(directory.path(), &vmlinux(true, b"")).is_known(),
                "{name}"
            );
            fs::remove_file(boot.join(name)).unwrap();
        }
        fs::write(boot.join("config"), config("y", &[])).unwrap();
        let garbage = boot.join("garbage");
        fs::write(&garbage, "this is no kernel").unwrap();
        let error = Kernel::inspect_with(&garbage, Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, KernelError::Extract { .. }), "{error}");
        fs::write(boot.join("config"), "[user]\nname = x\n").unwrap();
        assert!(!inspect(directory.path(), &vmlinux(true, b"")).is_known());
    }

    #[test]
    fn a_bzimage_tells_its_release_without_being_unpacked() {
        let directory = tempfile::tempdir().unwrap();
        let boot = directory.path().join("boot");
        fs::create_dir_all(&boot).unwrap();
        fs::write(boot.join("config-6.9.1-y"), config("y", &["PVH"])).unwrap();
        let mut image = vec![0; 0x400];
        // One sector of setup, and an empty payload behind it.
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x208_u16.to_le_bytes());
        image[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&0xf0_u16.to_le_bytes());
        // Where the setup code of the others is.
        image[0x2f0..0x300].copy_from_slice(b"6.9.1-y (x@y) #1");
        let kernel = inspect(directory.path(), &image);
        assert_eq!(kernel.release(), Some("6.9.1-y"));
        assert_eq!(kernel.ability(Feature::Pvh), Ability::Missing);
        image[0x2f0..0x2f4].copy_from_slice(b"../x");
        let path = boot.join("other");
        fs::write(&path, &image).unwrap();
        let error = Kernel::inspect_with(&path, Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, KernelError::Extract { .. }));
    }
}
