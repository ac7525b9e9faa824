//! From the API's specification to the OCI runtime specification as JSON.
//!
//! Owns the field-by-field translation (OCI runtime-spec config.md and config-linux.md), of which the result is also the
//! container's config.json. What is asked and can never be done is refused here by name; nothing is dropped. Limits are
//! not part of it: [`crate::limits`] writes them. Must not know where the result goes.

pub(crate) mod json;

use kata_agent_proto::oci;
use kata_agent_proto::{Failed, FailureKind};
use serde_json::{Map, Value, json};

/// The version of the OCI runtime specification when the request names none.
const OCI_VERSION: &str = "1.0.2";

/// Drops what is not set: null, and in protobuf's way of saying so, empty and zero.
fn set(object: &mut Map<String, Value>, key: &str, value: Value) {
    let unset = match &value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    };
    if !unset {
        object.insert(key.to_owned(), value);
    }
}

/// An object of the fields that are set.
macro_rules! object {
    ($($key:literal: $value:expr),* $(,)?) => {{
        let mut object = Map::new();
        $(set(&mut object, $key, json!($value));)*
        Value::Object(object)
    }};
}

fn refuse<'a>(asked: impl IntoIterator<Item = (bool, &'a str)>) -> Result<(), Failed> {
    match asked.into_iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(Failed::new(FailureKind::Unsupported, what)),
        None => Ok(()),
    }
}

/// The whole specification.
///
/// # Errors
/// Unsupported for what cannot be done, invalid for what lacks a part. Words that the OCI specification
/// does not know are found by whoever reads the result.
pub(crate) fn convert(spec: &oci::Spec) -> Result<Value, Failed> {
    refuse([
        (spec.solaris.is_some(), "a Solaris container"),
        (spec.windows.is_some(), "a Windows container"),
    ])?;
    let root = spec
        .root
        .as_ref()
        .ok_or_else(|| invalid("a specification without root"))?;
    let process = spec
        .process
        .as_ref()
        .ok_or_else(|| invalid("a specification without process"))?;
    let version = if spec.version.is_empty() {
        OCI_VERSION
    } else {
        &spec.version
    };
    let mut value = object! {
        "hostname": spec.hostname,
        "domainname": spec.domainname,
        "mounts": spec.mounts.iter().map(mount).collect::<Vec<_>>(),
        "annotations": spec.annotations,
        "hooks": spec.hooks.as_ref().map(hooks),
    };
    value["ociVersion"] = json!(version);
    value["root"] = json!({ "path": root.path, "readonly": root.readonly });
    value["process"] = convert_process(process)?;
    value["linux"] = linux(spec.linux.as_ref().unwrap_or_default())?;
    Ok(value)
}

/// A process of a specification, or one to execute beside it.
///
/// # Errors
/// As [`convert`].
pub(crate) fn convert_process(process: &oci::Process) -> Result<Value, Failed> {
    let user = process.user.as_ref().unwrap_or_default();
    let mut value = object! {
        "terminal": process.terminal,
        "consoleSize": process.console_size.as_ref().map(|size| json!({ "height": size.height, "width": size.width })),
        "env": process.env,
        "capabilities": process.capabilities.as_ref().map(capabilities),
        "rlimits": process.rlimits.iter().map(rlimit).collect::<Vec<_>>(),
        "noNewPrivileges": process.no_new_privileges,
        "apparmorProfile": process.apparmor_profile,
        "selinuxLabel": process.selinux_label,
        "oomScoreAdj": process.oom_score_adj,
        "scheduler": process.scheduler.as_ref().map(scheduler),
        "ioPriority": process.io_priority.as_ref().map(io_priority),
        "execCPUAffinity": process.exec_cpu_affinity.as_ref().map(|list| object! { "initial": list.initial, "final": list.final_ }),
    };
    value["args"] = json!(process.args);
    value["cwd"] = json!(if process.cwd.is_empty() { "/" } else { &process.cwd });
    value["user"] = json!({ "uid": user.uid, "gid": user.gid });
    if !user.additional_gids.is_empty() {
        value["user"]["additionalGids"] = json!(user.additional_gids);
    }
    if let Some(umask) = user.umask {
        value["user"]["umask"] = json!(umask);
    }
    if !value["cwd"].as_str().is_some_and(|cwd| cwd.starts_with('/')) {
        return Err(invalid(&format!("process.cwd: {} is not absolute", value["cwd"])));
    }
    Ok(value)
}

fn invalid(what: &str) -> Failed {
    Failed::new(FailureKind::Invalid, what)
}

/// Zero means something in it, so nothing is dropped.
fn scheduler(scheduler: &oci::Scheduler) -> Value {
    json!({
        "policy": scheduler.policy, "nice": scheduler.nice, "priority": scheduler.priority, "flags": scheduler.flags,
        "runtime": scheduler.runtime, "deadline": scheduler.deadline, "period": scheduler.period,
    })
}

fn io_priority(priority: &oci::LinuxIOPriority) -> Value {
    json!({ "class": priority.class, "priority": priority.priority })
}

