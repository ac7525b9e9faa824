//! The tailored kernel: our configuration, the distribution's source, the same bytes from the same inputs.
//!
//! ```text
//!  inputs (source's version, options, compiler) ─► hash ─► <cache>/kernel/tailored-<hash>/   there? done
//!      │                                                                 ▲
//!      └► unpack ─► configure ─► every option survived? ─► make vmlinux ─┘ at once; the tree is removed
//! ```
//!
//! It owns how a kernel is built and when one that exists is used again. It must not know what is in the
//! configuration, nor what boots the kernel.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::config::{Asked, FragmentError, Variant};
use super::source::{self, Source, SourceError};
use crate::making::{MakingError, file, program};
use crate::partial::Partial;
use crate::process;
use crate::progress::Step;
use crate::units::mib;

/// A built kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tailored {
    /// What it is for.
    pub(crate) variant: Variant,
    /// Where all of it is.
    pub(crate) directory: PathBuf,
}

/// The names in the directory.
const VMLINUX: &str = "vmlinux";
const UNSTRIPPED: &str = "vmlinux.unstripped";
const CONFIG: &str = "config";

impl Tailored {
    /// What a guest boots: an ELF file with a PVH entry and without symbols.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.directory.join(VMLINUX)
    }

    /// The whole `.config`.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join(CONFIG)
    }
}

/// Why there is no tailored kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TailorError {
    /// Kernels are built for x86_64 only.
    #[error("no tailored kernel for {architecture}: only x86_64 machines are supported")]
    Architecture {
        /// This machine's.
        architecture: &'static str,
    },
    /// Our own configuration is broken.
    #[error("a fragment of the kernel's configuration is broken")]
    Fragment(#[from] FragmentError),
    /// No source.
    #[error("cannot get the kernel's source")]
    Source(#[from] SourceError),
    /// The kernel does not have what was asked for.
    #[error(
        "{} option(s) of xtask/kernel did not survive the kernel's own rules: {}", lost.len(), lost.join(", ")
    )]
    Lost {
        /// Option, value asked, value it has.
        lost: Vec<String>,
    },
    /// The same inputs gave other bytes.
    #[error("{} of a second build differs from byte {at} on", file.display())]
    Differs {
        /// The first build's file.
        file: PathBuf,
        /// The first byte that is not the same.
        at: u64,
    },
    /// A program or a file of the cache failed.
    #[error(transparent)]
    Making(#[from] MakingError),
}

/// What stands in the kernel of who built it, where and when: nothing of this machine (Linux
/// Documentation/kbuild/reproducible-builds.rst).
const PINNED: [(&str, &str); 5] = [
    ("KBUILD_BUILD_USER", "kata"),
    ("KBUILD_BUILD_HOST", "kata"),
    ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
    ("KBUILD_BUILD_VERSION", "1"),
    ("LC_ALL", "C"),
];

/// What a person's shell may have set for a kernel of their own.
const FOREIGN: [&str; 12] = [
    "ARCH",
    "CROSS_COMPILE",
    "CC",
    "LD",
    "LLVM",
    "MAKEFLAGS",
    "KCFLAGS",
    "KAFLAGS",
    "KBUILD_OUTPUT",
    "KCONFIG_CONFIG",
    "LOCALVERSION",
    "SOURCE_DATE_EPOCH",
];

/// The kernel of a variant: from the cache, or built, which takes ten minutes on two cores.
///
/// # Errors
/// When it cannot be built; nothing half made stays.
pub(crate) fn tailor(cache_directory: &Path, variant: Variant) -> Result<Tailored, TailorError> {
    let order = Order::new(cache_directory, variant)?;
    if !order.tailored.directory.is_dir() {
        order.build(&order.tailored.directory)?;
    }
    Ok(order.tailored)
}

/// Builds a kernel once more, in a directory of another name, and compares: the same inputs have to give the same bytes.
///
/// # Errors
/// [`TailorError::Differs`] when they do not, and as [`tailor`].
pub(crate) fn reproduce(cache_directory: &Path, variant: Variant) -> Result<(), TailorError> {
    Order::new(cache_directory, variant)?.compare_with_another()
}

fn compare(first: &Path, second: &Path) -> Result<(), TailorError> {
    let read = |path: &Path| fs::read(path).map_err(file("read", path));
    let (one, other) = (read(first)?, read(second)?);
    if one == other {
        return Ok(());
    }
    let same = one
        .iter()
        .zip(&other)
        .take_while(|(one, other)| one == other)
        .count();
    Err(TailorError::Differs {
        file: first.to_path_buf(),
        at: same as u64,
    })
}

/// Everything that a build needs.
struct Order {
    kernels: PathBuf,
    source: Source,
    asked: Asked,
    tailored: Tailored,
}

