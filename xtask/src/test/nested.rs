//! The tests that need a real KVM, where this machine has none: in nested beds.
//!
//! ```text
//!  programs ─► passes (kernel × backend × processors × tests) ─┬─► script ─► bed ─┬─► lines for the tally
//!                                                              └─► script ─► bed ─┘
//! ```
//!
//! It owns which tests run there how often, and for how long at most. It must not know how a bed is made.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use clap::ValueEnum;

use super::programs::Programs;
use super::tally::{Line, Tally};
use super::{Backend, GuestKernel, WITH_DISTRIBUTION_KERNEL, in_ci};
use crate::bed::{Bed, BedError, Clock, End, Job, KERNEL, PROGRAMS, TAILORED};

/// How much of the suite runs in the beds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Extent {
    /// The body once on each backend; beside it a selection. What is left out is said
    Normal,
    /// As normal, and nothing else of the suite
    Only,
    /// Every test on every backend with every number of processors
    Full,
    /// Nothing: what needs KVM is skipped
    None,
}

/// What runs in the beds.
pub(super) const BACKENDS: &[Backend] = &[Backend::Kvm, Backend::QemuKvm];

/// Processors of a sandbox, and what its guest boots.
const GUESTS: [(GuestKernel, u8); 3] = [
    (GuestKernel::Tailored, 1),
    (GuestKernel::Tailored, 2),
    (GuestKernel::Distribution, 1),
];

/// Tests that stand for the body where all of it would take too long: lives from boot to stop, deaths on
/// both sides, streams, processes, a refusal.
const SELECTION: &[&str] = &[
    "a_dropped_sandbox_leaves_nothing",
    "a_monitor_killed_by_9_is_an_error_and_takes_the_machine_along",
    "a_missing_guest_asset_is_named",
    "half_closed_stdin_leaves_the_output_open",
    "info_says_where_it_runs_and_why",
    "many_execs_at_once",
    "memory_and_processors_are_what_was_asked_for",
    "the_exit_code_is_the_code_and_streams_are_apart",
];

/// The test program of real software, which stands for what people run.
const SOFTWARE: &str = "programs";

/// How many times longer than another test one of its tests takes.
const SOFTWARE_WEIGHT: usize = 6;

/// Tests about quantity, which a guest inside of an emulated guest has no time for.
const LONG: &[&str] = &[
    "a_hundred_one_after_another_grow_nothing",
    "many_images_come_and_go_and_leave_nothing",
    "stdin_of_64_mib_arrives_whole",
];

/// Beds at once, at most: each takes a core and 3 GiB.
const BEDS: usize = 2;

/// How much longer things take in a bed than on a machine of its own.
const PATIENCE: &str = "4";

/// The tests of one program that run at once under the same conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    kernel: GuestKernel,
    backend: Backend,
    vcpus: u8,
    program: String,
    tests: Vec<String>,
}

impl Unit {
    /// How long it takes, in tests of the usual length.
    fn weight(&self) -> usize {
        let each = if self.program == SOFTWARE {
            SOFTWARE_WEIGHT
        } else {
            1
        };
        self.tests.len() * each
    }
}

/// What runs, and what does not although it could.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    units: Vec<Unit>,
    /// Tests that are left out, by backend, processors and kernel.
    left_out: BTreeMap<(&'static str, u8, &'static str), usize>,
}

/// Which tests are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) extent: Extent,
    /// Part of their names.
    pub(super) filter: Option<&'a str>,
    /// Only this backend.
    pub(super) backend: Option<Backend>,
}

impl Asked<'_> {
    /// Whether a test runs with such a guest.
    fn wants(&self, (kernel, vcpus): (GuestKernel, u8), name: &str) -> bool {
        // Who names tests means them.
        if self.extent == Extent::Full || self.filter.is_some() {
            return true;
        }
        if kernel == GuestKernel::Distribution {
            return WITH_DISTRIBUTION_KERNEL.contains(&name);
        }
        (vcpus == 1 && !LONG.contains(&name)) || SELECTION.contains(&name)
    }
}

