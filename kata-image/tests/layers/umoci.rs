//! What umoci makes of layers: an OCI layout is written for it, and what it unpacks is listed.

use std::fs;
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::oracle::{Listing, has_tool, list, run, skip};

pub(crate) fn has_umoci(test: &str) -> bool {
    has_tool("umoci") || skip(test, "umoci is not installed")
}

/// Writes a blob and returns its descriptor.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> String {
    let hex = hex::encode(Sha256::digest(bytes));
    fs::write(layout.join("blobs/sha256").join(&hex), bytes).expect("blob");
    let size = bytes.len();
    format!(
        r#"{{"mediaType":"application/vnd.oci.image.{media_type}","digest":"sha256:{hex}","size":{size}}}"#
    )
}

fn write_layout(layout: &Path, layers: &[Vec<u8>]) {
    fs::create_dir_all(layout.join("blobs/sha256")).expect("directory");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("layout");
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| blob(layout, "layer.v1.tar", layer))
        .collect();
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|layer| format!("\"sha256:{}\"", hex::encode(Sha256::digest(layer))))
        .collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let config = blob(layout, "config.v1+json", config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#,
        descriptors.join(",")
    );
    let manifest = blob(layout, "manifest.v1+json", manifest.as_bytes());
    let named = manifest.replace(
        "\"mediaType\"",
        r#""annotations":{"org.opencontainers.image.ref.name":"test"},"mediaType""#,
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{named}]}}"#);
    fs::write(layout.join("index.json"), index).expect("index");
}

/// Everything in the root filesystem that umoci unpacks from these layers.
pub(crate) fn unpack(layers: &[Vec<u8>]) -> Listing {
    let directory = tempfile::tempdir().expect("temporary directory");
    let layout = directory.path().join("layout");
    write_layout(&layout, layers);
    let bundle = directory.path().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &format!("{}:test", layout.display())]);
    run(umoci.arg(&bundle));
    list(&bundle.join("rootfs"))
}
