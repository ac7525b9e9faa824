//! The modules of a distribution kernel: which files a guest has to load, in which order, and their contents
//! ready for the kernel. Loads nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::compression::{DecompressError, decompress, recognize};
use super::elf;

/// The modules of one kernel version.
#[derive(Debug, Clone)]
pub struct ModuleTree {
    directory: PathBuf,
    /// File below the directory, by name.
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    dependencies: Dependencies,
}

/// Where it is written what a module needs.
#[derive(Debug, Clone)]
enum Dependencies {
    /// In `modules.dep` and `modules.softdep`, as depmod(8) writes them: names by name.
    Listed(BTreeMap<String, Vec<String>>),
    /// In the modules themselves: a package that was unpacked and not installed has no lists.
    InModules,
}

/// One module of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name as the kernel has it, with `_`.
    pub name: String,
    /// Its file, possibly compressed and signed.
    pub path: PathBuf,
}

/// Why modules cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// A file of the tree cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        #[source]
        source: io::Error,
    },
    /// There is no module of this name, nor is it built in.
    #[error("there is no module {name} in {}{}", .directory.display(), and_who_needs_it(.needed_by.as_deref()))]
    Missing {
        /// Its name.
        name: String,
        /// The module that needs it, unless it was asked for.
        needed_by: Option<String>,
        /// The tree.
        directory: PathBuf,
    },
    /// Modules need each other in a circle.
    #[error("the module {name} needs itself")]
    Cycle {
        /// One of them.
        name: String,
    },
    /// A module cannot be unpacked.
    #[error("cannot unpack {}", .path.display())]
    Decompress {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: DecompressError,
    },
    /// A file is no module.
    #[error("{} is no kernel module", .path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
}

fn and_who_needs_it(name: Option<&str>) -> String {
    name.map(|name| format!(", which {name} needs"))
        .unwrap_or_default()
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> ModuleError {
    move |source| ModuleError::Read {
        path: path.to_path_buf(),
        source,
    }
}

/// The kernel takes `-` and `_` in names as the same.
fn normalized(name: &str) -> String {
    name.replace('-', "_")
}

/// `crc32c_intel` for `kernel/arch/x86/crypto/crc32c-intel.ko.xz`; `None` for what is no module.
fn name_of(path: &Path) -> Option<String> {
    let file_name = path.file_name()?.to_str()?;
    let (name, suffix) = file_name.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".zst" | ".gz").then(|| normalized(name))
}

