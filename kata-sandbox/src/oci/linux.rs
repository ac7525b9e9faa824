//! `linux` (config-linux.md), but its resources and its seccomp filter.

use std::collections::HashMap;

use kata_agent_proto::oci::{
    Linux, LinuxDevice, LinuxIDMapping, LinuxIntelRdt, LinuxNamespace, LinuxPersonality, LinuxTimeOffset,
};

use super::reader::{Node, quoted};
use super::{resources, seccomp};
use crate::error::Error;

const NAMESPACES: [&str; 8] = ["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"];

const PROPAGATIONS: [&str; 8] = [
    "shared",
    "slave",
    "private",
    "unbindable",
    "rshared",
    "rslave",
    "rprivate",
    "runbindable",
];

/// The bits of a file's mode that are permissions (chmod(2)).
const MODE_MAX: u32 = 0o7777;

pub(super) fn linux(node: Node) -> Result<Linux, Error> {
    let mut fields = node.object()?;
    for (name, why) in [
        (
            "cgroupsPath",
            "the agent chooses a container's cgroup, in the guest",
        ),
        ("netDevices", "the devices are the host's"),
        ("memoryPolicy", "the agent cannot set it"),
    ] {
        fields.refuse(name, why)?;
    }
    let linux = Linux {
        uid_mappings: fields.read("uidMappings", |node| node.list(id_mapping))?,
        gid_mappings: fields.read("gidMappings", |node| node.list(id_mapping))?,
        sysctl: fields.read("sysctl", Node::texts)?,
        resources: fields
            .take("resources")
            .map(resources::resources)
            .transpose()?
            .into(),
        namespaces: fields.read("namespaces", namespaces)?,
        devices: fields.read("devices", |node| node.list(device))?,
        seccomp: fields.take("seccomp").map(seccomp::seccomp).transpose()?.into(),
        rootfs_propagation: fields.read("rootfsPropagation", |node| node.word(&PROPAGATIONS))?,
        masked_paths: fields.read("maskedPaths", |node| node.list(Node::absolute))?,
        readonly_paths: fields.read("readonlyPaths", |node| node.list(Node::absolute))?,
        mount_label: fields.read("mountLabel", Node::string)?,
        personality: fields.take("personality").map(personality).transpose()?.into(),
        time_offsets: fields
            .take("timeOffsets")
            .map_or_else(|| Ok(HashMap::new()), time_offsets)?,
        intel_rdt: fields.take("intelRdt").map(intel_rdt).transpose()?.into(),
        ..Linux::default()
    };
    fields.finish()?;
    Ok(linux)
}

pub(super) fn id_mapping(node: Node) -> Result<LinuxIDMapping, Error> {
    let mut fields = node.object()?;
    let mapping = LinuxIDMapping {
        container_id: fields.need("containerID")?.number()?,
        host_id: fields.need("hostID")?.number()?,
        size: fields.need("size")?.within(1..=u32::MAX)?,
        ..LinuxIDMapping::default()
    };
    fields.finish()?;
    Ok(mapping)
}

/// A network of its own is what a sandbox is to its containers: they share the sandbox's.
fn namespaces(node: Node) -> Result<Vec<LinuxNamespace>, Error> {
    let mut kinds: Vec<String> = Vec::new();
    for item in node.array()? {
        let mut fields = item.object()?;
        let kind = fields.need("type")?;
        fields.refuse("path", "is a namespace of the host")?;
        if kinds
            .iter()
            .any(|known| kind.text().is_ok_and(|text| known == text))
        {
            return Err(kind.invalid(format_args!("{} is there twice", quoted(kind.text()?))));
        }
        kinds.push(kind.word(&NAMESPACES)?);
        fields.finish()?;
    }
    let namespace = |type_| LinuxNamespace {
        type_,
        ..LinuxNamespace::default()
    };
    let own = kinds.into_iter().filter(|kind| kind != "network");
    Ok(own.map(namespace).collect())
}

fn device(node: Node) -> Result<LinuxDevice, Error> {
    let mut fields = node.object()?;
    let path = fields.need("path")?.absolute()?;
    let kind = fields.need("type")?.word(&["c", "b", "u", "p"])?;
    let (major, minor) = (fields.take("major"), fields.take("minor"));
    if kind != "p" && (major.is_none() || minor.is_none()) {
        return Err(fields.invalid(format_args!(
            "device {} has no major and minor number",
            quoted(&path)
        )));
    }
    let number = |node: Option<Node>| node.map_or(Ok(0), |node| node.within(0..=i64::from(u32::MAX)));
    let device = LinuxDevice {
        path,
        type_: kind,
        major: number(major)?,
        minor: number(minor)?,
        file_mode: fields.read("fileMode", |node| node.within(0..=MODE_MAX))?,
        uid: fields.read("uid", Node::number)?,
        gid: fields.read("gid", Node::number)?,
        ..LinuxDevice::default()
    };
    fields.finish()?;
    Ok(device)
}

fn personality(node: Node) -> Result<LinuxPersonality, Error> {
    let mut fields = node.object()?;
    let personality = LinuxPersonality {
        domain: fields.need("domain")?.word(&["LINUX", "LINUX32"])?,
        flags: fields.read("flags", Node::strings)?,
        ..LinuxPersonality::default()
    };
    fields.finish()?;
    Ok(personality)
}

/// The two clocks that a time namespace can move (time_namespaces(7)).
fn time_offsets(node: Node) -> Result<HashMap<String, LinuxTimeOffset>, Error> {
    let mut clocks = node.object()?;
    let mut offsets = HashMap::new();
    for clock in ["monotonic", "boottime"] {
        if let Some(node) = clocks.take(clock) {
            let mut fields = node.object()?;
            let offset = LinuxTimeOffset {
                secs: fields.read("secs", Node::number)?,
                nanosecs: fields.read("nanosecs", |node| node.within(0..=999_999_999))?,
                ..LinuxTimeOffset::default()
            };
            fields.finish()?;
            offsets.insert(clock.to_owned(), offset);
        }
    }
    clocks.finish()?;
    Ok(offsets)
}

fn intel_rdt(node: Node) -> Result<LinuxIntelRdt, Error> {
    let mut fields = node.object()?;
    for name in [
        "closID",
        "schemata",
        "memBwSchema",
        "enableCMT",
        "enableMBM",
        "enableMonitoring",
    ] {
        fields.refuse(name, "a guest has no such technology")?;
    }
    let rdt = LinuxIntelRdt {
        l3_cache_schema: fields.read("l3CacheSchema", Node::string)?,
        ..LinuxIntelRdt::default()
    };
    fields.finish()?;
    Ok(rdt)
}
