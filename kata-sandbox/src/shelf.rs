//! The layers of containers that come after the boot: shown on the machine's shelf while somebody uses them.
//!
//! ```text
//!   show(image) ─► layer of a disk that the machine was built with ────────────────► its serial
//!              └─► layer that is shown already ────────────────────────────────────► its place
//!              └─► another: its file goes to the monitor ──► place on the shelf ───► its place
//!
//!   the last of its Layers is dropped ──► the monitor shows it no more, and closes the file
//! ```
//!
//! Owns which layer is where, by digest, and who uses it. It must not know what containers are made of them. The
//! lease of a layer is a lock on its open file, which the monitor has from then on.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kata_image::Rootfs;
use tokio::sync::mpsc::{UnboundedSender, WeakUnboundedSender};
use tokio::sync::{OnceCell, oneshot, watch};

use crate::error::Error;
use crate::link::ended;
use crate::prepare::proof;
use crate::questions::{Extent, Question};
use crate::report::Stage;
use crate::spec::LayerDisk;
use crate::supervise::{Order, State};

/// The serial of the shelf's disk.
pub(crate) const SERIAL: &str = "shelf";

/// An image's layers in a machine, which stay there as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// The lowest first.
    disks: Vec<LayerDisk>,
    /// What of it is on the shelf.
    _held: Vec<Arc<Shown>>,
}

impl Layers {
    /// Where they are, the lowest first.
    pub(crate) fn disks(&self) -> &[LayerDisk] {
        &self.disks
    }
}

/// What a file on the shelf is. One that is read through dm-verity is a file apart, for the guest gives a part of a
/// disk either to a file system or to dm-verity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Layer,
    Verified,
    Tree,
}

/// A file on the shelf. The last who has it takes it away.
#[derive(Debug)]
struct Shown {
    /// Once the monitor has said it.
    extent: OnceCell<Extent>,
    orders: WeakUnboundedSender<Order>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        // A sandbox that ends takes everything along.
        if let (Some(extent), Some(orders)) = (self.extent.get(), self.orders.upgrade()) {
            let _ = orders.send(Order::Ask(Question::RemoveExtent(extent.offset)));
        }
    }
}

/// The layers of a running machine.
#[derive(Debug)]
pub(crate) struct Shelf {
    /// Those that it was built with, by digest.
    disks: Vec<(String, LayerDisk)>,
    /// What is shown, by the layer's digest; weak, so that it is shown no longer than it is used.
    shown: Mutex<HashMap<(String, Kind), Weak<Shown>>>,
    /// Weak, or a container would keep its sandbox.
    orders: WeakUnboundedSender<Order>,
    state: watch::Receiver<State>,
}

impl Shelf {
    /// The shelf of a machine that was built with disks of these digests, in whose supervision it is.
    pub(crate) fn new(
        disks: Vec<(String, LayerDisk)>,
        orders: &UnboundedSender<Order>,
        state: watch::Receiver<State>,
    ) -> Self {
        Self {
            disks,
            shown: Mutex::default(),
            orders: orders.downgrade(),
            state,
        }
    }

    /// Makes sure that the machine has these layers, the lowest first.
    ///
    /// # Errors
    /// When the monitor cannot show one, or the sandbox ends. What was shown for it is taken away again.
    pub(crate) async fn show(&self, layers: Vec<Rootfs>) -> Result<Layers, Error> {
        let mut found = Layers::default();
        for layer in layers {
            let is_there = |(digest, disk): &&(String, LayerDisk)| {
                // One whose blocks are checked is checked for all.
                *digest == layer.digest && (layer.hash_tree.is_none() || disk.verity.is_some())
            };
            let disk = match self.disks.iter().find(is_there) {
                Some((_, disk)) => disk.clone(),
                None => self.show_one(layer, &mut found._held).await?,
            };
            found.disks.push(disk);
        }
        Ok(found)
    }

