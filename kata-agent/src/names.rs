//! Names that requests give: of containers and processes, and of cgroups.
//!
//! Owns which of them can be names of files.

use std::path::{Component, Path, PathBuf};

use kata_agent_proto::{Failed, FailureKind};

/// Longest name of a container or process, so that it fits into the names of files.
const NAME_MAX_BYTES: usize = 64;

/// Whether a container or process may be called that.
pub(crate) fn check_name(name: &str) -> Result<(), Failed> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if name.is_empty() || name.len() > NAME_MAX_BYTES || name.starts_with('.') || !name.bytes().all(known) {
        return Err(Failed::new(FailureKind::Invalid, format!("name {name:?}")));
    }
    Ok(())
}

/// Where a container's cgroup is, below that of all containers.
pub(crate) fn cgroup_name(asked: &str) -> Result<PathBuf, Failed> {
    // As systemd would lay out `slice:prefix:name`, which no guest has.
    let path = match asked.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] => format!("{slice}/{prefix}-{name}.scope"),
        _ => asked.to_owned(),
    };
    let path = Path::new(path.trim_start_matches('/'));
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || path.as_os_str().is_empty() || asked.contains(['\0', '\n']) {
        return Err(Failed::new(
            FailureKind::Invalid,
            format!("linux.cgroupsPath: {asked:?}"),
        ));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_below_that_of_all_containers() {
        let name = |asked| cgroup_name(asked).map_err(|failed| failed.kind);
        assert_eq!(name("/a/b"), Ok(PathBuf::from("a/b")));
        assert_eq!(name("a"), Ok(PathBuf::from("a")));
        assert_eq!(
            name("system.slice:kata:c1"),
            Ok(PathBuf::from("system.slice/kata-c1.scope"))
        );
        for asked in ["/", "/a/../..", "..", "/a\0"] {
            assert_eq!(name(asked), Err(FailureKind::Invalid), "{asked}");
        }
    }

    #[test]
    fn names_are_names_of_files() {
        for name in ["c1", "a.b-c_d+e", &"x".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", ".x", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
