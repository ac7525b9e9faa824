//! An image that is pushed to docker's own registry, pulled from it, and run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code"
)]

mod bed;
#[allow(dead_code, reason = "another program of tests uses the rest")]
#[path = "../../kata-image/tests/registry/docker_registry.rs"]
mod docker_registry;

use bed::{Bed, text};
use docker_registry::DockerRegistry;
use kata_image::{Image, Platform, Registries};
use kata_sandbox::{Backend, Sandbox};

on_every_backend! {
    async fn an_image_comes_from_dockers_own_registry(bed: Bed) {
        // The nested bed has no such program, and pulls from the registry of `images` there.
        if !matches!(bed.backend, Backend::Process | Backend::QemuTcg) {
            return;
        }
        let name = "an_image_comes_from_dockers_own_registry";
        let Some(images) = std::env::var_os("KATA_TEST_IMAGES") else {
            return bed::skip(name, "KATA_TEST_IMAGES names no images; run `cargo xtask test`");
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|directory| directory.join(DockerRegistry::PROGRAM).is_file()) {
            return bed::skip(name, "this machine has no docker-registry");
        }
        let registry = DockerRegistry::plain();
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join("layer");
        std::fs::create_dir_all(layer.join("srv")).unwrap();
        // No store has this layer yet.
        let word = format!("{}-{}", bed.name, std::process::id());
        std::fs::write(layer.join("srv/word"), &word).unwrap();
        let reference = format!("{}/tests/{}:latest", registry.host, bed.name);
        let digest = {
            let base = Image::open(images, Some("base"), &Platform::host(), directory.path()).unwrap();
            let builder = Image::builder().base(base).directory(&layer).cmd(["cat", "/srv/word"]);
            let image = builder.temporary_directory(directory.path()).build(&mut |_| {}).unwrap();
            image.push(&Registries::default(), &reference.parse().unwrap(), &mut |_| {}).unwrap();
            image.digest()
        };
        let sandbox = Sandbox::boot(bed.of_image(&reference)).await.unwrap();
        assert_eq!(sandbox.info().image_digest, digest.to_string());
        let output = sandbox.spawn().await.unwrap().output().await.unwrap();
        assert_eq!(text(&output), word, "{}", String::from_utf8_lossy(&output.stderr));
        sandbox.stop().await.unwrap();
    }
}
