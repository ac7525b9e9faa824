//! `cargo xtask doctor`: what this machine has of what sandboxes need, for people or as JSON.

use std::process::ExitCode;

use clap::Args;
use kata_sandbox::doctor::{Examination, Finding, examine};
use serde_json::{Value, json};

/// How to say it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

/// Looks at the machine and prints what it has; a failure when no sandbox can run.
pub(crate) fn run(options: &Options) -> ExitCode {
    let examination = examine();
    if options.json {
        println!("{:#}", as_json(&examination));
    } else {
        print!("{examination}");
    }
    if examination.can_run() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn as_json(examination: &Examination) -> Value {
    let one = |finding: &Finding| {
        json!({
            "subject": finding.subject,
            "verdict": finding.verdict.to_string().to_lowercase(),
            "found": finding.found,
            "remedy": finding.remedy,
        })
    };
    let findings: Vec<Value> = examination.findings.iter().map(one).collect();
    json!({ "can_run": examination.can_run(), "findings": findings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_a_line_for_each_finding() {
        let examination = examine();
        let document = as_json(&examination);
        assert_eq!(document["can_run"], examination.can_run());
        let findings = document["findings"].as_array().unwrap();
        assert_eq!(findings.len(), examination.findings.len());
        assert_eq!(findings[0]["subject"], "KVM");
    }
}