impl ModuleTree {
    /// Reads what `directory`, a `…/lib/modules/<version>`, says of its modules: `modules.builtin`, and
    /// `modules.dep` (with `modules.softdep`). Without `modules.dep` the modules are looked for below `kernel`,
    /// and each is asked for what it needs.
    ///
    /// # Errors
    ///
    /// When a file or directory cannot be read.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, ModuleError> {
        let directory = directory.as_ref();
        let builtin = read_list(&directory.join("modules.builtin"))?.unwrap_or_default();
        let builtin = builtin
            .lines()
            .filter_map(|line| name_of(Path::new(line)))
            .collect();
        let (files, dependencies) = match read_list(&directory.join("modules.dep"))? {
            Some(list) => {
                let (files, mut needed) = parse_dependencies(&list);
                let soft = read_list(&directory.join("modules.softdep"))?.unwrap_or_default();
                add_soft_dependencies(&soft, &files, &mut needed);
                (files, Dependencies::Listed(needed))
            }
            None => (find_files(directory)?, Dependencies::InModules),
        };
        Ok(Self {
            directory: directory.to_path_buf(),
            files,
            builtin,
            dependencies,
        })
    }

    /// The modules to load for these names to be there, each after what it needs, none twice. What is built into
    /// the kernel is left out. Modules that another merely prefers (soft dependencies) come in where the tree has
    /// a module of that name.
    ///
    /// # Errors
    ///
    /// When a module is missing, or one that has to be asked for its dependencies cannot be read.
    pub fn resolve(&self, names: &[&str]) -> Result<Vec<Module>, ModuleError> {
        let mut resolution = Resolution {
            tree: self,
            visited: BTreeMap::new(),
            order: Vec::new(),
        };
        for name in names {
            resolution.visit(&normalized(name), None)?;
        }
        Ok(resolution.order)
    }

    /// File names and contents of the modules to load for these to be there, in the order that loads; of those
    /// in `where_present` only what the kernel has.
    ///
    /// # Errors
    ///
    /// When a module is missing or broken.
    pub fn contents(
        &self,
        where_present: &[&str],
        required: &[&str],
    ) -> Result<Vec<(String, Vec<u8>)>, ModuleError> {
        let mut names = Vec::new();
        for name in where_present {
            match self.resolve(&[name]) {
                Ok(_) => names.push(*name),
                Err(ModuleError::Missing { needed_by: None, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        names.extend(required);
        self.resolve(&names)?
            .iter()
            .map(|module| Ok((format!("{}.ko", module.name), module.read()?)))
            .collect()
    }

    /// The patterns of the devices that a module is for (`alias` of modinfo(8)); none of one that is built in or
    /// not there.
    ///
    /// # Errors
    ///
    /// When the module is broken.
    pub fn aliases(&self, name: &str) -> Result<Vec<String>, ModuleError> {
        let Some(module) = self.module(&normalized(name)) else {
            return Ok(Vec::new());
        };
        let contents = module.read()?;
        match elf::modinfo(&contents, "alias") {
            Some(aliases) => Ok(aliases.into_iter().map(str::to_owned).collect()),
            None => Err(ModuleError::NotAModule { path: module.path }),
        }
    }

    fn module(&self, name: &str) -> Option<Module> {
        let path = self.directory.join(self.files.get(name)?);
        Some(Module {
            name: name.to_owned(),
            path,
        })
    }

    fn needed_by(&self, module: &Module) -> Result<Vec<String>, ModuleError> {
        match &self.dependencies {
            Dependencies::Listed(needed) => Ok(needed.get(&module.name).cloned().unwrap_or_default()),
            Dependencies::InModules => self.ask(module),
        }
    }

    /// What the module itself says that it needs.
    fn ask(&self, module: &Module) -> Result<Vec<String>, ModuleError> {
        let contents = module.read()?;
        let not_a_module = || ModuleError::NotAModule {
            path: module.path.clone(),
        };
        let depends = elf::modinfo(&contents, "depends").ok_or_else(not_a_module)?;
        let soft = elf::modinfo(&contents, "softdep").unwrap_or_default();
        let hard = depends
            .iter()
            .flat_map(|list| list.split(','))
            .filter(|name| !name.is_empty());
        let soft = soft
            .into_iter()
            .flat_map(soft_before)
            .filter(|name| self.files.contains_key(name));
        Ok(hard.map(normalized).chain(soft).collect())
    }
}

/// A file that may be absent.
fn read_list(path: &Path) -> Result<Option<String>, ModuleError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(read_error(path)(error)),
    }
}

/// Lines of `modules.dep`: `<file>: <file>…`. What is loaded first is written last.
fn parse_dependencies(list: &str) -> (BTreeMap<String, PathBuf>, BTreeMap<String, Vec<String>>) {
    let (mut files, mut needed) = (BTreeMap::new(), BTreeMap::new());
    for (file, after) in list.lines().filter_map(|line| line.split_once(':')) {
        let Some(name) = name_of(Path::new(file)) else {
            continue;
        };
        let before = after
            .split_whitespace()
            .rev()
            .filter_map(|file| name_of(Path::new(file)));
        needed.insert(name.clone(), before.collect());
        files.insert(name, PathBuf::from(file));
    }
    (files, needed)
}

/// Lines of `modules.softdep`: `softdep <name> [pre: <name>…] [post: <name>…]`.
fn add_soft_dependencies(
    list: &str,
    files: &BTreeMap<String, PathBuf>,
    needed: &mut BTreeMap<String, Vec<String>>,
) {
    for (name, words) in list
        .lines()
        .filter_map(|line| line.strip_prefix("softdep "))
        .filter_map(|line| line.split_once(' '))
    {
        if let Some(needed) = needed.get_mut(&normalized(name)) {
            needed.extend(
                soft_before(words)
                    .into_iter()
                    .filter(|name| files.contains_key(name)),
            );
        }
    }
}

/// The names after `pre:`.
fn soft_before(words: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut before = false;
    for word in words.split_whitespace() {
        match word {
            "pre:" => before = true,
            "post:" => before = false,
            name if before => names.push(normalized(name)),
            _ => {}
        }
    }
    names
}

/// All modules below `kernel`.
fn find_files(directory: &Path) -> Result<BTreeMap<String, PathBuf>, ModuleError> {
    let mut files = BTreeMap::new();
    let mut pending = vec![PathBuf::from("kernel")];
    while let Some(relative) = pending.pop() {
        let path = directory.join(&relative);
        for entry in std::fs::read_dir(&path).map_err(read_error(&path))? {
            let entry = entry.map_err(read_error(&path))?;
            let relative = relative.join(entry.file_name());
            if entry.file_type().map_err(read_error(&path))?.is_dir() {
                pending.push(relative);
            } else if let Some(name) = name_of(&relative) {
                files.insert(name, relative);
            }
        }
    }
    Ok(files)
}

/// A walk over what modules need.
struct Resolution<'a> {
    tree: &'a ModuleTree,
    /// Whether what a module needs is already in the order.
    visited: BTreeMap<String, bool>,
    order: Vec<Module>,
}

