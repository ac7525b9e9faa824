//! Programs that tests need, what a test does where one is missing, and small images to carry about.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kata_image::{Image, Registries};

/// Whether all these programs are there. What is not is said on the real standard error, which the test harness does
/// not hide, and fails where `CI` is `true`.
pub(crate) fn have(test: &str, programs: &[&str]) -> bool {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| find(program).is_none())
        .collect();
    if missing.is_empty() {
        return true;
    }
    let why = format!("not installed: {missing:?}");
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "{test} cannot be skipped in CI: {why}"
    );
    writeln!(io::stderr(), "SKIPPED {test}: {why}").expect("standard error");
    false
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    directories
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// Runs a program to its end; its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{text}",
        output.status
    );
    output.stdout
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Nothing of the machine that the tests run on, and short pauses.
pub(crate) fn registries() -> Registries {
    Registries::new()
        .credential_files([])
        .certificate_directories([])
        .retries(4, Duration::from_millis(10))
        .stall_timeout(Duration::from_secs(20))
}

/// A directory with a file of each of these names and contents.
pub(crate) fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    directory
}

/// An image of two layers, one of them with bytes that do not pack.
pub(crate) fn image() -> Image {
    let mut state = 1_u64;
    let mut noise = Vec::new();
    while noise.len() < 3_000_000 {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let lower = tree(&[("etc/hostname", b"lower\n"), ("usr/noise", &noise)]);
    let upper = tree(&[("etc/hostname", b"upper\n"), ("srv/page", b"hello\n")]);
    Image::builder()
        .directory(lower.path())
        .directory(upper.path())
        .entrypoint(["/bin/server", "--port", "80"])
        .cmd(["start"])
        .env("PATH", "/bin")
        .env("EMPTY", "")
        .user("www-data")
        .working_dir("/srv")
        .label("maker", "tests")
        .exposed_port("80/tcp")
        .volume("/data")
        .stop_signal("SIGQUIT")
        .build(&mut |_| {})
        .unwrap()
}

/// Reads everything of an image and checks it.
pub(crate) fn read_all(image: &Image) {
    for index in 0..image.layers().len() {
        image
            .layer(index)
            .unwrap()
            .finish()
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
}

/// Makes an authority and a certificate of it for this machine, with openssl.
pub(crate) struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    pub(crate) fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let (key, root) = (at("ca.key"), at("ca.crt"));
        let days = ["-days", "2", "-nodes", "-newkey", "rsa:2048"];
        let subject = [
            "req",
            "-x509",
            "-subj",
            "/CN=tests",
            "-keyout",
            &key,
            "-out",
            &root,
        ];
        run("openssl", &[&subject[..], &days].concat());
        let (leaf_key, request, leaf, extensions) =
            (at("leaf.key"), at("leaf.csr"), at("leaf.crt"), at("extensions"));
        fs::write(&extensions, "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        let asked = [
            "req", "-new", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=leaf",
        ];
        run(
            "openssl",
            &[&asked[..], &["-keyout", &leaf_key, "-out", &request]].concat(),
        );
        let signed = [
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &root,
            "-CAkey",
            &key,
            "-CAcreateserial",
        ];
        run(
            "openssl",
            &[
                &signed[..],
                &["-days", "2", "-extfile", &extensions, "-out", &leaf],
            ]
            .concat(),
        );
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }
}

/// The digests of everything in a directory tree, by path.
pub(crate) fn listing(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                found.push((
                    path.strip_prefix(root).unwrap().to_path_buf(),
                    fs::read(&path).unwrap(),
                ));
            }
        }
    }
    found.sort();
    found
}
