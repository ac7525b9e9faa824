//! Regular expressions for libcontainer and oci-spec in less space: `regex-lite` where they ask for `regex`.
//!
//! Owns the list of what their patterns need. Must not have behaviour of its own.
//!
//! The two differ in speed, and in that `\w`, `\d` and `\s` mean ASCII here. The patterns of these packages are
//! for lists of processors and for schemata of resctrl, which the kernel writes and reads in ASCII.

pub use regex_lite::{CaptureMatches, Captures, Error, Match, Matches, Regex, RegexBuilder};

#[cfg(test)]
mod tests {
    use super::Regex;

    /// As in oci-spec 0.10, `runtime/process.rs`.
    #[test]
    fn lists_of_processors_are_told_from_other_text() {
        let list = Regex::new(r"^(\d+(-\d+)?)(,\d+(-\d+)?)*$").unwrap();
        for text in ["0", "0-3", "1,4-7,9"] {
            assert!(list.is_match(text), "{text}");
        }
        for text in ["", "-1", "0,", "0-3-5", "٣"] {
            assert!(!list.is_match(text), "{text}");
        }
    }

    /// As in libcontainer 0.7, `process/intel_rdt.rs`.
    #[test]
    fn schemata_of_resctrl_are_taken_apart() {
        let entry = Regex::new(r"(\w+)\s*=\s*0*([[:xdigit:]]+)").unwrap();
        let found: Vec<(&str, &str)> = entry
            .captures_iter("L3:0=00ff; 1 = f")
            .filter_map(|found| Some((found.get(1)?.as_str(), found.get(2)?.as_str())))
            .collect();
        assert_eq!(found, [("0", "ff"), ("1", "f")]);
    }
}