impl Resolution<'_> {
    fn visit(&mut self, name: &str, needed_by: Option<&str>) -> Result<(), ModuleError> {
        match self.visited.get(name) {
            Some(true) => return Ok(()),
            Some(false) => {
                return Err(ModuleError::Cycle {
                    name: name.to_owned(),
                });
            }
            None if self.tree.builtin.contains(name) => return Ok(()),
            None => {}
        }
        let missing = || ModuleError::Missing {
            name: name.to_owned(),
            needed_by: needed_by.map(str::to_owned),
            directory: self.tree.directory.clone(),
        };
        let module = self.tree.module(name).ok_or_else(missing)?;
        self.visited.insert(name.to_owned(), false);
        for needed in self.tree.needed_by(&module)? {
            self.visit(&needed, Some(name))?;
        }
        self.visited.insert(name.to_owned(), true);
        self.order.push(module);
        Ok(())
    }
}

/// What ends a signed module (linux/module_signature.h): the signature, 12 bytes that describe it, this.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// `struct module_signature`: algo, hash, id_type, signer_len, key_id_len, three of padding, sig_len (big-endian).
const SIGNATURE_BYTES: usize = 12;

impl Module {
    /// The module as the kernel takes it: unpacked, and without its signature, whose check costs a guest more
    /// than everything else about loading it.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or unpacked.
    pub fn read(&self) -> Result<Vec<u8>, ModuleError> {
        let stored = std::fs::read(&self.path).map_err(read_error(&self.path))?;
        let mut module = match recognize(&stored) {
            None => stored,
            Some(format) => decompress(format, &stored).map_err(|source| ModuleError::Decompress {
                path: self.path.clone(),
                source,
            })?,
        };
        module.truncate(unsigned_length(&module));
        Ok(module)
    }
}

