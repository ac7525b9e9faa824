//! The document: a table for each theme.

use std::fmt::Write;

use super::claims::Claim;
use super::rows::{Needs, Row, Theme};

const HEAD: &str = "# Conformance

What a container, its agent and its sandbox have to do, and the tests that hold it.
This page is made by `cargo xtask conformance` from what the tests say above themselves (`/// Conformance: …`), the lists in `xtask/conformance`, and the methods in `kata-agent-proto/protos`; `cargo xtask tidy` fails when it is old, or when a row has no test.

Tests of the first column run on every backend with one body: `fake`, QEMU in software, QEMU with KVM, and our own machine; `cargo xtask test` says at its end how many rows were seen to hold on each, and fails in CI when one is missing. Those of the second look closer, at one crate. A name that follows a colon is of the program before it, in `kata-sandbox/tests` where it is a bare word, otherwise in the crate's own tests.

A row \"in a guest\" is about what `fake`, a process of the host, has not, or what would be done to the host itself: it does not count there. A test that can see nothing of its rows where it runs says `SKIPPED`, and does not count for them.

Parts that are not here, and why:

- networks (27: TCP's ends, UDP, MTU, names): a sandbox has none
- quotas of shares (a half of 26): no directory of the host is shared
- the identity of a clone (a part of 17): nothing is cloned
- listing and deleting what died while starting (a half of 20): a sandbox belongs to the process that booted it, which gets the error, and nothing is left
- an upgrade under a running sandbox (a half of 23): a sandbox ends with the process that booted it, and no other can take it over
";

/// What follows the text of a row that a process of the host cannot show.
const GUEST: &str = " (in a guest)";

/// Titles of the tables, and of their first columns.
const THEMES: [(Theme, &str, &str); 3] = [
    (Theme::Oci, "The OCI runtime specification", "field"),
    (Theme::Api, "The agent's API", "method"),
    (Theme::Semantics, "Behaviours", ""),
];

/// The whole document.
pub(super) fn render(rows: &[Row], claims: &[Claim]) -> String {
    let mut text = HEAD.to_owned();
    for (theme, title, first) in THEMES {
        let second = match theme {
            Theme::Api => "service",
            _ => "what holds",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\n## {title}\n\n| {first} | {second} | on every backend | of one crate |\n|---|---|---|---|"
        );
        for row in rows.iter().filter(|row| row.theme == theme) {
            let key = match theme {
                Theme::Semantics => row.key.clone(),
                _ => format!("`{}`", row.key),
            };
            let _ = writeln!(
                text,
                "| {key} | {}{} | {} | {} |",
                row.text.replace('|', "\\|"),
                if row.needs == Needs::Guest { GUEST } else { "" },
                tests(row, claims, true),
                tests(row, claims, false)
            );
        }
    }
    text
}

/// `program`: `test`, `test`, `other`: `test`.
fn tests(row: &Row, claims: &[Claim], bodies: bool) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for claim in claims
        .iter()
        .filter(|claim| row.is(&claim.row) && claim.body == bodies)
    {
        if !text.is_empty() {
            text.push_str(", ");
        }
        let program = claim.program();
        if program != last {
            let _ = write!(text, "{program}: ");
            last = program;
        }
        let _ = write!(text, "`{}`", claim.test);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_its_tests_by_program() {
        let row = Row {
            theme: Theme::Api,
            key: "One".to_owned(),
            text: "Service".to_owned(),
            file: "p.proto".to_owned(),
            needs: Needs::Guest,
        };
        let claim = |file: &str, test: &str, body| Claim {
            row: "api One".to_owned(),
            file: file.to_owned(),
            test: test.to_owned(),
            body,
        };
        let claims = [
            claim("kata-agent/tests/a.rs", "z", false),
            claim("kata-sandbox/tests/b.rs", "x", true),
            claim("kata-sandbox/tests/b.rs", "y", true),
        ];
        let document = render(&[row], &claims);
        assert!(
            document.contains("\n| `One` | Service (in a guest) | b: `x`, `y` | agent/a: `z` |\n"),
            "{document}"
        );
    }
}
