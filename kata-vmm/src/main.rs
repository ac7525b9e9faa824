//! The monitor as a program.
fn main() {}
