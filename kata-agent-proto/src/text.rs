//! Text that a guest chose, made fit for a terminal and a log.
//!
//! Owns that one rule. Everything that comes out of a guest as text goes through it.

/// Most bytes that are kept of a guest's text.
const TEXT_MAX_BYTES: usize = 1024;

/// The text without control characters, which could drive the reader's terminal, and of bounded length.
pub(crate) fn printable(text: &str) -> String {
    let mut kept = String::new();
    for character in text.chars().filter(|character| !character.is_control()) {
        if kept.len() + character.len_utf8() > TEXT_MAX_BYTES {
            break;
        }
        kept.push(character);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_excess_are_gone() {
        assert_eq!(printable("6.12\u{1b}[2J\n\0-x"), "6.12[2J-x");
        let long = printable(&"ü".repeat(TEXT_MAX_BYTES));
        assert_eq!(long.len(), TEXT_MAX_BYTES);
    }
}
