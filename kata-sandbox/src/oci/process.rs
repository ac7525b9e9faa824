//! `process` (config.md#process).

use kata_agent_proto::oci::{
    Box as ConsoleSize, ExecCPUAffinity, LinuxCapabilities, LinuxIOPriority, POSIXRlimit, Process, Scheduler,
    User,
};
use protobuf::MessageField;

use super::reader::{Node, Object, quoted};
use crate::error::Error;

/// The kernel's capabilities (capabilities(7), as of Linux 6.12).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The kernel's resource limits (getrlimit(2)).
const RLIMITS: [&str; 16] = [
    "RLIMIT_AS",
    "RLIMIT_CORE",
    "RLIMIT_CPU",
    "RLIMIT_DATA",
    "RLIMIT_FSIZE",
    "RLIMIT_LOCKS",
    "RLIMIT_MEMLOCK",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_NOFILE",
    "RLIMIT_NPROC",
    "RLIMIT_RSS",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
    "RLIMIT_SIGPENDING",
    "RLIMIT_STACK",
];

const SCHEDULERS: [&str; 7] = [
    "SCHED_OTHER",
    "SCHED_FIFO",
    "SCHED_RR",
    "SCHED_BATCH",
    "SCHED_ISO",
    "SCHED_IDLE",
    "SCHED_DEADLINE",
];

const SCHEDULER_FLAGS: [&str; 7] = [
    "SCHED_FLAG_RESET_ON_FORK",
    "SCHED_FLAG_RECLAIM",
    "SCHED_FLAG_DL_OVERRUN",
    "SCHED_FLAG_KEEP_POLICY",
    "SCHED_FLAG_KEEP_PARAMS",
    "SCHED_FLAG_UTIL_CLAMP_MIN",
    "SCHED_FLAG_UTIL_CLAMP_MAX",
];

const IO_CLASSES: [&str; 3] = ["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"];

/// The bits of a mask (umask(2)).
const UMASK_MAX: u32 = 0o777;

pub(super) fn process(node: Node) -> Result<Process, Error> {
    let mut fields = node.object()?;
    fields.refuse("commandLine", "is for Windows")?;
    let process = Process {
        terminal: fields.read("terminal", Node::bool)?,
        console_size: fields.take("consoleSize").map(console_size).transpose()?.into(),
        user: MessageField::some(fields.read("user", user)?),
        args: fields.read("args", args)?,
        env: fields.read("env", |node| node.list(variable))?,
        cwd: fields.need("cwd")?.absolute()?,
        capabilities: fields.take("capabilities").map(capabilities).transpose()?.into(),
        rlimits: fields.read("rlimits", rlimits)?,
        no_new_privileges: fields.read("noNewPrivileges", Node::bool)?,
        apparmor_profile: fields.read("apparmorProfile", Node::string)?,
        oom_score_adj: fields.read("oomScoreAdj", |node| node.within(-1000..=1000))?,
        selinux_label: fields.read("selinuxLabel", Node::string)?,
        scheduler: fields.take("scheduler").map(scheduler).transpose()?.into(),
        io_priority: fields.take("ioPriority").map(io_priority).transpose()?.into(),
        exec_cpu_affinity: fields.take("execCPUAffinity").map(affinity).transpose()?.into(),
        ..Process::default()
    };
    fields.finish()?;
    Ok(process)
}

/// An empty list would be an idle container, which is said by leaving the process out.
fn args(node: Node) -> Result<Vec<String>, Error> {
    let empty = node.invalid("is empty: there is no program");
    let args = node.strings()?;
    match args.first() {
        Some(program) if !program.is_empty() => Ok(args),
        _ => Err(empty),
    }
}

fn variable(node: Node) -> Result<String, Error> {
    match node.text()?.split_once('=') {
        Some((name, _)) if !name.is_empty() => node.string(),
        _ => Err(node.invalid(format_args!("{} is no NAME=value", quoted(node.text()?)))),
    }
}

