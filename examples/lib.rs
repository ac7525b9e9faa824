//! The runnable programs beside this file (`cargo run --example hello`), and what they share: how far an image has
//! come, and what went wrong. What an image is for, it must not know.

mod image_bar;

use std::error::Error;

pub use image_bar::ImageBar;

/// An error and what caused it, on one line of standard error.
pub fn print_error(error: &dyn Error) {
    let causes = std::iter::successors(Some(error), |error| (**error).source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    eprintln!("error: {}", causes.join(": "));
}
