use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode};

use super::*;
use crate::kata::{Attribute, End, Entry, Piece, entry::Kind};

const TRUSTING: Policy = Policy {
    owners: true,
    privileges: true,
    limit_bytes: None,
};

const CAREFUL: Policy = Policy {
    owners: false,
    privileges: false,
    limit_bytes: None,
};

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["from", "to", "outside"] {
            fs::create_dir(directory.path().join(name)).expect("made");
        }
        Bench { directory }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    fn write(&self, below: &str, text: &str) {
        fs::write(self.path(below), text).expect("written");
    }

    fn read(&self, below: &str) -> String {
        fs::read_to_string(self.path(below)).unwrap_or_else(|error| panic!("{below}: {error}"))
    }

    /// Copies on a thread of its own, as both sides do it.
    fn copy(
        &self,
        from: &str,
        to: &str,
        policy: Policy,
    ) -> (Result<Tally, FilesError>, Result<Tally, FilesError>) {
        let (near, far) = UnixStream::pair().expect("a pair");
        let (from, to) = (self.path(from), self.path(to));
        let name = name_of(&from).map(<[u8]>::to_vec);
        let receiving = std::thread::spawn(move || {
            let root = Root::own().expect("a root");
            receive(&root, &to, name.as_deref(), policy, &far, &mut |_, _| {})
        });
        let root = Root::own().expect("a root");
        let sent = send(&root, &from, &near, &mut |_, _| {});
        drop(near);
        (sent, receiving.join().expect("no panic"))
    }

    fn copied(&self, from: &str, to: &str) -> Tally {
        let (sent, received) = self.copy(from, to, TRUSTING);
        let (sent, received) = (sent.expect("sent"), received.expect("received"));
        assert_eq!((sent.entries, sent.bytes), (received.entries, received.bytes));
        received
    }

    fn refused(&self, from: &str, to: &str) -> FilesError {
        self.copy(from, to, TRUSTING).1.expect_err("refused")
    }

    /// What a stream of somebody who lies makes in `to`.
    fn told(
        &self,
        policy: Policy,
        tell: impl FnOnce(&mut StepWriter<&UnixStream>),
    ) -> Result<Tally, FilesError> {
        let (near, far) = UnixStream::pair().expect("a pair");
        let to = self.path("to");
        let receiving = std::thread::spawn(move || {
            let root = Root::own().expect("a root");
            receive(&root, &to, None, policy, &far, &mut |_, _| {})
        });
        let mut writer = StepWriter::new(&near);
        tell(&mut writer);
        let _ = writer.end(End::new());
        near.shutdown(std::net::Shutdown::Write).expect("shut down");
        receiving.join().expect("no panic")
    }
}

fn entry(kind: Kind, path: &str) -> Entry {
    Entry {
        kind: kind.into(),
        path: path.into(),
        mode: 0o755,
        ..Default::default()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything that is kept of what is below a directory, a line each.
fn listing(base: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for found in fs::read_dir(base.join(&directory)).expect("a directory") {
            let path = directory.join(found.expect("an entry").file_name());
            let metadata = fs::symlink_metadata(base.join(&path)).expect("metadata");
            if metadata.is_dir() {
                directories.push(path.clone());
            }
            let content = match fs::read_link(base.join(&path)) {
                Ok(target) => target.display().to_string(),
                Err(_) if metadata.is_file() => fs::read_to_string(base.join(&path)).expect("text"),
                Err(_) => String::new(),
            };
            lines.push(format!(
                "{} {:o} {}:{} {}.{} {} {content:?}",
                path.display(),
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.rdev(),
            ));
        }
    }
    lines.sort();
    lines
}

#[test]
fn a_tree_arrives_as_it_was() {
    let bench = Bench::new();
    fs::create_dir_all(bench.path("from/tree/deep/er")).expect("made");
    bench.write("from/tree/deep/file", "text");
    bench.write("from/tree/empty", "");
    fs::hard_link(bench.path("from/tree/deep/file"), bench.path("from/tree/second")).expect("linked");
    symlink("/no/where", bench.path("from/tree/link")).expect("linked");
    fs::set_permissions(bench.path("from/tree/empty"), Permissions::from_mode(0o4751)).expect("set");
    fs::set_permissions(bench.path("from/tree/deep/er"), Permissions::from_mode(0o1700)).expect("set");
    rustix::fs::mknodat(
        CWD,
        bench.path("from/tree/pipe"),
        FileType::Fifo,
        Mode::from_raw_mode(0o620),
        0,
    )
    .expect("made");
    if is_root() {
        let device = rustix::fs::makedev(1, 3);
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(
            CWD,
            bench.path("from/tree/null"),
            FileType::CharacterDevice,
            mode,
            device,
        )
        .expect("made");
        std::os::unix::fs::lchown(bench.path("from/tree/link"), Some(7), Some(8)).expect("owned");
        std::os::unix::fs::chown(bench.path("from/tree/deep"), Some(9), Some(10)).expect("owned");
    }
    let old = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec {
            tv_sec: 5,
            tv_nsec: 6,
        },
        last_modification: rustix::fs::Timespec {
            tv_sec: 7,
            tv_nsec: 8,
        },
    };
    for path in ["from/tree/deep", "from/tree/link"] {
        rustix::fs::utimensat(CWD, bench.path(path), &old, AtFlags::SYMLINK_NOFOLLOW).expect("set");
    }
    let tally = bench.copied("from/tree", "to");
    assert_eq!((tally.entries, tally.bytes), (if is_root() { 9 } else { 8 }, 4));
    assert_eq!((tally.omissions, tally.omitted), (0, Vec::new()));
    assert_eq!(listing(&bench.path("to/tree")), listing(&bench.path("from/tree")));
    let inode = |path| fs::metadata(bench.path(path)).expect("there").ino();
    assert_eq!(inode("to/tree/deep/file"), inode("to/tree/second"));
}