fn console_size(node: Node) -> Result<ConsoleSize, Error> {
    let mut fields = node.object()?;
    let cells = |node: Node| node.within(0..=u32::from(u16::MAX));
    let size = ConsoleSize {
        height: cells(fields.need("height")?)?,
        width: cells(fields.need("width")?)?,
        ..ConsoleSize::default()
    };
    fields.finish()?;
    Ok(size)
}

fn user(node: Node) -> Result<User, Error> {
    let mut fields = node.object()?;
    fields.refuse("username", "is for Windows")?;
    let user = User {
        uid: fields.need("uid")?.number()?,
        gid: fields.need("gid")?.number()?,
        additional_gids: fields.read("additionalGids", |node| node.list(Node::number))?,
        umask: fields
            .take("umask")
            .map(|node| node.within(0..=UMASK_MAX))
            .transpose()?,
        ..User::default()
    };
    fields.finish()?;
    Ok(user)
}

fn scheduler(node: Node) -> Result<Scheduler, Error> {
    let mut fields = node.object()?;
    let scheduler = Scheduler {
        policy: fields.need("policy")?.word(&SCHEDULERS)?,
        nice: fields.read("nice", |node| node.within(-20..=19))?,
        priority: fields.read("priority", |node| node.within(0..=99))?,
        flags: fields.read("flags", |node| node.list(|item| item.word(&SCHEDULER_FLAGS)))?,
        runtime: fields.read("runtime", Node::number)?,
        deadline: fields.read("deadline", Node::number)?,
        period: fields.read("period", Node::number)?,
        ..Scheduler::default()
    };
    fields.finish()?;
    Ok(scheduler)
}

fn io_priority(node: Node) -> Result<LinuxIOPriority, Error> {
    let mut fields = node.object()?;
    let priority = LinuxIOPriority {
        class: fields.need("class")?.word(&IO_CLASSES)?,
        priority: fields.read("priority", |node| node.within(0..=7))?,
        ..LinuxIOPriority::default()
    };
    fields.finish()?;
    Ok(priority)
}

fn affinity(node: Node) -> Result<ExecCPUAffinity, Error> {
    let mut fields = node.object()?;
    let affinity = ExecCPUAffinity {
        initial: fields.read("initial", Node::string)?,
        final_: fields.read("final", Node::string)?,
        ..ExecCPUAffinity::default()
    };
    fields.finish()?;
    Ok(affinity)
}

fn capabilities(node: Node) -> Result<LinuxCapabilities, Error> {
    let mut fields = node.object()?;
    let set =
        |fields: &mut Object, name| fields.read(name, |node| node.list(|item| item.word(&CAPABILITIES)));
    let sets = LinuxCapabilities {
        bounding: set(&mut fields, "bounding")?,
        effective: set(&mut fields, "effective")?,
        inheritable: set(&mut fields, "inheritable")?,
        permitted: set(&mut fields, "permitted")?,
        ambient: set(&mut fields, "ambient")?,
        ..LinuxCapabilities::default()
    };
    fields.finish()?;
    Ok(sets)
}

/// "If `rlimits` contains duplicated entries with same `type`, the runtime MUST generate an error."
fn rlimits(node: Node) -> Result<Vec<POSIXRlimit>, Error> {
    let mut limits: Vec<POSIXRlimit> = Vec::new();
    for item in node.array()? {
        let mut fields = item.object()?;
        let kind = fields.need("type")?;
        if limits
            .iter()
            .any(|known| kind.text().is_ok_and(|text| known.type_ == text))
        {
            return Err(kind.invalid(format_args!("{} is there twice", quoted(kind.text()?))));
        }
        let limit = POSIXRlimit {
            type_: kind.word(&RLIMITS)?,
            hard: fields.need("hard")?.number()?,
            soft: fields.need("soft")?.number()?,
            ..POSIXRlimit::default()
        };
        if limit.soft > limit.hard {
            return Err(fields.invalid(format_args!(
                "the soft limit {} is above the hard one {}",
                limit.soft, limit.hard
            )));
        }
        fields.finish()?;
        limits.push(limit);
    }
    Ok(limits)
}
