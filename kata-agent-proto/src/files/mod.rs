//! Files on their way into a container and out of it: one stream, read from a directory and made in another.
//!
//! ```text
//!  send: walks a source ──► Entry, Piece + bytes, Piece + bytes, Entry, … End ──► receive: makes it below a destination
//!                       ◄──────────────────────── End ───────────────────────────
//! ```
//!
//! Both ends are here because both sides of the agent's API have them, once for each direction. Owns the grammar of
//! the stream ([`kata::Step`](crate::kata::Step)), what is copied of a file, and where things go. Neither end trusts
//! the other: memory is bounded, and no path of a stream leads out of the destination, through no link, whoever
//! changes the tree meanwhile. Must not know containers or connections.

mod attributes;
mod destination;
mod error;
mod receive;
mod root;
mod send;
mod step;
#[cfg(test)]
mod tests;

pub use error::FilesError;
pub use receive::{Policy, receive};
pub use root::{Root, open_within};
pub use send::{name_of, send};
pub use step::{Item, StepReader, StepWriter};

use crate::kata::{self, omission::What};

/// Most omissions that are told by name.
const OMISSIONS_NAMED: usize = 64;

/// How far a copy has come, or what it was in the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Files, directories and others.
    pub entries: u64,
    /// Of files, without holes.
    pub bytes: u64,
    /// What was left out, the first of it by name.
    pub omitted: Vec<kata::Omission>,
    /// How much was left out.
    pub omissions: u64,
}

impl Tally {
    fn omit(&mut self, path: &[u8], what: What) {
        self.omissions += 1;
        if self.omitted.len() < OMISSIONS_NAMED {
            self.omitted.push(kata::Omission {
                path: path.to_vec(),
                what: what.into(),
                ..Default::default()
            });
        }
    }

    fn end(&self) -> kata::End {
        kata::End {
            entries: self.entries,
            bytes: self.bytes,
            omitted: self.omitted.clone(),
            omissions: self.omissions,
            ..Default::default()
        }
    }

    /// Adds what the other side left out.
    fn add(&mut self, end: kata::End) {
        self.omissions = self.omissions.saturating_add(end.omissions);
        let room = OMISSIONS_NAMED.saturating_sub(self.omitted.len());
        self.omitted.extend(end.omitted.into_iter().take(room));
    }
}

/// Told how far a copy has come, every few MiB or few hundred entries, and at its end.
pub type Watch<'a> = &'a mut dyn FnMut(u64, u64);

/// When to tell again.
struct Meter<'a> {
    watch: Watch<'a>,
    told: (u64, u64),
}

impl<'a> Meter<'a> {
    const BYTES: u64 = 4 << 20;
    const ENTRIES: u64 = 256;

    fn new(watch: Watch<'a>) -> Self {
        Meter { watch, told: (0, 0) }
    }

    fn tell(&mut self, tally: &Tally) {
        let (entries, bytes) = self.told;
        if tally.entries >= entries + Self::ENTRIES || tally.bytes >= bytes + Self::BYTES {
            self.tell_now(tally);
        }
    }

    fn tell_now(&mut self, tally: &Tally) {
        self.told = (tally.entries, tally.bytes);
        (self.watch)(tally.entries, tally.bytes);
    }
}
