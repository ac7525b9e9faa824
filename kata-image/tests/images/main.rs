//! Images of several layers in the store: fetched once, stacked or merged, kept and swept. The places are layouts
//! that the builder of this crate wrote; registries have tests of their own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bench;
mod fetching;
mod sweeping;
mod verifying;
