//! Redirects, mirrors and certificates.

use std::io::Write;

use kata_image::{Digest, Image, Platform, Reference, Registries, TransferError};
use serde_json::json;

use crate::docker_registry::DockerRegistry;
use crate::programs::{Certificates, chain, have, image, read_all, registries};
use crate::server::{Served, Server, answer};

fn reference(host: &str) -> Reference {
    format!("{host}/a/b:1").parse().unwrap()
}

fn pull(registries: &Registries, host: &str) -> Result<Image, TransferError> {
    Image::pull(registries, &reference(host), &Platform::host())
}

#[test]
fn a_redirect_is_followed_without_credentials() {
    let served = Served::new();
    let copy = served.clone();
    let elsewhere = Server::start(move |heard, connection| copy.answer_layer(heard, connection));
    let target = format!("http://{}/layer?signature=1", elsewhere.host());
    let copy = served.clone();
    let registry = Server::start(move |heard, connection| {
        if heard.header("authorization").is_empty() {
            answer(
                connection,
                "401 Unauthorized",
                "WWW-Authenticate: Basic realm=\"x\"\r\n",
                b"",
            );
        } else if heard.path == copy.layer_path() {
            answer(
                connection,
                "307 Temporary Redirect",
                &format!("Location: {target}\r\n"),
                b"",
            );
        } else {
            copy.answer(heard, connection);
        }
    });
    let registries = registries().credentials(&registry.host(), "u", "secret");
    read_all(&pull(&registries, &registry.host()).unwrap());
    let heard = elsewhere.heard();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].path, "/layer?signature=1");
    assert!(heard[0].header("authorization").is_empty());
    assert!(
        registry
            .heard()
            .iter()
            .any(|heard| heard.header("authorization") == "Basic dTpzZWNyZXQ=")
    );
}

#[test]
fn redirects_that_lead_nowhere_are_refused() {
    let check = |location: &'static str, expected: &str| {
        let server = Server::start(move |_, connection| {
            answer(connection, "302 Found", &format!("Location: {location}\r\n"), b"");
        });
        let error = pull(&registries(), &server.host()).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
        assert!(!error.contains("secret"), "{error}");
        server.heard().len()
    };
    assert_eq!(
        check(
            "http://registry.invalid/x?secret",
            "http://registry.invalid/x, which is not encrypted"
        ),
        1
    );
    assert_eq!(
        check("file:///etc/passwd", "file:///etc/passwd, which is no address"),
        1
    );
    assert_eq!(check("/round?secret", "/round, after five other redirects"), 6);
}

#[test]
fn a_mirror_is_asked_first_and_the_registry_when_it_fails() {
    let (served, empty) = (
        Served::new(),
        Server::start(|_, connection| answer(connection, "404 Not Found", "", b"")),
    );
    let copy = served.clone();
    let good = Server::start(move |heard, connection| {
        let heard = crate::server::Heard {
            path: heard.path.replace("/v2/cache/", "/v2/"),
            ..heard.clone()
        };
        copy.answer(&heard, connection);
    });
    let origin = Server::start(move |heard, connection| served.answer(heard, connection));
    let mirrored = registries()
        .mirror(&origin.host(), &empty.host())
        .mirror(&origin.host(), &format!("{}/cache", good.host()));
    read_all(&pull(&mirrored, &origin.host()).unwrap());
    assert_eq!(
        empty.heard().len(),
        1,
        "one that failed is not asked for every layer"
    );
    assert_eq!((good.heard().len(), origin.heard().len()), (3, 0));
    let alone = registries().mirror(&origin.host(), &empty.host());
    read_all(&pull(&alone, &origin.host()).unwrap());
    assert_eq!(origin.heard().len(), 3);
}

#[test]
fn a_mirror_whose_connections_break_is_left_for_the_registry() {
    let served = Served::new();
    let copy = served.clone();
    let mirror = Server::start(move |heard, connection| {
        if heard.path == copy.layer_path() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", copy.layer.len());
            connection.write_all(head.as_bytes()).unwrap();
            connection.write_all(&copy.layer[..1000]).unwrap();
        } else {
            copy.answer(heard, connection);
        }
    });
    let origin = Server::start(move |heard, connection| served.answer(heard, connection));
    let registries = registries().mirror(&origin.host(), &mirror.host());
    read_all(&pull(&registries, &origin.host()).unwrap());
    let ranges: Vec<_> = origin.heard().iter().map(crate::server::Heard::range).collect();
    assert_eq!(ranges, [Some(1000)]);
}

