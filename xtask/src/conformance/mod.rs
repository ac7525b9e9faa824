//! What a container and its agent have to do, and which tests hold it: `docs/conformance.md`.
//!
//! ```text
//!  rows: lists in xtask/conformance, methods in kata-agent-proto/protos ─┐
//!                                                                        ├─► table, breaches ─► tidy
//!  claims: `/// Conformance: oci process.args` above a test ─────────────┘        │
//!                                        what passed on which backend ────────────┴─► sum of a run
//! ```
//!
//! A row holds when a test of the one test body claims it: such a test runs on every backend. It must not know
//! how tests are run.

mod claims;
mod outcome;
mod rows;
mod table;

use std::path::Path;

use crate::tidy::Tree;

pub(crate) use outcome::{Passed, judge};

/// Rows that no test holds so far; the list may only shrink.
const MISSING: &str = "xtask/conformance/missing.txt";

use claims::Claim;
use rows::{Needs, Row};

/// The generated document.
pub(crate) const DOCUMENT: &str = "docs/conformance.md";

/// Rows, and the tests that claim them.
#[derive(Debug)]
pub(crate) struct Conformance {
    rows: Vec<Row>,
    claims: Vec<Claim>,
    /// Names of rows that are known to be held by nothing.
    missing: Vec<String>,
    /// What is wrong with lists or claims: where, and what.
    mistakes: Vec<(String, String)>,
}

impl Conformance {
    /// Reads lists, methods and tests.
    pub(crate) fn read(tree: &Tree) -> Self {
        let mut mistakes = Vec::new();
        let rows = rows::all(tree, &mut mistakes);
        let mut claims = Vec::new();
        for file in tree.rust.iter().filter(|file| claims::may_be_in(&file.path)) {
            let text = tree.text(&file.path).unwrap_or_default();
            claims.extend(claims::of_file(&file.path, text, &mut mistakes));
        }
        claims.sort();
        mistakes.extend(ambiguous(&claims));
        for claim in &claims {
            if !rows.iter().any(|row| row.is(&claim.row)) {
                mistakes.push((claim.file.clone(), format!("no row is called `{}`", claim.row)));
            }
        }
        let missing = tree.text(MISSING).unwrap_or_default();
        let missing = missing.lines().filter(|line| !line.starts_with('#'));
        Self {
            rows,
            claims,
            missing: missing.map(str::to_owned).collect(),
            mistakes,
        }
    }

    /// Whether the tests that a row needs claim it.
    fn is_held(&self, row: &Row) -> bool {
        let mut claims = self.claims.iter().filter(|claim| row.is(&claim.row));
        claims.any(|claim| claim.body || row.needs == Needs::Nothing)
    }

    /// The document as it has to be.
    pub(crate) fn document(&self) -> String {
        table::render(&self.rows, &self.claims)
    }

    /// Breaches of the law: a claim of nothing, a row that no test of the one body holds, a document that is old.
    pub(crate) fn breaches(&self, document: Option<&str>) -> Vec<(String, String)> {
        let mut breaches = self.mistakes.clone();
        for row in &self.rows {
            let name = row.name();
            let message = match (self.is_held(row), self.missing.contains(&name)) {
                (false, false) => format!("no test that runs on every backend claims `{name}`"),
                (true, true) => format!("`{name}` is held by a test: take it out of {MISSING}"),
                _ => continue,
            };
            breaches.push((row.file.clone(), message));
        }
        if document != Some(self.document().as_str()) {
            breaches.push((
                DOCUMENT.to_owned(),
                "it is not what the tests say; run `cargo xtask conformance`".to_owned(),
            ));
        }
        breaches
    }
}

/// Tests of the one body that cannot be told apart by backend and name.
fn ambiguous(claims: &[Claim]) -> Vec<(String, String)> {
    let bodies = || claims.iter().filter(|claim| claim.body);
    let other = |claim: &Claim| bodies().find(|other| other.test == claim.test && other.file < claim.file);
    let mut mistakes: Vec<_> = bodies()
        .filter_map(|claim| {
            let message = format!("a test of {} is called `{}`, too", other(claim)?.file, claim.test);
            Some((claim.file.clone(), message))
        })
        .collect();
    mistakes.dedup();
    mistakes
}

/// Writes the document.
///
/// # Errors
/// When the repository cannot be read, or the document cannot be written.
pub(crate) fn write(root: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let conformance = Conformance::read(&Tree::read(root)?);
    std::fs::write(root.join(DOCUMENT), conformance.document())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::rows::Theme;
    use super::*;

    #[test]
    fn a_row_needs_a_test_of_the_one_body_or_a_line_that_says_it_has_none() {
        let row = |key: &str, needs| Row {
            theme: Theme::Oci,
            key: key.to_owned(),
            text: String::new(),
            file: "list".to_owned(),
            needs,
        };
        let claim = |key: &str, body| Claim {
            row: format!("oci {key}"),
            file: "kata-sandbox/tests/t.rs".to_owned(),
            test: key.to_owned(),
            body,
        };
        let conformance = Conformance {
            rows: vec![
                row("held", Needs::Backend),
                row("close", Needs::Backend),
                row("image", Needs::Nothing),
                row("listed", Needs::Backend),
                row("old", Needs::Backend),
            ],
            claims: vec![
                claim("held", true),
                claim("close", false),
                claim("image", false),
                claim("old", true),
            ],
            missing: vec!["oci listed".to_owned(), "oci old".to_owned()],
            mistakes: Vec::new(),
        };
        let breaches = conformance.breaches(Some(&conformance.document()));
        let messages: Vec<&str> = breaches.iter().map(|(_, message)| message.as_str()).collect();
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages[0].contains("claims `oci close`"));
        assert!(messages[1].contains("`oci old` is held"));
        assert_eq!(conformance.breaches(None).len(), 3, "an old document is one more");
    }
}
