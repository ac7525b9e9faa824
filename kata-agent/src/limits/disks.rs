//! Weights of input and output mean nothing until the disks are scheduled by them.
//!
//! Two mechanisms of Linux know weights: the scheduler BFQ (block/bfq-iosched.rst), which a disk has to be given, and
//! iocost (cgroup-v2.rst, `io.cost.qos`), which has to be turned on for a disk. Both cost something with each request,
//! so a disk has one of them only once somebody asked for a weight. Must not know the weights.

use std::fs;
use std::io;
use std::path::Path;

const BFQ: &str = "bfq";

/// Has every disk below `/sys/block` scheduled by weights; `cgroups` is the root of their hierarchy.
///
/// # Errors
/// Names the file that could not be read or written.
pub(super) fn weigh(disks: &Path, cgroups: &Path) -> io::Result<()> {
    let qos = cgroups.join("io.cost.qos");
    for disk in fs::read_dir(disks)? {
        let disk = disk?.path();
        // What is made of other disks needs none: those are scheduled.
        if !disk.join("device").exists() {
            continue;
        }
        let scheduler = disk.join("queue/scheduler");
        let list = match fs::read_to_string(&scheduler) {
            // One whose requests are in no queue, or that is gone by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            list => list.map_err(|error| named(&scheduler, &error))?,
        };
        match offers(&list) {
            Some(Offer::Chosen) => {}
            Some(Offer::There) => write(&scheduler, BFQ)?,
            None if qos.exists() => {
                let numbers = read(&disk.join("dev"))?;
                write(&qos, &format!("{} enable=1", numbers.trim_end()))?;
            }
            None => {}
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Offer {
    There,
    Chosen,
}

/// Whether a list of schedulers, in which the one that is used stands in brackets, has BFQ.
fn offers(list: &str) -> Option<Offer> {
    list.split_whitespace().find_map(|word| match word {
        BFQ => Some(Offer::There),
        _ if word.trim_matches(['[', ']']) == BFQ => Some(Offer::Chosen),
        _ => None,
    })
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| named(path, &error))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text).map_err(|error| named(path, &error))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_is_given_the_scheduler_that_there_is() {
        let root = tempfile::tempdir().expect("a directory");
        let (blocks, cgroups) = (root.path().join("block"), root.path().join("cgroup"));
        let disk = |name: &str, schedulers: &str, is_device: bool| {
            let disk = blocks.join(name);
            fs::create_dir_all(disk.join("queue")).expect("made");
            if is_device {
                fs::create_dir(disk.join("device")).expect("made");
            }
            fs::write(disk.join("queue/scheduler"), schedulers).expect("written");
            fs::write(disk.join("dev"), "254:0\n").expect("written");
        };
        let scheduler =
            |name: &str| fs::read_to_string(blocks.join(name).join("queue/scheduler")).expect("read");
        disk("vda", "[none] mq-deadline bfq\n", true);
        disk("vdb", "none [bfq]\n", true);
        disk("vdc", "[none]\n", true);
        disk("loop0", "[none] bfq\n", false);
        fs::create_dir_all(blocks.join("pmem0/device")).expect("made");
        fs::create_dir(&cgroups).expect("made");
        weigh(&blocks, &cgroups).expect("done");
        let seen = ["vda", "vdb", "vdc", "loop0"].map(scheduler);
        assert_eq!(seen, ["bfq", "none [bfq]\n", "[none]\n", "[none] bfq\n"]);

        let qos = cgroups.join("io.cost.qos");
        fs::write(&qos, "").expect("written");
        fs::remove_dir_all(blocks.join("pmem0")).expect("removed");
        weigh(&blocks, &cgroups).expect("done");
        assert_eq!(fs::read_to_string(&qos).expect("read"), "254:0 enable=1");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join("vda/device")).expect("made");
        fs::create_dir_all(root.path().join("vda/queue/scheduler")).expect("made");
        let error = weigh(root.path(), root.path()).expect_err("no list").to_string();
        assert!(error.contains("vda/queue/scheduler"), "{error}");
    }
}
