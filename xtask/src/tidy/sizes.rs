//! How long things may get. Exceptions are listed with their exact length, and the list may only shrink:
//! an entry that is longer than the thing, or no longer needed, is a breach too.
//!
//! ```text
//! file kata-vmm/src/machine.rs 640
//! function kata-vmm/src/machine.rs build 95
//! ```

use std::collections::BTreeMap;

use super::Violation;
use super::facts::Kind;
use super::tree::{Listed, RustFile};

/// Most lines of a source file.
const FILE_LINES: usize = 600;

/// Most lines of a function.
const FUNCTION_LINES: usize = 80;

/// Most bytes of any file.
const FILE_BYTES: u64 = 500 << 10;

/// Lengths by what they belong to: `file PATH` or `function PATH NAME`.
pub(super) type Lengths = BTreeMap<String, usize>;

/// How long every file and function is; of functions with the same name in one file the longest counts.
pub(super) fn measure(files: &[RustFile]) -> Lengths {
    let mut lengths = Lengths::new();
    for file in files {
        lengths.insert(format!("file {}", file.path), file.lines);
        for fact in file.facts.iter().flatten() {
            if let Kind::Function { name, lines } = &fact.kind {
                let longest = lengths
                    .entry(format!("function {} {name}", file.path))
                    .or_default();
                *longest = (*longest).max(*lines);
            }
        }
    }
    lengths
}

/// What is too long and not listed, and what is listed and should not be.
pub(super) fn check(lengths: &Lengths, allowed: &str, list: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut exceptions = Lengths::new();
    for (number, line) in allowed.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match entry(line) {
            Some((what, lines)) => {
                exceptions.insert(what.to_owned(), lines);
            }
            None => violations.push(Violation::at(
                list,
                number + 1,
                "not `file PATH LINES` or `function PATH NAME LINES`",
            )),
        }
    }
    violations.extend(too_long(lengths, &exceptions));
    violations.extend(stale(lengths, &exceptions, list));
    violations
}

fn entry(line: &str) -> Option<(&str, usize)> {
    let (what, lines) = line.rsplit_once(' ')?;
    let words = what.split(' ').count();
    let known = (what.starts_with("file ") && words == 2) || (what.starts_with("function ") && words == 3);
    known.then_some((what, lines.parse().ok()?))
}

fn limit(what: &str) -> usize {
    if what.starts_with("file ") {
        FILE_LINES
    } else {
        FUNCTION_LINES
    }
}

fn too_long(lengths: &Lengths, exceptions: &Lengths) -> Vec<Violation> {
    lengths
        .iter()
        .filter(|(what, lines)| **lines > limit(what).max(exceptions.get(*what).copied().unwrap_or(0)))
        .map(|(what, lines)| Violation::new(what, format!("{lines} lines, and {} is the most", limit(what))))
        .collect()
}

fn stale(lengths: &Lengths, exceptions: &Lengths, list: &str) -> Vec<Violation> {
    exceptions
        .iter()
        .filter_map(|(what, listed)| {
            let actual = lengths.get(what).copied().unwrap_or(0);
            if actual <= limit(what) {
                Some(format!("`{what}` needs no exception any more: remove it"))
            } else if actual < *listed {
                Some(format!("`{what}` has shrunk: list it with {actual}"))
            } else {
                None
            }
        })
        .map(|message| Violation::new(list, message))
        .collect()
}

/// Files that do not belong into a repository.
pub(super) fn large_files(files: &[Listed]) -> Vec<Violation> {
    files
        .iter()
        .filter(|file| file.bytes > FILE_BYTES)
        .map(|file| {
            Violation::new(
                &file.path,
                format!("{} bytes, and {FILE_BYTES} is the most", file.bytes),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::facts::sample;
    use super::*;

    fn messages(lengths: &[(&str, usize)], allowed: &str) -> Vec<String> {
        let lengths = lengths
            .iter()
            .map(|(what, lines)| ((*what).to_owned(), *lines))
            .collect();
        check(&lengths, allowed, "allow")
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_is_too_long_is_found() {
        assert_eq!(
            messages(
                &[("file a.rs", 601), ("file b.rs", 600), ("function a.rs f", 81)],
                ""
            ),
            [
                "file a.rs: 601 lines, and 600 is the most",
                "function a.rs f: 81 lines, and 80 is the most"
            ]
        );
    }

    #[test]
    fn an_exception_allows_its_length_and_no_more() {
        assert!(messages(&[("file a.rs", 700)], "# why\nfile a.rs 700\n").is_empty());
        assert_eq!(messages(&[("file a.rs", 701)], "file a.rs 700").len(), 1);
    }

    #[test]
    fn the_list_may_only_shrink() {
        assert_eq!(
            messages(
                &[("file a.rs", 650)],
                "file a.rs 700\nfunction a.rs gone 90\nnonsense"
            ),
            [
                "allow:3: not `file PATH LINES` or `function PATH NAME LINES`",
                "allow: `file a.rs` has shrunk: list it with 650",
                "allow: `function a.rs gone` needs no exception any more: remove it"
            ]
        );
    }

    #[test]
    fn files_and_their_functions_are_measured() {
        let file = RustFile {
            path: "a.rs".into(),
            lines: 3,
            facts: Ok(sample("fn f() {\n\n}\nmod m { fn f() {} }")),
        };
        let lengths = measure(&[file]);
        assert_eq!(lengths["file a.rs"], 3);
        assert_eq!(lengths["function a.rs f"], 3);
    }

    #[test]
    fn large_files_are_found() {
        let file = |bytes| Listed {
            path: "blob".into(),
            bytes,
        };
        assert_eq!(large_files(&[file(FILE_BYTES)]), []);
        assert_eq!(large_files(&[file(FILE_BYTES + 1)]).len(), 1);
    }
}
