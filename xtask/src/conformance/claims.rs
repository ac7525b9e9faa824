//! What tests say that they hold, in lines of their documentation.

/// How such a line begins.
const MARK: &str = "/// Conformance: ";

/// What makes a test one of the one test body.
const BODIES: &str = "on_every_backend!";

/// The claim of a test.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    /// The row's name.
    pub(super) row: String,
    pub(super) file: String,
    pub(super) test: String,
    /// It runs on every backend.
    pub(super) body: bool,
}

impl Claim {
    /// The test program, by the words that people call it by: `processes`, `image/layers`.
    pub(super) fn program(&self) -> String {
        let (package, path) = self.file.split_once("/tests/").unwrap_or(("", &self.file));
        let program = path
            .trim_end_matches(".rs")
            .trim_end_matches("/main")
            .trim_end_matches("/mod");
        match package {
            "kata-sandbox" => program.to_owned(),
            other => format!("{}/{program}", other.trim_start_matches("kata-")),
        }
    }
}

/// Whether a file's tests can claim anything.
pub(super) fn may_be_in(path: &str) -> bool {
    path.contains("/tests/")
}

/// The claims of a file's tests.
pub(super) fn of_file(path: &str, text: &str, mistakes: &mut Vec<(String, String)>) -> Vec<Claim> {
    let has_bodies = text.contains(BODIES);
    let mut claims = Vec::new();
    let mut rows: Vec<&str> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(row) = line.strip_prefix(MARK) {
            rows.push(row.trim());
        } else if let Some(name) = function(line) {
            let body = has_bodies && line.contains("(bed: Bed)");
            claims.extend(rows.drain(..).map(|row| Claim {
                row: row.to_owned(),
                file: path.to_owned(),
                test: name.to_owned(),
                body,
            }));
        } else if !rows.is_empty() && !is_between(line) {
            rows.clear();
            let place = format!("{path}:{}", number + 1);
            mistakes.push((place, "what conforms is said directly above a test".to_owned()));
        }
    }
    claims
}

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once("fn ")?;
    let is_declared = before
        .split_whitespace()
        .all(|word| ["pub", "pub(crate)", "async"].contains(&word));
    is_declared.then(|| rest.split(['(', '<']).next().unwrap_or(rest))
}

/// What may stand between the claim and the test.
fn is_between(line: &str) -> bool {
    line.starts_with("///") || line.starts_with("#[")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_belong_to_the_test_below_them() {
        let text = "on_every_backend! {\n    /// Conformance: oci a.b\n    /// Conformance: api One\n    /// Why so.\n    \
                    async fn holds(bed: Bed) {\n    }\n}\n/// Conformance: semantics 3\n#[test]\nfn alone() {}\n\
                    /// Conformance: oci lost\n\nfn far() {}\n";
        let mut mistakes = Vec::new();
        let claims = of_file("kata-sandbox/tests/x.rs", text, &mut mistakes);
        let found: Vec<_> = claims
            .iter()
            .map(|claim| (claim.row.as_str(), claim.test.as_str(), claim.body))
            .collect();
        assert_eq!(
            found,
            [
                ("oci a.b", "holds", true),
                ("api One", "holds", true),
                ("semantics 3", "alone", false)
            ]
        );
        assert_eq!(mistakes[0].0, "kata-sandbox/tests/x.rs:12");
    }

    #[test]
    fn programs_are_called_by_their_crate_where_it_is_not_the_sdk() {
        let program = |file: &str| {
            Claim {
                row: String::new(),
                file: file.to_owned(),
                test: String::new(),
                body: false,
            }
            .program()
        };
        assert_eq!(program("kata-sandbox/tests/processes.rs"), "processes");
        assert_eq!(program("kata-image/tests/layers/main.rs"), "image/layers");
        assert_eq!(
            program("kata-image/tests/image/hostile.rs"),
            "image/image/hostile"
        );
        assert_eq!(program("examples/tests/shell.rs"), "examples/shell");
    }
}
