//! `linux.resources` (config-linux.md#control-groups): the limits of the container's cgroup, in the guest.
//!
//! The agent's API says "not set" by zero, as runc's own structures do: a limit of zero sets nothing.

use kata_agent_proto::oci::{
    LinuxBlockIO, LinuxCPU, LinuxDeviceCgroup, LinuxHugepageLimit, LinuxInterfacePriority, LinuxMemory,
    LinuxNetwork, LinuxPids, LinuxRdma, LinuxResources, LinuxThrottleDevice, LinuxWeightDevice,
};

use super::reader::{Node, Object, quoted};
use crate::error::Error;

pub(super) fn resources(node: Node) -> Result<LinuxResources, Error> {
    let mut fields = node.object()?;
    let resources = LinuxResources {
        devices: fields.read("devices", |node| node.list(device_rule))?,
        memory: fields.take("memory").map(memory).transpose()?.into(),
        cpu: fields.take("cpu").map(cpu).transpose()?.into(),
        pids: fields.take("pids").map(pids).transpose()?.into(),
        block_io: fields.take("blockIO").map(block_io).transpose()?.into(),
        hugepage_limits: fields.read("hugepageLimits", |node| node.list(huge_pages))?,
        unified: fields.read("unified", Node::texts)?,
        rdma: fields.read("rdma", |node| node.entries(rdma))?,
        network: fields.take("network").map(network).transpose()?.into(),
        ..LinuxResources::default()
    };
    fields.finish()?;
    Ok(resources)
}

/// -1 is every number, and so is none at all.
fn device_rule(node: Node) -> Result<LinuxDeviceCgroup, Error> {
    let mut fields = node.object()?;
    let number = |fields: &mut Object, name| {
        let node = fields.take(name);
        node.map_or(Ok(-1), |node| node.within(-1..=i64::from(u32::MAX)))
    };
    let rule = LinuxDeviceCgroup {
        allow: fields.need("allow")?.bool()?,
        type_: fields.read("type", |node| node.word(&["a", "c", "b"]))?,
        major: number(&mut fields, "major")?,
        minor: number(&mut fields, "minor")?,
        access: fields.read("access", access)?,
        ..LinuxDeviceCgroup::default()
    };
    fields.finish()?;
    Ok(rule)
}

fn access(node: Node) -> Result<String, Error> {
    match node.text()? {
        text if text.chars().all(|letter| "rwm".contains(letter)) => Ok(text.to_owned()),
        text => Err(node.invalid(format_args!("{} is not made of r, w and m", quoted(text)))),
    }
}

/// -1 is no limit.
fn amount(node: Node) -> Result<i64, Error> {
    node.within(-1..=i64::MAX)
}

fn memory(node: Node) -> Result<LinuxMemory, Error> {
    let mut fields = node.object()?;
    let memory = LinuxMemory {
        limit: fields.read("limit", amount)?,
        reservation: fields.read("reservation", amount)?,
        swap: fields.read("swap", amount)?,
        kernel: fields.read("kernel", amount)?,
        kernel_tcp: fields.read("kernelTCP", amount)?,
        swappiness: fields.read("swappiness", |node| node.within(0..=100))?,
        use_hierarchy: fields.take("useHierarchy").map(Node::bool).transpose()?,
        check_before_update: fields.read("checkBeforeUpdate", Node::bool)?,
        disable_oom_killer: fields.read("disableOOMKiller", Node::bool)?,
        ..LinuxMemory::default()
    };
    fields.finish()?;
    Ok(memory)
}

fn cpu(node: Node) -> Result<LinuxCPU, Error> {
    let mut fields = node.object()?;
    let cpu = LinuxCPU {
        shares: fields.read("shares", Node::number)?,
        quota: fields.read("quota", amount)?,
        period: fields.read("period", Node::number)?,
        realtime_runtime: fields.read("realtimeRuntime", Node::number)?,
        realtime_period: fields.read("realtimePeriod", Node::number)?,
        burst: fields.take("burst").map(Node::number).transpose()?,
        idle: fields.take("idle").map(|node| node.within(0..=1)).transpose()?,
        cpus: fields.read("cpus", Node::string)?,
        mems: fields.read("mems", Node::string)?,
        ..LinuxCPU::default()
    };
    fields.finish()?;
    Ok(cpu)
}

