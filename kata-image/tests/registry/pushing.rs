//! Images that are written to registries, and read again by others.

use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use kata_image::{Digest, Image, Platform, Reference, Stage};
use serde_json::Value;

use crate::docker_registry::DockerRegistry;
use crate::programs::{chain, have, image, read_all, registries, run, tree};
use crate::server::{Heard, Server, answer};

#[test]
fn what_is_pushed_is_what_skopeo_finds() {
    if !have(
        "what_is_pushed_is_what_skopeo_finds",
        &[DockerRegistry::PROGRAM, "skopeo"],
    ) {
        return;
    }
    let registry = DockerRegistry::plain();
    let reference: Reference = format!("{}/team/app:1", registry.host).parse().unwrap();
    let image = image();
    let mut reports = Vec::new();
    image
        .push(&registries(), &reference, &mut |progress| reports.push(progress))
        .unwrap();
    let last = reports.last().unwrap();
    assert_eq!(
        (last.stage, Some(last.done_bytes), last.entries),
        (Stage::Uploading, last.total_bytes, 2)
    );

    let address = format!("docker://{reference}");
    let text = run(
        "skopeo",
        &["inspect", "--tls-verify=false", "--no-tags", &address],
    );
    let found: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(found["Digest"], image.digest().to_string());
    assert_eq!(found["Labels"]["maker"], "tests");
    let layers: Vec<_> = image
        .layers()
        .iter()
        .map(|layer| layer.digest.to_string())
        .collect();
    assert_eq!(found["Layers"], serde_json::json!(layers));
    assert_eq!(found["Env"], serde_json::json!(["PATH=/bin", "EMPTY="]));

    let copy = tempfile::tempdir().unwrap();
    let target = format!("oci:{}:x", copy.path().display());
    run("skopeo", &["copy", "--src-tls-verify=false", &address, &target]);
    let copied = Image::open(copy.path(), Some("x"), &Platform::host(), copy.path()).unwrap();
    assert_eq!(
        (copied.digest(), copied.config()),
        (image.digest(), image.config())
    );
    read_all(&copied);
}

#[test]
fn what_skopeo_pushes_is_what_is_pulled() {
    if !have(
        "what_skopeo_pushes_is_what_is_pulled",
        &[DockerRegistry::PROGRAM, "skopeo"],
    ) {
        return;
    }
    let registry = DockerRegistry::plain();
    let layout = tempfile::tempdir().unwrap();
    let image = image();
    image.write_layout(layout.path(), Some("x"), &mut |_| {}).unwrap();
    let source = format!("oci:{}:x", layout.path().display());
    for format in ["oci", "v2s2"] {
        let target = format!("docker://{}/team/{format}:1", registry.host);
        run(
            "skopeo",
            &[
                "copy",
                "--dest-tls-verify=false",
                "--format",
                format,
                &source,
                &target,
            ],
        );
        let reference: Reference = format!("{}/team/{format}:1", registry.host).parse().unwrap();
        let pulled = Image::pull(&registries(), &reference, &Platform::host()).unwrap();
        assert_eq!(pulled.config(), image.config(), "{format}");
        let digests = |image: &Image| {
            image
                .layers()
                .into_iter()
                .map(|layer| layer.digest)
                .collect::<Vec<_>>()
        };
        assert_eq!(digests(&pulled), digests(&image));
        read_all(&pulled);
        let by_digest = reference.with_digest(pulled.digest());
        assert_eq!(
            Image::pull(&registries(), &by_digest, &Platform::host())
                .unwrap()
                .digest(),
            pulled.digest()
        );
    }
}

#[test]
fn a_blob_that_broke_in_the_registry_is_noticed() {
    if !have(
        "a_blob_that_broke_in_the_registry_is_noticed",
        &[DockerRegistry::PROGRAM],
    ) {
        return;
    }
    let registry = DockerRegistry::plain();
    let reference: Reference = format!("{}/team/app:1", registry.host).parse().unwrap();
    let image = image();
    image.push(&registries(), &reference, &mut |_| {}).unwrap();
    let layer = &image.layers()[0];
    let path = registry.blob(layer.digest.as_str());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(&path, &bytes).unwrap();
    let pulled = Image::pull(&registries(), &reference, &Platform::host()).unwrap();
    let error = pulled.layer(0).unwrap().finish().unwrap_err().to_string();
    let expected = format!(
        "what should be {} is {}, {} bytes",
        layer.digest,
        Digest::of(&bytes),
        bytes.len()
    );
    assert_eq!(error, expected);
}