impl Plan {
    /// Chooses among the tests of these programs.
    pub(super) fn new(programs: &Programs, asked: Asked<'_>) -> Self {
        let mut plan = Self::default();
        if asked.extent == Extent::None {
            return plan;
        }
        let backends = BACKENDS
            .iter()
            .filter(|backend| asked.backend.is_none_or(|only| only == **backend));
        for backend in backends.copied() {
            for guest in GUESTS {
                plan.add(programs, backend, guest, asked);
            }
        }
        plan
    }

    fn add(&mut self, programs: &Programs, backend: Backend, guest: (GuestKernel, u8), asked: Asked<'_>) {
        let (kernel, vcpus) = guest;
        for program in &programs.tests {
            let module = format!("{}::", backend.name());
            let (tests, others): (Vec<_>, Vec<_>) = program
                .tests
                .iter()
                .filter_map(|test| Some((test, test.strip_prefix(&module)?)))
                .filter(|(test, _)| asked.filter.is_none_or(|part| test.contains(part)))
                .partition(|(_, name)| asked.wants(guest, name));
            if !others.is_empty() {
                let place = (backend.name(), vcpus, kernel.label());
                *self.left_out.entry(place).or_default() += others.len();
            }
            if !tests.is_empty() {
                self.units.push(Unit {
                    kernel,
                    backend,
                    vcpus,
                    program: program.name.clone(),
                    tests: tests.into_iter().map(|(test, _)| test.clone()).collect(),
                });
            }
        }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// What is not run, for people.
    pub(super) fn omissions(&self) -> Vec<String> {
        self.left_out
            .iter()
            .map(|((backend, vcpus, kernel), count)| {
                let kernel = if kernel.is_empty() {
                    "tailored kernel"
                } else {
                    kernel
                };
                format!(
                    "left out of the bed: {count} test(s) on {backend} with {vcpus} vCPU and the {kernel}; \
                     --bed full runs them"
                )
            })
            .collect()
    }

    /// The work of so many beds, about the same for each.
    fn shares(&self, beds: usize) -> Vec<Vec<&Unit>> {
        let mut units: Vec<&Unit> = self.units.iter().collect();
        units.sort_by_key(|unit| std::cmp::Reverse(unit.weight()));
        let mut shares = vec![Vec::new(); beds];
        for unit in units {
            let load = |share: &Vec<&Unit>| share.iter().map(|unit| unit.weight()).sum::<usize>();
            if let Some(least) = shares.iter_mut().min_by_key(|share| load(share)) {
                least.push(unit);
            }
        }
        shares.retain(|share| !share.is_empty());
        shares
    }

    /// Runs everything; what the tests say goes to `show`, with the bed's number in front.
    pub(super) fn run(&self, bed: &Bed, programs: &Programs, show: &mut dyn FnMut(&str)) -> Vec<Outcome> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shares = self.shares(cores.clamp(1, BEDS));
        let (sender, lines) = mpsc::channel::<(usize, String)>();
        let mut tallies: Vec<Tally> = shares.iter().map(|_| Tally::default()).collect();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(&shares)
                .map(|(number, share)| {
                    let (job, sender) = (job(programs, share), sender.clone());
                    // Nobody listens only when this function is gone, and this thread with it.
                    scope.spawn(move || {
                        bed.run(&job, &mut |line| drop(sender.send((number, line.to_owned()))))
                    })
                })
                .collect();
            drop(sender);
            let mut kernels = vec![GuestKernel::Tailored; shares.len()];
            for (number, line) in lines {
                if let (Some(now), Some(kernel)) = (kernels.get_mut(number), announced(&line)) {
                    *now = kernel;
                }
                if let Some(Line::Shown) = tallies.get_mut(number).map(|tally| tally.read(&line)) {
                    show(&format!(
                        "{} {line}",
                        prefix(number + 1, kernels.get(number).copied())
                    ));
                }
            }
            let ends = threads.into_iter().map(|thread| thread.join());
            ends.zip(std::mem::take(&mut tallies))
                .map(|(end, tally)| Outcome {
                    tally,
                    end: end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                })
                .collect()
        })
    }
}

