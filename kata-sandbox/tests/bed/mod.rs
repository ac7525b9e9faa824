//! The test bed: one body, run on every backend.
//!
//! `cargo xtask test` brings what the bodies need: a root filesystem (`KATA_TEST_ROOTFS`), the guest
//! assets and the monitor. Where something is missing a test says `SKIPPED` and why; with `CI` set
//! that is a failure.
//!
//! | variable | |
//! |---|---|
//! | `KATA_TEST_IMAGES` | an OCI layout of images with real software |
//! | `KATA_TEST_BZIMAGE` | the distribution's kernel as it is packaged |
//! | `KATA_TEST_BACKENDS=fake,qemu_tcg` | limits the backends; the others are skipped |
//! | `KATA_TEST_ELSEWHERE=kvm,qemu_kvm` | these run elsewhere in the same suite, in the nested bed: not a skip |
//! | `KATA_TEST_VCPUS=2` | processors of a sandbox that asks for no number itself; 1 without it |
//! | `KATA_KERNEL=…/vmlinux` | the guest's kernel; the initramfs is the one beside it |
//! | `KATA_TEST_PATIENCE=4` | deadlines are so many times longer, where the host itself is emulated |

#![allow(dead_code, reason = "each test program uses a part of the bed")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code"
)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use kata_sandbox::{Backend, Command, Container, ContainerHandle, MiB, Output, Sandbox};

/// How long one body may take before it counts as hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// What a body runs on.
#[derive(Debug, Clone)]
pub(crate) struct Bed {
    /// The module's name.
    pub(crate) name: &'static str,
    /// The test's, with its program and module.
    test: &'static str,
    pub(crate) backend: Backend,
    pub(crate) rootfs: OsString,
    vcpus: u8,
}

/// The backends by the names of their modules.
const BACKENDS: &[(&str, Backend)] = &[
    ("fake", Backend::Process),
    ("qemu_tcg", Backend::QemuTcg),
    ("qemu_kvm", Backend::QemuKvm),
    ("kvm", Backend::Kvm),
];

/// Makes a module per backend out of test bodies: `fake::name`, `qemu_tcg::name`, ….
#[macro_export]
macro_rules! on_every_backend {
    (within $deadline:expr; $($(#[$meta:meta])* async fn $name:ident($bed:ident: Bed) $body:block)*) => {
        mod bodies {
            use super::*;
            $($(#[$meta])* pub(super) async fn $name($bed: Bed) $body)*
        }
        $crate::on_these_backends! { [$deadline; $($name)*]; fake qemu_tcg qemu_kvm kvm }
    };
    ($($bodies:tt)*) => { $crate::on_every_backend! { within $crate::bed::DEADLINE; $($bodies)* } };
}

/// The modules that [`on_every_backend!`] makes.
#[macro_export]
macro_rules! on_these_backends {
    ($tests:tt; $($module:ident)*) => { $($crate::on_backend! { $module $tests })* };
}

/// One of them.
#[macro_export]
macro_rules! on_backend {
    ($module:ident [$deadline:expr; $($name:ident)*]) => {
        mod $module {
            $(#[test] fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                $crate::bed::run(stringify!($module), name, $deadline, super::bodies::$name);
            })*
        }
    };
}

/// Runs a body on a backend, within the deadline.
pub(crate) fn run<F: Future<Output = ()>>(
    backend: &str,
    name: &'static str,
    deadline: Duration,
    body: fn(Bed) -> F,
) {
    let Some(bed) = bed(backend, name) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(deadline * patience(), body(bed))
            .await
            .unwrap_or_else(|_| panic!("{name} hung"));
    });
}

fn bed(backend: &str, name: &'static str) -> Option<Bed> {
    if named_in("KATA_TEST_ELSEWHERE", backend) == Some(true) {
        eprintln!("ELSEWHERE {name}");
        return None;
    }
    if named_in("KATA_TEST_BACKENDS", backend) == Some(false) {
        eprintln!("SKIPPED {name}: optional: KATA_TEST_BACKENDS does not name {backend}");
        return None;
    }
    let Some(rootfs) = std::env::var_os("KATA_TEST_ROOTFS") else {
        skip(
            name,
            "KATA_TEST_ROOTFS names no root filesystem; run `cargo xtask test`",
        );
        return None;
    };
    let (backend, selected) = *BACKENDS.iter().find(|(known, _)| *known == backend).unwrap();
    if selected == Backend::Process && !rustix::process::geteuid().is_root() {
        skip(name, "the process backend needs root for its namespaces");
        return None;
    }
    if !matches!(selected, Backend::Process | Backend::QemuTcg)
        && let Err(why) = Sandbox::probe().kvm
    {
        skip(name, &why.to_string());
        return None;
    }
    Some(Bed {
        name: backend,
        test: name,
        backend: selected,
        rootfs,
        vcpus: number("KATA_TEST_VCPUS").map_or(1, |count| count.try_into().unwrap()),
    })
}

/// Whether a variable's list has this backend, if there is a list.
fn named_in(variable: &str, backend: &str) -> Option<bool> {
    let list = std::env::var(variable).ok()?;
    Some(list.split(',').any(|named| named == backend))
}

/// A variable's number; one that is none is a mistake of who started this.
fn number(variable: &str) -> Option<u32> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// How many times longer things may take here than on a machine of its own.
pub(crate) fn patience() -> u32 {
    number("KATA_TEST_PATIENCE").unwrap_or(1)
}

/// Says that a test did not run. In CI that is a failure.
pub(crate) fn skip(name: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "SKIPPED {name}: {why}");
    eprintln!("SKIPPED {name}: {why}");
}

