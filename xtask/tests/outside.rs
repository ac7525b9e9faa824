//! What `cargo add kata-sandbox` feels like: the README's first program, in a package of its own outside of the
//! workspace, compiled and run.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The first block of a document that is marked as Rust.
fn first_rust_block(text: &str) -> &str {
    let (_, rest) = text.split_once("```rust\n").expect("the README has a Rust block");
    rest.split_once("```").unwrap().0
}

/// A package with that program, which depends on the SDK as an embedder would, and on nothing of the workspace.
fn write_package(directory: &Path, program: &str) {
    let sandbox = root().join("kata-sandbox");
    let manifest = format!(
        "[package]\nname = \"outside\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [dependencies]\nkata-sandbox = {{ path = {sandbox:?} }}\n\
         tokio = {{ version = \"1\", features = [\"macros\", \"rt-multi-thread\"] }}\n"
    );
    fs::create_dir_all(directory.join("src")).unwrap();
    fs::write(directory.join("Cargo.toml"), manifest).unwrap();
    fs::write(directory.join("src/main.rs"), program).unwrap();
    // The versions that the workspace was tested with, all of them downloaded.
    fs::copy(root().join("Cargo.lock"), directory.join("Cargo.lock")).unwrap();
}

#[test]
fn the_readmes_program_runs_outside_of_the_workspace() {
    let Some(rootfs) = std::env::var_os("KATA_TEST_ROOTFS") else {
        let skipped = "SKIPPED the_readmes_program_runs_outside_of_the_workspace: KATA_TEST_ROOTFS names no root \
                       filesystem; run `cargo xtask test`\n";
        assert!(std::env::var_os("CI").is_none(), "{skipped}");
        std::io::stderr().write_all(skipped.as_bytes()).unwrap();
        return;
    };
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    write_package(directory.path(), first_rust_block(&readme));
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--offline", "--"])
        .arg(rootfs)
        .current_dir(directory.path())
        // Kept between runs: only the program itself is compiled again.
        .env(
            "CARGO_TARGET_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside"),
        )
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (
            String::from_utf8_lossy(&output.stdout).as_ref(),
            output.status.code()
        ),
        ("hello from a VM of its own\n", Some(0)),
        "{stderr}"
    );
}

#[test]
fn the_readmes_program_is_complete_and_short() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let program = first_rust_block(&readme);
    assert!(
        program.contains("fn main()"),
        "the first block is a complete program:\n{program}"
    );
    assert!(program.lines().count() <= 12, "it stays short:\n{program}");
}