    async fn show_one(&self, layer: Rootfs, held: &mut Vec<Arc<Shown>>) -> Result<LayerDisk, Error> {
        let Rootfs {
            digest,
            file,
            hash_tree,
            ..
        } = layer;
        let Some(tree) = hash_tree else {
            let extent = self.place(digest, Kind::Layer, file, held).await?;
            return Ok(LayerDisk::shown(extent, None));
        };
        let proof = proof(&tree);
        let extent = self.place(digest.clone(), Kind::Verified, file, held).await?;
        let tree = self.place(digest, Kind::Tree, tree.file, held).await?;
        Ok(LayerDisk::shown(extent, Some((tree, proof))))
    }

    /// Where the file is shown, from now on if it was not before.
    async fn place(
        &self,
        digest: String,
        kind: Kind,
        file: File,
        held: &mut Vec<Arc<Shown>>,
    ) -> Result<Extent, Error> {
        let shown = self.shown_of((digest, kind));
        // One who asks for the same meanwhile waits; when this one gives up, the other asks.
        let extent = *shown.extent.get_or_try_init(|| self.add(file)).await?;
        held.push(shown);
        Ok(extent)
    }

    fn shown_of(&self, key: (String, Kind)) -> Arc<Shown> {
        // Nothing panics while holding it.
        let mut known = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = known.get(&key).and_then(Weak::upgrade) {
            return shown;
        }
        known.retain(|_, shown| shown.strong_count() > 0);
        let shown = Arc::new(Shown {
            extent: OnceCell::new(),
            orders: self.orders.clone(),
        });
        known.insert(key, Arc::downgrade(&shown));
        shown
    }