impl Bed {
    /// Says that nothing can be seen here of what a test is about: it counts for no row of `docs/conformance.md`.
    pub(crate) fn cannot_tell(&self, why: &str) {
        eprintln!("SKIPPED {}: optional: {why}", self.test);
    }

    /// A container on this bed's backend, without arguments.
    pub(crate) fn idle(&self) -> Container {
        self.of_image(&self.rootfs)
    }

    /// A container of an image on this bed's backend.
    pub(crate) fn of_image(&self, image: impl Into<OsString>) -> Container {
        self.machine_of(Container::new(image))
    }

    /// A container that joins a sandbox of [`idle`](Self::idle)'s image.
    pub(crate) fn member(&self, name: &str) -> Container {
        Container::new(&self.rootfs).name(name)
    }

    /// The container with a machine of this bed's backend.
    pub(crate) fn machine_of(&self, container: Container) -> Container {
        container
            .backend(self.backend)
            .memory(MiB(192))
            .vcpus(self.vcpus)
            .boot_timeout(Duration::from_secs(60) * patience())
    }

    /// A container that runs a shell script.
    pub(crate) fn shell(&self, script: &str) -> Container {
        self.idle().args(["sh", "-c", script])
    }

    /// The files of the root filesystem, without those that tar's patterns name, in `directory`.
    pub(crate) fn unpack_without(&self, absent: &[&str], directory: &Path) {
        let excluded = absent.iter().map(|pattern| format!("--exclude=./{pattern}"));
        let mut unpack = std::process::Command::new("tar");
        unpack.arg("-C").arg(directory);
        let status = match kata_image::Source::detect(&self.rootfs).unwrap() {
            kata_image::Source::Archive(archive) => {
                unpack.arg("-xf").arg(archive).args(excluded).status().unwrap()
            }
            source => {
                let mounted = Mounted::new(source.path());
                let mut pack = std::process::Command::new("tar");
                pack.args(["-cf", "-"])
                    .args(excluded)
                    .arg("-C")
                    .arg(&mounted.0)
                    .arg(".");
                let mut pack = pack.stdout(Stdio::piped()).spawn().unwrap();
                unpack.args(["-xf", "-"]).stdin(pack.stdout.take().unwrap());
                let status = unpack.status().unwrap();
                assert!(pack.wait().unwrap().success());
                status
            }
        };
        assert!(status.success());
    }

