//! The face of the SDK: how many names one must learn.

use proc_macro2::{TokenStream, TokenTree};

use super::Violation;

/// Most public names at the root.
const NAMES: usize = 15;

/// Too many names, or a glob that hides how many there are.
pub(super) fn check(path: &str, source: &str) -> Vec<Violation> {
    let Ok(stream) = source.parse::<TokenStream>() else {
        return vec![Violation::new(path, "does not read as Rust")];
    };
    let names = exported(stream);
    let mut violations = Vec::new();
    if names.iter().any(|name| name == "*") {
        violations.push(Violation::new(path, "a glob export hides what is exported"));
    }
    if names.len() > NAMES {
        let message = format!(
            "{} public names, and {NAMES} is the most: {}",
            names.len(),
            names.join(", ")
        );
        violations.push(Violation::new(path, message));
    }
    violations
}

/// The public names of a module, from its tokens.
fn exported(stream: TokenStream) -> Vec<String> {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut names = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if !is_word(token, "pub") {
            continue;
        }
        let item = tokens[at + 1..].split(ends_item).next().unwrap_or_default();
        match item.first() {
            Some(first) if is_word(first, "use") => names.extend(leaves(&tokens[at + 2..])),
            Some(TokenTree::Ident(_)) => names.extend(declared(item)),
            // `pub(crate)` is not public.
            _ => {}
        }
    }
    names
}

fn ends_item(token: &TokenTree) -> bool {
    match token {
        TokenTree::Group(group) => group.delimiter() == proc_macro2::Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        _ => false,
    }
}

/// The name that an item declares: the word after its kind.
fn declared(item: &[TokenTree]) -> Option<String> {
    const KINDS: &[&str] = &[
        "fn", "struct", "enum", "union", "trait", "type", "mod", "static", "const",
    ];
    let kind = item
        .iter()
        .position(|token| KINDS.iter().any(|kind| is_word(token, kind)))?;
    // `const fn` and `unsafe trait` have two words before the name.
    item[kind..]
        .iter()
        .find(|token| !KINDS.iter().any(|kind| is_word(token, kind)))
        .map(ToString::to_string)
}

/// The names that a `use` brings: the last word of each path, or its alias.
fn leaves(tokens: &[TokenTree]) -> Vec<String> {
    let mut names = Vec::new();
    let mut last = None;
    for token in tokens {
        match token {
            TokenTree::Ident(word) => last = Some(word.to_string()),
            TokenTree::Group(group) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                names.extend(leaves(&inner));
                last = None;
            }
            TokenTree::Punct(punct) => match punct.as_char() {
                ',' => names.extend(last.take()),
                '*' => last = Some("*".to_owned()),
                ';' => break,
                _ => {}
            },
            TokenTree::Literal(_) => {}
        }
    }
    names.extend(last);
    names
}

fn is_word(token: &TokenTree, text: &str) -> bool {
    matches!(token, TokenTree::Ident(word) if word == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(source: &str) -> Vec<String> {
        exported(source.parse().unwrap())
    }

    #[test]
    fn every_way_to_export_is_counted() {
        let source = "mod a; pub mod b; pub use a::{C, d::{E, F as G}}; pub use x::H; pub struct I { pub j: u8 }\n\
                      pub const fn k() {} pub(crate) mod l; use m::N; pub const O: u8 = 1; pub use p as q;";
        assert_eq!(names(source), ["b", "C", "E", "G", "H", "I", "k", "O", "q"]);
    }

    #[test]
    fn too_many_names_are_a_breach() {
        let many = |count: usize| {
            (0..count)
                .map(|n| format!("pub struct S{n};"))
                .collect::<String>()
        };
        assert_eq!(check("lib.rs", &many(NAMES)), []);
        assert_eq!(check("lib.rs", &many(NAMES + 1)).len(), 1);
    }

    #[test]
    fn a_glob_is_a_breach() {
        assert_eq!(check("lib.rs", "pub use a::*;").len(), 1);
    }
}