#[test]
fn attributes_arrive_where_the_file_system_has_them() {
    let bench = Bench::new();
    bench.write("from/file", "text");
    let value = b"any\0bytes\n";
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::setxattr(bench.path("from/file"), "user.kata", value, flags).is_err() {
        eprintln!("SKIPPED: optional: the directory for temporary files has no extended attributes");
        return;
    }
    assert_eq!(bench.copied("from/file", "to").omissions, 0);
    let mut found = [0; 64];
    let length = rustix::fs::getxattr(bench.path("to/file"), "user.kata", &mut found[..]).expect("there");
    assert_eq!(&found[..length], value);
}

#[test]
fn holes_stay_holes_and_cost_nothing() {
    let bench = Bench::new();
    let file = fs::File::create(bench.path("from/sparse")).expect("made");
    file.write_all_at(b"begin", 0).expect("written");
    file.write_all_at(b"middle", 1 << 30).expect("written");
    file.set_len(1 << 40).expect("set");
    let tally = bench.copied("from/sparse", "to");
    assert!(tally.bytes < 1 << 20, "{tally:?}");
    let copy = fs::File::open(bench.path("to/sparse")).expect("there");
    assert_eq!(copy.metadata().expect("metadata").len(), 1 << 40);
    assert!(copy.metadata().expect("metadata").blocks() < 4096);
    let mut text = [0; 6];
    copy.read_exact_at(&mut text, 1 << 30).expect("read");
    assert_eq!(&text, b"middle");
}

#[test]
fn what_the_kernel_says_of_itself_is_read_to_its_end() {
    let bench = Bench::new();
    let link = bench.path("from/status");
    symlink("/proc/self/status", &link).expect("linked");
    let (near, far) = UnixStream::pair().expect("a pair");
    let to = bench.path("to/status");
    let receiving = std::thread::spawn(move || {
        let root = Root::own().expect("a root");
        receive(&root, &to, Some(b"status"), TRUSTING, &far, &mut |_, _| {})
    });
    let root = Root::own().expect("a root");
    send(&root, Path::new("/proc/version"), &near, &mut |_, _| {}).expect("sent");
    receiving.join().expect("no panic").expect("received");
    assert!(bench.read("to/status").starts_with("Linux version"));
}

