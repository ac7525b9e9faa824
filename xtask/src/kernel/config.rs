//! The configuration of the tailored kernel: fragments for people, one list for the build, and what came of it.
//!
//! ```text
//!  xtask/kernel/*.config ──► Asked ──► allnoconfig with it ──► .config ──► what did not survive, by name
//! ```
//!
//! A line of a fragment is `CONFIG_X=value  # reason`; `n` asks for absence. It must not know how a kernel is
//! built.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::ValueEnum;

/// What a kernel is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Variant {
    /// With protection against the bugs of processors
    #[default]
    Default,
    /// Without it, for guests that share no processor with anybody they mistrust
    NoMitigations,
    /// With names and exact traces
    Debug,
}

impl Variant {
    /// As on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::NoMitigations => "no-mitigations",
            Self::Debug => "debug",
        }
    }

    /// The fragments beside [`BASE`].
    const fn own(self) -> &'static [Fragment] {
        match self {
            Self::Default => &[MITIGATIONS],
            Self::NoMitigations => &[NO_MITIGATIONS],
            Self::Debug => &[MITIGATIONS, DEBUG],
        }
    }
}

/// A file of options with one purpose.
#[derive(Debug, Clone, Copy)]
struct Fragment {
    name: &'static str,
    text: &'static str,
}

macro_rules! fragment {
    ($name:literal) => {
        Fragment {
            name: $name,
            text: include_str!(concat!("../../kernel/", $name)),
        }
    };
}

/// What every variant has.
const BASE: &[Fragment] = &[
    fragment!("processor.config"),
    fragment!("hypervisor.config"),
    fragment!("time.config"),
    fragment!("boot.config"),
    fragment!("syscalls.config"),
    fragment!("kernel-filesystems.config"),
    fragment!("memory.config"),
    fragment!("containers.config"),
    fragment!("security.config"),
    fragment!("consoles.config"),
    fragment!("virtio.config"),
    fragment!("disks.config"),
    fragment!("network.config"),
    fragment!("netfilter.config"),
];
const MITIGATIONS: Fragment = fragment!("mitigations.config");
const NO_MITIGATIONS: Fragment = fragment!("no-mitigations.config");
/// Its values replace those of the others.
const DEBUG: Fragment = fragment!("debug.config");

/// Why a fragment is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FragmentError {
    /// Not an option with a value and a reason.
    #[error("{fragment}:{line}: not `CONFIG_NAME=value  # reason`: {text}")]
    Line {
        /// The file.
        fragment: &'static str,
        /// Its line, from 1.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// An option is asked for in two places.
    #[error("{fragment}:{line}: {option} has a value already")]
    Twice {
        /// The file.
        fragment: &'static str,
        /// Its line, from 1.
        line: usize,
        /// The option.
        option: String,
    },
}

/// Options by name with their values as `.config` has them; `n` is absence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked(BTreeMap<String, String>);

impl Asked {
    /// All options of a variant.
    ///
    /// # Errors
    /// When a fragment is none, or two of the same rank ask for the same option.
    pub(crate) fn of(variant: Variant) -> Result<Self, FragmentError> {
        let mut options = BTreeMap::new();
        for fragment in BASE.iter().chain(variant.own()) {
            let replaces = fragment.name == DEBUG.name;
            add(&mut options, *fragment, replaces)?;
        }
        Ok(Self(options))
    }

    /// As `KCONFIG_ALLCONFIG` and `.config` have it (Linux Documentation/kbuild/kconfig.rst).
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (option, value) in &self.0 {
            // Writing to a String does not fail.
            let _ = match value.as_str() {
                "n" => writeln!(text, "# {option} is not set"),
                _ => writeln!(text, "{option}={value}"),
            };
        }
        text
    }

    /// What was asked and is not so in `.config`, as `asked, is`.
    pub(crate) fn lost_in(&self, dot_config: &str) -> Vec<String> {
        let got: BTreeMap<&str, &str> = dot_config
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .collect();
        self.0
            .iter()
            .map(|(option, value)| (option, value, got.get(option.as_str()).copied().unwrap_or("n")))
            .filter(|(_, asked, is)| asked != is)
            .map(|(option, asked, is)| format!("{option}={asked} (is {is})"))
            .collect()
    }
}