/// What stands at the end of the line that announces a unit.
const ANNOUNCED: &str = ", distribution kernel";

/// The kernel of the unit that a line announces.
fn announced(line: &str) -> Option<GuestKernel> {
    line.starts_with("Running ")
        .then(|| match line.ends_with(ANNOUNCED) {
            true => GuestKernel::Distribution,
            false => GuestKernel::Tailored,
        })
}

/// In front of a line of a bed.
fn prefix(bed: usize, kernel: Option<GuestKernel>) -> String {
    match kernel {
        Some(GuestKernel::Distribution) => format!("[bed {bed}{ANNOUNCED}]"),
        _ => format!("[bed {bed}]"),
    }
}

/// What one bed did.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The tests that it told of.
    pub(super) tally: Tally,
    /// How its job ended, if it did.
    pub(super) end: Result<End, BedError>,
}

/// A test program runs so long at most; a bed as long as all of its programs.
const PROGRAM: Duration = Duration::from_secs(600);

fn job(programs: &Programs, share: &[&Unit]) -> Job {
    let directory = PathBuf::from(PROGRAMS);
    let tests = programs
        .tests
        .iter()
        .map(|program| (directory.join("deps").join(&program.name), program.path.clone()));
    let examples = programs.examples.iter().map(|path| {
        let name = path.file_name().unwrap_or_default();
        (directory.join("examples").join(name), path.clone())
    });
    let mut environment = vec![("KATA_TEST_PATIENCE".into(), PATIENCE.into())];
    if in_ci() {
        environment.push(("CI".into(), "true".into()));
    }
    Job {
        command: vec!["bash".into(), "-c".into(), script(share).into()],
        environment,
        programs: tests.chain(examples).collect(),
        clock: Clock::Time,
        allowed: Some(PROGRAM * u32::try_from(share.len()).unwrap_or(u32::MAX)),
    }
}

