//! `linux.seccomp` (config-linux.md#seccomp).

use kata_agent_proto::oci::linux_syscall::Errno_ret;
use kata_agent_proto::oci::{LinuxSeccomp, LinuxSeccompArg, LinuxSyscall};

use super::reader::Node;
use crate::error::Error;

const ACTIONS: [&str; 9] = [
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
];

const ARCHITECTURES: [&str; 23] = [
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
];

const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

/// A system call has six arguments.
const ARGUMENT_MAX: u64 = 5;

pub(super) fn seccomp(node: Node) -> Result<LinuxSeccomp, Error> {
    let mut fields = node.object()?;
    fields.refuse("listenerPath", "who listens is on the host")?;
    fields.refuse("listenerMetadata", "who listens is on the host")?;
    let seccomp = LinuxSeccomp {
        default_action: fields.need("defaultAction")?.word(&ACTIONS)?,
        architectures: fields.read("architectures", |node| {
            node.list(|item| item.word(&ARCHITECTURES))
        })?,
        default_errno_ret: fields.take("defaultErrnoRet").map(Node::number).transpose()?,
        flags: fields.read("flags", |node| node.list(|item| item.word(&FLAGS)))?,
        syscalls: fields.read("syscalls", |node| node.list(syscall))?,
        ..LinuxSeccomp::default()
    };
    fields.finish()?;
    Ok(seccomp)
}

fn syscall(node: Node) -> Result<LinuxSyscall, Error> {
    let mut fields = node.object()?;
    let names = fields.need("names")?;
    let empty = names.invalid("is empty: at least one name is needed");
    let names = names.strings()?;
    if names.is_empty() {
        return Err(empty);
    }
    let errno = fields.take("errnoRet").map(Node::number).transpose()?;
    let syscall = LinuxSyscall {
        names,
        action: fields.need("action")?.word(&ACTIONS)?,
        errno_ret: errno.map(Errno_ret::Errnoret),
        args: fields.read("args", |node| node.list(argument))?,
        ..LinuxSyscall::default()
    };
    fields.finish()?;
    Ok(syscall)
}

fn argument(node: Node) -> Result<LinuxSeccompArg, Error> {
    let mut fields = node.object()?;
    let argument = LinuxSeccompArg {
        index: fields.need("index")?.within(0..=ARGUMENT_MAX)?,
        value: fields.need("value")?.number()?,
        value_two: fields.read("valueTwo", Node::number)?,
        op: fields.need("op")?.word(&OPERATORS)?,
        ..LinuxSeccompArg::default()
    };
    fields.finish()?;
    Ok(argument)
}
