//! How fast images are written: a tree of many small files and one large file, and mkfs.erofs beside it where it is
//! installed; and a layer from its compressed stream, beside gunzip alone and beside unpacking it for mkfs.erofs.
//! `KATA_TEST_ROOTFS` may name a tar archive of a distribution, which is then the layer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a benchmark fails by panicking, and criterion's macros make undocumented functions"
)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kata_image::layer::{self, Converted, Layer};
use kata_image::{Source, erofs};

const SMALL_FILES: usize = 5000;
const LARGE_BYTES: usize = 128 << 20;

/// A source, how many bytes of contents it has, and a place for the image.
struct Input {
    directory: tempfile::TempDir,
    bytes: u64,
}

impl Input {
    fn new(fill: impl FnOnce(&Path) -> usize) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).expect("directory");
        let bytes = fill(&tree) as u64;
        Self { directory, bytes }
    }

    fn source(&self) -> Source {
        Source::Directory(self.directory.path().join("tree"))
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image.erofs")
    }

    fn write(&self) -> erofs::Summary {
        erofs::write(&self.source(), &create(&self.image()), &mut |_| {}).expect("an image")
    }

    /// Time and size of mkfs.erofs; `None` where it is not installed.
    fn mkfs(&self) -> Option<(Duration, u64)> {
        let image = self.directory.path().join("mkfs.erofs");
        let start = Instant::now();
        let mut command = Command::new("mkfs.erofs");
        command.arg("--quiet").arg(&image).arg(self.source().path());
        let status = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .ok()?;
        let took = start.elapsed();
        assert!(status.success(), "mkfs.erofs: {status}");
        Some((took, fs::metadata(&image).expect("image").len()))
    }
}

fn create(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    options.open(path).expect("image")
}

/// A layer as a registry has it.
struct Stream {
    directory: tempfile::TempDir,
    /// Of the unpacked archive.
    bytes: u64,
}

impl Stream {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let archive = directory.path().join("layer.tar");
        if let Some(distribution) = std::env::var_os("KATA_TEST_ROOTFS") {
            fs::copy(distribution, &archive).expect("archive");
        } else {
            let input = Input::new(small_files);
            let mut tar = Command::new("tar");
            tar.arg("-cf").arg(&archive).arg("-C").arg(input.source().path());
            run(tar.arg("."));
        }
        let bytes = fs::metadata(&archive).expect("archive").len();
        run(Command::new("gzip").arg(&archive));
        Self { directory, bytes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn convert(&self) -> Converted {
        let blob = File::open(self.path("layer.tar.gz")).expect("layer");
        let out = create(&self.path("layer.erofs"));
        let limits = erofs::Limits::default();
        layer::convert(blob, Path::new("layer"), &out, &limits, &mut |_| {}).expect("an image")
    }

    /// The converted layer on an empty one, as one image.
    fn merge(&self, converted: &Converted) {
        let image = File::open(self.path("layer.erofs")).expect("image");
        let layer = Layer {
            image: &image,
            notes: &converted.notes,
            label: Path::new("layer"),
        };
        let out = create(&self.path("merged.erofs"));
        layer::merge(&[layer], &out, &erofs::Limits::default(), &mut |_| {}).expect("an image");
    }

    /// What has to be done at least.
    fn gunzip(&self) {
        let layer = self.path("layer.tar.gz");
        run(Command::new("gunzip").arg("-c").arg(layer).stdout(Stdio::null()));
    }

    /// What is done without us.
    fn unpack_and_mkfs(&self) {
        let tree = tempfile::tempdir().expect("temporary directory");
        let mut tar = Command::new("tar");
        run(tar
            .arg("-xzf")
            .arg(self.path("layer.tar.gz"))
            .arg("-C")
            .arg(tree.path()));
        let mut mkfs = Command::new("mkfs.erofs");
        mkfs.arg("--quiet").arg(self.path("mkfs.erofs")).arg(tree.path());
        run(mkfs.stdout(Stdio::null()).stderr(Stdio::null()));
    }
}

fn run(command: &mut Command) {
    let status = command.status().expect("gzip, tar and mkfs.erofs are installed");
    assert!(status.success(), "{command:?}: {status}");
}

/// Sizes as in a distribution: most of a few hundred bytes, some of several blocks.
fn small_files(tree: &Path) -> usize {
    let mut bytes = 0;
    for index in 0..SMALL_FILES {
        let directory = tree.join(format!("{}", index % 50));
        fs::create_dir_all(&directory).expect("directory");
        let size = if index % 10 == 0 {
            20_000 + index
        } else {
            100 + index % 3000
        };
        fs::write(directory.join(format!("{index}")), noise(size)).expect("file");
        bytes += size;
    }
    bytes
}

fn large_file(tree: &Path) -> usize {
    fs::write(tree.join("large"), noise(LARGE_BYTES)).expect("file");
    LARGE_BYTES
}

/// Bytes without blocks of zeros.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_le_bytes()
    };
    let mut noise: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| next()).collect();
    noise.truncate(bytes);
    noise
}

