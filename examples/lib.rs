//! The runnable programs beside this file (`cargo run --example hello`), and what they share: how far an image has
//! come, and what went wrong. What an image is for, it must not know.

mod image_bar;

use std::error::Error;
use std::ffi::OsStr;

pub use image_bar::ImageBar;
use kata_sandbox::image::{ImageSource, Pull, Store};

/// Puts the image into the store, where the sandbox finds it; without this it would do the same, without a word.
///
/// # Errors
/// When the image cannot be read or fetched, or the store not be written.
pub fn fetch(image: &OsStr) -> Result<(), Box<dyn Error + Send + Sync>> {
    let store = Store::open(Store::default_directory()?)?;
    let mut bar = ImageBar::new(image.display().to_string());
    let source = ImageSource::detect(image)?;
    store.image(&source, &Pull::default(), &mut |progress| bar.report(progress))?;
    bar.finish();
    Ok(())
}

/// An error and what caused it, on one line of standard error.
pub fn print_error(error: &dyn Error) {
    let causes = std::iter::successors(Some(error), |error| (**error).source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    eprintln!("error: {}", causes.join(": "));
}
