//! Which Linux distribution this machine runs, as `/etc/os-release` tells it (os-release(5)).

use std::io;
use std::path::Path;

/// Where the file is.
const OS_RELEASE: &str = "/etc/os-release";

/// What the rest of the tasks need to know of the distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Distribution {
    /// Which family's package names apply.
    pub(crate) family: Family,
    /// The release's code name, e.g. `bookworm`.
    pub(crate) codename: String,
}

/// A family of distributions with the same package names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Debian and what calls itself its kind.
    Debian,
    /// Ubuntu and what calls itself its kind.
    Ubuntu,
}

impl Family {
    /// As in the names of files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        }
    }
}

/// Why this distribution does not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DistributionError {
    /// The file is not there.
    #[error("cannot read {OS_RELEASE}")]
    Read(#[source] io::Error),
    /// Neither Debian nor Ubuntu.
    #[error(
        "this machine runs `{id}`: guest kernels and root filesystems are made on Debian and Ubuntu only"
    )]
    Unknown {
        /// The file's `ID`.
        id: String,
    },
    /// A release without a code name.
    #[error("{OS_RELEASE} has no VERSION_CODENAME")]
    NoCodename,
}

impl Distribution {
    /// This machine's.
    ///
    /// # Errors
    /// When it is neither Debian nor Ubuntu.
    pub(crate) fn detect() -> Result<Self, DistributionError> {
        let text = std::fs::read_to_string(Path::new(OS_RELEASE)).map_err(DistributionError::Read)?;
        Self::parse(&text)
    }

    fn parse(os_release: &str) -> Result<Self, DistributionError> {
        let id = value(os_release, "ID").unwrap_or_default();
        let like = value(os_release, "ID_LIKE").unwrap_or_default();
        let is = |name| id == name || like.split_whitespace().any(|word| word == name);
        let family = if is("ubuntu") {
            Family::Ubuntu
        } else if is("debian") {
            Family::Debian
        } else {
            return Err(DistributionError::Unknown { id: id.to_owned() });
        };
        let base_codename = match family {
            Family::Ubuntu => value(os_release, "UBUNTU_CODENAME"),
            Family::Debian => value(os_release, "DEBIAN_CODENAME"),
        };
        let codename = base_codename
            .or_else(|| value(os_release, "VERSION_CODENAME"))
            .ok_or(DistributionError::NoCodename)?;
        Ok(Self {
            family,
            codename: codename.to_owned(),
        })
    }
}

fn value<'a>(os_release: &'a str, key: &str) -> Option<&'a str> {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value.trim_matches(['"', '\'']))
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_ubuntu_are_known() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_CODENAME=bookworm\n";
        let found = Distribution::parse(debian).unwrap();
        assert_eq!(
            (found.family, found.codename.as_str()),
            (Family::Debian, "bookworm")
        );
        let ubuntu = "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\nUBUNTU_CODENAME=noble\n";
        let found = Distribution::parse(ubuntu).unwrap();
        assert_eq!((found.family, found.codename.as_str()), (Family::Ubuntu, "noble"));
    }

    #[test]
    fn a_derivative_uses_the_release_it_is_made_from() {
        let mint = "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_CODENAME=wilma\nUBUNTU_CODENAME=noble\n";
        let found = Distribution::parse(mint).unwrap();
        assert_eq!((found.family, found.codename.as_str()), (Family::Ubuntu, "noble"));
    }

    #[test]
    fn other_distributions_are_refused_by_name() {
        let error = Distribution::parse("ID=fedora\n").unwrap_err();
        assert!(error.to_string().contains("`fedora`"));
        assert!(matches!(
            Distribution::parse("ID=debian\n"),
            Err(DistributionError::NoCodename)
        ));
    }
}
