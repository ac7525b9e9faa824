//! Creating a container: storages, checks, configuration, libcontainer, limits.
//!
//! Owns the order of these steps. A failure leaves nothing mounted. An init that cannot get its limits is
//! left to be killed with its cgroup.

use std::path::Path;

use kata_agent_proto::{Failed, FailureKind, annotation};
use libcontainer::container::ContainerStatus;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use serde_json::{Value, json};

use super::executor::Workload;
use super::root::Root;
use super::{
    check_program, container_failure, etc, file_failure, given, own_streams, settle_user, shares, storage,
    strings, write_checked,
};
use crate::order::Create;
use crate::sys;

/// Creates the container and returns the id of its init, which waits to be started.
pub(super) fn create(mut order: Create) -> Result<i32, Failed> {
    let mounted = storage::mount_all(&order.storages)?;
    given::give(&order.devices, &mut order.spec, &mut order.limits)?;
    let root = open_root(&order.spec)?;
    let workload = settle_process(&mut order, &root)?;
    make_directories(&order.spec, &root)?;
    etc::complete(&root, &order.hostname, &order.dns)?;
    write_checked::<Spec>(&order.bundle.join("config.json"), &order.spec)?;
    let pid = build(&order, workload)?;
    // The init waits to be started, so nothing has run without its limits.
    order.limits.apply(&order.cgroup)?;
    shares::give(pid, &order.shares)?;
    mounted.keep();
    Ok(pid)
}

fn open_root(spec: &Value) -> Result<Root, Failed> {
    let path = spec["root"]["path"].as_str().unwrap_or_default();
    Root::open(Path::new(path)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failed::new(FailureKind::NoSuchDirectory, path),
        _ => file_failure(Path::new(path), &error),
    })
}

fn settle_process(order: &mut Create, root: &Root) -> Result<Workload, Failed> {
    let mounts = mount_destinations(&order.spec);
    let hidden = |path: &Path| mounts.iter().any(|mount| path.starts_with(mount));
    let process = &mut order.spec["process"];
    let (uid, gid) = settle_user(process, order.user.as_ref(), root)?;
    make_working_directory(process, root, hidden)?;
    check_program(process, root, hidden)?;
    own_streams(uid, gid)?;
    if strings(&process["args"]).is_empty() {
        // libcontainer wants arguments, even where its executor does not.
        process["args"] = json!(["pause"]);
        return Ok(Workload::Idle);
    }
    Ok(Workload::Program)
}

fn mount_destinations(spec: &Value) -> Vec<String> {
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    mounts
        .filter_map(|mount| mount["destination"].as_str().map(str::to_owned))
        .collect()
}

/// An init's working directory is made, as docker does.
fn make_working_directory(
    process: &Value,
    root: &Root,
    hidden: impl Fn(&Path) -> bool,
) -> Result<(), Failed> {
    let cwd = Path::new(process["cwd"].as_str().unwrap_or("/"));
    if hidden(cwd) || root.is_directory(cwd) {
        return Ok(());
    }
    root.create_directories(cwd)
        .map_err(|_| Failed::new(FailureKind::NoSuchDirectory, cwd.to_string_lossy()))
}

/// What an image calls its volumes: here the root is writable, and they are directories in it.
fn make_directories(spec: &Value, root: &Root) -> Result<(), Failed> {
    let mounts = mount_destinations(spec);
    let asked = spec["annotations"][annotation::DIRECTORIES]
        .as_str()
        .unwrap_or_default();
    for path in asked.lines().map(Path::new) {
        if mounts.iter().any(|mount| path.starts_with(mount)) {
            continue;
        }
        root.create_directories(path)
            .map_err(|error| file_failure(path, &error))?;
    }
    Ok(())
}

fn build(order: &Create, workload: Workload) -> Result<i32, Failed> {
    let failure = |error: libcontainer::error::LibcontainerError| container_failure(&error);
    if matches!(workload, Workload::Idle) {
        // The init inherits this: what comes before it idles waits for it.
        sys::block_idle_signals().map_err(|error| container_failure(&error))?;
    }
    let mut container = ContainerBuilder::new(order.id.clone(), SyscallType::default())
        .with_root_path(&order.bundle)
        .map_err(failure)?
        .with_executor(workload)
        .with_console_socket(order.console.as_ref())
        .as_init(&order.bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(failure)?;
    // Which state a process is in is the agent's to know; libcontainer's own record only has to let
    // further processes in.
    container
        .set_status(ContainerStatus::Running)
        .save()
        .map_err(failure)?;
    let pid = container
        .pid()
        .ok_or_else(|| Failed::new(FailureKind::Container, "no process was made"))?;
    Ok(pid.as_raw())
}
