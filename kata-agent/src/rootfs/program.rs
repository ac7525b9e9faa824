//! Whether a process can start: its program and working directory, before anything is made.
//!
//! Owns the search in PATH, also for the moment of execution inside. Must not know how the root is
//! looked into.

use std::path::{Path, PathBuf};

use kata_agent_proto::{Failed, FailureKind};

/// The search path when the environment has none, as docker has it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The search path in an environment.
pub(crate) fn search_path(env: &[String]) -> &str {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH)
}

/// Where a program may be, in the order of trying.
pub(crate) fn candidates(program: &str, path: &str, cwd: &Path) -> Vec<PathBuf> {
    if program.contains('/') {
        return vec![cwd.join(program)];
    }
    path.split(':')
        .map(|directory| cwd.join(directory).join(program))
        .collect()
}

/// Finds a program by its candidates. `look` tells whether a path can be executed, `None` for a path
/// that leads nowhere.
///
/// # Errors
/// Not found, or found but not executable.
pub(crate) fn find(
    program: &str,
    candidates: &[PathBuf],
    look: impl Fn(&Path) -> Option<bool>,
) -> Result<(), Failed> {
    let mut kind = FailureKind::NotFound;
    for path in candidates {
        match look(path) {
            Some(true) => return Ok(()),
            Some(false) => kind = FailureKind::NotExecutable,
            None => {}
        }
    }
    Err(Failed::new(kind, program))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with /bin/sh, and /bin/data that is not executable.
    fn look(path: &Path) -> Option<bool> {
        match path.components().collect::<PathBuf>().to_str() {
            Some("/bin/sh") => Some(true),
            Some("/bin/data" | "/bin") => Some(false),
            _ => None,
        }
    }

    fn found(program: &str, cwd: &str) -> Result<(), FailureKind> {
        let candidates = candidates(program, "/usr/bin:/bin", Path::new(cwd));
        find(program, &candidates, look).map_err(|failed| failed.kind)
    }

    #[test]
    fn a_name_is_searched_and_a_path_is_not() {
        assert_eq!(found("sh", "/"), Ok(()));
        assert_eq!(found("/bin/sh", "/tmp"), Ok(()));
        assert_eq!(found("./sh", "/bin"), Ok(()));
        assert_eq!(found("bin/sh", "/"), Ok(()));
        assert_eq!(found("./sh", "/"), Err(FailureKind::NotFound));
    }

    #[test]
    fn missing_and_not_executable_are_different_kinds() {
        assert_eq!(found("nosuch", "/"), Err(FailureKind::NotFound));
        assert_eq!(found("data", "/"), Err(FailureKind::NotExecutable));
        assert_eq!(found("/bin", "/"), Err(FailureKind::NotExecutable));
    }

    #[test]
    fn the_last_path_of_the_environment_counts() {
        assert_eq!(
            search_path(&["PATH=/a".into(), "X=1".into(), "PATH=/b".into()]),
            "/b"
        );
        assert_eq!(search_path(&[]), DEFAULT_PATH);
    }
}