#[test]
fn destinations_are_as_docker_has_them() {
    let bench = Bench::new();
    bench.write("from/file", "new");
    fs::create_dir_all(bench.path("from/dir/sub")).expect("made");
    bench.write("from/dir/a", "a");
    // A file: a name that is free, a directory, a file, a link to one.
    bench.copied("from/file", "to/other");
    bench.copied("from/file", "to");
    bench.copied("from/file", "to/");
    bench.write("to/old", "old and longer");
    bench.copied("from/file", "to/old");
    bench.write("outside/target", "old");
    symlink(bench.path("outside/target"), bench.path("to/pointer")).expect("linked");
    bench.copied("from/file", "to/pointer");
    for path in ["to/other", "to/file", "to/old", "outside/target"] {
        assert_eq!(bench.read(path), "new", "{path}");
    }
    // A directory: a free name, with a slash too; into a directory; its contents only.
    bench.copied("from/dir", "to/fresh");
    bench.copied("from/dir", "to/slash/");
    bench.copied("from/dir", "to");
    fs::create_dir(bench.path("to/merged")).expect("made");
    fs::set_permissions(bench.path("to/merged"), Permissions::from_mode(0o700)).expect("set");
    bench.write("to/merged/kept", "kept");
    bench.copied("from/dir/.", "to/merged");
    for path in ["to/fresh/a", "to/slash/a", "to/dir/a", "to/merged/a"] {
        assert_eq!(bench.read(path), "a", "{path}");
    }
    assert_eq!(bench.read("to/merged/kept"), "kept");
    let mode = fs::metadata(bench.path("to/merged")).expect("there").mode();
    assert_eq!(mode & 0o7777, 0o700, "a directory that was there stays as it is");
    // A link at the end of a source is copied, unless it is written as a directory.
    symlink("dir", bench.path("from/link")).expect("linked");
    bench.copied("from/link", "to/as-link");
    assert_eq!(
        fs::read_link(bench.path("to/as-link")).expect("a link"),
        Path::new("dir")
    );
    bench.copied("from/link/", "to/as-directory");
    assert_eq!(bench.read("to/as-directory/a"), "a");
}

#[test]
fn what_cannot_be_copied_is_refused_by_its_path() {
    let bench = Bench::new();
    bench.write("from/file", "new");
    fs::create_dir_all(bench.path("from/dir/file")).expect("made");
    bench.write("to/file", "old");
    let missing = |error: &FilesError, path: &str| match error {
        FilesError::NoSuchFile(at) => assert_eq!(*at, bench.path(path)),
        other => panic!("{other}"),
    };
    let misplaced = |error: &FilesError, path: &str| match error {
        FilesError::NotADirectory(at) => assert_eq!(*at, bench.path(path)),
        other => panic!("{other}"),
    };
    missing(&bench.refused("from/file", "to/absent/"), "to/absent/");
    missing(&bench.refused("from/file", "to/no/way"), "to/no");
    misplaced(&bench.refused("from/dir", "to/file"), "to/file");
    misplaced(&bench.refused("from/file", "to/file/"), "to/file/");
    misplaced(&bench.refused("from/file", "to/file/below"), "to/file/below");
    misplaced(&bench.refused("from/dir/.", "to"), "to/file");
    fs::create_dir_all(bench.path("to/second/file")).expect("made");
    misplaced(&bench.refused("from/file", "to/second"), "to/second/file");
    missing(
        &bench.copy("from/absent", "to", TRUSTING).0.expect_err("refused"),
        "from/absent",
    );
    misplaced(
        &bench.copy("from/file/", "to", TRUSTING).0.expect_err("refused"),
        "from/file/",
    );
    assert_eq!(bench.read("to/file"), "old");
}

#[test]
fn paths_begin_at_the_root_and_stay_in_it() {
    let bench = Bench::new();
    bench.write("outside/secret", "secret");
    bench.write("from/file", "new");
    for (target, name) in [
        ("/../outside", "up"),
        ("/outside", "absolute"),
        ("../../outside", "over"),
    ] {
        symlink(target, bench.path("to").join(name)).expect("linked");
    }
    let root = Root::of(&bench.path("to")).expect("a root");
    for path in [
        "/up/secret",
        "/absolute/secret",
        "/over/secret",
        "/../outside/secret",
    ] {
        let (near, _far) = UnixStream::pair().expect("a pair");
        let error = send(&root, Path::new(path), &near, &mut |_, _| {}).expect_err("not there");
        assert!(matches!(error, FilesError::NoSuchFile(_)), "{path}: {error}");
    }
    fs::create_dir(bench.path("to/outside")).expect("made");
    let (near, far) = UnixStream::pair().expect("a pair");
    let receiving = std::thread::spawn(move || {
        receive(
            &root,
            Path::new("/over"),
            Some(b"file"),
            TRUSTING,
            &far,
            &mut |_, _| {},
        )
    });
    let own = Root::own().expect("a root");
    send(&own, &bench.path("from/file"), &near, &mut |_, _| {}).expect("sent");
    receiving.join().expect("no panic").expect("received");
    assert_eq!(bench.read("to/outside/file"), "new");
    assert_eq!(fs::read_dir(bench.path("outside")).expect("there").count(), 1);
}

