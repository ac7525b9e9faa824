//! The laws of this repository that no compiler checks.
//!
//! Each rule is a function over what it judges, with a sample beside it that breaks it.
//! The rules know the repository's layout. They must not know how anything is built or run.

mod dependencies;
mod docs;
mod exports;
mod facts;
mod names;
mod seams;
mod sizes;
mod tree;
mod unfinished;

use std::fmt;

use crate::conformance::{self, Conformance};
use crate::process::ProcessError;
use crate::workspace::Workspace;

pub(crate) use tree::Tree;

/// Where the exceptions to the size rules are listed.
const ALLOW_LIST: &str = "xtask/tidy-allow.txt";

/// The face of the SDK.
const SANDBOX_ROOT: &str = "kata-sandbox/src/lib.rs";

/// One breach of a law.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    /// The file, with the line where there is one.
    place: String,
    /// What is wrong and what would be right.
    message: String,
}

impl Violation {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            message: message.into(),
        }
    }

    fn at(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self::new(format!("{path}:{line}"), message)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Why the laws could not be checked, or that they are broken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TidyError {
    /// The list of files or of dependencies could not be made.
    #[error("cannot look at the repository")]
    Look(#[from] ProcessError),
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// cargo told something unexpected.
    #[error("cannot understand `cargo metadata`")]
    Metadata(#[from] serde_json::Error),
    /// A law is broken.
    #[error("{} broken law(s):\n{}", violations.len(), list(violations))]
    Broken {
        /// Each breach.
        violations: Vec<Violation>,
    },
}

fn list(violations: &[Violation]) -> String {
    let lines: Vec<String> = violations
        .iter()
        .map(|violation| format!("    {violation}"))
        .collect();
    lines.join("\n")
}

/// Checks every law.
///
/// # Errors
/// Every breach at once.
pub(crate) fn check(workspace: &Workspace) -> Result<(), TidyError> {
    let tree = Tree::read(&workspace.root)?;
    let mut violations = of_files(&tree);
    violations.extend(of_dependencies(workspace)?);
    violations.sort();
    if violations.is_empty() {
        Ok(())
    } else {
        Err(TidyError::Broken { violations })
    }
}

fn of_files(tree: &Tree) -> Vec<Violation> {
    let mut violations = Vec::new();
    for file in &tree.rust {
        match &file.facts {
            Ok(facts) => {
                violations.extend(seams::kvm(&file.path, facts));
                violations.extend(seams::x86(&file.path, facts));
                violations.extend(seams::qemu(&file.path, facts));
                violations.extend(names::in_file(&file.path, facts));
                violations.extend(unfinished::check(&file.path, facts));
            }
            Err(message) => violations.push(Violation::new(&file.path, message)),
        }
    }
    let allowed = tree.text(ALLOW_LIST).unwrap_or_default();
    violations.extend(sizes::check(&sizes::measure(&tree.rust), allowed, ALLOW_LIST));
    violations.extend(sizes::large_files(&tree.paths));
    violations.extend(tree.paths.iter().filter_map(|file| names::of_path(&file.path)));
    violations.extend(
        tree.documents()
            .flat_map(|(path, text)| docs::paths(path, text, &|path| tree.exists(path))),
    );
    violations.extend(
        tree.manifests()
            .filter_map(|(path, text)| dependencies::lints(path, text)),
    );
    let conformance = Conformance::read(tree).breaches(tree.text(conformance::DOCUMENT));
    violations.extend(
        conformance
            .into_iter()
            .map(|(place, message)| Violation::new(place, message)),
    );
    if let Some(text) = tree.text(SANDBOX_ROOT) {
        violations.extend(exports::check(SANDBOX_ROOT, text));
    }
    violations
}

fn of_dependencies(workspace: &Workspace) -> Result<Vec<Violation>, TidyError> {
    let metadata = dependencies::metadata(workspace)?;
    let packages = dependencies::sandbox_tree(workspace)?;
    let mut violations = dependencies::edges(&metadata);
    violations.extend(dependencies::weight(&packages));
    Ok(violations)
}
