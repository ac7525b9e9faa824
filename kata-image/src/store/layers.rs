//! Layers in the store: each is fetched and converted once, whichever images it belongs to, several at a time.
//!
//! A layer is known by its diff id, the digest of its unpacked archive: however it was compressed, it is the same.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::index::{Key, LayerRecord, Record, Stored};
use super::lock::temporary;
use super::{Rootfs, Store, StoreError};
use crate::erofs::{self, Limits};
use crate::layer::{self, Converted, Notes};
use crate::oci::{Blobs, Descriptor, Digest, DocumentError};
use crate::progress::{Progress, Stage};
use crate::transfer::{self, TransferError};

/// Layers that are fetched at the same time. Each takes some MiB of memory, and a registry lets one client have
/// few connections.
const AT_ONCE: usize = 3;

/// A layer as the manifest names it, and its diff id as the configuration does.
pub(super) type Wanted = (Descriptor, Digest);

/// A layer in the store.
#[derive(Debug)]
pub(super) struct StoredLayer {
    pub(super) diff_id: Digest,
    pub(super) rootfs: Rootfs,
    pub(super) notes: Notes,
}

/// What stands for a merged stack of layers in the place of a diff id: a digest over theirs.
pub(super) fn chain(diff_ids: &[Digest]) -> Digest {
    let mut hasher = Sha256::new_with_prefix(b"merged");
    diff_ids.iter().for_each(|id| hasher.update(id.as_str()));
    Digest::finish(hasher)
}

