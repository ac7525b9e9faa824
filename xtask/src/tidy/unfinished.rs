//! Work that claims to be there: tests that never run, functions that only panic.

use super::Violation;
use super::facts::{Fact, Kind};

/// `#[ignore]` without a reason, `todo!` and `unimplemented!`, in tests too.
pub(super) fn check(path: &str, facts: &[Fact]) -> Vec<Violation> {
    facts
        .iter()
        .filter_map(|fact| match &fact.kind {
            Kind::BareIgnore => Some((fact.line, "#[ignore] without a reason".to_owned())),
            Kind::Unfinished(name) => Some((fact.line, format!("{name}! is not an implementation"))),
            _ => None,
        })
        .map(|(line, message)| Violation::at(path, line, message))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::facts::sample;
    use super::*;

    #[test]
    fn ignored_tests_and_missing_bodies_are_found() {
        let facts =
            sample("#[test]\n#[ignore]\nfn a() {}\nfn b() { todo!() }\nfn c() { unimplemented!(\"x\") }");
        let found: Vec<String> = check("a.rs", &facts).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "a.rs:2: #[ignore] without a reason",
                "a.rs:4: todo! is not an implementation",
                "a.rs:5: unimplemented! is not an implementation"
            ]
        );
    }

    #[test]
    fn a_reason_makes_it_good() {
        let facts = sample("#[ignore = \"needs two hosts\"] fn a() { let todo = 1; }");
        assert_eq!(check("a.rs", &facts), []);
    }
}
