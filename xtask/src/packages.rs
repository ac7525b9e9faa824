//! The package manager: what this machine lacks, and how it gets it.
//!
//! It installs by apt-get as root, or through sudo when that asks no password; otherwise its error is
//! the list of commands to run. It must not know what the packages are for beyond one line of text.

use std::process::Command;
use std::sync::Once;

use crate::process::{self, ProcessError};
use crate::progress::Step;

/// Something that must be on the machine, and the package that brings it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// What is looked for, for people.
    what: &'static str,
    /// Its package on Debian and Ubuntu.
    package: &'static str,
    /// Whether it is there.
    present: fn() -> bool,
}

/// What it takes to build everything and run a sandbox.
const RUN: &[Need] = &[
    Need {
        what: "a C compiler",
        package: "gcc",
        present: || process::find("cc").is_some(),
    },
    Need {
        what: "the static C library",
        package: "libc6-dev",
        present: has_static_libc,
    },
    Need {
        what: "QEMU's system emulator",
        package: "qemu-system-x86",
        present: || process::find("qemu-system-x86_64").is_some(),
    },
    Need {
        what: "mmdebstrap",
        package: "mmdebstrap",
        present: || process::find("mmdebstrap").is_some(),
    },
    Need {
        what: "newuidmap (mmdebstrap without root)",
        package: "uidmap",
        present: || is_root() || process::find("newuidmap").is_some(),
    },
];

/// What the test suite needs beside it.
const TEST: &[Need] = &[
    Need {
        what: "fsck.erofs (checks the images we write)",
        package: "erofs-utils",
        present: || process::find("fsck.erofs").is_some(),
    },
    Need {
        what: "a registry (images are pulled from it and pushed to it)",
        package: "docker-registry",
        present: || process::find("docker-registry").is_some(),
    },
    Need {
        what: "skopeo (reads the images that we push)",
        package: "skopeo",
        present: || process::find("skopeo").is_some(),
    },
    Need {
        what: "umoci (unpacks layers as we should)",
        package: "umoci",
        present: || process::find("umoci").is_some(),
    },
    Need {
        what: "veritysetup (checks the hash trees that we write)",
        package: "cryptsetup-bin",
        present: || process::find("veritysetup").is_some(),
    },
    Need {
        what: "openssl (certificates of registries in tests)",
        package: "openssl",
        present: || process::find("openssl").is_some(),
    },
    Need {
        what: "mke2fs (disks that containers write to)",
        package: "e2fsprogs",
        present: || kata_image::find_mke2fs().is_some(),
    },
    Need {
        what: "xz (unpacks modules of the guest kernel)",
        package: "xz-utils",
        present: || process::find("xz").is_some(),
    },
];

/// What it takes to build a kernel (Linux Documentation/process/changes.rst).
const KERNEL: &[Need] = &[
    Need {
        what: "a C compiler",
        package: "gcc",
        present: || process::find("gcc").is_some(),
    },
    Need {
        what: "the C library's headers",
        package: "libc6-dev",
        present: || has_header("stdlib.h"),
    },
    Need {
        what: "make",
        package: "make",
        present: || process::find("make").is_some(),
    },
    Need {
        what: "objcopy",
        package: "binutils",
        present: || process::find("objcopy").is_some(),
    },
    Need {
        what: "flex",
        package: "flex",
        present: || process::find("flex").is_some(),
    },
    Need {
        what: "bison",
        package: "bison",
        present: || process::find("bison").is_some(),
    },
    Need {
        what: "bc",
        package: "bc",
        present: || process::find("bc").is_some(),
    },
    Need {
        what: "libelf's headers",
        package: "libelf-dev",
        present: || has_header("gelf.h"),
    },
    Need {
        what: "OpenSSL's headers",
        package: "libssl-dev",
        present: || has_header("openssl/bio.h"),
    },
    Need {
        what: "depmod",
        package: "kmod",
        present: || process::find("depmod").is_some(),
    },
    Need {
        what: "xz",
        package: "xz-utils",
        present: || process::find("xz").is_some(),
    },
];