fn rdma(node: Node) -> Result<LinuxRdma, Error> {
    let mut fields = node.object()?;
    let rdma = LinuxRdma {
        hca_handles: fields.take("hcaHandles").map(Node::number).transpose()?,
        hca_objects: fields.take("hcaObjects").map(Node::number).transpose()?,
        ..LinuxRdma::default()
    };
    fields.finish()?;
    Ok(rdma)
}

fn pids(node: Node) -> Result<LinuxPids, Error> {
    let mut fields = node.object()?;
    let pids = LinuxPids {
        limit: amount(fields.need("limit")?)?,
        ..LinuxPids::default()
    };
    fields.finish()?;
    Ok(pids)
}

fn weight(node: Node) -> Result<u32, Error> {
    node.within(10..=1000)
}

fn block_io(node: Node) -> Result<LinuxBlockIO, Error> {
    let mut fields = node.object()?;
    let throttles = |fields: &mut Object, name| fields.read(name, |node| node.list(throttle));
    let io = LinuxBlockIO {
        weight: fields.read("weight", weight)?,
        leaf_weight: fields.read("leafWeight", weight)?,
        weight_device: fields.read("weightDevice", |node| node.list(weight_device))?,
        throttle_read_bps_device: throttles(&mut fields, "throttleReadBpsDevice")?,
        throttle_write_bps_device: throttles(&mut fields, "throttleWriteBpsDevice")?,
        throttle_read_iops_device: throttles(&mut fields, "throttleReadIOPSDevice")?,
        throttle_write_iops_device: throttles(&mut fields, "throttleWriteIOPSDevice")?,
        ..LinuxBlockIO::default()
    };
    fields.finish()?;
    Ok(io)
}

fn device_number(node: Node) -> Result<i64, Error> {
    node.within(0..=i64::from(u32::MAX))
}

fn weight_device(node: Node) -> Result<LinuxWeightDevice, Error> {
    let mut fields = node.object()?;
    let device = LinuxWeightDevice {
        major: device_number(fields.need("major")?)?,
        minor: device_number(fields.need("minor")?)?,
        weight: fields.read("weight", weight)?,
        leaf_weight: fields.read("leafWeight", weight)?,
        ..LinuxWeightDevice::default()
    };
    fields.finish()?;
    Ok(device)
}

fn throttle(node: Node) -> Result<LinuxThrottleDevice, Error> {
    let mut fields = node.object()?;
    let device = LinuxThrottleDevice {
        major: device_number(fields.need("major")?)?,
        minor: device_number(fields.need("minor")?)?,
        rate: fields.need("rate")?.number()?,
        ..LinuxThrottleDevice::default()
    };
    fields.finish()?;
    Ok(device)
}

fn huge_pages(node: Node) -> Result<LinuxHugepageLimit, Error> {
    let mut fields = node.object()?;
    let size = fields.need("pageSize")?;
    let number = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| size.text().ok()?.strip_suffix(unit)?.parse::<u64>().ok());
    if number.is_none() {
        return Err(size.invalid(format_args!("{} is no size such as 2MB", quoted(size.text()?))));
    }
    let limit = LinuxHugepageLimit {
        pagesize: size.string()?,
        limit: fields.need("limit")?.number()?,
        ..LinuxHugepageLimit::default()
    };
    fields.finish()?;
    Ok(limit)
}

fn network(node: Node) -> Result<LinuxNetwork, Error> {
    let mut fields = node.object()?;
    let network = LinuxNetwork {
        class_id: fields.read("classID", Node::number)?,
        priorities: fields.read("priorities", |node| node.list(priority))?,
        ..LinuxNetwork::default()
    };
    fields.finish()?;
    Ok(network)
}

fn priority(node: Node) -> Result<LinuxInterfacePriority, Error> {
    let mut fields = node.object()?;
    let priority = LinuxInterfacePriority {
        name: fields.need("name")?.string()?,
        priority: fields.need("priority")?.number()?,
        ..LinuxInterfacePriority::default()
    };
    fields.finish()?;
    Ok(priority)
}
