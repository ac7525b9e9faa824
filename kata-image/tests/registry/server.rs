//! A server of the tests: it hears everything and answers whatever a test wants, right or wrong.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use kata_image::Digest;
use serde_json::json;

/// What came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// How many requests for the same path came before it.
    pub(crate) earlier: usize,
}

impl Heard {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Where a `Range` begins.
    pub(crate) fn range(&self) -> Option<usize> {
        self.header("range")
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

type Handler = dyn Fn(&Heard, &mut TcpStream) + Send + Sync;
/// After how many bytes of a request's body its connection is cut.
type Cut = dyn Fn(&Heard) -> Option<usize> + Send + Sync;

/// A server that ends with its value.
pub(crate) struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Each connection is for one request.
    pub(crate) fn start(handler: impl Fn(&Heard, &mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_cutting(handler, |_| None)
    }

    /// Some connections are cut while their request still comes; the handler hears of them, and its answer is lost.
    pub(crate) fn start_cutting(
        handler: impl Fn(&Heard, &mut TcpStream) + Send + Sync + 'static,
        cut: impl Fn(&Heard) -> Option<usize> + Send + Sync + 'static,
    ) -> Self {
        let cut: Arc<Cut> = Arc::new(cut);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, ended) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, end) = (Arc::clone(&heard), Arc::clone(&ended));
        let handler: Arc<Handler> = Arc::new(handler);
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (log, handler, cut) = (Arc::clone(&log), Arc::clone(&handler), Arc::clone(&cut));
                let Ok(connection) = connection else { continue };
                std::thread::spawn(move || serve(connection, &log, &*handler, &*cut));
            }
        });
        Self {
            address,
            heard,
            ended,
            thread: Some(thread),
        }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // It looks at the flag when somebody comes.
        TcpStream::connect(self.address).ok();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(mut connection: TcpStream, log: &Mutex<Vec<Heard>>, handler: &Handler, cut: &Cut) {
    let mut lines = BufReader::new(connection.try_clone().unwrap());
    let Some(mut heard) = hear(&mut lines) else { return };
    let length = heard.header("content-length").parse().unwrap_or(0);
    let is_same = |other: &&Heard| other.path == heard.path && other.method == heard.method;
    heard.earlier = log.lock().unwrap().iter().filter(is_same).count();
    let limit = cut(&heard);
    heard.body = vec![0; limit.unwrap_or(length)];
    if lines.read_exact(&mut heard.body).is_err() {
        return;
    }
    log.lock().unwrap().push(heard.clone());
    if limit.is_some() {
        // Its answer goes to nobody.
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut lost = TcpStream::connect(nobody.local_addr().unwrap()).unwrap();
        handler(&heard, &mut lost);
        connection.shutdown(Shutdown::Both).ok();
        return;
    }
    handler(&heard, &mut connection);
    connection.shutdown(Shutdown::Write).ok();
    // What is yet to be read would reset the connection when it is closed.
    connection.read_to_end(&mut Vec::new()).ok();
}

pub(crate) fn hear(lines: &mut impl BufRead) -> Option<Heard> {
    let mut line = String::new();
    lines.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let mut heard = Heard {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        ..Heard::default()
    };
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        heard
            .headers
            .insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(heard)
}

/// An answer with a length and these headers, each with its line's end.
pub(crate) fn answer(connection: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    // A client that hangs up has its reasons.
    connection.write_all(head.as_bytes()).ok();
    connection.write_all(body).ok();
}

/// Keeps a connection open until its other side ends it.
pub(crate) fn wait_for_end(connection: &mut TcpStream) {
    connection.read_to_end(&mut Vec::new()).ok();
}

/// An image as a registry has it.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layer: Vec<u8>,
}

pub(crate) const MANIFEST_TYPE: &str = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";

impl Served {
    /// One layer of bytes that repeat after no small number.
    pub(crate) fn new() -> Self {
        Self::of((0..200_000_u32).flat_map(u32::to_le_bytes).collect())
    }

    /// One layer of these bytes.
    pub(crate) fn of(layer: Vec<u8>) -> Self {
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(&layer).to_string()]},
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config).to_string(), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": Digest::of(&layer).to_string(), "size": layer.len(),
            }],
        })
        .to_string()
        .into_bytes();
        Self {
            manifest,
            config,
            layer,
        }
    }

    pub(crate) fn layer_path(&self) -> String {
        format!("/v2/a/b/blobs/{}", Digest::of(&self.layer))
    }

    /// As a registry answers.
    pub(crate) fn answer(&self, heard: &Heard, connection: &mut TcpStream) {
        let config_path = format!("/v2/a/b/blobs/{}", Digest::of(&self.config));
        let digest_path = format!("/v2/a/b/manifests/{}", Digest::of(&self.manifest));
        if heard.path == "/v2/a/b/manifests/1" || heard.path == digest_path {
            answer(connection, "200 OK", MANIFEST_TYPE, &self.manifest);
        } else if heard.path == config_path {
            answer(connection, "200 OK", "", &self.config);
        } else if heard.path == self.layer_path() {
            self.answer_layer(heard, connection);
        } else {
            answer(connection, "404 Not Found", "", b"");
        }
    }

    pub(crate) fn answer_layer(&self, heard: &Heard, connection: &mut TcpStream) {
        let Some(start) = heard.range() else {
            return answer(connection, "200 OK", "", &self.layer);
        };
        let range = format!(
            "Content-Range: bytes {start}-{}/{}\r\n",
            self.layer.len() - 1,
            self.layer.len()
        );
        answer(connection, "206 Partial Content", &range, &self.layer[start..]);
    }
}
