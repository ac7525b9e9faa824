//! What requests ask for, in the words of the sandbox.
//!
//! Owns the reading of requests; what cannot be done is refused by name. Must not know what is done with them.

use kata_agent_proto::agent::{CreateContainerRequest, ExecProcessRequest, StringUser};
use kata_agent_proto::types::FSGroupChangePolicy;
use kata_agent_proto::{Failed, FailureKind, agent, oci};
use rustix::termios::Winsize;

use crate::exec::Traits;
use crate::limits::Limits;
use crate::order::{Device, Group, Storage};
use crate::process::Ports;
use crate::rootfs::passwd::User;
use crate::sandbox::{Creation, Error, Execution};
use crate::spec;

/// Largest signal number (signal(7), SIGRTMAX).
const SIGNAL_MAX: i32 = 64;

pub(super) fn refuse(asked: bool, what: &str) -> Result<(), Error> {
    if asked {
        Err(Failed::new(FailureKind::Unsupported, what).into())
    } else {
        Ok(())
    }
}

pub(super) fn storages(storages: Vec<agent::Storage>) -> Result<Vec<Storage>, Error> {
    let storage = |storage: agent::Storage| {
        let group = storage.fs_group.into_option().map(|group| Group {
            id: group.group_id,
            always: group.group_change_policy.enum_value() != Ok(FSGroupChangePolicy::OnRootMismatch),
        });
        Ok(Storage {
            driver: storage.driver,
            driver_options: storage.driver_options,
            source: storage.source,
            fstype: storage.fstype,
            options: storage.options,
            mount_point: storage.mount_point,
            group,
        })
    };
    storages.into_iter().map(storage).collect()
}

fn device(device: agent::Device) -> Device {
    Device {
        id: device.id,
        kind: device.type_,
        vm_path: device.vm_path,
        container_path: device.container_path,
    }
}

/// The user of a request: its own field, else the specification's name.
fn user(given: Option<StringUser>, process: Option<&oci::Process>) -> Option<User> {
    let name = || {
        let user = process?.user.as_ref()?;
        (!user.username.is_empty()).then(|| User {
            uid: user.username.clone(),
            ..User::default()
        })
    };
    let given = given.map(|user| User {
        uid: user.uid,
        gid: user.gid,
        additional_gids: user.additional_gids,
    });
    given.or_else(name)
}

fn terminal(process: &oci::Process) -> Result<bool, Error> {
    if let Some(size) = process.console_size.as_ref() {
        window(size.height, size.width)?;
    }
    Ok(process.terminal)
}

pub(super) fn window(rows: u32, columns: u32) -> Result<Winsize, Error> {
    let cells = |count: u32| {
        u16::try_from(count).map_err(|_| Failed::new(FailureKind::Invalid, format!("terminal size {count}")))
    };
    Ok(Winsize {
        ws_row: cells(rows)?,
        ws_col: cells(columns)?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    })
}

pub(super) fn signal_number(signal: u32) -> Result<i32, Error> {
    let number = i32::try_from(signal)
        .ok()
        .filter(|signal| (1..=SIGNAL_MAX).contains(signal));
    Ok(number.ok_or_else(|| Failed::new(FailureKind::Invalid, format!("signal {signal}")))?)
}

/// The limits of a container; none where the request has none.
pub(super) fn limits(resources: Option<&oci::LinuxResources>) -> Result<Limits, Error> {
    Ok(resources.map(Limits::of).transpose()?.unwrap_or_default())
}

pub(super) fn creation(request: CreateContainerRequest) -> Result<Creation, Error> {
    let oci = request.oci.as_ref().unwrap_or_default();
    let process = oci.process.as_ref();
    let linux = oci.linux.as_ref().unwrap_or_default();
    Ok(Creation {
        spec: spec::convert(oci)?,
        traits: Traits::of(linux)?,
        limits: limits(linux.resources.as_ref())?,
        user: user(request.string_user.into_option(), process),
        terminal: process.map(terminal).transpose()?.unwrap_or(false),
        init_id: match request.exec_id {
            empty if empty.is_empty() => request.container_id.clone(),
            named => named,
        },
        id: request.container_id,
        storages: storages(request.storages)?,
        shared_pids: request.sandbox_pidns,
        devices: request.devices.into_iter().map(device).collect(),
        shared_mounts: request.shared_mounts,
        ports: Ports {
            stdin: request.stdin_port,
            stdout: request.stdout_port,
            stderr: request.stderr_port,
            none: request.no_streams,
        },
    })
}

pub(super) fn execution(request: ExecProcessRequest) -> Result<Execution, Error> {
    let process = request.process.as_ref().unwrap_or_default();
    terminal(process)?;
    Ok(Execution {
        process: spec::convert_process(process)?,
        user: user(request.string_user.into_option(), request.process.as_ref()),
        container_id: request.container_id,
        exec_id: request.exec_id,
        ports: Ports {
            stdin: request.stdin_port,
            stdout: request.stdout_port,
            stderr: request.stderr_port,
            none: request.no_streams,
        },
    })
}
