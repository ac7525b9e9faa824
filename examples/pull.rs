//! What an image in a registry is made of, and its bytes: every layer is read and checked.
//! `cargo run --release --example pull -- debian:stable-slim [LAYOUT_DIRECTORY]`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::io::{self, Read};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Instant;

use examples::{ImageBar, print_error};
use kata_sandbox::image::{Image, Platform, Progress, Reference, Registries, Stage, Verified};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(reference) = arguments.next() else {
        eprintln!("usage: pull REFERENCE [LAYOUT_DIRECTORY]");
        return ExitCode::from(2);
    };
    match pull(&reference, arguments.next().as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn pull(reference: &str, layout: Option<&str>) -> Result<(), Box<dyn Error>> {
    let reference: Reference = reference.parse()?;
    let image = Image::pull(&Registries::new(), &reference, &Platform::host())?;
    println!("{reference}\n  {} for {}", image.digest(), image.platform());
    let config = image.config();
    println!("  command {:?} {:?}", config.entrypoint, config.cmd);
    for layer in image.layers() {
        println!(
            "  layer {} {} bytes, {}",
            layer.digest, layer.size_bytes, layer.media_type
        );
    }
    let begun = Instant::now();
    let mut bar = ImageBar::new(reference.familiar());
    let mut report = |progress| bar.report(progress);
    match layout {
        Some(directory) => {
            let name = reference.familiar();
            image.write_layout(directory, Some(&name), &mut report)?;
            println!("{name} is in {directory}");
        }
        None => read_all(&image, &mut report)?,
    }
    bar.finish();
    println!("all layers are what their digests say, {:.2?}", begun.elapsed());
    Ok(())
}

/// Reads all layers at the same time; connections are shared.
fn read_all(image: &Image, report: &mut dyn FnMut(Progress)) -> Result<(), Box<dyn Error>> {
    let (news, inbox) = mpsc::channel();
    let total_bytes = image.layers().iter().map(|layer| layer.size_bytes).sum();
    let mut progress = Progress {
        stage: Stage::Downloading,
        done_bytes: 0,
        total_bytes: Some(total_bytes),
        entries: 0,
    };
    std::thread::scope(|scope| {
        for layer in (0..image.layers().len()).filter_map(|index| image.layer(index)) {
            let news = news.clone();
            scope.spawn(move || read(layer, &news));
        }
        drop(news);
        for piece in inbox {
            match piece? {
                Piece::Bytes(count) => progress.done_bytes += count,
                Piece::End => progress.entries += 1,
            }
            report(progress);
        }
        Ok(())
    })
}

/// What came of a layer.
enum Piece {
    Bytes(u64),
    End,
}

/// Reads a layer to its end, which checks it. Nobody listens any more when another layer has failed.
fn read(mut layer: Verified<'_>, news: &mpsc::Sender<io::Result<Piece>>) {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let piece = match layer.read(&mut buffer) {
            Ok(0) => Ok(Piece::End),
            Ok(count) => Ok(Piece::Bytes(count as u64)),
            Err(error) => Err(error),
        };
        let goes_on = matches!(piece, Ok(Piece::Bytes(_)));
        if news.send(piece).is_err() || !goes_on {
            return;
        }
    }
}