/// A registry that takes uploads, and remembers them.
struct Taking {
    server: Server,
    state: Arc<Mutex<Taken>>,
}

/// Bytes of the upload that is going on, and of those that ended.
type Taken = (Vec<u8>, Vec<Vec<u8>>);

impl Taking {
    fn start(cut: impl Fn(&Heard) -> Option<usize> + Send + Sync + 'static) -> Self {
        let state = Arc::new(Mutex::new((Vec::new(), Vec::new())));
        let shared = Arc::clone(&state);
        let server = Server::start_cutting(move |heard, connection| take(heard, connection, &shared), cut);
        Self { server, state }
    }

    fn requests(&self, method: &str) -> Vec<String> {
        let heard = self.server.heard();
        let matching = heard.iter().filter(|heard| heard.method == method);
        matching.map(|heard| heard.path.clone()).collect()
    }
}

fn take(heard: &Heard, connection: &mut TcpStream, state: &Mutex<Taken>) {
    let mut state = state.lock().unwrap();
    match heard.method.as_str() {
        "HEAD" => answer(connection, "404 Not Found", "", b""),
        "POST" if heard.path.contains("mount=") => answer(connection, "201 Created", "", b""),
        "POST" => {
            state.0.clear();
            answer(connection, "202 Accepted", "Location: /upload/0?state=x\r\n", b"");
        }
        "PATCH" => {
            let range = heard.header("content-range");
            assert!(
                range.is_empty() || range.starts_with(&format!("{}-", state.0.len())),
                "{range}"
            );
            state.0.extend_from_slice(&heard.body);
            answer(connection, "202 Accepted", "Location: /upload/1?state=y\r\n", b"");
        }
        "GET" => {
            let range = format!(
                "Range: 0-{}\r\nLocation: /upload/2\r\n",
                state.0.len().saturating_sub(1)
            );
            answer(connection, "204 No Content", &range, b"");
        }
        "PUT" if heard.path.starts_with("/upload/") => {
            let whole = std::mem::take(&mut state.0);
            let digest = Digest::of(&whole).to_string().replace(':', "%3A");
            assert!(
                heard.path.ends_with(&format!("digest={digest}")),
                "{}",
                heard.path
            );
            state.1.push(whole);
            answer(connection, "201 Created", "", b"");
        }
        _ => answer(connection, "201 Created", "", b""),
    }
}

#[test]
fn an_upload_that_breaks_goes_on_where_it_broke() {
    let taking = Taking::start(|heard| {
        (heard.method == "PATCH" && heard.path == "/upload/0?state=x" && heard.earlier == 0)
            .then_some(100_000)
    });
    let reference = format!("{}/a/b:1", taking.server.host()).parse().unwrap();
    let image = image();
    image
        .push(&registries(), &reference, &mut |_| {})
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let state = taking.state.lock().unwrap();
    let digests: Vec<_> = state.1.iter().map(|bytes| Digest::of(bytes)).collect();
    assert_eq!(digests.len(), 3);
    for layer in image.layers() {
        assert!(digests.contains(&layer.digest));
    }
    assert!(taking.requests("PUT").contains(&"/v2/a/b/manifests/1".to_owned()));
    assert_eq!(
        taking.requests("PUT").last().unwrap(),
        "/v2/a/b/manifests/1",
        "the manifest comes last"
    );
    let heard = taking.server.heard();
    let resumed = heard
        .iter()
        .find(|heard| !heard.header("content-range").is_empty())
        .unwrap();
    assert!(
        resumed.header("content-range").starts_with("100000-"),
        "{resumed:?}"
    );
    assert_eq!(resumed.path, "/upload/2");
}

