//! What the guest's machine has: processors and memory that came later, swap, modules of its kernel.
//!
//! Owns the files of sysfs for that. Must not know whether the machine is one: that is asked before.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kata_agent_proto::agent::{
    AddSwapPathRequest, CreateSandboxRequest, KernelModule, MemHotplugByProbeRequest, OnlineCPUMemRequest,
};
use kata_agent_proto::{Failed, FailureKind};
use protobuf::well_known_types::empty::Empty;

use super::guest_failure;
use crate::{boot, sys};

const PROCESSORS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
const MODULES: &str = "/lib/modules";

/// How long processors may take to appear that the host has just added.
const PLUG_WAIT: Duration = Duration::from_secs(1);
/// How often they are looked for, in that time.
const PLUG_POLL: Duration = Duration::from_millis(10);

/// The switches of all processors or blocks of memory that are there and off, by their names.
fn switched_off(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut switches: Vec<_> = entries
        .map(|entry| entry.path().join("online"))
        // The directory itself has a list of that name, which is never a lone zero while this runs.
        .filter(|switch| fs::read_to_string(switch).is_ok_and(|state| state.trim() == "0"))
        .collect();
    switches.sort();
    switches
}

/// Whether there is anything to bring online.
pub(crate) fn has_offline() -> bool {
    !switched_off(PROCESSORS).is_empty() || !switched_off(MEMORY).is_empty()
}

/// Switches so many of them on at most, and says how many it were.
fn switch_on(directory: &str, most: usize) -> Result<usize, Failed> {
    let switches = switched_off(directory);
    let switches = switches.get(..most).unwrap_or(&switches);
    for switch in switches {
        fs::write(switch, "1").map_err(|error| guest_failure(switch.display(), &error))?;
    }
    Ok(switches.len())
}

/// Brings processors and memory online. A number of processors is how many, and no number is all that there are;
/// they are waited for where that is asked.
pub(super) fn online(request: OnlineCPUMemRequest) -> Result<Empty, Failed> {
    let deadline = Instant::now() + PLUG_WAIT;
    let wanted = usize::try_from(request.nb_cpus).unwrap_or(usize::MAX);
    let most = if wanted == 0 { usize::MAX } else { wanted };
    let mut processors = switch_on(PROCESSORS, most)?;
    while request.wait && processors < wanted && Instant::now() < deadline {
        std::thread::sleep(PLUG_POLL);
        processors += switch_on(PROCESSORS, wanted - processors)?;
    }
    if !request.cpu_only {
        switch_on(MEMORY, usize::MAX)?;
    }
    if request.wait && processors < wanted {
        return Err(Failed::new(
            FailureKind::Guest,
            format!("{processors} of {wanted} processors appeared"),
        ));
    }
    Ok(Empty::new())
}

/// Tells the kernel of memory that it cannot find by itself (admin-guide/mm/memory-hotplug.rst).
pub(super) fn probe_memory(request: MemHotplugByProbeRequest) -> Result<Empty, Failed> {
    let probe = Path::new(MEMORY).join("probe");
    if !probe.exists() {
        return Err(Failed::new(
            FailureKind::Unsupported,
            "memory by probe: the kernel has no such file",
        ));
    }
    for address in &request.mem_hotplug_probe_addr {
        fs::write(&probe, format!("{address:#x}"))
            .map_err(|error| guest_failure(format!("memory at {address:#x}"), &error))?;
    }
    Ok(Empty::new())
}

/// Has the kernel swap to a device or file.
pub(super) fn add_swap(request: AddSwapPathRequest) -> Result<Empty, Failed> {
    sys::swap_on(Path::new(&request.path)).map_err(|error| guest_failure(&request.path, &error))?;
    Ok(Empty::new())
}

/// Whether a module is loaded, or a part of the kernel.
pub(crate) fn has_module(name: &str) -> bool {
    Path::new("/sys/module").join(name.replace('-', "_")).exists()
}

/// Loads the modules of a request that are not there yet.
pub(super) fn load_modules(request: CreateSandboxRequest) -> Result<Empty, Failed> {
    let missing = request
        .kernel_modules
        .iter()
        .filter(|module| !has_module(&module.name));
    for module in missing {
        load(module)?;
    }
    Ok(Empty::new())
}

fn load(module: &KernelModule) -> Result<(), Failed> {
    let file = find_module(Path::new(MODULES), &module.name).ok_or_else(|| {
        Failed::new(
            FailureKind::Unsupported,
            format!("the guest has no kernel module {}", module.name),
        )
    })?;
    let loaded = boot::load_module(&file, &module.parameters.join(" "));
    loaded.map_err(|error| guest_failure(format!("kernel module {}", module.name), &error))
}

/// The file of a module, at any depth. Names with `-` and `_` are the same.
fn find_module(directory: &Path, name: &str) -> Option<PathBuf> {
    let wanted = format!("{}.ko", name.replace('-', "_"));
    let entries: Vec<_> = fs::read_dir(directory).ok()?.flatten().collect();
    let is_wanted = |entry: &&fs::DirEntry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|found| found.replace('-', "_") == wanted)
    };
    let found = entries.iter().find(is_wanted).map(fs::DirEntry::path);
    let below = || {
        let directories = entries
            .iter()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories
            .filter_map(|entry| find_module(&entry.path(), name))
            .next()
    };
    found.or_else(below)
}

/// A name that leads out of the directories of modules is none.
pub(crate) fn check_module_name(name: &str) -> Result<(), Failed> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.is_empty() || !name.bytes().all(known) {
        return Err(Failed::new(
            FailureKind::Invalid,
            format!("kernel module {name:?}"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_off_is_switched_on() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, state) in [("cpu0", "1\n"), ("cpu1", "0\n"), ("cpu2", "0")] {
            fs::create_dir(dir.path().join(name)).expect("made");
            fs::write(dir.path().join(name).join("online"), state).expect("written");
        }
        fs::write(dir.path().join("online"), "0-2\n").expect("written");
        fs::create_dir(dir.path().join("power")).expect("made");
        let directory = dir.path().to_str().expect("text");
        assert_eq!(switch_on(directory, 1), Ok(1));
        let state = |name: &str| fs::read_to_string(dir.path().join(name).join("online")).expect("read");
        assert_eq!((state("cpu1"), state("cpu2")), ("1".into(), "0".into()));
        assert_eq!(switch_on(directory, usize::MAX), Ok(1));
        assert_eq!(switch_on(directory, usize::MAX), Ok(0));
        assert_eq!(
            fs::read_to_string(dir.path().join("online")).expect("read"),
            "0-2\n"
        );
        assert_eq!(switch_on("/no/such/directory", 1), Ok(0));
    }

    #[test]
    fn a_module_is_found_at_any_depth_by_either_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("6.1/kernel/fs");
        fs::create_dir_all(&deep).expect("made");
        fs::write(deep.join("nls_iso8859-1.ko"), "").expect("written");
        let found = find_module(dir.path(), "nls-iso8859_1");
        assert_eq!(found, Some(deep.join("nls_iso8859-1.ko")));
        assert_eq!(find_module(dir.path(), "nls"), None);
        for name in ["", "../x", "a b", "x.ko"] {
            assert!(check_module_name(name).is_err(), "{name}");
        }
    }
}
