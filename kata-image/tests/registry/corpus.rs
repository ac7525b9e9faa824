//! The fuzzers' corpora as an ordinary test: every file is read or refused, and which of both does not change.

use std::fs;
use std::path::Path;

use kata_image::{Image, Platform, Reference, fuzzing};

/// Names of a corpus' files, and what becomes of each.
fn verdicts(corpus: &str, judge: impl Fn(&Path) -> Result<String, String>) -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(corpus);
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut verdicts: Vec<_> = entries
        .map(|path| {
            let verdict = judge(&path).unwrap_or_else(|error| format!("refused: {error}"));
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, verdict.replace(&path.display().to_string(), "FILE"))
        })
        .collect();
    verdicts.sort_unstable();
    verdicts
}

fn check(found: &[(String, String)], expected: &[(&str, &str)]) {
    let found: Vec<_> = found
        .iter()
        .map(|(name, verdict)| (name.as_str(), verdict.as_str()))
        .collect();
    assert_eq!(found, expected);
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

#[test]
fn references() {
    let judge = |path: &Path| {
        let reference = text(path)
            .trim_end()
            .parse::<Reference>()
            .map_err(|error| error.to_string())?;
        Ok(reference.to_string())
    };
    check(
        &verdicts("reference", judge),
        &[
            ("host-port", "127.0.0.1:5000/a/b__c:1.2-x"),
            ("ipv6", "[::1]:5000/a:latest"),
            ("short", "docker.io/library/debian:latest"),
            (
                "tag-and-digest",
                "ghcr.io/a/b:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                "upper",
                "refused: \"Debian:1\" has upper case letters; a repository's name must be in lower case",
            ),
        ],
    );
}

#[test]
fn challenges() {
    let judge = |path: &Path| Ok(fuzzing::challenges(text(path).trim_end()).to_string());
    check(
        &verdicts("challenge", judge),
        &[
            ("basic", "1"),
            ("docker-hub", "1"),
            ("open-quote", "0"),
            ("several", "2"),
        ],
    );
}

#[test]
fn documents() {
    let judge = |path: &Path| fuzzing::document(&fs::read(path).unwrap()).map(str::to_owned);
    check(
        &verdicts("documents", judge),
        &[
            (
                "both.json",
                "refused: media type \"both layers and manifests\" is neither an image's manifest nor an index",
            ),
            ("config.json", "configuration"),
            ("index.json", "index"),
            ("manifest.json", "manifest"),
            ("null-lists.json", "configuration"),
        ],
    );
}

#[test]
fn docker_archives() {
    let temporary = tempfile::tempdir().unwrap();
    let judge = |path: &Path| {
        let image = Image::open(path, None, &Platform::host(), temporary.path());
        let image = image.map_err(|error| crate::programs::chain(&error))?;
        Ok(format!("{} layers", image.layers().len()))
    };
    check(
        &verdicts("docker_archive", judge),
        &[
            (
                "cut.tar",
                "refused: the archive FILE is not usable: it ends in the middle of a member",
            ),
            ("layout.tar", "1 layers"),
            (
                "link-out.tar",
                "refused: the archive FILE is not usable: \"l.tar\" is a link to \"../../etc/passwd\", which leaves it",
            ),
            ("old.tar", "1 layers"),
        ],
    );
}
