//! A registry on loopback that serves the images of `KATA_TEST_IMAGES`, an OCI layout: as much of the OCI distribution
//! specification as a pull needs. It runs wherever the tests do, in the nested bed too.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code"
)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) struct Registry {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Registry {
    /// Serves until the test program ends; nothing where the images are missing, which counts as a skip.
    pub(crate) fn start() -> Option<Self> {
        let Some(layout) = std::env::var_os("KATA_TEST_IMAGES").map(PathBuf::from) else {
            let message = "KATA_TEST_IMAGES names no images; run `cargo xtask test`";
            crate::bed::skip(std::thread::current().name().unwrap_or_default(), message);
            return None;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (layout, counter) = (layout.clone(), Arc::clone(&counter));
                std::thread::spawn(move || serve(&connection.unwrap(), &layout, &counter));
            }
        });
        Some(Self { address, requests })
    }

    /// The reference of an image of the layout, in a repository of that name.
    pub(crate) fn image(&self, repository: &str, name: &str) -> String {
        format!("{}/{repository}:{name}", self.address)
    }

    /// How often it was asked for something.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Answers requests of one connection until the other side has enough. What it sees of a client that goes away in the
/// middle is nobody's failure.
fn serve(connection: &TcpStream, layout: &Path, counter: &AtomicUsize) {
    let mut reader = BufReader::new(connection);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let mut header = String::from("-");
        while !header.trim().is_empty() {
            header.clear();
            if reader.read_line(&mut header).unwrap_or(0) == 0 {
                return;
            }
        }
        counter.fetch_add(1, Ordering::SeqCst);
        if answer(connection, layout, &request).is_err() {
            return;
        }
    }
}

fn answer(mut connection: &TcpStream, layout: &Path, request: &str) -> io::Result<()> {
    let mut words = request.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (kind, blob) = find(layout, path);
    let Some(blob) = blob else {
        return connection.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let mut file = File::open(blob)?;
    let length = file.metadata()?.len();
    write!(
        connection,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    )?;
    if method == "GET" {
        io::copy(&mut file, &mut connection)?;
    }
    Ok(())
}

/// The media type and the file of what a path names (OCI distribution specification 1.1, "Endpoints").
fn find(layout: &Path, path: &str) -> (&'static str, Option<PathBuf>) {
    let blob = |digest: &str| {
        let path = layout.join("blobs").join(digest.replace(':', "/"));
        path.is_file().then_some(path)
    };
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    match path.rsplit('/').collect::<Vec<_>>()[..] {
        [digest, "blobs", ..] => ("application/octet-stream", blob(digest)),
        [digest, "manifests", ..] if digest.starts_with("sha256:") => (manifest, blob(digest)),
        [name, "manifests", ..] => (manifest, named(layout, name).and_then(|digest| blob(&digest))),
        _ => ("", None),
    }
}

/// The digest that the layout's index has for a name.
fn named(layout: &Path, name: &str) -> Option<String> {
    let index: serde_json::Value =
        serde_json::from_reader(File::open(layout.join("index.json")).ok()?).ok()?;
    let entries = index["manifests"].as_array()?;
    let is_named =
        |entry: &&serde_json::Value| entry["annotations"]["org.opencontainers.image.ref.name"] == name;
    Some(entries.iter().find(is_named)?["digest"].as_str()?.to_owned())
}