impl Order {
    fn new(cache_directory: &Path, variant: Variant) -> Result<Self, TailorError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(TailorError::Architecture {
                architecture: std::env::consts::ARCH,
            });
        }
        let kernels = cache_directory.join("kernel");
        let asked = Asked::of(variant)?;
        let source = source::provide(&kernels)?;
        let inputs = [
            source.version.clone(),
            variant.name().to_owned(),
            asked.text(),
            version_of("gcc")?,
            version_of("ld")?,
        ];
        let directory = kernels.join(format!("tailored-{}", name_of(&inputs)));
        let tailored = Tailored { variant, directory };
        Ok(Self {
            kernels,
            source,
            asked,
            tailored,
        })
    }

    fn compare_with_another(&self) -> Result<(), TailorError> {
        let again = Partial::new(&self.kernels, "-again").map_err(file("write into", &self.kernels))?;
        self.build(again.path())?;
        for name in [UNSTRIPPED, VMLINUX, CONFIG] {
            compare(&self.tailored.directory.join(name), &again.path().join(name))?;
        }
        Ok(())
    }

    fn build(&self, directory: &Path) -> Result<(), TailorError> {
        let step = Step::start(format!("tailored kernel ({})", self.tailored.variant.name()));
        build(step, &self.kernels, &self.source, &self.asked, directory)
    }
}

/// The first 16 hexadecimal digits of the hash of all inputs.
fn name_of(inputs: &[String]) -> String {
    let mut hasher = Sha256::new();
    for input in inputs {
        hasher.update(input);
        hasher.update([0]);
    }
    hex::encode(&hasher.finalize()[..8])
}

/// The first line of what a tool says of itself.
fn version_of(tool: &str) -> Result<String, TailorError> {
    let said = process::read(process::command(tool, ["--version"]).env("LC_ALL", "C"))
        .map_err(program("ask the compiler for its version"))?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

fn build(
    step: Step,
    kernels: &Path,
    source: &Source,
    asked: &Asked,
    directory: &Path,
) -> Result<(), TailorError> {
    let tree = Partial::new(kernels, "-tree").map_err(file("write into", kernels))?;
    fs::create_dir_all(tree.path()).map_err(file("create", tree.path()))?;
    unpack(&step, source, tree.path())?;
    configure(&step, tree.path(), asked)?;
    compile(&step, tree.path())?;
    let result = Partial::new(kernels, "-tailored").map_err(file("write into", kernels))?;
    collect(&step, tree.path(), result.path())?;
    let vmlinux = result.path().join(VMLINUX);
    let size = fs::metadata(&vmlinux).map_err(file("read", &vmlinux))?.len();
    result.complete(directory).map_err(file("create", directory))?;
    step.done(format!("{}, {}", mib(size), source.version));
    Ok(())
}

fn unpack(step: &Step, source: &Source, tree: &Path) -> Result<(), TailorError> {
    step.says("unpacking");
    let mut tar = process::command("tar", ["--strip-components=1", "-xf"]);
    process::run(step, tar.arg(&source.archive).arg("-C").arg(tree))
        .map_err(program("unpack the kernel's source"))?;
    Ok(())
}

/// Writes `.config`: nothing but what is asked for and what that needs.
fn configure(step: &Step, tree: &Path, asked: &Asked) -> Result<(), TailorError> {
    let list = tree.join("asked.config");
    fs::write(&list, asked.text()).map_err(file("write", &list))?;
    let configuring = "configure the kernel";
    process::run(step, make(tree, ["allnoconfig"]).env("KCONFIG_ALLCONFIG", &list))
        .map_err(program(configuring))?;
    process::run(step, &mut make(tree, ["olddefconfig"])).map_err(program(configuring))?;
    let written = tree.join(".config");
    let lost = asked.lost_in(&fs::read_to_string(&written).map_err(file("read", &written))?);
    if lost.is_empty() {
        Ok(())
    } else {
        Err(TailorError::Lost { lost })
    }
}

fn compile(step: &Step, tree: &Path) -> Result<(), TailorError> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = make(tree, [format!("-j{jobs}"), "vmlinux".to_owned()]);
    let mut counted = 0_usize;
    process::run_with(&mut command, |line| {
        counted += 1;
        step.says(&format!("{counted} of about 3000: {}", line.trim()));
    })
    .map_err(program("build the kernel"))?;
    Ok(())
}

/// Puts what is kept of a tree into a directory.
fn collect(step: &Step, tree: &Path, directory: &Path) -> Result<(), TailorError> {
    fs::create_dir_all(directory).map_err(file("create", directory))?;
    for (from, to) in [(VMLINUX, UNSTRIPPED), (".config", CONFIG)] {
        let from = tree.join(from);
        fs::rename(&from, directory.join(to)).map_err(file("move", &from))?;
    }
    let mut strip = process::command("objcopy", ["--strip-all"]);
    strip.arg(directory.join(UNSTRIPPED)).arg(directory.join(VMLINUX));
    process::run(step, &mut strip).map_err(program("strip the kernel"))?;
    Ok(())
}

