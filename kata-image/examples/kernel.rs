//! What a guest kernel can do, and whether it can run a sandbox: one that you built, or the one that would be taken.
//!
//! ```sh
//! cargo xtask kernel                                     # builds one, once
//! cargo run -p kata-image --example kernel               # the one that sandboxes boot
//! cargo run -p kata-image --example kernel -- vmlinux    # any other
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use kata_image::kernel::Kernel;

fn main() -> ExitCode {
    let file = std::env::args_os().nth(1).map(PathBuf::from);
    match look(file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn look(file: Option<PathBuf>) -> Result<(), Box<dyn Error>> {
    let kernel = match file {
        Some(file) => Kernel::inspect(&file)?,
        None => Kernel::find(None)?,
    };
    println!("{}", kernel.path().display());
    println!("  release {}", kernel.release().unwrap_or("unknown"));
    for (feature, ability) in kernel.abilities() {
        println!("  {feature}: {ability}");
    }
    kernel.check()?;
    println!("it can run a sandbox");
    Ok(())
}
