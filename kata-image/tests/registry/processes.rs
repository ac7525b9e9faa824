//! What goes on at the same time: layers of an image, programs that want the same image, and one that dies over it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use kata_image::{Digest, Image, ImageSource, Pull, ReadyImage, Store};

use crate::programs::{registries, tree};
use crate::server::{Heard, MANIFEST_TYPE, Served, Server, answer, hear};

const IMAGES: &str = "KATA_IMAGE_TEST_IMAGES";
const REFERENCE: &str = "KATA_IMAGE_TEST_REFERENCE";
/// A registry that only a proxy knows (RFC 6761 section 6.4: nobody has this name).
const FAR: &str = "registry.invalid:5000";
/// What a program says before it asks the store, and how its line begins when it has the image.
const ASKING: &str = "asking";
const READY: &str = "ready: cached=";

/// A layer with one file that does not fit into what sockets hold.
fn layer() -> Vec<u8> {
    let contents: Vec<u8> = (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, "numbers", contents.as_slice())
        .unwrap();
    archive.into_inner().unwrap()
}

fn pull(images: &Path, reference: &str) -> ReadyImage {
    let source = ImageSource::Registry(reference.parse().unwrap());
    let pull = Pull::default().registries(registries().plain_http(FAR));
    Store::open(images)
        .unwrap()
        .image(&source, &pull, &mut |_| ())
        .unwrap()
}

/// Not a test of its own: what the programs of the other tests do.
#[test]
fn worker() {
    let Some(images) = std::env::var_os(IMAGES) else {
        return;
    };
    let reference = std::env::var(REFERENCE).expect("the image's name");
    let mut output = std::io::stdout();
    writeln!(output, "{ASKING}").unwrap();
    let image = pull(images.as_ref(), &reference);
    writeln!(output, "{READY}{} {}", image.cached, image.layers[0].digest).unwrap();
}

struct Worker {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// A program that is about to ask for the image.
    fn start(images: &Path, reference: &str) -> Self {
        Self::start_with(images, reference, &[])
    }

    /// With these variables, and no proxy that they do not name.
    fn start_with(images: &Path, reference: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "processes::worker", "--nocapture"]);
        command.env(IMAGES, images).env(REFERENCE, reference);
        for variable in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
            command.env_remove(variable).env_remove(variable.to_lowercase());
        }
        command.envs(variables.iter().copied());
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        while !line.trim_end().ends_with(ASKING) {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended early");
        }
        Self { process, output }
    }

    /// Whether the image was there already, and the digest of its layer.
    fn end(mut self) -> (bool, String) {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        assert!(self.process.wait().unwrap().success(), "{text}");
        let line = text.lines().find_map(|line| line.split_once(READY)).unwrap().1;
        let (cached, digest) = line.split_once(' ').unwrap();
        (cached == "true", digest.to_owned())
    }
}

/// A registry that stops in the middle of the layer the first time, says so, and goes on when it is told to.
fn halting() -> (Server, Served, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let served = Served::of(layer());
    let copy = served.clone();
    let (halted, halts) = mpsc::channel();
    let (go_on, told) = mpsc::channel();
    let gate = Mutex::new((halted, told));
    let server = Server::start(move |heard, connection| {
        if heard.path == copy.layer_path() && heard.earlier == 0 {
            answer_in_two(&copy, &gate, connection);
        } else {
            copy.answer(heard, connection);
        }
    });
    (server, served, halts, go_on)
}

fn answer_in_two(
    served: &Served,
    gate: &Mutex<(mpsc::Sender<()>, mpsc::Receiver<()>)>,
    connection: &mut TcpStream,
) {
    let (first, second) = served.layer.split_at(served.layer.len() / 2);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        served.layer.len()
    );
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(first).unwrap();
    let (halted, told) = &*gate.lock().unwrap();
    halted.send(()).unwrap();
    // The test may have ended, and the other side too.
    told.recv().ok();
    connection.write_all(second).ok();
}

/// Waits until the only file in a directory has so many bytes: half of the layer was sent, and is converted as it comes.
fn wait_for_bytes(directory: &Path, bytes: u64) {
    let begin = Instant::now();
    let size = || {
        let mut entries = std::fs::read_dir(directory).unwrap();
        entries.next().unwrap().unwrap().metadata().unwrap().len()
    };
    while size() < bytes {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} bytes", size());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn requests(server: &Server, matches: impl Fn(&Heard) -> bool) -> usize {
    server.heard().iter().filter(|heard| matches(heard)).count()
}

