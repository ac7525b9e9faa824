//! The examples that show a build, a push and a pull, against docker's own registry.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

#[allow(dead_code, reason = "another program of tests uses the rest")]
#[path = "../../kata-image/tests/registry/docker_registry.rs"]
mod docker_registry;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use docker_registry::DockerRegistry;
use serde_json::Value;

/// Runs an example, which cargo builds with the tests of the package; what it says.
fn example(name: &str, directory: &Path, arguments: &[&str]) -> String {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        path.is_file(),
        "{name} is missing: `cargo build -p examples --examples`"
    );
    let mut command = Command::new(path);
    let output = command.args(arguments).current_dir(directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The digest of a layout's only image.
fn digest(layout: &Path) -> String {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

fn has_registry() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = std::env::split_paths(&path);
    let found = directories.any(|directory| directory.join(DockerRegistry::PROGRAM).is_file());
    if !found {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "no docker-registry");
        // Not by a macro, whose output the test harness hides.
        let said = writeln!(io::stderr(), "SKIPPED: this machine has no docker-registry");
        said.unwrap();
    }
    found
}

#[test]
fn what_one_example_pushes_another_pulls() {
    if !has_registry() {
        return;
    }
    let registry = DockerRegistry::plain();
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("rootfs/srv")).unwrap();
    fs::write(at("rootfs/srv/page"), "hello\n").unwrap();
    let reference = format!("{}/examples/page:1", registry.host);
    let built = example("build_image", directory.path(), &["rootfs", "layout", &reference]);
    let digest = digest(&at("layout"));
    assert!(built.contains(&format!("{reference} is {digest}")), "{built}");
    let read = example("pull", directory.path(), &[&reference]);
    assert!(
        read.contains(&digest) && read.contains("all layers are what their digests say"),
        "{read}"
    );
    example("pull", directory.path(), &[&reference, "copy"]);
    assert_eq!(self::digest(&at("copy")), digest);
    let blobs = |layout: &str| fs::read_dir(at(layout).join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs("copy"), blobs("layout"));
}
