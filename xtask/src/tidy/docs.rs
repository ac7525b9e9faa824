//! Paths that documents name: a document that names a file which is gone is wrong.

use super::Violation;

/// First parts of paths that mean a place in this repository, whether it exists or not.
const ROOMS: &[&str] = &[
    "kata-",
    "xtask/",
    "docs/",
    "examples/",
    "benches/",
    ".ci/",
    ".cargo/",
];

/// The paths of a document that do not exist.
///
/// In text they stand in backticks or are the target of a link; in a fenced block any word counts.
pub(super) fn paths(document: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Violation> {
    let mut fenced = false;
    let mut violations = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let mentioned = if fenced { words(line) } else { quoted(line) };
        let links = if fenced { Vec::new() } else { links(document, line) };
        violations.extend(
            mentioned
                .into_iter()
                .filter(|path| is_path(path))
                .map(str::to_owned)
                .chain(links)
                .filter(|path| !exists(path.trim_end_matches('/')))
                .map(|path| Violation::at(document, number + 1, format!("`{path}` does not exist"))),
        );
    }
    violations
}

/// The words of a line without the punctuation that may follow one.
fn words(line: &str) -> Vec<&str> {
    line.split(|c: char| c.is_whitespace() || "(),;\"'`│".contains(c))
        .map(|word| word.trim_end_matches([':', '.']))
        .collect()
}

/// What stands in backticks.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// Whether a token means a place in this repository, exactly.
fn is_path(token: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    token.contains('/') && token.chars().all(plain) && ROOMS.iter().any(|room| token.starts_with(room))
}

/// The targets of a line's links that are files of this repository, relative to its root.
fn links(document: &str, line: &str) -> Vec<String> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter_map(|target| target.split('#').next())
        .filter(|target| !target.is_empty() && !target.contains(':'))
        .map(|target| resolve(document, target))
        .collect()
}

/// A link's target relative to the root.
fn resolve(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(text: &str) -> Vec<String> {
        let existing = ["kata-vmm/src/lib.rs", "kata-vmm/src", "docs/boot.md", "README.md"];
        paths("docs/a.md", text, &|path| existing.contains(&path))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn paths_in_backticks_must_exist() {
        assert_eq!(
            missing("See `kata-vmm/src/lib.rs`, `kata-vmm/src/` and\n`kata-vmm/src/gone.rs`."),
            ["docs/a.md:2: `kata-vmm/src/gone.rs` does not exist"]
        );
    }

    #[test]
    fn paths_in_fenced_blocks_must_exist() {
        assert_eq!(
            missing("```text\n 1 kata-vmm/src/lib.rs  serves\n 2 kata-gone/src/lib.rs, too\n```"),
            ["docs/a.md:3: `kata-gone/src/lib.rs` does not exist"]
        );
    }

    #[test]
    fn links_are_relative_to_the_document() {
        assert!(missing("[a](boot.md#x) [b](../README.md) [c](https://example.org/x)").is_empty());
        assert_eq!(
            missing("[a](gone.md)"),
            ["docs/a.md:1: `docs/gone.md` does not exist"]
        );
    }

    #[test]
    fn words_that_are_no_paths_of_ours_are_left_alone() {
        assert!(missing("`a/b` `/proc/self` `kata-*/src` `cargo xtask test` `kata-vmm`").is_empty());
    }
}
