//! Registries that break, stall and lie: what heals is healed, and what does not is named.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use kata_image::{Digest, Image, Platform, Registries, RegistryError, TransferError};
use serde_json::json;

use crate::programs::{chain, read_all, registries};
use crate::server::{Heard, MANIFEST_TYPE, Served, Server, answer, wait_for_end};

/// A server whose layer is answered in some way of the test's.
fn server(layer: impl Fn(&Served, &Heard, &mut TcpStream) + Send + Sync + 'static) -> (Server, Served) {
    let served = Served::new();
    let copy = served.clone();
    let server = Server::start(move |heard, connection| {
        if heard.path == copy.layer_path() {
            layer(&copy, heard, connection);
        } else {
            copy.answer(heard, connection);
        }
    });
    (server, served)
}

/// A server whose manifest is answered in some way of the test's.
fn manifest_server(manifest: impl Fn(&Served, &Heard, &mut TcpStream) + Send + Sync + 'static) -> Server {
    let served = Served::new();
    Server::start(move |heard, connection| {
        if heard.path.contains("/manifests/") {
            manifest(&served, heard, connection);
        } else {
            served.answer(heard, connection);
        }
    })
}

fn pull(server: &Server, registries: &Registries) -> Result<Image, TransferError> {
    let reference = format!("{}/a/b:1", server.host()).parse().unwrap();
    Image::pull(registries, &reference, &Platform::host())
}

fn pull_error(server: &Server) -> TransferError {
    pull(server, &registries()).unwrap_err()
}

fn layer_error(server: &Server, registries: &Registries) -> TransferError {
    let image = pull(server, registries).unwrap();
    image.layer(0).unwrap().finish().unwrap_err()
}

/// How often the layer was asked for, and from which bytes on.
fn layer_requests(server: &Server, served: &Served) -> Vec<Option<usize>> {
    let heard = server.heard();
    let layers = heard.iter().filter(|heard| heard.path == served.layer_path());
    layers.map(Heard::range).collect()
}