#[test]
fn programs_that_ask_at_once_download_once() {
    let (server, served, halts, go_on) = halting();
    let directory = tempfile::tempdir().unwrap();
    let reference = format!("{}/a/b:1", server.host());
    let start = || Worker::start(directory.path(), &reference);
    let first = start();
    halts.recv().unwrap();
    let others: Vec<_> = (0..3).map(|_| start()).collect();
    go_on.send(()).unwrap();
    let (was_there, digest) = first.end();
    assert!(!was_there);
    for other in others {
        assert_eq!(other.end(), (true, digest.clone()));
    }
    assert_eq!(requests(&server, |heard| heard.path == served.layer_path()), 1);
    assert_eq!(requests(&server, |heard| heard.path.contains("/manifests/")), 1);
}

/// Conformance: semantics 25
#[test]
fn a_program_that_is_killed_over_a_download_leaves_it_to_the_next() {
    let (server, served, halts, _go_on) = halting();
    let directory = tempfile::tempdir().unwrap();
    let reference = format!("{}/a/b:1", server.host());
    let mut killed = Worker::start(directory.path(), &reference);
    halts.recv().unwrap();
    let waiting = Worker::start(directory.path(), &reference);
    let parts = || std::fs::read_dir(directory.path().join("tmp")).unwrap().count();
    assert_eq!(parts(), 1, "a layer that is being written, and nothing beside it");
    wait_for_bytes(&directory.path().join("tmp"), (served.layer.len() / 4) as u64);
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(parts(), 1, "its writer lives");
    killed.process.kill().unwrap();
    killed.process.wait().unwrap();
    let (was_there, digest) = waiting.end();
    assert!(!was_there);
    assert_eq!(requests(&server, |heard| heard.path == served.layer_path()), 2);
    drop(store);
    let image = pull(directory.path(), &reference);
    assert_eq!((image.cached, &image.layers[0].digest), (true, &digest));
    assert_eq!(parts(), 0, "what the dead one left is gone");
    let bytes = std::fs::read(&image.layers[0].path).unwrap();
    assert_eq!(Digest::of(&bytes).to_string(), digest);
}

#[test]
fn layers_are_fetched_at_the_same_time() {
    let trees = ["1", "2", "3"].map(|text| tree(&[("file", text.as_bytes())]));
    let builder = trees
        .iter()
        .fold(Image::builder(), |builder, tree| builder.directory(tree.path()));
    let image = builder.build(&mut |_| ()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    image.write_layout(&layout, Some("1"), &mut |_| ()).unwrap();
    let layers: Vec<String> = image
        .layers()
        .iter()
        .map(|layer| layer.digest.to_string())
        .collect();
    let manifest = image.digest().to_string();
    let (asked, all_asked) = (Mutex::new(0), Condvar::new());
    let server = Server::start(move |heard, connection| {
        let digest = heard.path.rsplit('/').next().unwrap();
        let digest = if digest == "1" { &manifest } else { digest };
        if layers.iter().any(|layer| layer == digest) {
            let mut count = asked.lock().unwrap();
            *count += 1;
            all_asked.notify_all();
            // Nobody is answered before all are asked for.
            let patience = Duration::from_secs(60);
            let waited = all_asked
                .wait_timeout_while(count, patience, |count| *count < 3)
                .unwrap();
            if waited.1.timed_out() {
                return;
            }
        }
        let blob = std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap();
        answer(
            connection,
            "200 OK",
            if *digest == *manifest { MANIFEST_TYPE } else { "" },
            &blob,
        );
    });
    let pulled = pull(
        &directory.path().join("images"),
        &format!("{}/a/b:1", server.host()),
    );
    assert_eq!(pulled.layers.len(), 3);
}

#[test]
fn what_is_far_is_reached_by_the_proxy_of_the_environment() {
    let served = Served::of(layer());
    let copy = served.clone();
    let (tunnelled, requests) = mpsc::channel();
    let tunnelled = Mutex::new(tunnelled);
    let proxy = Server::start(move |heard, connection| {
        assert_eq!((heard.method.as_str(), heard.path.as_str()), ("CONNECT", FAR));
        connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let inner = hear(&mut BufReader::new(connection.try_clone().unwrap())).unwrap();
        tunnelled.lock().unwrap().send(inner.path.clone()).unwrap();
        copy.answer(&inner, connection);
    });
    let directory = tempfile::tempdir().unwrap();
    let by = format!("http://{}", proxy.host());
    let reference = format!("{FAR}/a/b:1");
    let (was_there, _) = Worker::start_with(directory.path(), &reference, &[("HTTP_PROXY", &by)]).end();
    assert!(!was_there);
    assert!(requests.try_iter().any(|path| path == served.layer_path()));
    // What is on this machine no proxy can reach.
    let near = Server::start(move |heard, connection| served.answer(heard, connection));
    let before = proxy.heard().len();
    let reference = format!("{}/a/b:1", near.host());
    Worker::start_with(directory.path(), &reference, &[("HTTP_PROXY", &by)]).end();
    assert_eq!(proxy.heard().len(), before);
}