/// The best of a few runs of each, one after the other.
fn compare(name: &str, input: &Input) {
    let mut best: Option<[(Duration, u64); 2]> = None;
    for _ in 0..5 {
        let start = Instant::now();
        let size = input.write().size_bytes;
        let ours = (start.elapsed(), size);
        let Some(theirs) = input.mkfs() else {
            writeln!(
                io::stderr(),
                "{name}: mkfs.erofs is not installed; nothing to compare with"
            )
            .expect("stderr");
            return;
        };
        best = Some(best.map_or([ours, theirs], |[one, other]| [one.min(ours), other.min(theirs)]));
    }
    let Some(results) = best else { return };
    for (writer, (took, size)) in ["kata-image", "mkfs.erofs"].iter().zip(results) {
        let rate = input.bytes as f64 / 1e6 / took.as_secs_f64();
        let took_ms = took.as_secs_f64() * 1e3;
        writeln!(
            io::stderr(),
            "{name}: {writer} {took_ms:.0} ms, {rate:.0} MB/s, image of {size} bytes"
        )
        .expect("stderr");
    }
}

/// The best of a few runs.
fn best(mut run: impl FnMut()) -> Duration {
    let took = (0..5).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed()
    });
    took.min().unwrap_or_default()
}

fn compare_stream(stream: &Stream) {
    let ours = best(|| drop(stream.convert()));
    let gunzip = best(|| stream.gunzip());
    let has_mkfs = Command::new("mkfs.erofs").arg("--help").output().is_ok();
    let theirs = has_mkfs.then(|| best(|| stream.unpack_and_mkfs()));
    let mut text = format!(
        "layer of {} bytes: kata-image {ours:.0?}, gunzip alone {gunzip:.0?}",
        stream.bytes
    );
    if let Some(theirs) = theirs {
        text += &format!(", tar and mkfs.erofs {theirs:.0?}");
    }
    writeln!(io::stderr(), "{text}").expect("stderr");
}

fn convert_layers(criterion: &mut Criterion) {
    let stream = Stream::new();
    compare_stream(&stream);
    let mut group = criterion.benchmark_group("layer");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(stream.bytes));
    group.bench_function("convert", |bencher| bencher.iter(|| stream.convert()));
    let converted = stream.convert();
    group.bench_function("merge", |bencher| bencher.iter(|| stream.merge(&converted)));
    group.finish();
}

fn write_images(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("erofs");
    group.sample_size(10);
    for (name, input) in [
        ("many small files", Input::new(small_files)),
        ("one large file", Input::new(large_file)),
    ] {
        compare(name, &input);
        group.throughput(Throughput::Bytes(input.bytes));
        group.bench_function(name, |bencher| bencher.iter(|| input.write()));
    }
    group.finish();
}

criterion_group!(benches, write_images, convert_layers);
criterion_main!(benches);