/// The head of an answer, of the length of the whole, and some of its bytes.
fn begin(connection: &mut TcpStream, served: &Served, heard: &Heard, count: usize) {
    let rest = &served.layer[heard.range().unwrap_or(0)..];
    let head = match heard.range() {
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
        Some(start) => format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-/*\r\n"),
    };
    let head = format!("{head}Content-Length: {}\r\n\r\n", rest.len());
    connection.write_all(head.as_bytes()).ok();
    connection.write_all(&rest[..count.min(rest.len())]).ok();
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let (server, served) = server(|served, heard, connection| match heard.earlier {
        0..3 => begin(connection, served, heard, 100_000),
        _ => served.answer_layer(heard, connection),
    });
    read_all(&pull(&server, &registries()).unwrap());
    assert_eq!(
        layer_requests(&server, &served),
        [None, Some(100_000), Some(200_000), Some(300_000)]
    );
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let (server, served) = server(|served, heard, connection| match heard.earlier {
        0 => begin(connection, served, heard, 100_000),
        _ => answer(connection, "200 OK", "", &served.layer),
    });
    read_all(&pull(&server, &registries()).unwrap());
    assert_eq!(layer_requests(&server, &served), [None, Some(100_000)]);
}

#[test]
fn an_answer_without_a_length_that_ends_early_is_taken_up() {
    let (server, served) = server(|served, heard, connection| match heard.earlier {
        0 => {
            connection
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                .unwrap();
            connection.write_all(&served.layer[..1234]).unwrap();
        }
        _ => served.answer_layer(heard, connection),
    });
    read_all(&pull(&server, &registries()).unwrap());
    assert_eq!(layer_requests(&server, &served), [None, Some(1234)]);
}

#[test]
fn a_connection_that_always_breaks_is_given_up() {
    let (server, served) = server(|served, heard, connection| begin(connection, served, heard, 1000));
    let error = layer_error(&server, &registries());
    let digest = Digest::of(&served.layer);
    assert!(
        error
            .to_string()
            .starts_with(&format!("{digest} broke off after 5000 of 800000 bytes")),
        "{error}"
    );
    assert_eq!(layer_requests(&server, &served).len(), 5);
}

#[test]
fn a_server_that_falls_silent_is_not_waited_for() {
    let (server, served) = server(|served, heard, connection| match heard.earlier {
        0 => {
            begin(connection, served, heard, 5000);
            wait_for_end(connection);
        }
        _ => served.answer_layer(heard, connection),
    });
    let registries = registries().stall_timeout(Duration::from_millis(300));
    let begun = Instant::now();
    read_all(&pull(&server, &registries).unwrap());
    assert_eq!(layer_requests(&server, &served), [None, Some(5000)]);
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn a_server_that_never_answers_is_named_as_such() {
    let server = manifest_server(|_, _, connection| wait_for_end(connection));
    let registries = registries()
        .stall_timeout(Duration::from_millis(200))
        .retries(1, Duration::ZERO);
    let error = pull(&server, &registries).unwrap_err().to_string();
    assert_eq!(error, format!("{} sent nothing for 0.2 s", server.host()));
    assert_eq!(server.heard().len(), 2);
}

#[test]
fn wrong_bytes_are_named_by_both_digests() {
    let (server, served) = server(|served, _, connection| {
        let mut layer = served.layer.clone();
        layer[777] ^= 1;
        answer(connection, "200 OK", "", &layer);
    });
    let error = layer_error(&server, &registries());
    let mut wrong = served.layer.clone();
    wrong[777] ^= 1;
    let (expected, received) = (Digest::of(&served.layer), Digest::of(&wrong));
    assert_eq!(
        error.to_string(),
        format!("what should be {expected} is {received}, 800000 bytes")
    );
    assert_eq!(
        layer_requests(&server, &served).len(),
        1,
        "asking again does not heal it"
    );
}

#[test]
fn too_many_and_too_few_bytes_are_refused_by_their_count() {
    let check = |layer: fn(&Served, &mut TcpStream), received: u64| {
        let (server, served) = server(move |served, _, connection| layer(served, connection));
        let error = layer_error(&server, &registries());
        let digest = Digest::of(&served.layer);
        assert_eq!(
            error.to_string(),
            format!("{digest} has 800000 bytes, and {received} came")
        );
        assert_eq!(layer_requests(&server, &served).len(), 1);
    };
    check(
        |served, connection| answer(connection, "200 OK", "", &served.layer[1..]),
        799_999,
    );
    let more = |served: &Served, connection: &mut TcpStream| {
        answer(
            connection,
            "200 OK",
            "",
            &[served.layer.as_slice(), b"x"].concat(),
        );
    };
    check(more, 800_001);
    // No length: no more than one byte too many is read of what never ends.
    let endless = |served: &Served, connection: &mut TcpStream| {
        connection
            .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            .unwrap();
        while connection.write_all(&served.layer).is_ok() {}
    };
    check(endless, 800_001);
    // Chunks that end early, properly.
    let chunked = |served: &Served, connection: &mut TcpStream| {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n";
        connection.write_all(head).unwrap();
        connection.write_all(&served.layer[..16]).unwrap();
        connection.write_all(b"\r\n0\r\n\r\n").unwrap();
    };
    check(chunked, 16);
}

#[test]
fn other_bytes_than_those_asked_for_are_noticed() {
    let (server, _) = server(|served, heard, connection| match heard.earlier {
        0 => begin(connection, served, heard, 100),
        _ => {
            let range = "Content-Range: bytes 0-799999/800000\r\n";
            answer(connection, "206 Partial Content", range, &served.layer);
        }
    });
    let error = layer_error(&server, &registries());
    let expected = "breaks the protocol: it was asked for bytes from 100 on and sends others";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn failures_of_the_moment_are_waited_out() {
    let server = manifest_server(|served, heard, connection| match heard.earlier {
        0 => answer(connection, "500 Internal Server Error", "", b"oops"),
        1 => answer(connection, "429 Too Many Requests", "Retry-After: 0\r\n", b""),
        2 => answer(
            connection,
            "503 Service Unavailable",
            "Content-Type: text/html\r\n",
            b"<html>",
        ),
        3 => {}
        _ => served.answer(heard, connection),
    });
    read_all(&pull(&server, &registries()).unwrap());
}

#[test]
fn a_registry_that_asks_for_a_long_rest_is_left_alone() {
    let server = manifest_server(|_, _, connection| {
        answer(connection, "429 Too Many Requests", "Retry-After: 3600\r\n", b"");
    });
    let error = pull_error(&server).to_string();
    let expected = "limits how often it may be asked, and wants to be asked again in 3600 s";
    assert_eq!(error, format!("{} {expected}", server.host()));
    assert_eq!(server.heard().len(), 1);
}

#[test]
fn a_failing_registry_is_given_up_with_its_own_words() {
    let server = manifest_server(|_, _, connection| {
        let body = json!({"errors": [{"code": "UNKNOWN", "message": "disk\u{7}full"}]}).to_string();
        answer(connection, "500 Internal Server Error", "", body.as_bytes());
    });
    let error = pull_error(&server).to_string();
    let expected = "answers 500 to GET /v2/a/b/manifests/1 (UNKNOWN: diskfull)";
    assert_eq!(error, format!("{} {expected}", server.host()));
    assert_eq!(server.heard().len(), 5);
}

#[test]
fn a_page_instead_of_a_registry_is_told() {
    for status in ["200 OK", "404 Not Found"] {
        let server = manifest_server(move |_, _, connection| {
            answer(
                connection,
                status,
                "Content-Type: text/html; charset=utf-8\r\n",
                b"<html>Please log in",
            );
        });
        let error = pull_error(&server).to_string();
        assert!(
            error.starts_with(&format!("what answers for {} is no registry", server.host())),
            "{error}"
        );
        assert!(error.contains("a proxy's page"), "{error}");
    }
}

#[test]
fn what_is_not_there_is_missing_by_name() {
    let server = Server::start(|_, connection| answer(connection, "404 Not Found", "", b""));
    let error = pull_error(&server);
    assert!(matches!(error, TransferError::Missing { .. }));
    assert_eq!(error.to_string(), format!("{}/a/b has no 1", server.host()));
    assert_eq!(server.heard().len(), 1);
}

#[test]
fn headers_and_manifests_without_end_are_cut() {
    let server = manifest_server(|_, _, connection| {
        connection.write_all(b"HTTP/1.1 200 OK\r\n").ok();
        while connection
            .write_all(b"X-Filler: 0123456789012345678901234567890123456789\r\n")
            .is_ok()
        {}
    });
    let error = chain(&pull(&server, &registries().retries(0, Duration::ZERO)).unwrap_err());
    assert!(error.contains("header"), "{error}");
    let server = manifest_server(|_, _, connection| {
        connection
            .write_all(format!("HTTP/1.1 200 OK\r\n{MANIFEST_TYPE}\r\n{{\"").as_bytes())
            .ok();
        while connection.write_all(&[b'x'; 65536]).is_ok() {}
    });
    let error = pull_error(&server).to_string();
    assert_eq!(
        error,
        format!("1 of {}/a/b has more than 4194304 bytes", server.host())
    );
}

#[test]
fn documents_that_are_none_are_refused_by_field() {
    let check = |manifest: &'static str, expected: &str| {
        let server = manifest_server(move |_, _, connection| {
            answer(connection, "200 OK", MANIFEST_TYPE, manifest.as_bytes());
        });
        let error = chain(&pull_error(&server));
        assert!(error.contains(expected), "{error}");
    };
    check("{", "the manifest is not valid JSON of its kind: EOF");
    check("{\"schemaVersion\":2}", "missing field `config`");
    check(
        r#"{"schemaVersion":2,"manifests":[],"config":1,"layers":[]}"#,
        "both layers and manifests",
    );
    check(
        r#"{"schemaVersion":2,"layers":[],"config":{"mediaType":"x","digest":"sha256:../../etc/passwd","size":1}}"#,
        "is not a digest",
    );
    let huge = r#"{"schemaVersion":2,"layers":[],"config":{"mediaType":"x","size":99999999999,"digest":
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}"#;
    check(huge, "has more than 4194304 bytes");
}

#[test]
fn a_manifest_asked_by_digest_must_be_that() {
    let server = manifest_server(|served, _, connection| {
        let manifest = [served.manifest.as_slice(), b"\n"].concat();
        answer(connection, "200 OK", MANIFEST_TYPE, &manifest);
    });
    let digest = Digest::of(&Served::new().manifest);
    let reference = format!("{}/a/b:1@{digest}", server.host()).parse().unwrap();
    let error = Image::pull(&registries(), &reference, &Platform::host()).unwrap_err();
    assert!(
        matches!(&error, TransferError::Digest { expected, .. } if *expected == digest),
        "{error}"
    );
    assert!(
        server.heard()[0].path.ends_with(digest.as_str()),
        "the digest decides, not the tag"
    );
}

#[test]
fn nobody_there_is_an_answer() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    drop(listener);
    let begun = Instant::now();
    let reference = format!("{host}/a/b:1").parse().unwrap();
    let registries = registries().retries(9, Duration::from_secs(9));
    let error = Image::pull(&registries, &reference, &Platform::host()).unwrap_err();
    assert!(
        matches!(&error, TransferError::Registry(error) if matches!(**error, RegistryError::Connect { .. })),
        "{error:?}"
    );
    let text = chain(&error);
    assert!(
        text.starts_with(&format!("cannot connect to {host}: ")) && text.contains("refused"),
        "{text}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "a refusal is not asked again"
    );
}