fn unsigned_length(module: &[u8]) -> usize {
    let signed = module
        .strip_suffix(SIGNATURE_MAGIC)
        .and_then(<[u8]>::split_last_chunk::<SIGNATURE_BYTES>)
        .and_then(|(rest, [_, _, _, signer, key_id, _, _, _, length @ ..])| {
            let signature = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            rest.len()
                .checked_sub(usize::from(*signer) + usize::from(*key_id))?
                .checked_sub(signature)
        });
    signed.unwrap_or(module.len())
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::module;
    use super::*;
    use std::io::Write;

    fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, contents).unwrap();
        }
        directory
    }

    fn check(tree: &tempfile::TempDir, names: &[&str], expected: Result<&[&str], &str>) {
        let resolved = ModuleTree::open(tree.path()).unwrap().resolve(names);
        let resolved =
            resolved.map(|modules| modules.into_iter().map(|module| module.name).collect::<Vec<_>>());
        let directory = tree.path().display().to_string();
        let resolved = resolved.map_err(|error| error.to_string().replace(&directory, "TREE"));
        let expected = expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(resolved, expected.map_err(str::to_owned));
    }

    const LIST: &[u8] = b"kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\n\
        kernel/lib/libcrc32c.ko.xz:\n\
        kernel/crypto/crc32c-intel.ko.xz:\n\
        kernel/net/vmw_vsock_virtio_transport.ko.xz: kernel/net/vmw_vsock_virtio_transport_common.ko.xz kernel/net/vsock.ko.xz\n\
        kernel/net/vmw_vsock_virtio_transport_common.ko.xz: kernel/net/vsock.ko.xz\n\
        kernel/net/vsock.ko.xz:\n\
        kernel/a.ko: kernel/gone.ko\n\
        kernel/x.ko: kernel/y.ko\n\
        kernel/y.ko: kernel/x.ko\n";

    #[test]
    fn modules_come_after_what_they_need() {
        let soft = b"softdep libcrc32c pre: crc32c_intel nonexistent post: vsock\n";
        let tree = tree(&[
            ("modules.dep", LIST),
            ("modules.softdep", soft),
            ("modules.builtin", b"kernel/drivers/virtio/virtio.ko\n"),
        ]);
        check(&tree, &["erofs"], Ok(&["crc32c_intel", "libcrc32c", "erofs"]));
        check(
            &tree,
            &["virtio", "crc32c-intel", "crc32c_intel"],
            Ok(&["crc32c_intel"]),
        );
        let vsock = [
            "vsock",
            "vmw_vsock_virtio_transport_common",
            "vmw_vsock_virtio_transport",
        ];
        check(&tree, &["vmw_vsock_virtio_transport", "vsock"], Ok(&vsock));
        check(
            &tree,
            &["a"],
            Err("there is no module gone in TREE, which a needs"),
        );
        check(&tree, &["what"], Err("there is no module what in TREE"));
        check(&tree, &["x"], Err("the module x needs itself"));
    }

    #[test]
    fn without_lists_the_modules_are_asked() {
        let mut compressed = liblzma::write::XzEncoder::new(Vec::new(), 1);
        compressed
            .write_all(&module(&["depends=lib-a,b", "softdep=pre: c none"]))
            .unwrap();
        let top = compressed.finish().unwrap();
        let b = zstd::encode_all(&module(&["depends="])[..], 1).unwrap();
        let tree = tree(&[
            ("kernel/fs/top.ko.xz", &top),
            ("kernel/lib/lib_a.ko", &module(&["depends=b"])),
            ("kernel/lib/b.ko.zst", &b),
            ("kernel/c.ko", &module(&["depends="])),
            ("kernel/broken.ko", b"text"),
        ]);
        check(&tree, &["top"], Ok(&["b", "lib_a", "c", "top"]));
        check(
            &tree,
            &["broken"],
            Err("TREE/kernel/broken.ko is no kernel module"),
        );
    }

    #[test]
    fn a_signature_is_cut_off() {
        let mut signed = b"module".to_vec();
        signed.extend([7; 700]);
        signed.extend([0, 0, 2, 0, 0, 0, 0, 0]);
        signed.extend(700_u32.to_be_bytes());
        signed.extend(SIGNATURE_MAGIC);
        assert_eq!(&signed[..unsigned_length(&signed)], b"module");
        assert_eq!(unsigned_length(b"module"), 6);
        // One that claims more than there is belongs to no kernel.
        let impossible = [&[0; 8][..], &u32::MAX.to_be_bytes(), SIGNATURE_MAGIC].concat();
        assert_eq!(unsigned_length(&impossible), impossible.len());
    }
}
