//! What the rules want to know of a Rust source, read from its tokens: comments are gone, the text of
//! literals and the places of everything are there.

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};

/// Something that is written in a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    /// What it is.
    pub(super) kind: Kind,
    /// The line where it begins, from 1.
    pub(super) line: usize,
    /// Whether it is compiled for tests only.
    pub(super) test: bool,
}

/// The kinds of things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name, used or declared.
    Name(String),
    /// A literal as written, with its quotes.
    Literal(String),
    /// A function with a body of so many lines, its signature included.
    Function { name: String, lines: usize },
    /// A type or trait that is visible outside its module.
    PublicType(String),
    /// A module.
    Module(String),
    /// `#[ignore]` without a reason.
    BareIgnore,
    /// `todo!` or `unimplemented!`.
    Unfinished(String),
}

/// Everything that is written in a source; an error says why it is no Rust.
pub(super) fn facts(source: &str) -> Result<Vec<Fact>, String> {
    let stream: TokenStream = source
        .parse()
        .map_err(|error| format!("does not read as Rust: {error}"))?;
    let mut reader = Reader { facts: Vec::new() };
    reader.sequence(stream, false);
    Ok(reader.facts)
}

struct Reader {
    facts: Vec<Fact>,
}

impl Reader {
    /// Reads tokens that stand in one pair of brackets.
    fn sequence(&mut self, stream: TokenStream, mut test: bool) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        // Whether the item that follows is compiled for tests only.
        let mut test_item = false;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            if let Some(attribute) = Attribute::at(&tokens, at) {
                match (attribute.for_tests(), attribute.inner) {
                    (true, true) => test = true,
                    (true, false) => test_item = true,
                    (false, _) => {}
                }
                self.attribute(&attribute, test || test_item);
                at += attribute.tokens;
                continue;
            }
            self.token(token, &tokens, at, test || test_item);
            if ends_item(token) {
                test_item = false;
            }
            at += 1;
        }
    }

    fn token(&mut self, token: &TokenTree, tokens: &[TokenTree], at: usize, test: bool) {
        match token {
            TokenTree::Ident(word) => self.word(word, tokens, at, test),
            TokenTree::Literal(literal) => {
                self.push(Kind::Literal(literal.to_string()), literal.span(), test);
            }
            TokenTree::Group(group) => self.sequence(group.stream(), test),
            TokenTree::Punct(_) => {}
        }
    }

    fn word(&mut self, word: &Ident, tokens: &[TokenTree], at: usize, test: bool) {
        let name = word.to_string();
        let span = word.span();
        let next = ident(tokens.get(at + 1));
        match (name.as_str(), next) {
            ("fn", Some(name)) => {
                if let Some(body) = body(&tokens[at..]) {
                    let lines = body.span_close().end().line - span.start().line + 1;
                    self.push(Kind::Function { name, lines }, span, test);
                }
            }
            ("mod", Some(name)) => self.push(Kind::Module(name), span, test),
            ("struct" | "enum" | "union" | "trait" | "type", Some(name)) if is_public(tokens, at) => {
                self.push(Kind::PublicType(name), span, test);
            }
            ("todo" | "unimplemented", None) if is_punct(tokens.get(at + 1), '!') => {
                self.push(Kind::Unfinished(name.clone()), span, test);
            }
            _ => {}
        }
        self.push(Kind::Name(name), span, test);
    }

    fn attribute(&mut self, attribute: &Attribute, test: bool) {
        match attribute.name.as_str() {
            // Documentation may say anything.
            "doc" => {}
            "ignore" if attribute.group.stream().into_iter().count() == 1 => {
                self.push(Kind::BareIgnore, attribute.group.span_open(), test);
            }
            _ => self.sequence(attribute.group.stream(), test),
        }
    }

    fn push(&mut self, kind: Kind, span: Span, test: bool) {
        let line = span.start().line;
        self.facts.push(Fact { kind, line, test });
    }
}

/// `#[name ...]` or `#![name ...]`.
struct Attribute {
    name: String,
    group: Group,
    inner: bool,
    tokens: usize,
}