#[test]
fn when_all_fail_all_are_named() {
    let mirror = Server::start(|_, connection| answer(connection, "403 Forbidden", "", b""));
    let origin = Server::start(|_, connection| answer(connection, "404 Not Found", "", b""));
    let registries = registries().mirror(&origin.host(), &mirror.host());
    let error = chain(&pull(&registries, &origin.host()).unwrap_err());
    let (mirror, origin) = (mirror.host(), origin.host());
    let forbidden = format!("{mirror} forbids to pull a/b (without credentials: none are known)");
    let expected = format!(
        "neither mirror {mirror} ({forbidden}) nor {origin} itself has {origin}/a/b:1: {origin}/a/b has no 1"
    );
    assert_eq!(error, expected);
}

#[test]
fn certificates_are_checked_against_the_roots_that_are_known() {
    if !have(
        "certificates_are_checked_against_the_roots_that_are_known",
        &[DockerRegistry::PROGRAM, "openssl"],
    ) {
        return;
    }
    let certificates = Certificates::make();
    let tls =
        json!({"tls": {"certificate": certificates.path("leaf.crt"), "key": certificates.path("leaf.key")}});
    let registry = DockerRegistry::start(&tls, &json!({}));
    let host = registry.host.as_str();
    let trusting = registries()
        .https(host)
        .root_certificate(&certificates.read("ca.crt"))
        .unwrap();
    let image = image();
    image.push(&trusting, &reference(host), &mut |_| {}).unwrap();
    read_all(&pull(&trusting, host).unwrap());

    let unknown = pull(&registries().https(host), host).unwrap_err().to_string();
    let advice = format!("/etc/docker/certs.d/{host}/ca.crt");
    assert!(
        unknown.contains("unknown authority") && unknown.contains(&advice),
        "{unknown}"
    );

    let directories = tempfile::tempdir().unwrap();
    std::fs::create_dir(directories.path().join(host)).unwrap();
    std::fs::copy(
        certificates.path("ca.crt"),
        directories.path().join(host).join("ca.crt"),
    )
    .unwrap();
    let found = registries().certificate_directories([directories.path().to_path_buf()]);
    assert_eq!(pull(&found, host).unwrap().digest(), image.digest());

    // The certificate is for the address, and for localhost, not for another name of it.
    let port = host.rsplit(':').next().unwrap();
    let other = format!("127.0.0.2:{port}");
    let registries = registries()
        .https(&other)
        .root_certificate(&certificates.read("ca.crt"))
        .unwrap();
    let error = chain(&pull(&registries, &other).unwrap_err());
    assert!(error.contains("127.0.0.2"), "{error}");
}

#[test]
fn encryption_that_fails_is_never_left_out() {
    let served = Served::new();
    let server = Server::start(move |heard, connection| served.answer(heard, connection));
    let error = pull(
        &registries()
            .https(&server.host())
            .retries(0, std::time::Duration::ZERO),
        &server.host(),
    );
    drop(error.unwrap_err());
    assert!(
        server.heard().iter().all(|heard| !heard.path.starts_with("/v2/")),
        "{:?}",
        server.heard()
    );
}

#[test]
fn plain_http_to_a_server_that_encrypts_shows_its_words() {
    if !have(
        "plain_http_to_a_server_that_encrypts_shows_its_words",
        &[DockerRegistry::PROGRAM, "openssl"],
    ) {
        return;
    }
    let certificates = Certificates::make();
    let tls =
        json!({"tls": {"certificate": certificates.path("leaf.crt"), "key": certificates.path("leaf.key")}});
    let registry = DockerRegistry::start(&tls, &json!({}));
    let error = pull(&registries(), &registry.host).unwrap_err().to_string();
    assert!(
        error.contains("Client sent an HTTP request to an HTTPS server"),
        "{error}"
    );
}

#[test]
fn what_is_sent_says_who_asks_and_for_what() {
    let served = Served::new();
    let digest = Digest::of(&served.manifest);
    let server = Server::start(move |heard, connection| served.answer(heard, connection));
    assert_eq!(pull(&registries(), &server.host()).unwrap().digest(), digest);
    let heard = &server.heard()[0];
    assert_eq!(
        heard.header("user-agent"),
        concat!("kata-rs/", env!("CARGO_PKG_VERSION"))
    );
    for kind in [
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "manifest.list.v2",
        "distribution.manifest.v2",
    ] {
        assert!(heard.header("accept").contains(kind), "{heard:?}");
    }
}