#[test]
fn an_end_of_an_upload_whose_answer_is_lost_is_no_second_upload() {
    let ended = std::sync::atomic::AtomicBool::new(false);
    let state = Mutex::default();
    let server = Server::start(move |heard, connection| {
        use std::sync::atomic::Ordering::SeqCst;
        match heard.method.as_str() {
            "PUT" if heard.path.starts_with("/upload/") => ended.store(true, SeqCst),
            "HEAD" if ended.load(SeqCst) => connection
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                .unwrap(),
            "GET" => answer(connection, "404 Not Found", "", b""),
            _ => take(heard, connection, &state),
        }
    });
    let reference = format!("{}/a/b:1", server.host()).parse().unwrap();
    let image = Image::builder().build(&mut |_| {}).unwrap();
    image
        .push(&registries(), &reference, &mut |_| {})
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let count = |method: &str| {
        server
            .heard()
            .iter()
            .filter(|heard| heard.method == method)
            .count()
    };
    assert_eq!((count("POST"), count("PATCH"), count("HEAD")), (1, 1, 2));
}

#[test]
fn a_registry_that_never_takes_all_is_given_up() {
    let taking = Taking::start(|heard| (heard.method == "PATCH").then_some(0));
    let reference = format!("{}/a/b:1", taking.server.host()).parse().unwrap();
    image().push(&registries(), &reference, &mut |_| {}).unwrap_err();
    assert_eq!(taking.requests("PATCH").len(), 5);
    assert!(taking.requests("PUT").is_empty());
}

#[test]
fn layers_of_a_base_are_mounted() {
    if !have("layers_of_a_base_are_mounted", &[DockerRegistry::PROGRAM]) {
        return;
    }
    let registry = DockerRegistry::plain();
    let base_reference: Reference = format!("{}/team/base:1", registry.host).parse().unwrap();
    image().push(&registries(), &base_reference, &mut |_| {}).unwrap();
    let pulled = || Image::pull(&registries(), &base_reference, &Platform::host()).unwrap();
    let more = tree(&[("more", b"more\n")]);
    let derived = Image::builder()
        .base(pulled())
        .directory(more.path())
        .build(&mut |_| {})
        .unwrap();
    let reference: Reference = format!("{}/team/derived:1", registry.host).parse().unwrap();
    derived.push(&registries(), &reference, &mut |_| {}).unwrap();
    let again = Image::pull(&registries(), &reference, &Platform::host()).unwrap();
    assert_eq!((again.digest(), again.layers().len()), (derived.digest(), 3));
    read_all(&again);

    // To another registry there is nothing to mount from; to the same one it is asked for.
    let other = Taking::start(|_| None);
    let reference = format!("{}/team/derived:1", other.server.host()).parse().unwrap();
    derived.push(&registries(), &reference, &mut |_| {}).unwrap();
    assert!(other.requests("POST").iter().all(|path| !path.contains("mount=")));
    assert_eq!(other.state.lock().unwrap().1.len(), 4);
}

#[test]
fn a_mount_is_asked_for_by_digest_and_repository() {
    let served = crate::server::Served::new();
    let state = Arc::new(Mutex::new((Vec::new(), Vec::new())));
    let server = Server::start(move |heard, connection| {
        if heard.method == "GET" && heard.path.starts_with("/v2/a/b/") {
            served.answer(heard, connection);
        } else {
            take(heard, connection, &state);
        }
    });
    let base: Reference = format!("{}/a/b:1", server.host()).parse().unwrap();
    let base = Image::pull(&registries(), &base, &Platform::host()).unwrap();
    let layer = base.layers()[0].digest.to_string().replace(':', "%3A");
    let derived = Image::builder()
        .base(base)
        .label("a", "b")
        .build(&mut |_| {})
        .unwrap();
    let reference = format!("{}/c:1", server.host()).parse().unwrap();
    derived.push(&registries(), &reference, &mut |_| {}).unwrap();
    let expected = format!("/v2/c/blobs/uploads/?mount={layer}&from=a%2Fb");
    assert!(
        server.heard().iter().any(|heard| heard.path == expected),
        "{expected}"
    );
}

#[test]
fn a_reference_of_another_digest_is_not_pushed_to() {
    let image = image();
    let digest = Digest::of(b"other");
    let reference = format!("127.0.0.1:1/a/b:1@{digest}").parse().unwrap();
    let error = image
        .push(&registries(), &reference, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(&format!("what should be {digest} is {}", image.digest())),
        "{error}"
    );
}