/// Runs each unit, says which and how long, and says what libtest cannot say itself: that it is dead.
fn script(share: &[&Unit]) -> String {
    let mut script = format!("cd {PROGRAMS}\nworst=0\n");
    for Unit {
        kernel,
        backend,
        vcpus,
        program,
        tests,
    } in share
    {
        let (backend, limit) = (backend.name(), PROGRAM.as_secs());
        let (vmlinux, announced) = match kernel {
            GuestKernel::Tailored => (TAILORED, ""),
            GuestKernel::Distribution => (KERNEL, ANNOUNCED),
        };
        // Writing to a string cannot fail. Names of tests are Rust's, which no shell misreads.
        let _ = writeln!(
            script,
            "echo 'Running {program} on {backend}, {vcpus} vCPU{announced}'\n\
             KATA_KERNEL={vmlinux} KATA_TEST_BACKENDS={backend} KATA_TEST_VCPUS={vcpus} timeout -k 5 {limit} \
             deps/{program} --exact --show-output --test-threads=1 {}\n\
             status=$?\n\
             [ $status = 0 ] || worst=101\n\
             case $status in 0 | 101) ;; *) \
             echo \"process didn't exit successfully: {program} on {backend} (exit status: $status)\" ;; esac",
            tests.join(" ")
        );
    }
    script.push_str("exit $worst\n");
    script
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::programs::Program;
    use super::*;

    fn programs() -> Programs {
        let bodies = [SELECTION[0], "second", LONG[0]];
        let module = |module: &str| bodies.map(|body| format!("{module}::{body}"));
        Programs {
            tests: vec![Program {
                name: "lifecycle".to_owned(),
                path: "/t/lifecycle-1".into(),
                tests: [module("fake"), module("qemu_kvm"), module("qemu_tcg")].concat(),
            }],
            examples: vec!["/t/examples/hold".into()],
        }
    }

    fn asked(extent: Extent) -> Asked<'static> {
        Asked {
            extent,
            filter: None,
            backend: Some(Backend::QemuKvm),
        }
    }

    fn tests(plan: &Plan) -> Vec<(u8, usize)> {
        plan.units
            .iter()
            .map(|unit| (unit.vcpus, unit.tests.len()))
            .collect()
    }

    #[test]
    fn a_normal_run_has_the_body_once_and_says_what_it_leaves_out() {
        let plan = Plan::new(&programs(), asked(Extent::Normal));
        assert_eq!(tests(&plan), [(1, 2), (2, 1), (1, 1)]);
        assert_eq!(plan.omissions().len(), 3);
        assert!(plan.omissions()[2].contains("2 test(s) on qemu_kvm with 2 vCPU and the tailored kernel"));
    }

    #[test]
    fn real_software_counts_for_its_length() {
        let tests_of_the_sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kata-sandbox/tests");
        assert!(tests_of_the_sdk.join(SOFTWARE).with_extension("rs").is_file());
        let mut programs = programs();
        programs.tests[0].name = SOFTWARE.to_owned();
        let all = Asked {
            backend: None,
            ..asked(Extent::Normal)
        };
        let plan = Plan::new(&programs, all);
        assert_eq!(tests(&plan), [(1, 2), (2, 1), (1, 1)]);
        assert_eq!(plan.units[0].weight(), 2 * SOFTWARE_WEIGHT);
    }

    #[test]
    fn a_full_run_leaves_nothing_out_and_none_runs_nothing() {
        let plan = Plan::new(&programs(), asked(Extent::Full));
        assert_eq!(tests(&plan), [(1, 3), (2, 3), (1, 3)]);
        assert!(plan.omissions().is_empty());
        assert!(Plan::new(&programs(), asked(Extent::None)).is_empty());
    }

    #[test]
    fn a_name_is_meant_whatever_the_extent() {
        let named = Asked {
            filter: Some("second"),
            ..asked(Extent::Normal)
        };
        assert_eq!(tests(&Plan::new(&programs(), named)), [(1, 1), (2, 1), (1, 1)]);
        let elsewhere = Asked {
            backend: Some(Backend::Fake),
            ..named
        };
        assert!(Plan::new(&programs(), elsewhere).is_empty());
    }

    #[test]
    fn work_is_shared_evenly() {
        let plan = Plan::new(&programs(), asked(Extent::Full));
        assert_eq!(plan.shares(3).iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
        assert_eq!(plan.shares(4).len(), 3);
    }

    #[test]
    fn lines_say_which_bed_and_which_kernel_if_not_the_usual_one() {
        let kernels = [
            "Running lifecycle-1 on kvm, 1 vCPU, distribution kernel",
            "Running lifecycle-1 on kvm, 2 vCPU",
            "test kvm::x ... ok",
        ]
        .map(announced);
        let (usual, other) = (GuestKernel::Tailored, GuestKernel::Distribution);
        assert_eq!(kernels, [Some(other), Some(usual), None]);
        assert_eq!(prefix(2, Some(other)), "[bed 2, distribution kernel]");
        assert_eq!(prefix(1, Some(usual)), "[bed 1]");
    }

    #[test]
    fn the_script_is_one_that_a_shell_understands() {
        let plan = Plan::new(&programs(), asked(Extent::Full));
        let script = script(&plan.shares(1)[0]);
        assert!(script.contains("--exact"));
        for kernel in [KERNEL, TAILORED] {
            assert!(script.contains(&format!("KATA_KERNEL={kernel} ")), "{script}");
        }
        let check = std::process::Command::new("sh")
            .args(["-n", "-c", &script])
            .status()
            .unwrap();
        assert!(check.success());
    }
}
