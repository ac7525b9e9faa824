//! The store under stress: several at once, full disks, damage, death.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;

use kata_image::{Rootfs, Source, Store, StoreError};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use sha2::{Digest, Sha256};

use crate::forged::Forged;
use crate::oracle::{can_mount, chain, run};
use crate::trees::pattern;

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for index in 0..50 {
            fs::write(tree.join(format!("{index}")), pattern(index * 500)).unwrap();
        }
        Self { directory }
    }

    fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    fn source(&self) -> Source {
        Source::Directory(self.tree())
    }

    fn archive(&self) -> Source {
        let path = self.directory.path().join("archive.tar");
        fs::write(
            &path,
            Forged::default().file("a", "contents").file("b", "more").end(),
        )
        .unwrap();
        Source::Archive(path)
    }

    fn images(&self) -> PathBuf {
        self.directory.path().join("images")
    }

    fn store(&self) -> Store {
        Store::open(self.images()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        names(&self.images())
    }
}

/// Files and directories of the store itself.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort_unstable();
    names
}

fn rootfs(store: &Store, source: &Source) -> Rootfs {
    store
        .rootfs(source, &mut |_| {})
        .unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn check(rootfs: &Rootfs) {
    let bytes = fs::read(&rootfs.path).unwrap();
    assert_eq!(
        rootfs.digest,
        format!("sha256:{}", hex::encode(Sha256::digest(&bytes)))
    );
    assert_eq!(rootfs.size_bytes, bytes.len() as u64);
    assert_eq!(rootfs.file.metadata().unwrap().len(), rootfs.size_bytes);
    assert!(
        rootfs.file.write_at(b"x", 0).is_err(),
        "the image is open for writing"
    );
}

#[test]
fn the_second_call_reads_nothing() {
    let bench = Bench::new();
    for source in [bench.source(), bench.archive()] {
        let store = bench.store();
        let first = rootfs(&store, &source);
        check(&first);
        assert!(!first.cached);
        let mut reports = 0;
        let second = store.rootfs(&source, &mut |_| reports += 1).unwrap();
        assert!(second.cached);
        assert_eq!(
            (second.digest, second.path, reports),
            (first.digest, first.path, 0)
        );
    }
}

#[test]
fn a_change_of_the_source_makes_a_new_image() {
    let bench = Bench::new();
    let store = bench.store();
    let first = rootfs(&store, &bench.source());
    fs::write(bench.tree().join("7"), "changed").unwrap();
    let second = rootfs(&store, &bench.source());
    check(&second);
    assert!(!second.cached);
    assert_ne!(first.digest, second.digest);
    assert!(rootfs(&store, &bench.source()).cached);
}

#[test]
fn one_source_by_two_paths_is_converted_once() {
    let bench = Bench::new();
    let link = bench.directory.path().join("link");
    std::os::unix::fs::symlink(bench.tree(), &link).unwrap();
    let first = rootfs(&bench.store(), &bench.source());
    let second = rootfs(&bench.store(), &Source::Directory(link));
    assert!(second.cached);
    assert_eq!(first.digest, second.digest);
}

#[test]
fn damaged_images_are_made_again() {
    let bench = Bench::new();
    let store = bench.store();
    let first = rootfs(&store, &bench.source());
    let damages: [&dyn Fn(&Path); 4] = [
        &|path| {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(5000)
                .unwrap()
        },
        &|path| {
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .write_all_at(b"damage", 9000)
                .unwrap()
        },
        &|path| fs::remove_file(path).unwrap(),
        &|path| fs::write(path, "").unwrap(),
    ];
    for (index, damage) in damages.iter().enumerate() {
        damage(&first.path);
        let again = rootfs(&store, &bench.source());
        assert!(!again.cached, "damage {index} was not noticed");
        assert_eq!(again.digest, first.digest);
        check(&again);
        assert!(rootfs(&store, &bench.source()).cached);
    }
}

#[test]
fn an_image_that_was_only_touched_is_kept() {
    let bench = Bench::new();
    let store = bench.store();
    let first = rootfs(&store, &bench.source());
    let copy = fs::read(&first.path).unwrap();
    fs::remove_file(&first.path).unwrap();
    fs::write(&first.path, copy).unwrap();
    assert!(rootfs(&store, &bench.source()).cached);
}

#[test]
fn a_damaged_index_is_written_anew() {
    let bench = Bench::new();
    let store = bench.store();
    rootfs(&store, &bench.source());
    let index = bench.images().join("index");
    let record = index.join(&names(&index)[0]);
    fs::write(&record, "{\"fingerprint\":").unwrap();
    assert!(!rootfs(&store, &bench.source()).cached);
    assert!(rootfs(&store, &bench.source()).cached);
}

#[test]
fn a_ready_image_is_used_where_it_is() {
    let bench = Bench::new();
    let store = bench.store();
    let made = rootfs(&store, &bench.source());
    let image = bench.directory.path().join("ready.erofs");
    fs::copy(&made.path, &image).unwrap();
    let source = Source::detect(&image).unwrap();
    let adopted = rootfs(&store, &source);
    check(&adopted);
    assert_eq!(
        (adopted.path.clone(), adopted.digest, adopted.cached),
        (image.clone(), made.digest, false)
    );
    assert!(rootfs(&store, &source).cached);
    File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .write_all_at(b"x", 1030)
        .unwrap();
    let error = store.rootfs(&source, &mut |_| {}).unwrap_err();
    assert!(matches!(error, StoreError::Superblock { .. }), "{error:?}");
}

#[test]
fn threads_that_ask_at_once_convert_once() {
    let bench = Bench::new();
    let barrier = Barrier::new(8);
    let ask = || {
        let store = bench.store();
        barrier.wait();
        rootfs(&store, &bench.source())
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(all.iter().filter(|rootfs| !rootfs.cached).count(), 1);
    assert!(all.iter().all(|rootfs| rootfs.digest == all[0].digest));
    check(&all[0]);
    assert_eq!(names(&bench.images().join("tmp")), [""; 0]);
}

/// Not a test of its own: what the processes of other tests do.
#[test]
fn worker() {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let Some(source) = variable("KATA_IMAGE_TEST_SOURCE") else {
        return;
    };
    let images = variable("KATA_IMAGE_TEST_IMAGES").expect("the store's directory");
    let source = if source.is_dir() {
        Source::Directory(source)
    } else {
        Source::Archive(source)
    };
    let rootfs = rootfs(&Store::open(images).unwrap(), &source);
    writeln!(
        std::io::stderr(),
        "worker: cached={} {}",
        rootfs.cached,
        rootfs.digest
    )
    .unwrap();
}

fn spawn_worker(images: &Path, source: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "store::worker", "--nocapture"]);
    command
        .env("KATA_IMAGE_TEST_IMAGES", images)
        .env("KATA_IMAGE_TEST_SOURCE", source);
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn processes_that_ask_at_once_convert_once() {
    let bench = Bench::new();
    let workers: Vec<_> = (0..4)
        .map(|_| spawn_worker(&bench.images(), &bench.tree()))
        .collect();
    let outputs = workers
        .into_iter()
        .map(|worker| worker.wait_with_output().unwrap().stderr);
    let outputs: Vec<_> = outputs.map(|bytes| String::from_utf8(bytes).unwrap()).collect();
    let made = outputs
        .iter()
        .filter(|output| output.contains("worker: cached=false sha256:"))
        .count();
    let found = outputs
        .iter()
        .filter(|output| output.contains("worker: cached=true sha256:"))
        .count();
    assert_eq!((made, found), (1, 3), "{outputs:?}");
}

/// Conformance: semantics 25
#[test]
fn a_process_that_is_killed_while_it_converts_leaves_a_valid_store() {
    let bench = Bench::new();
    let contents = "x".repeat(4 << 20);
    let archive = Forged::default().file("a", &contents).end();
    let path = bench.directory.path().join("archive.tar");
    // From a pipe, so that the worker stands still in the middle.
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let mut worker = spawn_worker(&bench.images(), &path);
    let mut pipe = File::options().write(true).open(&path).unwrap();
    pipe.write_all(&archive[..3 << 20]).unwrap();
    worker.kill().unwrap();
    worker.wait().unwrap();
    let tmp = bench.images().join("tmp");
    assert_eq!(names(&tmp).len(), 1, "the worker was not converting");
    fs::remove_file(&path).unwrap();
    fs::write(&path, &archive).unwrap();
    let store = bench.store();
    assert_eq!(names(&tmp), [""; 0]);
    let made = rootfs(&store, &Source::Archive(path));
    assert!(!made.cached);
    check(&made);
}

#[test]
fn what_a_dead_process_left_is_swept_and_in_nobodys_way() {
    let bench = Bench::new();
    bench.store();
    let left = bench.images().join("tmp/part-of-the-dead");
    fs::write(&left, pattern(10_000)).unwrap();
    let store = bench.store();
    assert!(!left.exists());
    check(&rootfs(&store, &bench.source()));
}

#[test]
fn a_source_that_is_refused_leaves_nothing() {
    let bench = Bench::new();
    let archive = bench.directory.path().join("bad.tar");
    fs::write(&archive, Forged::default().file("a", "x").file("../b", "y").end()).unwrap();
    let error = bench
        .store()
        .rootfs(&Source::Archive(archive.clone()), &mut |_| {})
        .unwrap_err();
    let expected = format!(
        "cannot make an image of {0}: {0} holds an entry that is refused: ../b leaves the root",
        archive.display()
    );
    assert_eq!(chain(&error), expected);
    assert_eq!(
        bench.names(),
        ["index", "layers", "lock", "names", "tmp", "trees", "writable"]
    );
    assert_eq!(names(&bench.images().join("tmp")), [""; 0]);
    assert_eq!(names(&bench.images().join("index")), [""; 0]);
}

/// A small filesystem of its own.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(directory.path()));
        Self(directory)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.0.path()));
    }
}

#[test]
fn a_full_disk_is_an_error_that_says_how_much_is_missing() {
    if !can_mount("a_full_disk_is_an_error_that_says_how_much_is_missing") {
        return;
    }
    let bench = Bench::new();
    fs::write(bench.tree().join("large"), vec![7; 8 << 20]).unwrap();
    let tmpfs = Tmpfs::new("4m");
    let store = Store::open(tmpfs.0.path()).unwrap();
    let error = store.rootfs(&bench.source(), &mut |_| {}).unwrap_err();
    let StoreError::NoSpace {
        path,
        needed_bytes,
        available_bytes,
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!(path, tmpfs.0.path());
    assert!(*needed_bytes >= 8 << 20, "{needed_bytes}");
    assert!(*available_bytes <= 4 << 20, "{available_bytes}");
    assert_eq!(
        names(tmpfs.0.path()),
        ["index", "layers", "lock", "names", "tmp", "trees", "writable"]
    );
    assert_eq!(names(&tmpfs.0.path().join("tmp")), [""; 0]);
    fs::remove_file(bench.tree().join("large")).unwrap();
    check(&rootfs(&store, &bench.source()));
}