    /// Something that has to be made an image of: the root filesystem, unless it is one already.
    pub(crate) fn convertible(&self) -> OsString {
        match kata_image::Source::detect(&self.rootfs).unwrap() {
            kata_image::Source::Archive(archive) => archive.into(),
            _ => "/usr/bin".into(),
        }
    }

    /// Processes of a sandbox at least: the monitor, and what it starts where it is not the machine itself.
    pub(crate) fn processes(&self) -> usize {
        if self.backend == Backend::Kvm { 1 } else { 2 }
    }

    /// Whether a guest of its own runs here, and not a process of this host.
    pub(crate) fn has_guest(&self) -> bool {
        self.backend != Backend::Process
    }
}

/// An image that is mounted for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path) -> Self {
        let at = tempfile::tempdir().unwrap().keep();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "erofs", "-o", "ro,loop"]).arg(image).arg(&at);
        assert!(mount.status().unwrap().success());
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.unwrap().success());
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A shell script as a command for exec.
pub(crate) fn sh(script: &str) -> Command {
    Command::new("sh").args(["-c", script])
}

/// Runs a script in a container to its end.
pub(crate) async fn script_in(container: &ContainerHandle, script: &str) -> Output {
    container.exec(sh(script)).await.unwrap().output().await.unwrap()
}

/// Runs a script in a sandbox to its end.
pub(crate) async fn script(sandbox: &Sandbox, script: &str) -> Output {
    sandbox.exec(sh(script)).await.unwrap().output().await.unwrap()
}

/// Standard output as text without the last line end.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Asks until the answer is yes, for what has no event to wait for.
pub(crate) async fn eventually(what: &str, mut ask: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !ask().await {
        assert!(
            begin.elapsed() < Duration::from_secs(120) * patience(),
            "never happened: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until none of these processes exists any more (zombies of ours do not count).
pub(crate) async fn all_gone(pids: &[u32]) {
    eventually(&format!("{pids:?} are gone"), async || {
        pids.iter().all(|pid| !alive(*pid))
    })
    .await;
}

/// Whether a process exists and is not a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with('Z')
    })
}

/// Memory in bytes that a process has for itself, guest memory not included.
pub(crate) fn private_memory(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss_Anon:"))
        .unwrap();
    line.trim()
        .strip_suffix("kB")
        .unwrap()
        .trim()
        .parse::<u64>()
        .unwrap()
        << 10
}

/// An executable script. A shell writes it: a file that this process has open for writing while another
/// thread forks could not be executed ("text file busy").
pub(crate) fn executable(path: &Path, text: &str) {
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .arg(text);
    assert!(shell.status().unwrap().success());
}

/// Children of a process, all the way down.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(
            children
                .split_whitespace()
                .map(|child| child.parse::<u32>().unwrap()),
        );
    }
    found
        .iter()
        .flat_map(|child| std::iter::once(*child).chain(descendants(*child)))
        .collect()
}

/// The example program that boots a sandbox and holds it, built by cargo beside the tests.
pub(crate) fn holder() -> std::process::Command {
    let exe = std::env::current_exe().unwrap();
    let target: PathBuf = exe.parent().and_then(|deps| deps.parent()).unwrap().to_owned();
    let mut command = std::process::Command::new(target.join("examples").join("hold"));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What a sandbox could leave on the host: mounts, and files where it or its image store write.
pub(crate) fn traces() -> BTreeSet<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mut traces: BTreeSet<String> = mounts
        .lines()
        .filter(|m| m.contains("kata") || m.contains("erofs"))
        .map(str::to_owned)
        .collect();
    let cache = kata_image::cache_directory().unwrap();
    for directory in [
        cache.clone(),
        cache.join("images"),
        std::env::temp_dir(),
        "/run".into(),
        "/dev/shm".into(),
    ] {
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        traces.extend(
            entries
                .map(|entry| entry.path().display().to_string())
                .filter(|path| path.contains("kata") || path.contains("sandbox")),
        );
    }
    traces
}

/// A specification whose container never starts: a hook of it waits.
pub(crate) fn that_hangs() -> &'static str {
    r#"{
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "hooks": {"startContainer": [{"path": "/bin/sleep", "args": ["sleep", "100000"]}]}
    }"#
}
