//! Starting a further process in a container.
//!
//! Owns the checks that give a failure its kind, made in the container's own root. The container's init
//! is not waited for while this runs, so its process id stands for it.

use std::fs;
use std::path::{Path, PathBuf};

use kata_agent_proto::{Failed, FailureKind};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Process;
use libcontainer::syscall::syscall::SyscallType;
use serde_json::Value;

use super::executor::Workload;
use super::root::Root;
use super::{
    check_program, container_failure, file_failure, own_streams, settle_user, strings, write_checked,
};
use crate::order::Exec;

/// Starts the process and returns its id.
pub(super) fn exec(mut order: Exec) -> Result<i32, Failed> {
    settle_process(&mut order)?;
    let state = StateCopy::make(&order)?;
    build(&order, &state)
}

fn settle_process(order: &mut Exec) -> Result<(), Failed> {
    let root = PathBuf::from(format!("/proc/{}/root", order.init_pid));
    let root = Root::open(&root).map_err(|_| Failed::new(FailureKind::NotRunning, &order.id))?;
    let process = &mut order.process;
    if strings(&process["args"]).is_empty() {
        return Err(Failed::new(FailureKind::Invalid, "a process without arguments"));
    }
    let (uid, gid) = settle_user(process, order.user.as_ref(), &root)?;
    check_working_directory(process, &root)?;
    check_program(process, &root, |_| false)?;
    own_streams(uid, gid)
}

fn check_working_directory(process: &Value, root: &Root) -> Result<(), Failed> {
    let cwd = process["cwd"].as_str().unwrap_or("/");
    if root.is_directory(Path::new(cwd)) {
        return Ok(());
    }
    Err(Failed::new(FailureKind::NoSuchDirectory, cwd))
}

/// libcontainer's record of the container, copied for this process: the sockets that it leaves beside
/// the record go away with the copy.
struct StateCopy(PathBuf);

impl StateCopy {
    fn make(order: &Exec) -> Result<Self, Failed> {
        let copy = StateCopy(order.bundle.join(format!("exec-{}", order.exec_id)));
        let directory = copy.0.join(&order.id);
        let state = directory.join("state.json");
        let original = order.bundle.join(&order.id).join("state.json");
        fs::create_dir_all(&directory)
            .and_then(|()| fs::copy(original, &state))
            .map_err(|error| file_failure(&state, &error))?;
        write_checked::<Process>(&copy.process(), &order.process)?;
        Ok(copy)
    }

    fn process(&self) -> PathBuf {
        self.0.join("process.json")
    }
}

impl Drop for StateCopy {
    fn drop(&mut self) {
        // What is left of it goes with the container.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn build(order: &Exec, state: &StateCopy) -> Result<i32, Failed> {
    let failure = |error: libcontainer::error::LibcontainerError| container_failure(&error);
    let pid = ContainerBuilder::new(order.id.clone(), SyscallType::default())
        .with_root_path(&state.0)
        .map_err(failure)?
        .with_executor(Workload::Program)
        .with_console_socket(order.console.as_ref())
        .as_tenant()
        .with_process(Some(state.process()))
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(failure)?;
    Ok(pid.as_raw())
}
