//! Places that images come from and go to: docker's registry in all its moods, a server that lies, layouts and archives,
//! and skopeo as the judge of what is written.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod archives;
mod authentication;
mod build;
mod corpus;
mod docker_registry;
mod faults;
mod processes;
mod programs;
mod pushing;
mod server;
mod transport;