impl Store {
    /// All of these layers, opened, in their order.
    pub(super) fn layers(
        &self,
        blobs: &dyn Blobs,
        name: &str,
        wanted: &[Wanted],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<StoredLayer>, StoreError> {
        let queue: Mutex<VecDeque<(usize, &Wanted)>> = Mutex::new(wanted.iter().enumerate().collect());
        let stop = AtomicBool::new(false);
        let (reports, inbox) = mpsc::channel();
        let work = |reports: mpsc::Sender<Report>| {
            let mut done = Vec::new();
            while let Some((place, wanted)) = next(&queue, &stop) {
                let fetch = Fetch {
                    blobs,
                    name,
                    wanted,
                    stop: &stop,
                };
                // The other end waits until the last sender is gone.
                let report = |bytes, done| {
                    let _ = reports.send((place, bytes, done));
                };
                let layer = self.layer(&fetch, &mut |bytes| report(bytes, false));
                report(wanted.0.size, layer.is_ok());
                // The first failure tells what is wrong; the rest only end for its sake.
                if layer.is_ok() || !stop.swap(true, Ordering::Relaxed) {
                    done.push((place, layer));
                }
            }
            done
        };
        let mut total = Total::new(wanted, progress);
        let results = thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE.min(wanted.len()))
                .map(|_| {
                    let (work, reports) = (&work, reports.clone());
                    scope.spawn(move || work(reports))
                })
                .collect();
            drop(reports);
            inbox.iter().for_each(|report| total.report(report));
            workers
                .into_iter()
                .map(thread::ScopedJoinHandle::join)
                .collect::<Vec<_>>()
        });
        sorted(results)
    }

    /// The layers of a record, opened; `None` when one of them is gone or not what it was.
    pub(super) fn stored_layers(&self, diff_ids: &[Digest]) -> Result<Option<Vec<StoredLayer>>, StoreError> {
        diff_ids.iter().map(|id| self.stored_layer(id)).collect()
    }

    fn stored_layer(&self, diff_id: &Digest) -> Result<Option<StoredLayer>, StoreError> {
        let path = self.layer_path(diff_id);
        let record = LayerRecord::read(&path).map_err(|source| self.io_error(&path, source))?;
        let Some(LayerRecord { record, notes }) = record else {
            return Ok(None);
        };
        let image = self.image_path(&record.digest);
        let keep = |record: &Record| {
            LayerRecord {
                record: record.clone(),
                notes: notes.clone(),
            }
            .write(&path, &self.tmp())
        };
        let found = self.intact(image, record, &keep)?;
        let diff_id = diff_id.clone();
        Ok(found.map(|rootfs| StoredLayer {
            diff_id,
            rootfs,
            notes,
        }))
    }

    /// One layer: the one that is here, else a new one. The lock makes everybody else who wants it wait.
    fn layer(
        &self,
        fetch: &Fetch<'_>,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<StoredLayer, StoreError> {
        let (descriptor, diff_id) = fetch.wanted;
        let _lock = self.lock(&Key::of_layer(diff_id))?;
        if let Some(layer) = self.held_layer(diff_id)? {
            return Ok(layer);
        }
        let temporary = temporary(&self.tmp()).map_err(|error| self.io_error(&self.tmp(), error))?;
        let converted = self.convert_layer(fetch, &temporary, report)?;
        if converted.diff_id != *diff_id {
            let error = DocumentError::DiffId {
                expected: diff_id.clone(),
                received: converted.diff_id,
            };
            let what = format!("layer {}", descriptor.digest);
            return Err(fetch.failed(TransferError::document(fetch.name, &what)(error)));
        }
        self.keep_layer(diff_id, temporary, converted.summary.size_bytes, converted.notes)
    }

    /// Reads the blob and writes its image, and checks that the blob was what its descriptor says.
    fn convert_layer(
        &self,
        fetch: &Fetch<'_>,
        temporary: &NamedTempFile,
        report: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Converted, StoreError> {
        let (descriptor, _) = fetch.wanted;
        let label = PathBuf::from(format!("layer {} of {}", descriptor.digest, fetch.name));
        let mut blob = transfer::open(fetch.blobs, descriptor);
        let mut input = Stoppable {
            input: &mut blob,
            stop: fetch.stop,
            done_bytes: 0,
            report,
        };
        let limits = Limits::default();
        let converted = layer::convert(&mut input, &label, temporary.as_file(), &limits, &mut |_| ());
        // What came wrong is a better answer than what could not be made of it.
        let may_be_broken = matches!(
            converted,
            Ok(_) | Err(erofs::Error::Archive { .. } | erofs::Error::NotAnArchive { .. })
        );
        if may_be_broken && !fetch.stop.load(Ordering::Relaxed) {
            let most = converted.as_ref().map_or(SUSPECT_BYTES_MAX, |_| u64::MAX);
            let rest = io::copy(&mut Read::take(&mut input, most), &mut io::sink());
            match rest {
                Err(source) => return Err(fetch.failed(blob.failure(source))),
                Ok(_) if converted.is_ok() || blob.has_ended() => {
                    blob.finish().map_err(|error| fetch.failed(error))?;
                }
                Ok(_) => {}
            }
        }
        converted.map_err(|error| self.convert_error(&label, error, temporary, descriptor.size))
    }

    /// Whether overlayfs shows these layers as they are meant.
    pub(super) fn can_stack(&self, name: &str, stack: &[StoredLayer]) -> Result<bool, StoreError> {
        layer::can_stack(&borrowed(stack), &Limits::default()).map_err(|source| StoreError::Convert {
            path: PathBuf::from(format!("the layers of {name}")),
            source,
        })
    }

    /// The layers as one, made if need be.
    pub(super) fn merged(
        &self,
        name: &str,
        chain: &Digest,
        stack: &[StoredLayer],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Rootfs, StoreError> {
        let _lock = self.lock(&Key::of_layer(chain))?;
        if let Some(layer) = self.held_layer(chain)? {
            return Ok(layer.rootfs);
        }
        let temporary = temporary(&self.tmp()).map_err(|error| self.io_error(&self.tmp(), error))?;
        let layers = borrowed(stack);
        let label = PathBuf::from(format!("the layers of {name}"));
        let least_bytes = stack
            .iter()
            .map(|layer| layer.rootfs.size_bytes)
            .max()
            .unwrap_or_default();
        let summary = layer::merge(&layers, temporary.as_file(), &Limits::default(), progress)
            .map_err(|error| self.convert_error(&label, error, &temporary, least_bytes))?;
        Ok(self
            .keep_layer(chain, temporary, summary.size_bytes, Notes::default())?
            .rootfs)
    }

    fn held_layer(&self, id: &Digest) -> Result<Option<StoredLayer>, StoreError> {
        let _sweeps_wait = self.hold()?;
        self.stored_layer(id)
    }

    fn keep_layer(
        &self,
        id: &Digest,
        temporary: NamedTempFile,
        size_bytes: u64,
        notes: Notes,
    ) -> Result<StoredLayer, StoreError> {
        let (rootfs, record) = self.adopt_finished(temporary, size_bytes, &mut |_| ())?;
        let path = self.layer_path(id);
        LayerRecord {
            record,
            notes: notes.clone(),
        }
        .write(&path, &self.tmp())
        .map_err(|source| self.io_error(&path, source))?;
        Ok(StoredLayer {
            diff_id: id.clone(),
            rootfs,
            notes,
        })
    }

    pub(super) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        let key = Key::of_layer(diff_id);
        self.directory.join("layers").join(format!("{}.json", key.name()))
    }
}

fn borrowed(stack: &[StoredLayer]) -> Vec<layer::Layer<'_>> {
    stack
        .iter()
        .map(|layer| layer::Layer {
            image: &layer.rootfs.file,
            notes: &layer.notes,
            label: &layer.rootfs.path,
        })
        .collect()
}