fn mount(mount: &oci::Mount) -> Value {
    let mut value = object! {
        "source": mount.source,
        "type": mount.type_,
        "options": mount.options,
        "uidMappings": mount.uid_mappings.iter().map(id_mapping).collect::<Vec<_>>(),
        "gidMappings": mount.gid_mappings.iter().map(id_mapping).collect::<Vec<_>>(),
    };
    value["destination"] = json!(mount.destination);
    value
}

fn hooks(hooks: &oci::Hooks) -> Value {
    let list = |list: &[oci::Hook]| list.iter().map(hook).collect::<Vec<_>>();
    object! {
        "prestart": list(&hooks.prestart),
        "createRuntime": list(&hooks.create_runtime),
        "createContainer": list(&hooks.create_container),
        "startContainer": list(&hooks.start_container),
        "poststart": list(&hooks.poststart),
        "poststop": list(&hooks.poststop),
    }
}

fn hook(hook: &oci::Hook) -> Value {
    let mut value = object! { "args": hook.args, "env": hook.env, "timeout": hook.timeout };
    value["path"] = json!(hook.path);
    value
}

/// Sets that are empty stay: they say "none", where no sets at all say "all".
fn capabilities(sets: &oci::LinuxCapabilities) -> Value {
    json!({
        "bounding": sets.bounding,
        "effective": sets.effective,
        "inheritable": sets.inheritable,
        "permitted": sets.permitted,
        "ambient": sets.ambient,
    })
}

fn rlimit(limit: &oci::POSIXRlimit) -> Value {
    json!({ "type": limit.type_, "hard": limit.hard, "soft": limit.soft })
}

fn linux(linux: &oci::Linux) -> Result<Value, Failed> {
    refuse([
        (!linux.mount_label.is_empty(), "linux.mountLabel: SELinux labels"),
        (
            linux.intel_rdt.is_some(),
            "linux.intelRdt: a guest has no resctrl",
        ),
    ])?;
    Ok(object! {
        "uidMappings": linux.uid_mappings.iter().map(id_mapping).collect::<Vec<_>>(),
        "gidMappings": linux.gid_mappings.iter().map(id_mapping).collect::<Vec<_>>(),
        "sysctl": linux.sysctl,
        "cgroupsPath": linux.cgroups_path,
        "namespaces": linux.namespaces.iter().map(namespace).collect::<Vec<_>>(),
        "devices": linux.devices.iter().map(device).collect::<Vec<_>>(),
        "rootfsPropagation": linux.rootfs_propagation,
        "maskedPaths": linux.masked_paths,
        "readonlyPaths": linux.readonly_paths,
        "personality": linux.personality.as_ref().map(|one| object! { "domain": one.domain, "flags": one.flags }),
        "timeOffsets": linux.time_offsets.iter().map(time_offset).collect::<Map<_, _>>(),
        "seccomp": linux.seccomp.as_ref().map(seccomp),
    })
}

fn time_offset((clock, offset): (&String, &oci::LinuxTimeOffset)) -> (String, Value) {
    let value = json!({ "secs": offset.secs, "nanosecs": offset.nanosecs });
    (clock.clone(), value)
}

/// For who reads the configuration; [`crate::seccomp`] compiles it.
fn seccomp(seccomp: &oci::LinuxSeccomp) -> Value {
    let arg = |arg: &oci::LinuxSeccompArg| json!({ "index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op });
    let rule = |rule: &oci::LinuxSyscall| {
        let mut value = object! { "args": rule.args.iter().map(arg).collect::<Vec<_>>() };
        value["names"] = json!(rule.names);
        value["action"] = json!(rule.action);
        if rule.has_errnoret() {
            value["errnoRet"] = json!(rule.errnoret());
        }
        value
    };
    let mut value = object! {
        "architectures": seccomp.architectures,
        "flags": seccomp.flags,
        "syscalls": seccomp.syscalls.iter().map(rule).collect::<Vec<_>>(),
        "listenerPath": seccomp.listener_path,
        "listenerMetadata": seccomp.listener_metadata,
    };
    value["defaultAction"] = json!(seccomp.default_action);
    if let Some(errno) = seccomp.default_errno_ret {
        value["defaultErrnoRet"] = json!(errno);
    }
    value
}

fn id_mapping(mapping: &oci::LinuxIDMapping) -> Value {
    json!({ "hostID": mapping.host_id, "containerID": mapping.container_id, "size": mapping.size })
}

fn namespace(namespace: &oci::LinuxNamespace) -> Value {
    object! { "type": namespace.type_, "path": namespace.path }
}

fn device(device: &oci::LinuxDevice) -> Value {
    let mut value = object! { "fileMode": device.file_mode, "uid": device.uid, "gid": device.gid };
    value["path"] = json!(device.path);
    value["type"] = json!(device.type_);
    value["major"] = json!(device.major);
    value["minor"] = json!(device.minor);
    value
}

#[cfg(test)]
mod tests;
