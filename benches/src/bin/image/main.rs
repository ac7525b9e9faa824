//! `cargo xtask bench image`: from a reference to what a machine can boot, by our store and by the programs that do it
//! without us.
//!
//! ```text
//!  round:  pull into an empty store │ skopeo copy, umoci unpack, mkfs.erofs, sync; our writer │ two runs
//! ```
//!
//! They take turns in one run on one machine, each as a process of its own, from a registry on this machine. Prints
//! one JSON line per figure, and writes a table and a plot. A goal that is missed is said, and is no error.

#![expect(clippy::print_stdout, reason = "a program for people prints")]

mod contenders;
mod ours;
mod plot;
mod process;
mod registry;
mod report;
mod subject;

use std::error::Error;
use std::path::{Path, PathBuf};

use contenders::Place;
use registry::Registry;
use report::Round;
use subject::Subject;

/// Rounds that are measured; one more warms caches up.
const ROUNDS: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["pull", reference] => drop(ours::pull(reference)?),
        ["write", tree, image] => ours::write(tree.as_ref(), image.as_ref())?,
        ["again", reference] => println!("{}", ours::again(reference)?),
        ["run", reference] => println!("{}", ours::run(reference)?),
        ["compare", rootfs, images, out] => compare(rootfs.as_ref(), images.as_ref(), out.as_ref())?,
        _ => {
            return Err(
                "usage: image compare ROOTFS IMAGES OUTPUT-DIRECTORY; `cargo xtask bench image` calls it"
                    .into(),
            );
        }
    }
    Ok(())
}

fn compare(rootfs: &Path, images: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let work = tempfile::Builder::new().prefix("kata-bench-image-").tempdir()?;
    let (registry, subject) = subject(rootfs, images, work.path())?;
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        let measured = self::round(&subject.reference, work.path())?;
        if round > 0 {
            rounds.push(measured);
        }
    }
    drop(registry);
    report::write(&subject, &rounds, out)
}

/// The image, in a registry; what it was made from is gone.
fn subject(rootfs: &Path, images: &Path, work: &Path) -> Result<(Registry, Subject), Box<dyn Error>> {
    eprintln!("an image of {}", rootfs.display());
    let data: PathBuf = work.join("registry");
    std::fs::create_dir(&data)?;
    let registry = Registry::start(&data)?;
    let parts = tempfile::tempdir_in(work)?;
    let subject = Subject::push(rootfs, images, parts.path(), &registry.host)?;
    Ok((registry, subject))
}

fn round(reference: &str, work: &Path) -> Result<Round, Box<dyn Error>> {
    let place = Place::new(work)?;
    let pull = contenders::pull(reference, &place)?;
    drop(place);
    let place = Place::new(work)?;
    let pipeline = contenders::pipeline(reference, &place)?;
    let writer = contenders::writer(&place)?;
    drop(place);
    let place = Place::new(work)?;
    Ok(Round {
        pull,
        pipeline,
        writer,
        first_run: contenders::run(reference, &place)?,
        second_run: contenders::run(reference, &place)?,
        again_us: contenders::again(reference, &place)?,
    })
}
