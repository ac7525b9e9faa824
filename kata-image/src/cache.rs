//! Where this crate keeps what can be made again. Only this module reads the environment for it.

use std::path::{Path, PathBuf};

/// No cache directory could be derived from the environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheDirectoryError {
    /// None of the variables is set.
    #[error("no cache directory: set KATA_CACHE_DIR, XDG_CACHE_HOME or HOME")]
    Unset,
    /// A variable holds a relative path, which would mean another place after each change of directory.
    #[error("no cache directory: {variable} must be an absolute path, not {}", .value.display())]
    Relative {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: PathBuf,
    },
}

/// The directory for everything that can be made again: `KATA_CACHE_DIR`, else `$XDG_CACHE_HOME/kata`,
/// else `$HOME/.cache/kata`. It need not exist yet. An empty variable counts as unset.
///
/// # Errors
///
/// When no variable is set, or the first that is set is not an absolute path.
pub fn cache_directory() -> Result<PathBuf, CacheDirectoryError> {
    let lookup = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    choose(lookup)
}

fn choose(lookup: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, CacheDirectoryError> {
    for (variable, below) in [
        ("KATA_CACHE_DIR", ""),
        ("XDG_CACHE_HOME", "kata"),
        ("HOME", ".cache/kata"),
    ] {
        let Some(value) = lookup(variable) else { continue };
        if !value.is_absolute() {
            return Err(CacheDirectoryError::Relative { variable, value });
        }
        return Ok(join(&value, below));
    }
    Err(CacheDirectoryError::Unset)
}

/// `Path::join` with nothing would add a slash.
fn join(value: &Path, below: &str) -> PathBuf {
    if below.is_empty() {
        value.to_path_buf()
    } else {
        value.join(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(variables: &[(&str, &str)], expected: Result<&str, &str>) {
        let lookup = |name: &str| {
            variables
                .iter()
                .find(|(variable, _)| *variable == name)
                .map(|(_, value)| PathBuf::from(value))
        };
        let found = choose(lookup).map_err(|error| error.to_string());
        assert_eq!(found, expected.map(PathBuf::from).map_err(str::to_owned));
    }

    #[test]
    fn the_first_variable_that_is_set_wins() {
        check(
            &[("KATA_CACHE_DIR", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")],
            Ok("/a"),
        );
        check(&[("XDG_CACHE_HOME", "/b"), ("HOME", "/c")], Ok("/b/kata"));
        check(&[("HOME", "/c")], Ok("/c/.cache/kata"));
        check(
            &[],
            Err("no cache directory: set KATA_CACHE_DIR, XDG_CACHE_HOME or HOME"),
        );
    }

    #[test]
    fn a_relative_path_is_refused_by_name() {
        check(
            &[("KATA_CACHE_DIR", "x/y"), ("HOME", "/c")],
            Err("no cache directory: KATA_CACHE_DIR must be an absolute path, not x/y"),
        );
    }
}