/// Why something is still missing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackageError {
    /// This machine has another package manager, or none.
    #[error(
        "this machine lacks {what} and has no apt-get; install it by other means (Debian's names: {packages}) \
         and run this again"
    )]
    NoPackageManager {
        /// What is missing, for people.
        what: String,
        /// The packages' names.
        packages: String,
    },
    /// Installing needs root.
    #[error("this machine lacks {what}; run\n\n{commands}\nand then this again")]
    NoPrivilege {
        /// What is missing, for people.
        what: String,
        /// One command a line.
        commands: String,
    },
    /// The package manager failed.
    #[error("cannot install {packages}")]
    Install {
        /// The packages' names.
        packages: String,
        /// What it said.
        #[source]
        source: ProcessError,
    },
    /// It succeeded, and still something is not there.
    #[error("{what} is still missing after {packages} was installed")]
    StillMissing {
        /// What is missing, for people.
        what: String,
        /// The packages' names.
        packages: String,
    },
}

/// Installs what running a sandbox needs and this machine lacks.
///
/// # Errors
/// When something is missing and cannot be installed; the error says what to do.
pub(crate) fn provide_for_running() -> Result<(), PackageError> {
    provide(RUN)
}

/// Installs what the test suite needs and this machine lacks.
///
/// # Errors
/// When something is missing and cannot be installed; the error says what to do.
pub(crate) fn provide_for_testing() -> Result<(), PackageError> {
    provide(&[RUN, TEST, KERNEL].concat())
}

/// Installs what building a kernel needs and this machine lacks.
///
/// # Errors
/// When something is missing and cannot be installed; the error says what to do.
pub(crate) fn provide_for_kernel() -> Result<(), PackageError> {
    provide(KERNEL)
}

fn provide(needs: &[Need]) -> Result<(), PackageError> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let (what, packages) = (names(&missing, |need| need.what, ", "), package_names(&missing));
    let apt = Apt::detect().map_err(|without| without.error(&what, &packages))?;
    let step = Step::start(format!("install {packages}"));
    apt.install(&step, &packages)
        .map_err(|source| PackageError::Install {
            packages: packages.clone(),
            source,
        })?;
    let what = names(&self::missing(needs), |need| need.what, ", ");
    if !what.is_empty() {
        return Err(PackageError::StillMissing { what, packages });
    }
    step.done("");
    Ok(())
}

fn missing(needs: &[Need]) -> Vec<Need> {
    let mut missing: Vec<Need> = Vec::new();
    for need in needs {
        let known = missing.iter().any(|other| other.package == need.package);
        if !known && !(need.present)() {
            missing.push(*need);
        }
    }
    missing
}

fn names(needs: &[Need], name: fn(&Need) -> &'static str, separator: &str) -> String {
    needs.iter().map(name).collect::<Vec<_>>().join(separator)
}

fn package_names(needs: &[Need]) -> String {
    names(needs, |need| need.package, " ")
}

fn install_command(packages: &str) -> String {
    format!("apt-get install --yes --no-install-recommends {packages}")
}

fn has_static_libc() -> bool {
    // The compiler answers with the bare name when it does not find the file.
    process::read(&mut process::command("cc", ["-print-file-name=libc.a"]))
        .is_ok_and(|path| path.trim().starts_with('/'))
}

/// Whether the compiler finds a header.
fn has_header(name: &str) -> bool {
    let words = ["-E", "-x", "c", "-include", name, "/dev/null"];
    process::read(&mut process::command("gcc", words)).is_ok()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// apt-get, with the right to install.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Apt {
    sudo: bool,
}

/// Why there is no [`Apt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithoutApt {
    /// No apt-get on this machine.
    NoPackageManager,
    /// Neither root nor a sudo that asks no password.
    NoPrivilege,
}

impl WithoutApt {
    /// The error that tells what to do by hand.
    fn error(self, what: &str, packages: &str) -> PackageError {
        let (what, packages) = (what.to_owned(), packages.to_owned());
        match self {
            Self::NoPackageManager => PackageError::NoPackageManager { what, packages },
            Self::NoPrivilege => PackageError::NoPrivilege {
                what,
                commands: format!(
                    "    sudo apt-get update\n    sudo {}\n",
                    install_command(&packages)
                ),
            },
        }
    }
}