    async fn add(&self, file: File) -> Result<Extent, Error> {
        let (answer, asked) = oneshot::channel();
        let question = Question::AddExtent(Some(file.into()), answer);
        match self.orders.upgrade() {
            // A supervisor that is gone drops the question, which tells its asker; so must we.
            Some(orders) => drop(orders.send(Order::Ask(question))),
            None => drop(question),
        }
        match asked.await {
            Ok(answer) => answer,
            Err(_) => Err(ended(self.state.clone()).await.error(Stage::Prepare)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::sync::mpsc;

    use super::*;
    use crate::ending::Ended;
    use crate::error::ErrorKind;
    use crate::plan::{Layer, Proof};

    fn layer(digest: &str) -> Rootfs {
        Rootfs {
            file: File::open("/dev/null").unwrap(),
            path: PathBuf::new(),
            digest: digest.to_owned(),
            size_bytes: 0,
            cached: true,
            hash_tree: None,
        }
    }

    fn base() -> LayerDisk {
        LayerDisk::new((0, &Layer::default()))
    }

    fn on_shelf(extent: Extent) -> LayerDisk {
        LayerDisk::shown(extent, None)
    }

    struct Bed {
        shelf: Arc<Shelf>,
        orders: Option<UnboundedSender<Order>>,
        asked: mpsc::UnboundedReceiver<Order>,
        state: watch::Sender<State>,
        next: u64,
    }

    impl Bed {
        fn new() -> Self {
            let (orders, asked) = mpsc::unbounded_channel();
            let (state, seen) = watch::channel(State::Running);
            let disks = vec![("base".to_owned(), base())];
            Self {
                shelf: Arc::new(Shelf::new(disks, &orders, seen)),
                orders: Some(orders),
                asked,
                state,
                next: 1 << 20,
            }
        }

        fn show(&self, digests: &'static [&str]) -> tokio::task::JoinHandle<Result<Layers, Error>> {
            let shelf = Arc::clone(&self.shelf);
            let layers = digests.iter().map(|digest| layer(digest)).collect();
            tokio::spawn(async move { shelf.show(layers).await })
        }

        /// The monitor shows the next that it is asked for.
        async fn answer(&mut self) -> Extent {
            let Some(Order::Ask(Question::AddExtent(Some(_), answer))) = self.asked.recv().await else {
                panic!("nothing was asked");
            };
            let extent = Extent {
                offset: self.next,
                bytes: 4096,
            };
            self.next += 1 << 20;
            let _ = answer.send(Ok(extent));
            extent
        }

        fn removed(&mut self) -> Vec<u64> {
            std::iter::from_fn(|| match self.asked.try_recv() {
                Ok(Order::Ask(Question::RemoveExtent(offset))) => Some(offset),
                Ok(other) => panic!("{other:?}"),
                Err(_) => None,
            })
            .collect()
        }
    }

    #[tokio::test]
    async fn a_layer_is_shown_once_for_all_who_use_it() {
        let mut bed = Bed::new();
        let first = bed.show(&["base", "a", "b"]);
        let (a, b) = (bed.answer().await, bed.answer().await);
        let first = first.await.unwrap().unwrap();
        let places = [base(), on_shelf(a), on_shelf(b)];
        assert_eq!(first.disks(), places);
        let second = bed.show(&["b", "base"]).await.unwrap().unwrap();
        assert_eq!(second.disks(), [on_shelf(b), base()]);
        drop(first);
        assert_eq!(bed.removed(), [a.offset], "the other is in use");
        drop(second);
        assert_eq!(bed.removed(), [b.offset]);
        // Later it is shown anew.
        let third = bed.show(&["b"]);
        let again = bed.answer().await;
        assert_eq!(third.await.unwrap().unwrap().disks(), [on_shelf(again)]);
        assert_eq!(bed.removed(), [again.offset]);
    }

    #[tokio::test]
    async fn who_asks_at_the_same_time_waits_and_asks_when_the_other_gives_up() {
        let mut bed = Bed::new();
        let first = bed.show(&["a"]);
        let Some(Order::Ask(Question::AddExtent(..))) = bed.asked.recv().await else {
            panic!("nothing was asked");
        };
        let second = bed.show(&["a"]);
        tokio::task::yield_now().await;
        first.abort();
        let extent = bed.answer().await;
        let second = second.await.unwrap().unwrap();
        assert_eq!(second.disks(), [on_shelf(extent)]);
    }

    #[tokio::test]
    async fn what_was_shown_before_one_is_refused_is_taken_away() {
        let mut bed = Bed::new();
        let shown = bed.show(&["a", "b"]);
        let a = bed.answer().await;
        let Some(Order::Ask(Question::AddExtent(_, answer))) = bed.asked.recv().await else {
            panic!("nothing was asked");
        };
        let _ = answer.send(Err(Error::new(ErrorKind::Unsupported, Stage::Machine, "no room")));
        let refused = shown.await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        assert_eq!(bed.removed(), [a.offset]);
    }

    #[tokio::test]
    async fn the_end_of_the_sandbox_is_an_error_and_nothing_keeps_it() {
        let mut bed = Bed::new();
        let shown = bed.show(&["a"]);
        let a = bed.answer().await;
        let shown = shown.await.unwrap().unwrap();
        assert_eq!(shown.disks(), [on_shelf(a)]);
        bed.orders = None;
        assert!(bed.asked.recv().await.is_none(), "layers do not keep a sandbox");
        bed.state.send_replace(State::Ended(Arc::new(Ended::stopped())));
        drop(shown);
        let late = bed.show(&["b"]).await.unwrap().unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Stopped);
    }

    #[test]
    fn a_storage_says_the_place() {
        let disk = base().storage("/m".into());
        assert_eq!((disk.source.as_str(), disk.driver_options.len()), ("layer-0", 0));
        let extent = |offset| Extent { offset, bytes: 4096 };
        let part = on_shelf(extent(1 << 20)).storage("/m".into());
        assert_eq!((part.driver.as_str(), part.source.as_str()), ("blk", "shelf"));
        let place = ["kata-rs.storage.offset=1048576", "kata-rs.storage.size=4096"];
        assert_eq!(part.driver_options, place);
        assert_eq!((part.fstype.as_str(), part.mount_point.as_str()), ("erofs", "/m"));
        let proof = Proof {
            root_hash: [0xab; 32],
            salt: vec![1, 2],
            data_blocks: 1,
        };
        let verified = LayerDisk::shown(extent(1 << 20), Some((extent(2 << 20), proof)));
        let tree = format!(
            "kata-rs.storage.dm-verity=shelf@2097152+4096 1 {} 0102",
            "ab".repeat(32)
        );
        let options = verified.storage("/m".into()).driver_options;
        assert_eq!(options, [&[tree.as_str()][..], &place].concat());
    }
}