/// One layer to fetch.
struct Fetch<'a> {
    blobs: &'a dyn Blobs,
    /// The image's, for people.
    name: &'a str,
    wanted: &'a Wanted,
    stop: &'a AtomicBool,
}

impl Fetch<'_> {
    fn failed(&self, source: TransferError) -> StoreError {
        StoreError::Transfer {
            name: self.name.to_owned(),
            source: Box::new(source),
        }
    }
}

fn next<'a>(queue: &Mutex<VecDeque<(usize, &'a Wanted)>>, stop: &AtomicBool) -> Option<(usize, &'a Wanted)> {
    if stop.load(Ordering::Relaxed) {
        return None;
    }
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

type Worked = thread::Result<Vec<(usize, Result<StoredLayer, StoreError>)>>;

/// The layers in their order, or the failure.
fn sorted(results: Vec<Worked>) -> Result<Vec<StoredLayer>, StoreError> {
    let mut layers = Vec::new();
    for worker in results {
        for (place, layer) in worker.unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            layers.push((place, layer?));
        }
    }
    layers.sort_by_key(|(place, _)| *place);
    Ok(layers.into_iter().map(|(_, layer)| layer).collect())
}

/// The most that is still read of what is no layer, to learn whether the blob is what its descriptor says: it may say
/// any size.
const SUSPECT_BYTES_MAX: u64 = 64 << 20;

/// A blob that counts, and that ends early when another layer of the image failed.
struct Stoppable<'a, R> {
    input: R,
    stop: &'a AtomicBool,
    done_bytes: u64,
    report: &'a mut (dyn FnMut(u64) + Send),
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another layer of the image failed"));
        }
        let count = self.input.read(buffer)?;
        self.done_bytes += count as u64;
        (self.report)(self.done_bytes);
        Ok(count)
    }
}

/// How far a layer has come: its place, its bytes as stored, and whether it is done.
type Report = (usize, u64, bool);

/// How far all layers have come together.
struct Total<'a> {
    done: Vec<u64>,
    layers: u64,
    total_bytes: u64,
    reported_bytes: u64,
    progress: &'a mut dyn FnMut(Progress),
}

/// A manifest may say any size.
fn sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// How often progress is reported.
const REPORT_BYTES: u64 = 1 << 20;

impl<'a> Total<'a> {
    fn new(wanted: &[Wanted], progress: &'a mut dyn FnMut(Progress)) -> Self {
        Self {
            done: vec![0; wanted.len()],
            layers: 0,
            total_bytes: sum(wanted.iter().map(|(descriptor, _)| descriptor.size)),
            reported_bytes: 0,
            progress,
        }
    }

    fn report(&mut self, (place, bytes, is_done): Report) {
        self.done[place] = bytes;
        self.layers += u64::from(is_done);
        let done_bytes = sum(self.done.iter().copied());
        if is_done || done_bytes >= self.reported_bytes + REPORT_BYTES {
            self.reported_bytes = done_bytes;
            (self.progress)(Progress {
                stage: Stage::Downloading,
                done_bytes,
                total_bytes: Some(self.total_bytes),
                entries: self.layers,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::oci::{Descriptor, Document};

    /// A place of endless layers that are none.
    struct Endless(Arc<AtomicU64>);

    struct Junk(Arc<AtomicU64>);

    impl Read for Junk {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            buffer.fill(0xff);
            self.0.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            Ok(buffer.len())
        }
    }

    impl Blobs for Endless {
        fn root(&self) -> Result<Document, TransferError> {
            unreachable!("blobs only")
        }

        fn document(&self, _: &Descriptor) -> Result<Document, TransferError> {
            unreachable!("blobs only")
        }

        fn blob(&self, _: &Descriptor, _: u64) -> Result<Box<dyn Read + Send>, TransferError> {
            Ok(Box::new(Junk(Arc::clone(&self.0))))
        }
    }

    #[test]
    fn what_is_no_layer_is_not_read_to_the_end_that_it_promises() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let read = Arc::new(AtomicU64::new(0));
        let mut descriptor = Descriptor::of("application/vnd.oci.image.layer.v1.tar", b"");
        descriptor.size = 1 << 60;
        let wanted = [(descriptor, Digest::of(b"other"))];
        let error = store
            .layers(&Endless(Arc::clone(&read)), "a/place", &wanted, &mut |_| ())
            .unwrap_err();
        assert!(matches!(error, StoreError::Convert { .. }), "{error}");
        let read = read.load(Ordering::Relaxed);
        let expected = SUSPECT_BYTES_MAX / 2..2 * SUSPECT_BYTES_MAX;
        assert!(expected.contains(&read), "{read}");
    }
}