impl Apt {
    /// Finds out whether packages can be installed here.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn detect() -> Result<Self, WithoutApt> {
        if process::find("apt-get").is_none() {
            return Err(WithoutApt::NoPackageManager);
        }
        if is_root() {
            return Ok(Self { sudo: false });
        }
        process::read(&mut process::command("sudo", ["-n", "true"]))
            .map(|_| Self { sudo: true })
            .map_err(|_| WithoutApt::NoPrivilege)
    }

    /// Brings the lists of packages up to date.
    ///
    /// # Errors
    /// What apt-get said.
    pub(crate) fn update(self, step: &Step) -> Result<(), ProcessError> {
        process::run(step, &mut self.command(&["apt-get", "update"]))
    }

    /// Brings the lists up to date before the newest of a package is chosen: those of an image of a machine are as old
    /// as it is. Once in a run. Where that is not possible, what the lists know has to do.
    pub(crate) fn update_once(step: &Step) {
        static DONE: Once = Once::new();
        DONE.call_once(|| {
            let updated = Self::detect().ok().map(|apt| apt.update(step));
            if let Some(Err(error)) = updated {
                step.says(&format!(
                    "the lists of packages stay as they are: {}",
                    crate::chain(&error)
                ));
            }
        });
    }

    /// Installs packages; fetches the lists first if they do not know a package, or know versions that
    /// are gone from the archive.
    fn install(self, step: &Step, packages: &str) -> Result<(), ProcessError> {
        let line = install_command(packages);
        let words: Vec<&str> = line.split(' ').collect();
        let known = packages.split(' ').all(is_known);
        if known && process::run(step, &mut self.command(&words)).is_ok() {
            return Ok(());
        }
        self.update(step)?;
        process::run(step, &mut self.command(&words))
    }

    fn command(self, words: &[&str]) -> Command {
        let prefix: &[&str] = if self.sudo { &["sudo", "-n"] } else { &[] };
        let environment = ["env", "DEBIAN_FRONTEND=noninteractive"];
        let mut all = prefix.iter().chain(&environment).chain(words).copied();
        let program = all.next().unwrap_or("env");
        process::command(program, all)
    }
}

/// Whether apt's lists know a package.
fn is_known(package: &str) -> bool {
    process::read(&mut process::command(
        "apt-cache",
        ["show", "--no-all-versions", package],
    ))
    .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: &[Need] = &[
        Need {
            what: "a thing",
            package: "thing",
            present: || false,
        },
        Need {
            what: "another",
            package: "other",
            present: || true,
        },
    ];

    #[test]
    fn only_what_is_not_there_is_missing() {
        assert_eq!(package_names(&missing(NEEDS)), "thing");
    }

    #[test]
    fn a_package_that_is_needed_twice_is_installed_once() {
        assert_eq!(package_names(&missing(&[NEEDS, NEEDS].concat())), "thing");
    }

    #[test]
    fn headers_are_asked_of_the_compiler() {
        assert!(has_header("stdlib.h"));
        assert!(!has_header("no/such/header.h"));
    }

    #[test]
    fn without_privilege_the_error_is_the_commands_to_run() {
        let error = WithoutApt::NoPrivilege.error("a thing", "thing other");
        assert_eq!(
            error.to_string(),
            "this machine lacks a thing; run\n\n    sudo apt-get update\n    \
             sudo apt-get install --yes --no-install-recommends thing other\n\nand then this again"
        );
    }

    #[test]
    fn without_a_package_manager_the_error_names_the_packages() {
        let error = WithoutApt::NoPackageManager.error("a thing", "thing other");
        assert_eq!(
            error.to_string(),
            "this machine lacks a thing and has no apt-get; install it by other means \
             (Debian's names: thing other) and run this again"
        );
    }

    #[test]
    fn sudo_never_asks_for_a_password() {
        let command = Apt { sudo: true }.command(&["apt-get", "update"]);
        assert_eq!(
            process::line(&command),
            "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get update"
        );
        let command = Apt { sudo: false }.command(&["apt-get", "update"]);
        assert_eq!(
            process::line(&command),
            "env DEBIAN_FRONTEND=noninteractive apt-get update"
        );
    }
}
