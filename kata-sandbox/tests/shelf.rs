//! Containers of other images than the one that a sandbox was booted with: their layers come while it runs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;
mod registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use bed::{Bed, eventually, script, script_in, text};
use kata_sandbox::image::Pull;
use kata_sandbox::{Container, ErrorKind, MiB, Sandbox};
use registry::Registry;

/// More than a virtio disk has minor numbers for partitions (Linux drivers/block/virtio_blk.c, `PART_BITS`).
const AT_ONCE: usize = 18;

/// One after another.
const IN_TURN: usize = 24;

/// Reads every byte of the programs, in an order of its own.
const SUM: &str = "cd /usr/bin && ls | LC_ALL=C sort | while read -r name; do [ -f \"$name\" ] && [ ! -L \"$name\" ] && cat \"$name\"; done | md5sum";

/// Where the images of these tests are made from. They are kept: what is unchanged is not converted again.
fn made(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _alone = MAKING.lock().unwrap();
    let path = std::env::temp_dir().join("shelf-tests").join(name);
    if !path.is_dir() {
        let partial = path.with_extension("partial");
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).unwrap();
        make(&partial);
        fs::rename(&partial, &path).unwrap();
    }
    path
}

/// The root filesystem with fewer files, and one that it has not.
fn other(bed: &Bed) -> PathBuf {
    made("other", |directory| {
        let absent = [
            "usr/share",
            "var",
            "usr/lib/x86_64-linux-gnu/perl-base",
            "usr/sbin",
        ];
        bed.unpack_without(&absent, directory);
        fs::write(directory.join("marker"), "another image\n").unwrap();
    })
}

/// An image that has nothing in it but a number.
fn tiny(number: usize) -> PathBuf {
    made(&format!("tiny-{number}"), |directory| {
        fs::write(directory.join("number"), number.to_string()).unwrap();
    })
}

fn idle(image: impl AsRef<Path>) -> Container {
    Container::new(image.as_ref()).idle()
}

/// What is left of containers that came later.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    /// On the shelf: files, and their bytes.
    extents: Option<(u64, u64)>,
    /// Of the guest's disks.
    partitions: Option<String>,
    /// Files of images that the monitor has open, and where there is no guest the agent.
    files: Vec<usize>,
    /// Of the agent, where there is no guest.
    mounts: Option<usize>,
}

async fn traces(bed: &Bed, sandbox: &Sandbox) -> Traces {
    let pids = match bed.has_guest() {
        true => &sandbox.info().pids[..1],
        false => &sandbox.info().pids[..],
    };
    let is_image = |path: PathBuf| path.to_string_lossy().contains("/images/");
    let count = |pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        open.filter(|fd| fs::read_link(fd.path()).is_ok_and(is_image))
            .count()
    };
    let mounts = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/mounts"))
            .unwrap()
            .lines()
            .count()
    };
    let devices = sandbox.machine().await.unwrap().devices;
    let shelf = devices.iter().find(|device| device.name == "block shelf");
    let partitions = text(&script(sandbox, "ls -d /sys/block/vd*/*/partition 2>/dev/null | wc -l").await);
    Traces {
        extents: shelf.map(|shelf| (shelf.figures["extents"], shelf.figures["extent_bytes"])),
        partitions: bed.has_guest().then_some(partitions),
        files: pids.iter().map(count).collect(),
        mounts: (!bed.has_guest()).then(|| mounts(pids.last().unwrap())),
    }
}

/// The monitor and the agent close files on their own time.
async fn left_nothing(bed: &Bed, sandbox: &Sandbox, before: &Traces) {
    eventually("nothing is left", async || traces(bed, sandbox).await == *before).await;
}

impl Traces {
    /// Partitions and extents, where there is a guest.
    fn of_guest(&self) -> Option<(u64, &str)> {
        Some((self.extents?.0, self.partitions.as_deref()?))
    }
}

