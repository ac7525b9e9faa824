//! The block device on files: every request, every refusal, both engines.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod host;
mod hostile;
mod requests;
mod shelf;
mod turns;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use kata_virtio::block::{Block, Builder, Engine};
use kata_virtio::mock::Buffer;
use kata_virtio::mock::block::{Answer, Disk, UNTOUCHED};
use rustix::fs::MemfdFlags;

pub(crate) const ENGINES: [Engine; 2] = [Engine::Plain, Engine::IoUring];
pub(crate) const SECTORS: u64 = 2048;

/// A file of a megabyte in which every sector says where it is.
pub(crate) fn file() -> File {
    let file = File::from(rustix::fs::memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    (&file).write_all(&content()).unwrap();
    file
}

pub(crate) fn content() -> Vec<u8> {
    let sector = |number: u64| number.to_le_bytes().repeat(64);
    (0..SECTORS).flat_map(sector).collect()
}

pub(crate) fn disk(change: impl Fn(Builder) -> Builder) -> (Disk, File) {
    let file = file();
    let builder = Block::new(file.try_clone().unwrap());
    (Disk::new(change(builder).build().unwrap()).unwrap(), file)
}

/// Runs a test on both engines.
pub(crate) fn both(test: impl Fn(Disk, File)) {
    for engine in ENGINES {
        let (disk, file) = disk(|builder| builder.engine(engine).serial("kata-disk"));
        assert_eq!(disk.bench.device.engine(), engine);
        test(disk, file);
    }
}

pub(crate) fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub(crate) fn failed(answer: &Answer, status: u8) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert!(
        answer.data.iter().all(|&byte| byte == UNTOUCHED),
        "no data with a failure"
    );
}

/// The chain of these buffers is returned, with so many bytes written.
pub(crate) fn offered(disk: &mut Disk, buffers: &[Buffer]) -> u32 {
    let head = disk.bench.rings.queue(0).add(buffers).unwrap();
    let used = disk
        .bench
        .run_until(|rings| rings.used(0).filter(|(used, _)| *used == head));
    used.unwrap().1
}
