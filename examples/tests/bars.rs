//! What a person sees of a long operation, on a terminal and in a file.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use indicatif::HumanBytes;
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;

/// Contents that take several reports.
const FILE_BYTES: usize = 24 << 20;

/// The example, which cargo builds with the tests of the package.
fn build_image() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples/build_image");
    assert!(
        path.is_file(),
        "{} is missing: `cargo build -p examples --examples`",
        path.display()
    );
    path
}

/// A directory that packs badly, and a place for its image.
fn tree() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("rootfs")).unwrap();
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let bytes: Vec<u8> = noise.take(FILE_BYTES / 8).flatten().collect();
    fs::write(directory.path().join("rootfs/noise"), bytes).unwrap();
    directory
}

/// Runs the example with this standard error.
fn run(directory: &Path, stderr: impl Into<Stdio>) {
    let mut command = Command::new(build_image());
    command
        .args(["rootfs", "layout"])
        .current_dir(directory)
        .env("TERM", "xterm");
    let status = command.stdout(Stdio::null()).stderr(stderr).status().unwrap();
    assert!(status.success(), "{status}");
}

/// Of the manifest's only layer and of the configuration.
fn copied_bytes(layout: &Path) -> u64 {
    let document = |digest: &Value| -> Value {
        let hex = digest
            .as_str()
            .unwrap()
            .strip_prefix("sha256:")
            .unwrap()
            .to_owned();
        serde_json::from_slice(&fs::read(layout.join("blobs/sha256").join(hex)).unwrap()).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = document(&index["manifests"][0]["digest"]);
    let size = |descriptor: &Value| descriptor["size"].as_u64().unwrap();
    size(&manifest["layers"][0]) + size(&manifest["config"])
}

#[test]
fn a_file_gets_whole_lines_with_the_last_count() {
    let directory = tree();
    let log = directory.path().join("log");
    run(directory.path(), File::create(&log).unwrap());
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.ends_with('\n') && !text.contains(['\r', '\x1b']), "{text:?}");
    let packed = HumanBytes(copied_bytes(&directory.path().join("layout")));
    let last = text.lines().last().unwrap();
    assert!(
        last.starts_with(&format!("rootfs: copying done, {packed}, 1 layer, ")),
        "{text}"
    );
    assert!(
        text.lines()
            .any(|line| line.starts_with("rootfs: packing done, 24.00 MiB, 1 layer, ")),
        "{text}"
    );
}

#[test]
fn a_terminal_is_drawn_again_and_again() {
    let directory = tree();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = File::options().read(true).write(true).open(path).unwrap();
    let size = Winsize {
        ws_row: 24,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size).unwrap();
    let reader = std::thread::spawn(move || said(master));
    run(directory.path(), terminal);
    let text = reader.join().unwrap();
    let draws = text.matches("rootfs  packing").count();
    assert!(draws >= 2, "{draws} draws: {text:?}");
    // Each begins where the one before began, and the last is taken away.
    assert!(text.matches('\r').count() > draws, "{text:?}");
    let last = text.trim_end().rsplit(['\r', '\n']).next().unwrap();
    assert!(last.contains("rootfs: copying done, "), "{text:?}");
}

/// Everything that is written to the other side until nobody has it open any more.
fn said(master: OwnedFd) -> String {
    let mut bytes = Vec::new();
    // Linux answers EIO when the last one has gone.
    let _ = File::from(master).read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap()
}
