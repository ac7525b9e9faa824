//! What the rules look at: the repository's files as git lists them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::TidyError;
use super::facts::{Fact, facts};
use crate::process;

/// A file of the repository.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    /// Relative to the root.
    pub(super) path: String,
    /// Its size.
    pub(super) bytes: u64,
}

/// A source file.
#[derive(Debug)]
pub(crate) struct RustFile {
    /// Relative to the root.
    pub(crate) path: String,
    /// Lines of text.
    pub(super) lines: usize,
    /// What is written in it, or why it cannot be read as Rust.
    pub(super) facts: Result<Vec<Fact>, String>,
}

/// The repository: tracked files and those that are about to be.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Every file.
    pub(super) paths: Vec<Listed>,
    /// The source files.
    pub(crate) rust: Vec<RustFile>,
    texts: HashMap<String, String>,
}

impl Tree {
    /// Reads the sources, documents and manifests below `root`.
    pub(crate) fn read(root: &Path) -> Result<Self, TidyError> {
        let mut tree = Self {
            paths: Vec::new(),
            rust: Vec::new(),
            texts: HashMap::new(),
        };
        for path in listed(root)? {
            let full = root.join(&path);
            // Tracked but deleted: the deletion is about to be committed.
            if let Ok(metadata) = fs::metadata(&full)
                && metadata.is_file()
            {
                tree.add(&full, path, metadata.len())?;
            }
        }
        Ok(tree)
    }

    fn add(&mut self, full: &Path, path: String, bytes: u64) -> Result<(), TidyError> {
        if is_text(&path) {
            let text = fs::read_to_string(full).map_err(|source| TidyError::Read {
                path: path.clone(),
                source,
            })?;
            if path.ends_with(".rs") {
                self.rust.push(RustFile {
                    path: path.clone(),
                    lines: text.lines().count(),
                    facts: facts(&text),
                });
            }
            self.texts.insert(path.clone(), text);
        }
        self.paths.push(Listed { path, bytes });
        Ok(())
    }

    /// The text of a source, document, manifest or list.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// Whether a path is a file, or a directory with files in it.
    pub(super) fn exists(&self, path: &str) -> bool {
        let directory = format!("{}/", path.trim_end_matches('/'));
        self.paths
            .iter()
            .any(|file| file.path == path || file.path.starts_with(&directory))
    }

    /// What is written for people.
    pub(super) fn documents(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ending_with(".md")
    }

    /// The manifests of packages; the workspace's own is none.
    pub(super) fn manifests(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ending_with("/Cargo.toml")
    }

    fn ending_with(&self, end: &str) -> impl Iterator<Item = (&str, &str)> {
        self.texts
            .iter()
            .filter(move |(path, _)| path.ends_with(end))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

fn is_text(path: &str) -> bool {
    [".rs", ".md", "Cargo.toml", ".txt", ".proto"]
        .iter()
        .any(|end| path.ends_with(end))
}

fn listed(root: &Path) -> Result<Vec<String>, TidyError> {
    let words = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listing = process::read(process::command("git", words).current_dir(root))?;
    Ok(listing
        .split('\0')
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .collect())
}
