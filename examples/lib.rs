//! The runnable programs beside this file: `cargo run --example hello`.
