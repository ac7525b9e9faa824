//! The fuzzers' corpora as ordinary tests: every file is what it is said to be here, within bounds.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use kata_agent_proto::files::{Policy, Root, receive};
use kata_agent_proto::kernel_log::KernelRecords;

const POLICY: Policy = Policy {
    owners: false,
    privileges: false,
    limit_bytes: Some(1 << 20),
};

fn verdicts(name: &str, verdict: impl Fn(&[u8]) -> String) -> Vec<(String, String)> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let entries = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path());
    let mut verdicts: Vec<_> = entries
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, verdict(&fs::read(&path).unwrap()))
        })
        .collect();
    verdicts.sort_unstable();
    verdicts
}

/// What a stream makes, and that it makes nothing elsewhere.
fn of_files(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("to");
    fs::create_dir(&to).unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    near.write_all(bytes).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let root = Root::own().unwrap();
    let received = receive(&root, &to, Some(b"name"), POLICY, &far, &mut |_, _| {});
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    match received {
        Ok(tally) => format!(
            "{} entries, {} bytes, {} left out",
            tally.entries, tally.bytes, tally.omissions
        ),
        Err(error) => error.to_string().replace(&to.display().to_string(), "TO"),
    }
}

fn assert_told(verdicts: &[(String, String)], expected: &[(&str, &str)]) {
    let told: Vec<_> = verdicts
        .iter()
        .map(|(name, told)| (name.as_str(), told.as_str()))
        .collect();
    assert_eq!(told, expected);
}

#[test]
fn every_stream_of_files_is_a_tree_or_an_error() {
    let broken = "a broken stream of files";
    let path = &format!("{broken}: a path that is none");
    let in_the_way =
        |path: &str| format!("TO/name/{path}: a file and a directory cannot take each other's place");
    assert_told(
        &verdicts("files", of_files),
        &[
            ("absolute", path),
            ("absurd-length", &format!("{broken}: a step that is too long")),
            ("attributes", "1 entries, 0 bytes, 2 left out"),
            ("below-a-link", &in_the_way("l")),
            ("devices", "3 entries, 0 bytes, 2 left out"),
            ("dot-dot", path),
            ("empty", "the stream of files broke off"),
            ("file-over-directory", &in_the_way("d")),
            ("hard-link-to-nothing", "TO/name/h: no such file or directory"),
            ("link-out", &in_the_way("l")),
            ("no-end", "the stream of files broke off"),
            (
                "no-root",
                &format!("{broken}: a stream that does not begin with its root"),
            ),
            (
                "not-protobuf",
                &format!("{broken}: a step that cannot be understood"),
            ),
            ("one-file", "1 entries, 3 bytes, 0 left out"),
            (
                "piece-at-the-end-of-the-world",
                &format!("{broken}: a piece out of its order"),
            ),
            ("piece-of-a-directory", &format!("{broken}: a piece of no file")),
            ("piece-that-is-not-there", "the stream of files broke off"),
            ("pieces-overlap", &format!("{broken}: a piece out of its order")),
            ("set-id", "2 entries, 0 bytes, 1 left out"),
            ("sparse", "1 entries, 1 bytes, 0 left out"),
            ("too-much", "1 entries, 65472 bytes, 0 left out"),
            ("tree", "6 entries, 4 bytes, 0 left out"),
            (
                "two-roots",
                &format!("{broken}: an entry that can be below nothing"),
            ),
            ("unknown-kind", &format!("{broken}: an entry of no known kind")),
        ],
    );
}

#[test]
fn every_kernel_log_is_records() {
    let of_log = |bytes: &[u8]| {
        let mut records = KernelRecords::default();
        records.feed(bytes);
        std::iter::from_fn(|| records.next_record()).count().to_string()
    };
    assert_told(
        &verdicts("kernel_log", of_log),
        &[
            ("boot", "3"),
            ("escapes", "1"),
            ("gap", "2"),
            ("huge-numbers", "1"),
            ("no-end", "0"),
            ("no-records", "0"),
        ],
    );
}
