//! Placeholder until the SDK stands.
fn main() {}
