//! The compiled test programs of the SDK: which there are, and which tests each of them has.
//!
//! It asks cargo and libtest. It must not know which tests are to run where.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::process::{self, ProcessError};
use crate::progress::Step;
use crate::workspace::Workspace;

/// The package whose one test body runs on every backend.
const PACKAGE: &str = "--package=kata-sandbox";

/// A test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// Name of its source file, such as `lifecycle`.
    pub(super) name: String,
    /// The executable.
    pub(super) path: PathBuf,
    /// Its tests as libtest names them, such as `fake::eight_at_once`.
    pub(super) tests: Vec<String>,
}

/// Everything that cargo built for the tests.
#[derive(Debug, Default)]
pub(super) struct Programs {
    /// The test programs.
    pub(super) tests: Vec<Program>,
    /// The examples that they start.
    pub(super) examples: Vec<PathBuf>,
}

/// As much of a line of cargo's messages as is asked here
/// (The Cargo Book, External tools, "Artifact messages").
#[derive(Debug, Deserialize)]
struct Artifact {
    executable: PathBuf,
    target: Target,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// Builds them and asks each for its tests.
///
/// # Errors
/// When they do not build, or one cannot be asked.
pub(super) fn build(workspace: &Workspace) -> Result<Programs, ProcessError> {
    let step = Step::start("tests for the bed");
    let mut cargo = workspace.cargo(&["build", PACKAGE, "--tests", "--examples"]);
    cargo.args(["--message-format=json-render-diagnostics", "--quiet"]);
    let messages = process::read(&mut cargo)?;
    let mut programs = Programs::default();
    for artifact in messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
    {
        match artifact.target.kind.first().map(String::as_str) {
            Some("test") => programs.tests.push(Program {
                tests: tests_of(&artifact.executable)?,
                name: artifact.target.name,
                path: artifact.executable,
            }),
            Some("example") => programs.examples.push(artifact.executable),
            _ => {}
        }
    }
    programs.tests.sort_by(|a, b| a.name.cmp(&b.name));
    step.done("");
    Ok(programs)
}

fn tests_of(program: &Path) -> Result<Vec<String>, ProcessError> {
    let listing = process::read(Command::new(program).args(["--list", "--format=terse"]))?;
    Ok(parse(&listing))
}

/// The names of libtest's lines `NAME: test`.
fn parse(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tests_are_listed() {
        assert_eq!(
            parse("fake::a: test\nkvm::a: test\nb: benchmark\n"),
            ["fake::a", "kvm::a"]
        );
    }

    #[test]
    fn an_artifact_without_an_executable_is_none() {
        let library =
            r#"{"reason":"compiler-artifact","executable":null,"target":{"name":"x","kind":["lib"]}}"#;
        assert!(serde_json::from_str::<Artifact>(library).is_err());
        let test = r#"{"executable":"/t/x-1","target":{"name":"x","kind":["test"],"src_path":""}}"#;
        let artifact: Artifact = serde_json::from_str(test).unwrap();
        assert_eq!(
            (artifact.target.name.as_str(), artifact.executable),
            ("x", PathBuf::from("/t/x-1"))
        );
    }
}