impl Attribute {
    fn at(tokens: &[TokenTree], at: usize) -> Option<Self> {
        if !is_punct(tokens.get(at), '#') {
            return None;
        }
        let inner = is_punct(tokens.get(at + 1), '!');
        let place = at + 1 + usize::from(inner);
        let Some(TokenTree::Group(group)) = tokens.get(place) else {
            return None;
        };
        if group.delimiter() != Delimiter::Bracket {
            return None;
        }
        let words: Vec<TokenTree> = group.stream().into_iter().collect();
        Some(Self {
            name: ident(words.first())?,
            group: group.clone(),
            inner,
            tokens: place + 1 - at,
        })
    }

    /// `cfg(test)` in any combination that is not a negation, or a test function of any framework.
    fn for_tests(&self) -> bool {
        let text = self.group.stream().to_string();
        let is_cfg = self.name == "cfg"
            && text
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| word == "test");
        (is_cfg && !text.contains("not")) || self.name == "test" || text.starts_with("tokio :: test")
    }
}

fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(word)) => Some(word.to_string()),
        _ => None,
    }
}

fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

fn is_brace(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

fn ends_item(token: &TokenTree) -> bool {
    is_brace(token) || is_punct(Some(token), ';') || is_punct(Some(token), ',')
}

/// The braces of a function, given what follows from `fn` on; a declaration has none.
fn body(tokens: &[TokenTree]) -> Option<&Group> {
    let end = tokens
        .iter()
        .find(|token| is_brace(token) || is_punct(Some(token), ';'))?;
    match end {
        TokenTree::Group(group) => Some(group),
        _ => None,
    }
}

/// Whether the word before is `pub`, with or without a restriction.
fn is_public(tokens: &[TokenTree], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|place| tokens.get(place));
    match before {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis => {
            ident(at.checked_sub(2).and_then(|place| tokens.get(place))).is_some_and(|word| word == "pub")
        }
        Some(TokenTree::Ident(word)) => word == "pub" || word == "unsafe",
        _ => false,
    }
}

/// Facts of a sample, for the tests of the rules.
#[cfg(test)]
pub(super) fn sample(source: &str) -> Vec<Fact> {
    facts(source).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(source: &str) -> Vec<Kind> {
        sample(source)
            .into_iter()
            .map(|fact| fact.kind)
            .filter(|kind| !matches!(kind, Kind::Name(_)))
            .collect()
    }

    #[test]
    fn functions_are_measured_with_their_signature() {
        let source = "impl A {\n    fn one(\n        x: u8,\n    ) -> u8 {\n        x\n    }\n}\ntrait B { fn two(); }";
        assert_eq!(
            kinds(source),
            [Kind::Function {
                name: "one".into(),
                lines: 5
            }]
        );
    }

    #[test]
    fn comments_and_documentation_are_not_facts() {
        assert_eq!(
            kinds("/// \"said\"\n//! inner\n// todo!()\nstatic A: u8 = B;"),
            []
        );
    }

    #[test]
    fn what_is_compiled_for_tests_only_is_marked() {
        let source = "#[cfg(test)] mod tests { const A: &str = \"a\"; } const B: &str = \"b\";\n\
                      #[cfg(not(test))] const C: &str = \"c\"; #[tokio::test] async fn t() { \"d\" }";
        let literals: Vec<(Kind, bool)> = sample(source)
            .into_iter()
            .filter(|fact| matches!(fact.kind, Kind::Literal(_)))
            .map(|fact| (fact.kind, fact.test))
            .collect();
        let literal = |text: &str| Kind::Literal(format!("\"{text}\""));
        assert_eq!(
            literals,
            [
                (literal("a"), true),
                (literal("b"), false),
                (literal("c"), false),
                (literal("d"), true)
            ]
        );
    }

    #[test]
    fn public_types_and_modules_are_found() {
        assert_eq!(
            kinds("pub struct A; struct B; pub(crate) enum C {} pub mod d {} pub unsafe trait E {}"),
            [
                Kind::PublicType("A".into()),
                Kind::PublicType("C".into()),
                Kind::Module("d".into()),
                Kind::PublicType("E".into())
            ]
        );
    }

    #[test]
    fn a_file_that_is_no_rust_is_an_error() {
        assert!(
            facts("fn broken( {")
                .unwrap_err()
                .contains("does not read as Rust")
        );
    }
}
