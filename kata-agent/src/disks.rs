//! Disks that are files: what an agent has that is an ordinary process.
//!
//! Owns which there are, by serial; some come and go while the agent runs. In a guest there are none, and disks
//! are devices.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use kata_agent_proto::{Failed, FailureKind};
use tokio::sync::watch;

use crate::extent::Extent;
use crate::order::{Storage, Storages};

/// How long a disk may take to come that a request names: the two arrive on ways of their own.
const WAIT: Duration = Duration::from_secs(1);

/// Serial and file.
type Disk = (String, Arc<OwnedFd>);

/// See the module.
pub(crate) struct Disks(Option<watch::Sender<Vec<Disk>>>);

impl Disks {
    /// Those of a guest: none.
    pub(crate) fn devices() -> Self {
        Disks(None)
    }

    /// Those that are there from the start, of a process.
    pub(crate) fn files(list: Vec<(String, OwnedFd)>) -> Self {
        let shared = list.into_iter().map(|(serial, file)| (serial, Arc::new(file)));
        Disks(Some(watch::channel(shared.collect()).0))
    }

    /// One comes, or without a file goes.
    pub(crate) fn change(&self, serial: String, file: Option<OwnedFd>) {
        let Some(disks) = &self.0 else { return };
        disks.send_modify(|list| {
            list.retain(|(known, _)| *known != serial);
            list.extend(file.map(|file| (serial, Arc::new(file))));
        });
    }

    /// Storages for a worker, and the files that it has to inherit for them.
    ///
    /// # Errors
    /// [`FailureKind::NoSuchDisk`] where a part of a disk is asked for and does not come in time.
    pub(crate) async fn storages(&self, list: Vec<Storage>) -> Result<(Storages, Vec<Arc<OwnedFd>>), Failed> {
        let Some(disks) = &self.0 else {
            let disks = Vec::new();
            return Ok((Storages { list, disks }, Vec::new()));
        };
        let mut found: Vec<Disk> = Vec::new();
        for storage in &list {
            match Extent::of(storage)? {
                Some(extent) => found.push(arrived(disks, extent.name(&storage.source)).await?),
                None => found.extend(known(&disks.borrow(), &storage.source)),
            }
        }
        let numbers = found
            .iter()
            .map(|(serial, file)| (serial.clone(), file.as_raw_fd()));
        let disks = numbers.collect();
        let files = found.into_iter().map(|(_, file)| file).collect();
        Ok((Storages { list, disks }, files))
    }
}

fn known(list: &[Disk], serial: &str) -> Option<Disk> {
    list.iter().find(|(known, _)| known == serial).cloned()
}

async fn arrived(disks: &watch::Sender<Vec<Disk>>, serial: String) -> Result<Disk, Failed> {
    let mut changes = disks.subscribe();
    let there = changes.wait_for(|list| known(list, &serial).is_some());
    let found = match tokio::time::timeout(WAIT, there).await {
        Ok(Ok(list)) => known(&list, &serial),
        _ => None,
    };
    found.ok_or_else(|| Failed::new(FailureKind::NoSuchDisk, serial))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(source: &str, options: &[&str]) -> Storage {
        Storage {
            driver: "blk".into(),
            source: source.into(),
            driver_options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Storage::default()
        }
    }

    fn file() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("opened").into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_of_a_disk_is_waited_for_and_a_whole_disk_is_not() {
        let disks = Disks::files(vec![("rootfs".into(), file())]);
        let part = storage(
            "shelf",
            &["kata-rs.storage.offset=512", "kata-rs.storage.size=512"],
        );
        let list = vec![storage("rootfs", &[]), storage("nosuch", &[]), part];
        let failed = disks.storages(list.clone()).await.err().map(|failed| failed.kind);
        assert_eq!(failed, Some(FailureKind::NoSuchDisk));
        let (found, ()) = tokio::join!(disks.storages(list.clone()), async {
            tokio::task::yield_now().await;
            disks.change("shelf@512".into(), Some(file()));
        });
        let (storages, files) = found.expect("found");
        let serials: Vec<&str> = storages.disks.iter().map(|(serial, _)| serial.as_str()).collect();
        assert_eq!((serials, files.len()), (vec!["rootfs", "shelf@512"], 2));
        disks.change("shelf@512".into(), None);
        assert!(disks.storages(list).await.is_err());
        // Who works with it has it still.
        assert_eq!(Arc::strong_count(&files[1]), 1);
    }

    #[tokio::test]
    async fn in_a_guest_disks_are_devices() {
        let disks = Disks::devices();
        disks.change("shelf@512".into(), Some(file()));
        let list = vec![storage(
            "shelf",
            &["kata-rs.storage.offset=512", "kata-rs.storage.size=512"],
        )];
        let (storages, files) = disks.storages(list).await.expect("no file is needed");
        assert_eq!(
            (storages.list.len(), storages.disks.len(), files.len()),
            (1, 0, 0)
        );
    }
}
