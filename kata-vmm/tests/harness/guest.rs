//! The guests of the tests: a kernel that was found, an initramfs that is made here, a program.
//!
//! Owns where they come from. It must not know the monitor.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Modules that a distribution kernel needs for a vsock device on virtio-mmio, in the order that loads. A
/// kernel that has them built in needs none.
const MODULES: [&str; 4] = [
    "virtio_mmio",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
];

/// Says that something was not tested, past the capture of test output.
pub(crate) fn skipped(reason: &str) {
    assert!(
        !super::in_ci(),
        "a test cannot run here, and CI is true: {reason}"
    );
    let line = format!(
        "SKIPPED {}: {reason}\n",
        std::thread::current().name().unwrap_or("?")
    );
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// The guest kernel: the variable `KATA_KERNEL`, else the quickstart's.
pub(crate) fn kernel() -> Option<PathBuf> {
    const QUICKSTARTS: &str = ".cache/kata/guest/distribution/vmlinux";
    let found = std::env::var_os("KATA_KERNEL").map_or_else(
        || Some(PathBuf::from(std::env::var_os("HOME")?).join(QUICKSTARTS)),
        |kernel| Some(kernel.into()),
    );
    match found {
        Some(kernel) if kernel.is_file() => Some(kernel),
        found => {
            skipped(&format!("no guest kernel at {found:?}; KATA_KERNEL names one"));
            None
        }
    }
}

/// An initramfs whose init obeys `mode`.
pub(crate) fn initramfs(mode: &str) -> Option<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.file("init", &fs::read(init()?).unwrap());
    archive.file("mode", mode.as_bytes());
    if matches!(mode, "vsock" | "last words") {
        archive.directory("modules");
        for (number, module) in MODULES.iter().enumerate() {
            if let Some(content) = module_content(module) {
                archive.file(&format!("modules/{number}-{module}.ko"), &content);
            }
        }
    }
    Some(archive.finish())
}

/// `examples/guest_program.rs`, which `cargo test` builds.
pub(crate) fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests
        .parent()
        .unwrap()
        .with_file_name("examples")
        .join("guest_program");
    assert!(
        path.is_file(),
        "{} is missing: cargo test without a target choice builds it",
        path.display()
    );
    path
}

/// A file with this content that is gone with its descriptor, which can only read.
pub(crate) fn file(content: &[u8]) -> OwnedFd {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    fs::File::open(file.path()).unwrap().into()
}

/// `tests/guest/init.rs`, compiled static once per test program.
fn init() -> Option<&'static Path> {
    static INIT: OnceLock<Option<PathBuf>> = OnceLock::new();
    INIT.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let path = directory.join(format!("init-{}", std::process::id()));
        let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args([
                "--edition",
                "2024",
                "-O",
                "-C",
                "panic=abort",
                "-C",
                "strip=symbols",
            ])
            .args([
                "--target",
                "x86_64-unknown-linux-gnu",
                "-C",
                "target-feature=+crt-static",
            ])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guest/init.rs"))
            .arg("-o")
            .arg(&path)
            .output();
        match output {
            Ok(output) if output.status.success() => Some(path),
            other => {
                skipped(&format!("rustc cannot make a static program: {other:?}"));
                None
            }
        }
    })
    .as_deref()
}

/// A module of the kernel by its name: below the variable `KATA_KERNEL_MODULES`, else in the cache that
/// the quickstart's kernel is in.
fn module_content(name: &str) -> Option<Vec<u8>> {
    let kernel = kernel()?;
    let root = match std::env::var_os("KATA_KERNEL_MODULES") {
        Some(root) => PathBuf::from(root),
        None => kernel.ancestors().nth(3)?.join("kernel"),
    };
    let path = find(&root, name, &release(&kernel)?)?;
    if path.extension()? != "xz" {
        return Some(fs::read(path).unwrap());
    }
    let output = Command::new("xz").arg("-dc").arg(&path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(output.stdout)
}

/// What `uname -r` says in the guest: an uncompressed kernel says it as it does when it starts.
fn release(kernel: &Path) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let image = fs::read(kernel).unwrap();
    let banner = image.windows(BANNER.len()).position(|window| window == BANNER)?;
    let words = &image[banner + BANNER.len()..];
    let end = words.iter().position(|byte| *byte == b' ')?;
    Some(String::from_utf8_lossy(&words[..end]).into_owned())
}

/// The module's file below a directory of that release.
fn find(directory: &Path, module: &str, release: &str) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().replace('-', "_");
        let named = name == format!("{module}.ko") || name == format!("{module}.ko.xz");
        if named && path.iter().any(|part| part == release) {
            return Some(path);
        }
        if entry.file_type().ok()?.is_dir() {
            below.push(path);
        }
    }
    below.iter().find_map(|path| find(path, module, release))
}

/// A cpio archive in the form "newc" (Linux Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.0
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.0.extend_from_slice(b"070701");
        let fields = [
            0,
            mode as usize,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        for field in fields {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
