//! What an image in a registry is made of, and its bytes: every layer is read and checked.
//! `cargo run --release -p kata-image --example pull -- debian:stable-slim [LAYOUT_DIRECTORY]`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use kata_image::{Image, Platform, Reference, Registries};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(reference) = arguments.next() else {
        eprintln!("usage: pull REFERENCE [LAYOUT_DIRECTORY]");
        return ExitCode::from(2);
    };
    match pull(&reference, arguments.next().as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
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
    match layout {
        Some(directory) => {
            let name = reference.familiar();
            image.write_layout(directory, Some(&name), &mut |progress| eprint!("\r{progress}"))?;
            eprintln!();
            println!("{name} is in {directory}");
        }
        None => {
            // Layers may be read at the same time; connections are shared.
            let results: Vec<_> = std::thread::scope(|scope| {
                let layers: Vec<_> = (0..image.layers().len())
                    .filter_map(|index| image.layer(index))
                    .map(|layer| scope.spawn(|| layer.finish()))
                    .collect();
                layers.into_iter().map(|thread| thread.join()).collect()
            });
            for result in results {
                result.map_err(|_| "a thread panicked")??;
            }
        }
    }
    println!("all layers are what their digests say, {:.2?}", begun.elapsed());
    Ok(())
}
