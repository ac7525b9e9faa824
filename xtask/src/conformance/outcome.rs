//! Whether what is claimed was seen to hold: on each backend, in one run of the suite.

use std::collections::BTreeSet;

use super::Conformance;
use super::rows::{Needs, Row};

/// The modules of the one test body.
const BACKENDS: [&str; 4] = ["fake", "qemu_tcg", "qemu_kvm", "kvm"];

/// The one of them without a guest.
const WITHOUT_GUEST: &str = "fake";

/// Whether a row is about something that a backend has.
fn concerns(row: &Row, backend: &str) -> bool {
    match row.needs {
        Needs::Backend => true,
        Needs::Guest => backend != WITHOUT_GUEST,
        Needs::Nothing => false,
    }
}

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

/// Rows that no test was seen to hold on a backend, by what to say of them, and the sum.
pub(crate) fn judge(conformance: &Conformance, passed: &Passed) -> (Vec<String>, String) {
    let mut missing = Vec::new();
    let mut held = Vec::new();
    for backend in BACKENDS {
        let rows = || conformance.rows.iter().filter(|row| concerns(row, backend));
        let holds = |row: &Row| {
            let mut claims = conformance
                .claims
                .iter()
                .filter(|claim| claim.body && row.is(&claim.row));
            claims.any(|claim| passed.0.contains(&format!("{backend}::{}", claim.test)))
        };
        let lost = rows().filter(|row| !holds(row));
        missing.extend(
            lost.map(|row| format!("conformance: `{}` was not seen to hold on {backend}", row.name())),
        );
        let count = rows().filter(|row| holds(row)).count();
        held.push(format!("{count} of {} on {backend}", rows().count()));
    }
    (
        missing,
        format!("conformance: rows that hold: {}", held.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::super::claims::Claim;
    use super::super::rows::Theme;
    use super::*;

    fn conformance() -> Conformance {
        let claim = |test: &str| Claim {
            row: "api One".to_owned(),
            file: "kata-sandbox/tests/b.rs".to_owned(),
            test: test.to_owned(),
            body: true,
        };
        let of_kernel = Claim {
            row: "api Kernel".to_owned(),
            ..claim("z")
        };
        let row = |key: &str, needs| Row {
            theme: Theme::Api,
            key: key.to_owned(),
            text: String::new(),
            file: String::new(),
            needs,
        };
        Conformance {
            rows: vec![
                row("One", Needs::Backend),
                row("Image", Needs::Nothing),
                row("Kernel", Needs::Guest),
            ],
            claims: vec![claim("x"), claim("y"), of_kernel],
            missing: Vec::new(),
            mistakes: Vec::new(),
        }
    }

    #[test]
    fn a_row_holds_where_a_test_that_claims_it_passed() {
        let mut passed = Passed::default();
        for name in [
            "fake::x",
            "qemu_tcg::y",
            "unit::x",
            "qemu_tcg::z",
            "qemu_kvm::z",
            "kvm::z",
        ] {
            passed.add(name);
        }
        let (missing, sum) = judge(&conformance(), &passed);
        let lost = |backend: &str| format!("conformance: `api One` was not seen to hold on {backend}");
        assert_eq!(missing, [lost("qemu_kvm"), lost("kvm")]);
        let expected = "conformance: rows that hold: 1 of 1 on fake, 2 of 2 on qemu_tcg, 1 of 2 on qemu_kvm, 1 of 2 on kvm";
        assert_eq!(sum, expected);
        let mut other = Passed::default();
        other.add("kvm::x");
        passed.absorb(other);
        assert_eq!(judge(&conformance(), &passed).0, [lost("qemu_kvm")]);
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
