//! Names that say nothing about what is behind them.

use super::Violation;
use super::facts::{Fact, Kind};

/// Words that no file, directory, module or public type is named by.
const EMPTY_WORDS: &[&str] = &[
    "util", "utils", "common", "helper", "helpers", "manager", "managers",
];

/// A file or directory with such a name.
pub(super) fn of_path(path: &str) -> Option<Violation> {
    let word = path
        .split('/')
        .map(|part| part.split('.').next().unwrap_or_default())
        .find_map(empty_word)?;
    Some(Violation::new(path, message(word)))
}

/// Modules and public types with such a name.
pub(super) fn in_file(path: &str, facts: &[Fact]) -> Vec<Violation> {
    facts
        .iter()
        .filter_map(|fact| match &fact.kind {
            Kind::Module(name) | Kind::PublicType(name) => Some((fact.line, empty_word(name)?)),
            _ => None,
        })
        .map(|(line, word)| Violation::at(path, line, message(word)))
        .collect()
}

fn message(word: &str) -> String {
    format!("`{word}` says nothing: name it after what it does")
}

fn empty_word(name: &str) -> Option<&'static str> {
    let words = words(name);
    EMPTY_WORDS
        .iter()
        .copied()
        .find(|empty| words.iter().any(|word| word == empty))
}

/// The words of a name in any case, in lower case: `EventManager` and `event-manager` are the same two.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for character in name.chars() {
        if character.is_uppercase() || !character.is_alphanumeric() {
            words.push(String::new());
        }
        if let Some(last) = words.last_mut()
            && character.is_alphanumeric()
        {
            last.extend(character.to_lowercase());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::facts::sample;
    use super::*;

    #[test]
    fn files_and_directories_are_judged() {
        assert!(of_path("kata-vmm/src/utils.rs").is_some());
        assert!(of_path("kata-vmm/tests/common/mod.rs").is_some());
        assert!(of_path("kata-vmm/src/queue_manager.rs").is_some());
        assert_eq!(of_path("kata-vmm/src/queue.rs"), None);
    }

    #[test]
    fn modules_and_public_types_are_judged() {
        let facts =
            sample("pub struct SandboxManager; mod io_helpers {} struct Manager; pub enum Uncommon {}");
        let lines = in_file("a.rs", &facts);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].to_string().contains("`manager` says nothing"));
    }
}
