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

use kata_agent_proto::agent;
use kata_agent_proto::storage::{OFFSET, SIZE};
use kata_image::Rootfs;
use tokio::sync::mpsc::{UnboundedSender, WeakUnboundedSender};
use tokio::sync::{OnceCell, oneshot, watch};

use crate::error::Error;
use crate::link::ended;
use crate::questions::{Extent, Question};
use crate::report::Stage;
use crate::supervise::{Order, State};

/// The serial of the shelf's disk.
pub(crate) const SERIAL: &str = "shelf";

/// Where a layer is found in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LayerPlace {
    /// On a disk of its own, with this serial.
    Disk(String),
    /// On the shelf.
    Shelf(Extent),
}

impl LayerPlace {
    /// The storage that mounts it.
    pub(crate) fn storage(&self, mount_point: String) -> agent::Storage {
        let (source, driver_options) = match self {
            Self::Disk(serial) => (serial.clone(), Vec::new()),
            Self::Shelf(Extent { offset, bytes }) => (
                SERIAL.to_owned(),
                vec![format!("{OFFSET}{offset}"), format!("{SIZE}{bytes}")],
            ),
        };
        agent::Storage {
            driver: "blk".into(),
            driver_options,
            source,
            fstype: "erofs".into(),
            options: vec!["ro".into()],
            mount_point,
            ..agent::Storage::default()
        }
    }
}

/// An image's layers in a machine, which stay there as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// The lowest first.
    places: Vec<LayerPlace>,
    /// What of it is on the shelf.
    _held: Vec<Arc<Shown>>,
}

impl Layers {
    /// Where they are, the lowest first.
    pub(crate) fn places(&self) -> &[LayerPlace] {
        &self.places
    }
}

/// A layer on the shelf. The last who has it takes it away.
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
    /// Digest and serial of those that it was built with.
    disks: Vec<(String, String)>,
    /// What is shown, by digest; weak, so that it is shown no longer than it is used.
    shown: Mutex<HashMap<String, Weak<Shown>>>,
    /// Weak, or a container would keep its sandbox.
    orders: WeakUnboundedSender<Order>,
    state: watch::Receiver<State>,
}

impl Shelf {
    /// The shelf of a machine that was built with disks of these digests and serials, in whose supervision it is.
    pub(crate) fn new(
        disks: Vec<(String, String)>,
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
        for Rootfs { digest, file, .. } in layers {
            if let Some((_, serial)) = self.disks.iter().find(|(known, _)| *known == digest) {
                found.places.push(LayerPlace::Disk(serial.clone()));
                continue;
            }
            let shown = self.shown_of(digest);
            // One who asks for the same meanwhile waits; when this one gives up, the other asks.
            let extent = shown.extent.get_or_try_init(|| self.add(file)).await?;
            found.places.push(LayerPlace::Shelf(*extent));
            found._held.push(shown);
        }
        Ok(found)
    }

    fn shown_of(&self, digest: String) -> Arc<Shown> {
        // Nothing panics while holding it.
        let mut known = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = known.get(&digest).and_then(Weak::upgrade) {
            return shown;
        }
        known.retain(|_, shown| shown.strong_count() > 0);
        let shown = Arc::new(Shown {
            extent: OnceCell::new(),
            orders: self.orders.clone(),
        });
        known.insert(digest, Arc::downgrade(&shown));
        shown
    }

    async fn add(&self, file: File) -> Result<Extent, Error> {
        let (answer, asked) = oneshot::channel();
        if let Some(orders) = self.orders.upgrade() {
            let _ = orders.send(Order::Ask(Question::AddExtent(Some(file.into()), answer)));
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
    use crate::error::ErrorKind;
    use crate::supervise::Ended;

    fn layer(digest: &str) -> Rootfs {
        Rootfs {
            file: File::open("/dev/null").unwrap(),
            path: PathBuf::new(),
            digest: digest.to_owned(),
            size_bytes: 0,
            cached: true,
        }
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
            let disks = vec![("base".to_owned(), "layer-0".to_owned())];
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
        let places = [
            LayerPlace::Disk("layer-0".into()),
            LayerPlace::Shelf(a),
            LayerPlace::Shelf(b),
        ];
        assert_eq!(first.places(), places);
        let second = bed.show(&["b", "base"]).await.unwrap().unwrap();
        assert_eq!(
            second.places(),
            [LayerPlace::Shelf(b), LayerPlace::Disk("layer-0".into())]
        );
        drop(first);
        assert_eq!(bed.removed(), [a.offset], "the other is in use");
        drop(second);
        assert_eq!(bed.removed(), [b.offset]);
        // Later it is shown anew.
        let third = bed.show(&["b"]);
        let again = bed.answer().await;
        assert_eq!(third.await.unwrap().unwrap().places(), [LayerPlace::Shelf(again)]);
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
        assert_eq!(second.places(), [LayerPlace::Shelf(extent)]);
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
        assert_eq!(shown.places(), [LayerPlace::Shelf(a)]);
        bed.orders = None;
        assert!(bed.asked.recv().await.is_none(), "layers do not keep a sandbox");
        bed.state.send_replace(State::Ended(Arc::new(Ended::stopped())));
        drop(shown);
        let late = bed.show(&["b"]).await.unwrap().unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Stopped);
    }

    #[test]
    fn a_storage_says_the_place() {
        let disk = LayerPlace::Disk("layer-1".into()).storage("/m".into());
        assert_eq!((disk.source.as_str(), disk.driver_options.len()), ("layer-1", 0));
        let extent = Extent {
            offset: 1 << 20,
            bytes: 4096,
        };
        let part = LayerPlace::Shelf(extent).storage("/m".into());
        assert_eq!((part.driver.as_str(), part.source.as_str()), ("blk", "shelf"));
        assert_eq!(
            part.driver_options,
            ["kata-rs.blk.offset=1048576", "kata-rs.blk.size=4096"]
        );
        assert_eq!((part.fstype.as_str(), part.mount_point.as_str()), ("erofs", "/m"));
    }
}