#[test]
fn a_stream_that_lies_makes_nothing_outside() {
    let paths = [
        "..",
        "../x",
        "/x",
        "a/../../x",
        "a//b",
        "a/",
        "./a",
        ".",
        &"x".repeat(256),
        &"x/".repeat(3000),
    ];
    for path in paths {
        let bench = Bench::new();
        let told = bench.told(TRUSTING, |stream| {
            let _ = stream.entry(entry(Kind::DIRECTORY, ""));
            let _ = stream.entry(entry(Kind::FILE, path));
        });
        assert!(matches!(told, Err(FilesError::Malformed(_))), "{path}: {told:?}");
        assert_eq!(listing(&bench.path("to")), [""; 0], "{path}");
    }
    // Through a link that it made itself.
    let bench = Bench::new();
    let outside = bench.path("outside");
    let told = bench.told(TRUSTING, |stream| {
        let _ = stream.entry(entry(Kind::DIRECTORY, ""));
        let _ = stream.entry(Entry {
            target: outside.to_str().expect("text").into(),
            ..entry(Kind::SYMBOLIC_LINK, "link")
        });
        let _ = stream.entry(entry(Kind::FILE, "link/x"));
    });
    assert!(matches!(told, Err(FilesError::NotADirectory(_))), "{told:?}");
    // A directory where the link is, and a hard link through it.
    let told = bench.told(TRUSTING, |stream| {
        let _ = stream.entry(entry(Kind::DIRECTORY, ""));
        let _ = stream.entry(entry(Kind::DIRECTORY, "link"));
    });
    assert!(matches!(told, Err(FilesError::NotADirectory(_))), "{told:?}");
    bench.write("outside/secret", "secret");
    let told = bench.told(TRUSTING, |stream| {
        let _ = stream.entry(entry(Kind::DIRECTORY, ""));
        let _ = stream.entry(Entry {
            target: "link/secret".into(),
            ..entry(Kind::HARD_LINK, "mine")
        });
    });
    assert!(matches!(told, Err(FilesError::NotADirectory(_))), "{told:?}");
    assert_eq!(fs::read_dir(&outside).expect("there").count(), 1);
}

#[test]
fn a_stream_without_sense_is_malformed() {
    type Tell = fn(&mut StepWriter<&UnixStream>);
    let root = entry(Kind::DIRECTORY, "");
    let cases: [(&str, Tell); 8] = [
        ("nothing", |_| {}),
        ("no root", |stream| drop(stream.entry(entry(Kind::FILE, "a")))),
        ("two roots", |stream| {
            let _ = stream.entry(entry(Kind::DIRECTORY, ""));
            let _ = stream.entry(entry(Kind::DIRECTORY, ""));
        }),
        ("a piece of a directory", |stream| {
            let _ = stream.entry(entry(Kind::DIRECTORY, ""));
            let _ = stream.piece(0, b"x");
        }),
        ("pieces out of order", |stream| {
            let _ = stream.entry(entry(Kind::DIRECTORY, ""));
            let _ = stream.entry(entry(Kind::FILE, "a"));
            let _ = stream.piece(5, b"xy");
            let _ = stream.piece(6, b"z");
        }),
        ("an offset that none has", |stream| {
            let _ = stream.entry(entry(Kind::DIRECTORY, ""));
            let _ = stream.entry(entry(Kind::FILE, "a"));
            let _ = stream.piece(u64::MAX, b"x");
        }),
        ("an entry of no kind", |stream| {
            let _ = stream.entry(entry(Kind::DIRECTORY, ""));
            let _ = stream.entry(entry(Kind::UNSPECIFIED, "a"));
        }),
        ("below a file", |stream| {
            let _ = stream.entry(entry(Kind::FILE, ""));
            let _ = stream.entry(entry(Kind::FILE, "a"));
        }),
    ];
    assert_eq!(root.path, b"");
    for (name, tell) in cases {
        let bench = Bench::new();
        let told = bench.told(TRUSTING, tell);
        let is_refused = matches!(told, Err(FilesError::Malformed(_) | FilesError::NotADirectory(_)));
        assert!(is_refused, "{name}: {told:?}");
        assert!(!bench.path("to/a").exists(), "{name}");
    }
    // A length that nothing has, and a stream that breaks off.
    for bytes in [&b"\xff\xff\xff\xff\x0f"[..], b"\x05\x0a", b""] {
        let mut reader = StepReader::new(bytes);
        assert!(reader.next_item().is_err(), "{bytes:?}");
    }
}