on_every_backend! {
    async fn a_container_of_another_image_joins_and_its_layers_are_shared(bed: Bed) {
        let image = other(&bed);
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let before = traces(&bed, &sandbox).await;
        let first = sandbox.create_container(idle(&image).name("other")).await.unwrap();
        assert_eq!(text(&script_in(&first, "cat /marker; touch /own").await), "another image");
        assert_eq!(text(&script(&sandbox, "test -e /marker || echo none").await), "none");
        let with_one = traces(&bed, &sandbox).await;
        assert_eq!(with_one.of_guest(), bed.has_guest().then_some((1, "1")), "{with_one:?}");

        // Another of the same has the same layers, and files of its own.
        let twin = sandbox.create_container(idle(&image).name("twin")).await.unwrap();
        let with_two = traces(&bed, &sandbox).await;
        assert_eq!((with_two.extents, &with_two.partitions), (with_one.extents, &with_one.partitions));
        first.remove().await.unwrap();
        assert_eq!(traces(&bed, &sandbox).await.of_guest(), with_one.of_guest());
        // Nobody has read most of it before.
        let on_host = SUM.replace("/usr", "usr");
        let wanted = std::process::Command::new("sh").args(["-c", &on_host]).current_dir(&image).output().unwrap();
        let sum = String::from_utf8_lossy(&wanted.stdout).trim_end().to_owned();
        let summed = script_in(&twin, SUM).await;
        let stderr = String::from_utf8_lossy(&summed.stderr);
        assert_eq!(text(&summed), sum, "{}: {stderr}", summed.status);
        assert_eq!(text(&script_in(&twin, "test -e /own || echo none").await), "none");
        twin.remove().await.unwrap();
        left_nothing(&bed, &sandbox, &before).await;

        // What the machine has is not shown, and what cannot be had is an error that costs nothing.
        let same = sandbox.create_container(bed.member("same").idle()).await.unwrap();
        assert_eq!(traces(&bed, &sandbox).await.extents, before.extents);
        same.remove().await.unwrap();
        let refused = sandbox.create_container(idle(&image).disk(MiB(16))).await.unwrap_err();
        assert_eq!((refused.kind(), refused.is_sandbox_lost()), (ErrorKind::Unsupported, false));
        let verified = idle(&image).name("verified").pull(Pull::default().hash_trees(true));
        match sandbox.create_container(verified).await {
            Ok(verified) => {
                let read = "cat /usr/bin/env >/dev/null && cat /marker";
                assert_eq!(text(&script_in(&verified, read).await), "another image");
                let shown = traces(&bed, &sandbox).await;
                assert_eq!(shown.of_guest(), Some((2, "2")), "the layer and its tree");
                verified.remove().await.unwrap();
            }
            // Without a guest, or where its kernel has no device mapper.
            Err(error) => assert_eq!((error.kind(), error.is_sandbox_lost()), (ErrorKind::Unsupported, false)),
        }
        // The device mapper lets go of a disk a moment later; who goes next sees to it.
        let failed = sandbox.create_container(Container::new(&image).args(["/nosuch"])).await.unwrap_err();
        assert_eq!((failed.kind(), failed.is_sandbox_lost()), (ErrorKind::CommandNotFound, false));
        left_nothing(&bed, &sandbox, &before).await;
        sandbox.stop().await.unwrap();
    }

    async fn many_images_come_and_go_and_leave_nothing(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        sandbox.create_container(idle(tiny(0))).await.unwrap().remove().await.unwrap();
        let before = traces(&bed, &sandbox).await;
        let mut present = Vec::new();
        for number in 0..AT_ONCE {
            present.push(sandbox.create_container(idle(tiny(number))).await.unwrap());
        }
        let full = traces(&bed, &sandbox).await;
        let expected = AT_ONCE.to_string();
        assert_eq!(full.of_guest(), bed.has_guest().then_some((u64::try_from(AT_ONCE).unwrap(), expected.as_str())));
        for container in present {
            container.remove().await.unwrap();
        }
        left_nothing(&bed, &sandbox, &before).await;
        for number in 0..IN_TURN {
            let container = sandbox.create_container(idle(tiny(number % AT_ONCE))).await.unwrap();
            container.remove().await.unwrap();
        }
        left_nothing(&bed, &sandbox, &before).await;
        // Also where they come and go at the same time.
        let all = (0..AT_ONCE).map(async |number| {
            let container = sandbox.create_container(idle(tiny(number / 2))).await.unwrap();
            container.remove().await.unwrap();
        });
        futures_of(all).await;
        // One that came while another went may have kept its partition busy; who goes next sees to it.
        sandbox.create_container(idle(tiny(0))).await.unwrap().remove().await.unwrap();
        left_nothing(&bed, &sandbox, &before).await;
        sandbox.stop().await.unwrap();
    }

    async fn what_is_given_up_at_any_moment_leaves_nothing(bed: Bed) {
        let image = other(&bed);
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        // A process checks no disks, and not every kernel can.
        for trees in [false, true] {
            let asked = || idle(&image).pull(Pull::default().hash_trees(trees));
            sandbox.create_container(idle(tiny(0))).await.unwrap().remove().await.unwrap();
            let before = traces(&bed, &sandbox).await;
            let begun = Instant::now();
            match sandbox.create_container(asked()).await {
                Ok(whole) => whole.remove().await.unwrap(),
                Err(error) => {
                    assert_eq!((trees, error.kind()), (true, ErrorKind::Unsupported), "{error}");
                    continue;
                }
            }
            let whole = begun.elapsed();
            for part in 0..16 {
                if let Ok(made) = tokio::time::timeout(whole * part / 16, sandbox.create_container(asked())).await {
                    made.unwrap().remove().await.unwrap();
                }
            }
            // Of what the device mapper had, who goes next sees to it.
            eventually("nothing is left", async || {
                sandbox.create_container(idle(tiny(0))).await.unwrap().remove().await.unwrap();
                traces(&bed, &sandbox).await == before
            }).await;
        }
        sandbox.stop().await.unwrap();
    }

    async fn layers_that_the_machine_has_are_not_shown_again(bed: Bed) {
        let Some(registry) = Registry::start() else { return };
        let repository = |image: &str| format!("shelf-{image}-{}-{}", bed.name, std::process::id());
        let base = registry.image(&repository("base"), "base");
        let python = registry.image(&repository("python"), "python");
        let sandbox = Sandbox::boot(bed.of_image(&base).idle()).await.unwrap();
        let joined = sandbox.create_container(Container::new(&python).idle()).await.unwrap();
        let output = script_in(&joined, "python3 -c 'print(6 * 7)'").await;
        assert_eq!(text(&output), "42", "{}", String::from_utf8_lossy(&output.stderr));
        let shown = traces(&bed, &sandbox).await;
        assert_eq!(shown.of_guest(), bed.has_guest().then_some((1, "1")), "its base is a disk of the machine");
        joined.remove().await.unwrap();
        sandbox.stop().await.unwrap();
    }
}

/// All of them, at the same time.
async fn futures_of(all: impl Iterator<Item: Future<Output = ()>>) {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|future| future.as_mut().poll(context).is_pending());
        match all.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}
