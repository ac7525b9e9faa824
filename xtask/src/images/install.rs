//! Packages on top of the root filesystem, and what they changed there as an archive: the layer of a program.
//!
//! It owns how mmdebstrap is run (mmdebstrap(1), "SPECIAL HOOKS"). What becomes of the layers it must not know.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::ENTRYPOINT;
use super::programs::Program;
use crate::distribution::{Distribution, Family};
use crate::making::{MakingError, file, program as failed};
use crate::process;
use crate::progress::Step;

/// Takes what was changed out of the root.
const CHANGES: &str = include_str!("changes.sh");

/// Files of packages that no program reads.
const WITHOUT: [&str; 7] = [
    "/usr/share/bash-completion/*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/lintian/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/vim/*",
];

/// Marks the time from when on changes count; what is changed next has a later one, however coarse the clock.
const MARK: &str = "set -eu\n\
                    touch \"$1/.base\"\n\
                    while ! [ \"$1/.tick\" -nt \"$1/.base\" ]; do touch \"$1/.tick\"; done\n\
                    rm \"$1/.tick\"";

/// What a layer is made by, beside its program.
pub(super) fn recipe() -> String {
    format!("{WITHOUT:?}{MARK}{CHANGES}")
}

/// Where the layer of a program is, among what is made.
pub(super) fn layer(program: &Program, scratch: &Path) -> PathBuf {
    scratch.join(format!("{}.tar", program.name))
}

/// Where the script is that its command goes through.
fn entrypoint(program: &Program, scratch: &Path) -> PathBuf {
    scratch.join(format!("{}.sh", program.name))
}

/// Makes the layers of all programs in `scratch`, as many at once as there are processors: half of the time they wait
/// for the archive.
///
/// # Errors
/// When packages cannot be fetched or installed.
pub(super) fn layers(
    step: &Step,
    rootfs: &Path,
    distribution: &Distribution,
    programs: &[Program],
    scratch: &Path,
) -> Result<(), MakingError> {
    let base = scratch.join("base.tar");
    without_devices(step, rootfs, &base)?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let waiting = Mutex::new(programs.iter());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some(program) = next() {
            step.says(program.package);
            if let Some(script) = program.entrypoint {
                let path = entrypoint(program, scratch);
                fs::write(&path, script).map_err(file("write", &path))?;
            }
            process::run(step, &mut mmdebstrap(&base, distribution, program, scratch))
                .map_err(failed("install packages on the root filesystem"))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut ends = threads.into_iter().map(|thread| thread.join());
        ends.try_for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// The root filesystem without its devices, which only root can make; mmdebstrap brings those that it needs.
fn without_devices(step: &Step, rootfs: &Path, base: &Path) -> Result<(), MakingError> {
    let mut filter = process::command(
        "sh",
        ["-c", "mmtarfilter --path-exclude='/dev/*' <\"$0\" >\"$1\""],
    );
    process::run(step, filter.arg(rootfs).arg(base)).map_err(failed("copy the root filesystem"))
}

/// Unpacks the base, installs a package, keeps what that changed.
fn mmdebstrap(base: &Path, distribution: &Distribution, program: &Program, scratch: &Path) -> Command {
    // A special hook's words are a shell's.
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let mut command = process::command("mmdebstrap", ["--variant=custom", "--format=null"]);
    command
        .arg(format!("--include={}", program.package))
        .args(["--dpkgopt=force-confold", "--aptopt=Acquire::Languages \"none\""]);
    for pattern in WITHOUT.iter().chain(program.without) {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    command.arg(format!("--setup-hook=tar-in {} /", quoted(base)));
    command.arg(format!("--setup-hook={MARK}\n{}", program.before));
    if !program.after.is_empty() {
        let after = format!(
            "--customize-hook=chroot \"$1\" sh -eu <<'END'\n{}\nEND",
            program.after
        );
        command.arg(after);
    }
    if program.entrypoint.is_some() {
        let script = quoted(&entrypoint(program, scratch));
        command.arg(format!("--customize-hook=upload {script} {ENTRYPOINT}"));
        command.arg(format!("--customize-hook=chmod 755 \"$1{ENTRYPOINT}\""));
    }
    command.arg(format!("--customize-hook={CHANGES}"));
    let layer = quoted(&layer(program, scratch));
    command.arg(format!("--customize-hook=download /tmp/changes.tar {layer}"));
    // Where the programs are that a distribution does not support itself.
    if distribution.family == Family::Ubuntu {
        command.arg("--components=main,universe");
    }
    command.args([distribution.codename.as_str(), "/dev/null"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::os::unix::fs::symlink;

    fn sh(script: &str, root: &Path) {
        let words = ["-c".as_ref(), script.as_ref(), "sh".as_ref(), root.as_os_str()];
        process::read(&mut process::command("sh", words)).unwrap();
    }

    #[test]
    fn changes_are_what_came_after_the_mark_with_its_parents() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for directory in ["tmp", "etc/apt", "usr/lib/old", "var/lib"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        fs::write(at("etc/passwd"), "root").unwrap();
        fs::write(at("etc/hosts"), "").unwrap();
        sh(MARK, root.path());
        fs::write(at("etc/passwd"), "root, redis").unwrap();
        fs::write(at("etc/apt/sources.list"), "").unwrap();
        fs::write(at("usr/lib/old/new file"), "").unwrap();
        symlink("new file", at("usr/lib/old/link")).unwrap();
        sh(CHANGES, root.path());
        let listing = process::read(process::command("tar", ["-tf"]).arg(at("tmp/changes.tar"))).unwrap();
        let expected = "./etc/ ./etc/passwd ./usr/ ./usr/lib/ ./usr/lib/old/ ./usr/lib/old/link \
                        ./usr/lib/old/new_file";
        let names: BTreeSet<String> = listing.lines().map(|name| name.replace(' ', "_")).collect();
        assert_eq!(names, expected.split_whitespace().map(str::to_owned).collect());
    }

    #[test]
    fn what_a_program_asks_for_is_in_the_command() {
        let program = &super::super::PROGRAMS[0];
        let line = |family| {
            let codename = "release".to_owned();
            let distribution = Distribution { family, codename };
            let base = Path::new("/base.tar");
            process::line(&mmdebstrap(base, &distribution, program, Path::new("/it's")))
        };
        assert!(line(Family::Ubuntu).contains("universe"));
        let line = line(Family::Debian);
        assert!(
            line.ends_with(" release /dev/null") && !line.contains("universe"),
            "{line}"
        );
        assert!(line.contains("--include=postgresql "), "{line}");
        assert!(line.contains("create_main_cluster"), "{line}");
        assert!(line.contains(&format!("s/postgres.sh' {ENTRYPOINT}")), "{line}");
        assert!(
            line.contains(r"/tmp/changes.tar '/it'\\''s/postgres.tar'"),
            "{line}"
        );
    }
}