fn add(
    options: &mut BTreeMap<String, String>,
    fragment: Fragment,
    replaces: bool,
) -> Result<(), FragmentError> {
    let mut own = BTreeMap::new();
    for (line, text) in (1..).zip(fragment.text.lines()) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let (option, value) = parse(text).ok_or_else(|| FragmentError::Line {
            fragment: fragment.name,
            line,
            text: text.to_owned(),
        })?;
        let known = own.contains_key(option) || (!replaces && options.contains_key(option));
        if known {
            return Err(FragmentError::Twice {
                fragment: fragment.name,
                line,
                option: option.to_owned(),
            });
        }
        own.insert(option.to_owned(), value.to_owned());
    }
    options.extend(own);
    Ok(())
}

/// Option and value of `CONFIG_X=value  # reason`.
fn parse(line: &str) -> Option<(&str, &str)> {
    let (setting, reason) = line.split_once("  # ")?;
    let (option, value) = setting.split_once('=')?;
    let name = option.strip_prefix("CONFIG_")?;
    let named = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let valued = !value.is_empty() && value.trim() == value && !reason.trim().is_empty();
    (named && valued).then_some((option, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(text: &'static str) -> Fragment {
        Fragment {
            name: "x.config",
            text,
        }
    }

    fn options(fragments: &[&'static str]) -> Result<Asked, FragmentError> {
        let mut options = BTreeMap::new();
        for text in fragments {
            add(&mut options, fragment(text), false)?;
        }
        Ok(Asked(options))
    }

    #[test]
    fn reasons_are_stripped_and_absence_is_written_as_kconfig_does() {
        let asked = options(&[
            "# purpose\n\nCONFIG_B=y  # why\nCONFIG_A=\"x,y\"  # why\n",
            "CONFIG_C=n  # why\n",
        ]);
        assert_eq!(
            asked.unwrap().text(),
            "CONFIG_A=\"x,y\"\nCONFIG_B=y\n# CONFIG_C is not set\n"
        );
    }

    #[test]
    fn a_line_without_a_reason_or_without_sense_is_refused_by_its_place() {
        for line in [
            "CONFIG_A=y",
            "CONFIG_A=y  # ",
            "CONFIG_A  # why",
            "A=y  # why",
            "CONFIG_A=  # why",
            "CONFIG_=y  # w",
        ] {
            let error = options(&[line]).unwrap_err();
            let said = format!("x.config:1: not `CONFIG_NAME=value  # reason`: {line}");
            assert_eq!(error.to_string(), said);
        }
    }

    #[test]
    fn an_option_has_one_place() {
        let error = options(&["CONFIG_A=y  # why\n", "\nCONFIG_A=n  # why not\n"]).unwrap_err();
        assert_eq!(error.to_string(), "x.config:2: CONFIG_A has a value already");
        assert!(options(&["CONFIG_A=y  # why\nCONFIG_A=y  # why\n"]).is_err());
    }

    #[test]
    fn what_did_not_survive_is_named_with_what_became_of_it() {
        let asked = options(&[
            "CONFIG_A=y  # w\nCONFIG_B=64  # w\nCONFIG_C=n  # w\nCONFIG_D=n  # w\nCONFIG_E=y  # w\n",
        ]);
        let lost = asked
            .unwrap()
            .lost_in("CONFIG_A=y\nCONFIG_B=8\nCONFIG_C=y\n# CONFIG_D is not set\n# CONFIG_E=y\n");
        assert_eq!(
            lost,
            ["CONFIG_B=64 (is 8)", "CONFIG_C=n (is y)", "CONFIG_E=y (is n)"]
        );
    }

    #[test]
    fn every_variant_is_well_formed_and_differs_where_it_says() {
        let text = |variant| Asked::of(variant).unwrap().text();
        let mitigated = "CONFIG_MITIGATION_RETPOLINE=y";
        assert!(text(Variant::Default).contains(mitigated));
        assert!(text(Variant::Debug).contains(mitigated));
        assert!(!text(Variant::NoMitigations).contains("MITIGATION_RETPOLINE"));
        assert!(text(Variant::NoMitigations).contains("# CONFIG_CPU_MITIGATIONS is not set"));
        assert!(text(Variant::Debug).contains("# CONFIG_UNWINDER_GUESS is not set"));
        assert!(!text(Variant::Default).contains("CONFIG_KALLSYMS"));
    }

    #[test]
    fn every_file_of_the_directory_is_a_fragment() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernel");
        let mut files: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        files.sort();
        let mut known: Vec<&str> = BASE
            .iter()
            .chain(&[MITIGATIONS, NO_MITIGATIONS, DEBUG])
            .map(|f| f.name)
            .collect();
        known.sort_unstable();
        assert_eq!(files, known);
    }
}
