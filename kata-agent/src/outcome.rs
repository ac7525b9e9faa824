//! How what was asked of another process ended.
//!
//! ```text
//!  worker, process in a container ── one line of JSON ──► agent
//! ```
//!
//! Owns the words of the answer and that it is written in one piece. Must not know what was asked.

use kata_agent_proto::{Failed, FailureKind};
use serde::{Deserialize, Serialize};

/// Longest outcome in bytes: what a pipe takes in one piece.
pub(crate) const OUTCOME_MAX_BYTES: usize = 4096;

/// Longest subject of a failure, so that the outcome fits.
const SUBJECT_MAX_BYTES: usize = OUTCOME_MAX_BYTES / 4;

/// How an order ended.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// A process was made; it is the agent's child.
    Process(i32),
    /// Nothing was made that has a number.
    Done,
    /// It failed, and left nothing behind.
    Failed {
        /// The number of the kind.
        kind: i32,
        /// What it speaks about.
        subject: String,
    },
}

impl Outcome {
    pub(crate) fn failed(failed: &Failed) -> Self {
        Outcome::Failed {
            kind: failed.kind.number(),
            subject: failed.subject.clone(),
        }
    }

    pub(crate) fn into_result(self) -> Result<Option<i32>, Failed> {
        match self {
            Outcome::Process(pid) => Ok(Some(pid)),
            Outcome::Done => Ok(None),
            Outcome::Failed { kind, subject } => Err(Failed::new(FailureKind::from_number(kind), subject)),
        }
    }
}

pub(crate) fn line(outcome: &Outcome) -> Vec<u8> {
    // Numbers and text always have a JSON.
    let mut line = serde_json::to_vec(outcome).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A failure as an outcome that is written in one piece.
pub(crate) fn failure_line(failed: Failed) -> Vec<u8> {
    line(&Outcome::failed(&shortened(&failed)))
}

/// A failure that fits into an outcome.
pub(crate) fn shortened(failed: &Failed) -> Failed {
    let mut failed = failed.clone();
    truncate(&mut failed.subject);
    failed
}

fn truncate(text: &mut String) {
    if text.len() > SUBJECT_MAX_BYTES {
        let end = (0..=SUBJECT_MAX_BYTES)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_failure_is_cut_where_a_character_ends() {
        let mut text = "ü".repeat(SUBJECT_MAX_BYTES);
        truncate(&mut text);
        assert!(text.len() <= SUBJECT_MAX_BYTES && text.ends_with('ü'));
    }
}