/// make in a tree, with what the person's environment says of kernels taken away.
fn make<A: AsRef<OsStr>>(tree: &Path, words: impl IntoIterator<Item = A>) -> Command {
    let mut command = process::command("make", words);
    command.current_dir(tree).envs(PINNED);
    for variable in FOREIGN {
        command.env_remove(variable);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_input_changes_the_name() {
        let inputs = ["6.12", "default", "CONFIG_A=y", "gcc", "ld"].map(str::to_owned);
        let name = name_of(&inputs);
        assert_eq!(name.len(), 16);
        for index in 0..inputs.len() {
            let mut other = inputs.clone();
            other[index].push('x');
            assert_ne!(name_of(&other), name);
        }
        let moved = ["6.12d", "efault", "CONFIG_A=y", "gcc", "ld"].map(str::to_owned);
        assert_ne!(name_of(&moved), name);
    }

    /// A tree whose `make` writes this `.config`, whatever it is asked.
    fn tree(dot_config: &str) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let makefile = "allnoconfig olddefconfig:\n\t@cp given .config\nvmlinux:\n\t@printf %s \"$$KBUILD_BUILD_USER$$ARCH\" > vmlinux\n";
        fs::write(tree.path().join("Makefile"), makefile).unwrap();
        fs::write(tree.path().join("given"), dot_config).unwrap();
        tree
    }

    #[test]
    fn options_that_did_not_survive_stop_the_build_by_name() {
        let asked = Asked::of(Variant::Default).unwrap();
        let step = Step::start("test");
        let whole = tree(&asked.text());
        configure(&step, whole.path(), &asked).unwrap();
        let without = asked.text().replace("CONFIG_EROFS_FS=y\n", "");
        let error = configure(&step, tree(&without).path(), &asked).unwrap_err();
        assert_eq!(
            error.to_string(),
            "1 option(s) of xtask/kernel did not survive the kernel's own rules: CONFIG_EROFS_FS=y (is n)"
        );
    }

    #[test]
    fn who_builds_it_is_not_in_it() {
        let tree = tree("");
        compile(&Step::start("test"), tree.path()).unwrap();
        assert_eq!(fs::read_to_string(tree.path().join("vmlinux")).unwrap(), "kata");
    }

    /// An order for a kernel whose makefile makes it so.
    fn order(kernels: &Path, vmlinux: &str) -> Order {
        let asked = Asked::of(Variant::Default).unwrap();
        let tree = tree(&asked.text());
        let makefile = format!("allnoconfig olddefconfig:\n\t@cp given .config\nvmlinux:\n\t@{vmlinux}\n");
        fs::write(tree.path().join("Makefile"), makefile).unwrap();
        let archive = kernels.join("source.tar");
        let parent = tree.path().parent().unwrap();
        let mut tar = process::command("tar", ["-cf"]);
        tar.arg(&archive)
            .arg("-C")
            .arg(parent)
            .arg(tree.path().file_name().unwrap());
        assert!(tar.status().unwrap().success());
        Order {
            kernels: kernels.to_path_buf(),
            source: Source {
                version: "1".to_owned(),
                archive,
            },
            asked,
            tailored: Tailored {
                variant: Variant::Default,
                directory: kernels.join("tailored-0"),
            },
        }
    }

    #[test]
    fn a_second_build_is_compared_byte_by_byte() {
        let kernels = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let check = |vmlinux: &str| {
            let order = order(kernels.path(), vmlinux);
            let _ = fs::remove_dir_all(&order.tailored.directory);
            order.build(&order.tailored.directory).unwrap();
            order.compare_with_another()
        };
        check(&format!("cp {} vmlinux", program.display())).unwrap();
        let error = check(&format!(
            "cp {} vmlinux; pwd >>vmlinux; date +%N >>vmlinux",
            program.display()
        ));
        let error = error.unwrap_err().to_string();
        let file = kernels.path().join("tailored-0/vmlinux.unstripped");
        assert!(
            error.starts_with(&format!(
                "{} of a second build differs from byte ",
                file.display()
            )),
            "{error}"
        );
        let mut names: Vec<_> = fs::read_dir(kernels.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["source.tar", "tailored-0"]);
    }

    #[test]
    fn a_build_that_fails_leaves_nothing() {
        let kernels = tempfile::tempdir().unwrap();
        let source = Source {
            version: "1".to_owned(),
            archive: "/no/such/archive.tar.xz".into(),
        };
        let asked = Asked::of(Variant::Default).unwrap();
        let step = Step::start("test");
        let error = build(step, kernels.path(), &source, &asked, &kernels.path().join("x")).unwrap_err();
        assert_eq!(error.to_string(), "cannot unpack the kernel's source");
        assert_eq!(fs::read_dir(kernels.path()).unwrap().count(), 0);
    }
}
