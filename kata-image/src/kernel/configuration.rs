//! A kernel's configuration as its build wrote it: a file, or the copy that a kernel may carry in itself.
//! Knows the formats, not what an option means.

use std::collections::BTreeMap;

use super::compression::{Format, decompress};

/// What became of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Setting {
    Missing,
    Module,
    BuiltIn,
}

/// The options of one kernel that have a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Configuration(BTreeMap<String, String>);

/// Around the compressed configuration in a kernel with `CONFIG_IKCONFIG` (Linux `kernel/configs.c`).
const EMBEDDED: &[u8] = b"IKCFG_ST";

impl Configuration {
    /// Reads `.config` (Linux Documentation/kbuild/kconfig.rst). `None` when no line of it is an option's.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let options: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='))
            .map(|(option, value)| (option.to_owned(), value.to_owned()))
            .collect();
        (!options.is_empty()).then_some(Self(options))
    }

    /// The copy in an uncompressed kernel. `None` when there is none, or a broken one.
    pub(super) fn embedded(vmlinux: &[u8]) -> Option<Self> {
        let at = find(vmlinux, EMBEDDED)? + EMBEDDED.len();
        let text = decompress(Format::Gzip, vmlinux.get(at..)?).ok()?;
        Self::parse(&String::from_utf8(text).ok()?)
    }

    /// What became of an option, which is named without `CONFIG_`.
    pub(super) fn setting(&self, option: &str) -> Setting {
        match self.0.get(option).map(String::as_str) {
            None => Setting::Missing,
            Some("m") => Setting::Module,
            Some(_) => Setting::BuiltIn,
        }
    }
}

/// Where `wanted`, which is not empty, begins.
pub(super) fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let (first, mut from) = (wanted.first()?, 0);
    loop {
        let at = from + bytes.get(from..)?.iter().position(|byte| byte == first)?;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    /// The copy of a configuration in a kernel.
    pub(in crate::kernel) fn embed(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        [b"IKIKCFG_", EMBEDDED, &encoder.finish().unwrap(), b"IKCFG_ED"].concat()
    }

    #[test]
    fn options_are_built_in_modules_or_missing() {
        let text = "# Linux\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=64\nCONFIG_E=\"x=y\"\n";
        let configuration = Configuration::parse(text).unwrap();
        let settings = ["A", "B", "C", "D", "E", "F"].map(|option| configuration.setting(option));
        use Setting::{BuiltIn, Missing, Module};
        assert_eq!(settings, [BuiltIn, Module, Missing, BuiltIn, BuiltIn, Missing]);
        assert_eq!(
            Configuration::parse("# CONFIG_C is not set\n[section]\nx=y\n"),
            None
        );
    }

    #[test]
    fn a_kernel_carries_its_own() {
        let configuration = Configuration::embedded(&embed("CONFIG_A=y\n")).unwrap();
        assert_eq!(configuration.setting("A"), Setting::BuiltIn);
        assert_eq!(Configuration::embedded(b"no such thing"), None);
        assert_eq!(Configuration::embedded(b"IKCFG_STbroken"), None);
    }
}
