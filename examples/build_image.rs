//! An image of a directory, without any container engine: written as a layout, and pushed where that is asked for.
//! `cargo run --release --example build_image -- ROOTFS_DIRECTORY LAYOUT_DIRECTORY [REFERENCE]`.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::process::ExitCode;

use examples::{ImageBar, print_error};
use kata_sandbox::image::{Image, Reference, Registries};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [rootfs, layout] => build(rootfs, layout, None),
        [rootfs, layout, reference] => build(rootfs, layout, Some(reference)),
        _ => {
            eprintln!("usage: build_image ROOTFS_DIRECTORY LAYOUT_DIRECTORY [REFERENCE]");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn build(rootfs: &str, layout: &str, reference: Option<&str>) -> Result<(), Box<dyn Error>> {
    let mut bar = ImageBar::new(rootfs);
    let image = Image::builder()
        .directory(rootfs)
        .cmd(["/bin/sh"])
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .build(&mut |progress| bar.report(progress))?;
    image.write_layout(layout, Some("latest"), &mut |progress| bar.report(progress))?;
    bar.finish();
    println!("{} is in {layout}", image.digest());
    if let Some(reference) = reference {
        let mut bar = ImageBar::new(reference);
        let reference: Reference = reference.parse()?;
        image.push(&Registries::new(), &reference, &mut |progress| {
            bar.report(progress)
        })?;
        bar.finish();
        println!("{reference} is {}", image.digest());
    }
    Ok(())
}