#[test]
fn memory_is_not_taken_for_what_is_only_announced() {
    let message = crate::kata::Step {
        step: Some(crate::kata::step::Step::Piece(Piece {
            bytes: u32::MAX,
            ..Default::default()
        })),
        ..Default::default()
    };
    let mut bytes = Vec::new();
    StepWriter::new(&mut bytes)
        .entry(entry(Kind::FILE, ""))
        .expect("written");
    let mut stream = Vec::new();
    let mut writer = StepWriter::new(&mut stream);
    writer.entry(entry(Kind::FILE, "")).expect("written");
    writer.end(End::new()).expect("written");
    // In place of its end, which is two bytes.
    stream.truncate(stream.len() - 3);
    protobuf::Message::write_length_delimited_to_vec(&message, &mut stream).expect("written");
    let mut reader = StepReader::new(&stream[..]);
    reader.next_item().expect("a file");
    assert!(matches!(reader.next_item(), Err(FilesError::Malformed(_))));
}

#[test]
fn a_careful_host_makes_no_privileges_and_says_so() {
    let bench = Bench::new();
    let told = bench.told(CAREFUL, |stream| {
        let _ = stream.entry(entry(Kind::DIRECTORY, ""));
        let _ = stream.entry(Entry {
            mode: 0o6755,
            attributes: vec![
                Attribute {
                    name: b"security.capability".to_vec(),
                    value: vec![1, 0, 0, 2],
                    ..Default::default()
                },
                Attribute {
                    name: b"trusted.overlay.opaque".to_vec(),
                    value: b"y".to_vec(),
                    ..Default::default()
                },
            ],
            ..entry(Kind::FILE, "program")
        });
        let _ = stream.entry(Entry {
            major: 1,
            minor: 1,
            ..entry(Kind::CHARACTER, "mem")
        });
    });
    let tally = told.expect("received");
    assert_eq!(tally.omissions, 4, "{tally:?}");
    let mode = fs::metadata(bench.path("to/program")).expect("made").mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert!(!bench.path("to/mem").exists());
}

#[test]
fn a_limit_ends_a_copy_and_no_part_of_a_file_stays() {
    let bench = Bench::new();
    let policy = Policy {
        limit_bytes: Some(1 << 20),
        ..CAREFUL
    };
    let told = bench.told(policy, |stream| {
        let _ = stream.entry(entry(Kind::DIRECTORY, ""));
        let _ = stream.entry(entry(Kind::FILE, "endless"));
        for at in 0..64 {
            if stream.piece(at << 16, &[1; 1 << 16]).is_err() {
                break;
            }
        }
    });
    assert!(matches!(told, Err(FilesError::TooMuch(_))), "{told:?}");
    assert!(!bench.path("to/endless").exists());
    let told = bench.told(policy, |stream| {
        let _ = stream.entry(entry(Kind::DIRECTORY, ""));
        for name in 0..10_000 {
            if stream.entry(entry(Kind::FIFO, &name.to_string())).is_err() {
                break;
            }
        }
    });
    assert!(matches!(told, Err(FilesError::TooMuch(_))), "{told:?}");
}

#[test]
fn a_full_disk_is_told_by_the_path_that_did_not_fit() {
    let bench = Bench::new();
    let path = bench.path("to/file");
    let error = FilesError::of(&path, "write it")(rustix::io::Errno::NOSPC);
    assert!(matches!(&error, FilesError::NoSpace(at) if *at == path));
    let failed = error.failed();
    assert_eq!(
        (failed.kind, failed.subject),
        (crate::FailureKind::NoSpace, path.display().to_string())
    );
}

#[test]
fn progress_is_told_and_ends_with_everything() {
    let bench = Bench::new();
    for name in 0..600 {
        bench.write(&format!("from/{name}"), "x");
    }
    let (mut near, mut far) = UnixStream::pair().expect("a pair");
    let from = bench.path("from");
    let sending = std::thread::spawn(move || {
        let mut told = Vec::new();
        let root = Root::own().expect("a root");
        send(&root, &from, &near, &mut |entries, bytes| {
            told.push((entries, bytes))
        })
        .expect("sent");
        let _ = near.flush();
        told
    });
    let mut reader = StepReader::new(&far);
    while !matches!(reader.next_item().expect("an item"), Item::End(_)) {}
    drop(reader);
    StepWriter::new(&far).end(End::new()).expect("answered");
    let told = sending.join().expect("no panic");
    assert!(told.len() >= 3, "{told:?}");
    assert_eq!(told.last(), Some(&(601, 600)));
    assert!(told.is_sorted());
    let _ = far.read(&mut [0; 1]);
}
