//! Whether what is claimed was seen to hold: on each backend, in one run of the suite.

use std::collections::BTreeSet;

use super::Conformance;

/// The modules of the one test body.
const BACKENDS: [&str; 4] = ["fake", "qemu_tcg", "qemu_kvm", "kvm"];

/// Tests of the one body that ran and passed, as `backend::test`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed(BTreeSet<String>);

impl Passed {
    /// Takes the name of a test that passed; one of no backend counts as nothing here.
    pub(crate) fn add(&mut self, name: &str) {
        if name
            .split_once("::")
            .is_some_and(|(backend, _)| BACKENDS.contains(&backend))
        {
            self.0.insert(name.to_owned());
        }
    }

    /// It said that it did not run; the name ends with what it passed as.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0
            .retain(|passed| name != passed && !name.ends_with(&format!("::{passed}")));
    }

    /// Adds those of another part of the suite.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// What to say about a whole run: a line for each claim that was not seen to hold on a backend, then the sum.
pub(crate) fn judge(conformance: &Conformance, passed: &Passed) -> (Vec<String>, String) {
    let mut missing = BTreeSet::new();
    for claim in conformance.claims.iter().filter(|claim| claim.body) {
        for backend in BACKENDS {
            let name = format!("{backend}::{}", claim.test);
            if !passed.0.contains(&name) {
                missing.insert(format!("conformance: {} was not seen to pass", name));
            }
        }
    }
    let rows = conformance.rows.len();
    let sum = match missing.len() {
        0 => format!("conformance: all {rows} rows hold on {}", BACKENDS.join(", ")),
        count => format!("conformance: of {rows} rows, {count} test(s) were not seen to pass"),
    };
    (missing.into_iter().collect(), sum)
}

#[cfg(test)]
mod tests {
    use super::super::claims::Claim;
    use super::*;

    fn conformance() -> Conformance {
        Conformance {
            rows: Vec::new(),
            claims: vec![Claim {
                row: "api One".to_owned(),
                file: "kata-sandbox/tests/b.rs".to_owned(),
                test: "x".to_owned(),
                body: true,
            }],
            missing: Vec::new(),
            mistakes: Vec::new(),
        }
    }

    #[test]
    fn a_claim_holds_when_its_test_passed_on_each_backend() {
        let mut passed = Passed::default();
        for name in ["fake::x", "qemu_tcg::x", "kvm::x", "unit::x"] {
            passed.add(name);
        }
        let (missing, sum) = judge(&conformance(), &passed);
        assert_eq!(missing, ["conformance: qemu_kvm::x was not seen to pass"]);
        assert!(sum.contains("1 test(s)"));
        let mut other = Passed::default();
        other.add("qemu_kvm::x");
        passed.absorb(other);
        assert!(judge(&conformance(), &passed).0.is_empty());
    }

    #[test]
    fn what_says_that_it_did_not_run_did_not_pass() {
        let mut passed = Passed::default();
        passed.add("kvm::x");
        passed.add("kvm::xx");
        passed.remove("processes::kvm::x");
        assert_eq!(passed.0.iter().collect::<Vec<_>>(), ["kvm::xx"]);
    }
}
