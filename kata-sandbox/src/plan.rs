//! Stage 5: from what was asked and what the host can do to what will be built. Pure.
//!
//! [`plan`] opens nothing and asks nobody: the same inputs give the same [`Plan`], and what cannot
//! work fails here, before anything exists that would have to be taken back.

use std::time::Duration;

use kata_agent_proto::agent::CreateContainerRequest;
use kata_image::guest;
use kata_vmm::hypervisor::{Backend, Capabilities, Selection, select};
use kata_vmm::machine::{Boot, Disk, FdIndex, Hypervisor, Machine, MiB};
use protobuf::Message;

use crate::container::{Container, Overrides, ProcessSettings, Writable};
use crate::error::{Error, ErrorKind};
use crate::report::Stage;
use crate::shelf;
use crate::signal;
use crate::spec::{self, LayerDisk, Place, WRITABLE_SERIAL};

/// What a machine has unless the caller said otherwise.
const MEMORY: MiB = MiB(256);
const VCPUS: u8 = 1;
/// The name of the container that a sandbox is booted with, unless the caller chose one.
const FIRST: &str = "main";
const NAME_BYTES_MAX: usize = 64;

/// The least memory that a guest kernel, the agent and a small container fit in.
const MIN_MEMORY: MiB = MiB(96);
const MAX_VCPUS: u8 = 32;
/// Any address above the reserved ones (VIRTIO 1.2 §5.10.4): each sandbox's vsock is its own.
const GUEST_CID: u32 = 3;

/// A file that [`prepare`](crate::prepare) opens, at the position the machine names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asset {
    Kernel,
    Initramfs,
    Agent,
    /// The next layer of the image, from the lowest up.
    Layer,
    /// The hash tree of the layer before it.
    HashTree,
    /// The disk that a container writes to.
    Writable {
        size: MiB,
        /// Kept under this name.
        name: Option<String>,
    },
    Kvm,
}

/// What will be built.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    /// Which hypervisor and why.
    pub(crate) selection: Selection,
    /// The machine; its [`FdIndex`]es are positions in `assets`.
    pub(crate) machine: Machine,
    /// What to open for it, in order.
    pub(crate) assets: Vec<Asset>,
    /// The first container, all but its stream ports.
    pub(crate) container: CreateContainerRequest,
    /// The disks of its layers, the lowest first.
    pub(crate) layers: Vec<LayerDisk>,
}

/// A layer of the image, as far as a plan depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Layer {
    /// What its every block is checked against, if it is.
    pub(crate) proof: Option<Proof>,
}

/// What a hash tree is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) root_hash: [u8; 32],
    pub(crate) salt: Vec<u8>,
    pub(crate) data_blocks: u64,
}

impl Plan {
    /// The same with a disk on which the layers of further containers can be shown.
    pub(crate) fn with_shelf(mut self) -> Self {
        self.machine.shelf = Some(shelf::SERIAL.to_owned());
        self
    }
}

/// Plans `container` as the first of the sandbox `name` on a host that can do `capabilities`.
pub(crate) fn plan(
    container: &Container,
    layers: &[Layer],
    name: &str,
    capabilities: &Capabilities,
) -> Result<Plan, Error> {
    let (memory, vcpus) = machine_of(container)?;
    check_container(container, vcpus)?;
    let selection = select(container.backend, capabilities).map_err(|cause| {
        Error::new(
            ErrorKind::Unsupported,
            Stage::Plan,
            "no backend can run this container",
        )
        .with_source(cause)
    })?;
    let (boot, mut assets) = match selection.hypervisor {
        Hypervisor::Kvm | Hypervisor::Qemu { .. } => (
            Boot::Kernel {
                kernel: FdIndex(0),
                initramfs: FdIndex(1),
            },
            vec![Asset::Kernel, Asset::Initramfs],
        ),
        Hypervisor::Process => (Boot::Program { program: FdIndex(0) }, vec![Asset::Agent]),
    };
    if selection.hypervisor == Hypervisor::Process && layers.iter().any(|layer| layer.proof.is_some()) {
        let message = "hash trees are checked by a guest's kernel, and a process has none";
        return Err(Error::new(ErrorKind::Unsupported, Stage::Plan, message));
    }
    let layers: Vec<LayerDisk> = layers.iter().enumerate().map(LayerDisk::new).collect();
    let disks = disks(&layers, &container.writable, &mut assets);
    let kvm = (selection.hypervisor == Hypervisor::Kvm).then_some(FdIndex(assets.len()));
    assets.extend(kvm.map(|_| Asset::Kvm));
    let machine = Machine {
        name: name.to_owned(),
        vcpus,
        memory,
        boot,
        acpi: true,
        disks,
        shelf: None,
        nets: Vec::new(),
        guest_cid: GUEST_CID,
        host_ports: vec![kata_agent_proto::port::HELLO],
        hypervisor: selection.hypervisor.clone(),
        kvm,
    };
    let place = Place {
        id: container.name.as_deref().unwrap_or(FIRST),
        hostname: name,
        layers: &layers,
        shares_pid: container.shares_pid,
    };
    let request = spec::create_request(container, place);
    check_request(&request)?;
    Ok(Plan {
        selection,
        machine,
        assets,
        container: request,
        layers,
    })
}

/// Checks a container that is to join others in a machine of `vcpus` processors: what would be the machine's is a
/// mistake, and not something to leave out.
pub(crate) fn check_member(container: &Container, vcpus: u8) -> Result<(), Error> {
    let Overrides { guest, monitor } = &container.overrides;
    for (is_said, what) in [
        (
            container.memory.is_some(),
            "memory (limits has the container's own)",
        ),
        (
            container.vcpus.is_some(),
            "vcpus (limits has the container's own)",
        ),
        (container.backend != Backend::Auto, "backend"),
        (container.timeout.is_some(), "timeout"),
        (container.boot_timeout.is_some(), "boot_timeout"),
        (container.shares_pid, "shared_pid"),
        (
            *guest != guest::Overrides::default() || monitor.is_some(),
            "kernel, initramfs, agent or monitor",
        ),
    ] {
        if is_said {
            return Err(invalid(format!(
                "{what} belongs to the machine, and is said of the container that the sandbox is booted with"
            )));
        }
    }
    check_container(container, vcpus)
}

/// A disk for each layer and each hash tree, and one to write to if that is not memory.
fn disks(layers: &[LayerDisk], writable: &Writable, assets: &mut Vec<Asset>) -> Vec<Disk> {
    let mut add = |asset, serial: String, read_only| {
        let image = FdIndex(assets.len());
        assets.push(asset);
        Disk {
            serial,
            image,
            read_only,
        }
    };
    let mut disks = Vec::new();
    for (place, layer) in layers.iter().enumerate() {
        disks.push(add(Asset::Layer, layer.serial.clone(), true));
        if layer.verity.is_some() {
            disks.push(add(Asset::HashTree, spec::tree_serial(place), true));
        }
    }
    if let Writable::Disk { size, name } = writable {
        let (size, name) = (*size, name.clone());
        disks.push(add(Asset::Writable { size, name }, WRITABLE_SERIAL.into(), false));
    }
    disks
}

/// Memory and processors.
fn machine_of(container: &Container) -> Result<(MiB, u8), Error> {
    let memory = container.memory.unwrap_or(MEMORY);
    if memory < MIN_MEMORY {
        return Err(invalid(format!(
            "{} MiB of memory is too little: a guest needs at least {}",
            memory.0, MIN_MEMORY.0
        )));
    }
    let vcpus = container.vcpus.unwrap_or(VCPUS);
    if vcpus == 0 || vcpus > MAX_VCPUS {
        return Err(invalid(format!("{vcpus} vCPUs: a machine has 1 to {MAX_VCPUS}")));
    }
    if [container.timeout, container.boot_timeout].contains(&Some(Duration::ZERO)) {
        return Err(invalid("a timeout of zero leaves no time to run"));
    }
    Ok((memory, vcpus))
}

/// Checks what is a container's own.
fn check_container(container: &Container, vcpus: u8) -> Result<(), Error> {
    check_process(&container.process, true)?;
    check_terminal(&container.process)?;
    container.limits.check(vcpus)?;
    if let Some(name) = container.name.as_deref().filter(|name| !is_name(name)) {
        return Err(invalid(format!(
            "{name:?} cannot be a container's name: 1 to {NAME_BYTES_MAX} letters, digits, _, +, - or ., and no . in front"
        )));
    }
    if let Some(name) = &container.stop_signal
        && signal::number(name).is_none()
    {
        return Err(invalid(format!("there is no signal {name:?}")));
    }
    if let Some(path) = container.volumes.iter().find(|path| path.contains(['\n', '\0'])) {
        return Err(invalid(format!(
            "the image's volume {path:?} is no path of a directory"
        )));
    }
    match &container.hostname {
        Some(name) if name.is_empty() || name.len() > 64 || name.contains('\0') => {
            Err(invalid(format!("host name {name:?} is not 1 to 64 bytes long")))
        }
        _ => Ok(()),
    }
}

/// As the agent has it: a name is a part of names of files.
fn is_name(name: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_known)
}

/// Checks what the kernel would refuse in a way that nobody understands.
pub(crate) fn check_process(process: &ProcessSettings, may_be_idle: bool) -> Result<(), Error> {
    match process.args.first() {
        None if may_be_idle => {}
        Some(program) if !program.is_empty() => {}
        _ => return Err(invalid("the program has no name")),
    }
    if let Some(argument) = process.args.iter().find(|a| a.contains('\0')) {
        return Err(invalid(format!("argument {argument:?} contains a NUL byte")));
    }
    for (name, value) in &process.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!("environment variable {name:?} cannot be set")));
        }
    }
    check_size(process)?;
    match &process.cwd {
        Some(cwd) if !cwd.starts_with('/') || cwd.contains('\0') => Err(invalid(format!(
            "working directory {cwd:?} is not an absolute path"
        ))),
        _ => Ok(()),
    }
}

/// A terminal that nobody would have is a mistake, not something to leave out.
fn check_terminal(process: &ProcessSettings) -> Result<(), Error> {
    match (process.args.is_empty(), process.terminal) {
        (true, Some(_)) => Err(invalid(
            "a container that idles has no process for a terminal; give it to the commands of exec",
        )),
        _ => Ok(()),
    }
}

/// execve(2) refuses more than that: `MAX_ARG_STRLEN` for one string, and a quarter of the usual stack.
fn check_size(process: &ProcessSettings) -> Result<(), Error> {
    const STRING_BYTES_MAX: usize = (128 << 10) - 1;
    const TOTAL_BYTES_MAX: usize = 2 << 20;
    let arguments = process.args.iter().enumerate();
    let arguments = arguments.map(|(index, argument)| (format!("args[{index}]"), argument.len()));
    let variables = process.env.iter();
    let variables = variables.map(|(name, value)| (format!("env {name}"), name.len() + 1 + value.len()));
    let mut total = 0;
    for (name, size) in arguments.chain(variables) {
        if size > STRING_BYTES_MAX {
            let name: String = name.chars().take(80).collect();
            return Err(invalid(format!(
                "{name}: {size} bytes are too long: {STRING_BYTES_MAX} are the most"
            )));
        }
        total += size + 9;
    }
    match total > TOTAL_BYTES_MAX {
        true => Err(invalid(format!(
            "args and env: {total} bytes together are too long: {TOTAL_BYTES_MAX} are the most"
        ))),
        false => Ok(()),
    }
}

/// What ttrpc takes in one message (its protocol's `MESSAGE_LENGTH_MAX`), without what frames it.
const REQUEST_BYTES_MAX: u64 = (4 << 20) - (64 << 10);

/// Refuses what the agent's API has no room for, by the part that is largest.
pub(crate) fn check_request(request: &CreateContainerRequest) -> Result<(), Error> {
    if request.compute_size() <= REQUEST_BYTES_MAX {
        return Ok(());
    }
    let spec = &request.oci;
    let annotations = spec
        .annotations
        .iter()
        .map(|(name, value)| name.len() + value.len());
    let parts = [
        ("process", spec.process.compute_size()),
        ("mounts", spec.mounts.iter().map(Message::compute_size).sum()),
        ("annotations", annotations.map(|size| size as u64).sum()),
        ("linux", spec.linux.compute_size()),
    ];
    let (name, size) = parts
        .into_iter()
        .max_by_key(|(_, size)| *size)
        .unwrap_or_default();
    Err(invalid(format!(
        "{name}: {size} bytes are too many: the agent takes {REQUEST_BYTES_MAX} for all of a container"
    )))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidContainer, Stage::Plan, message)
}

#[cfg(test)]
mod tests;
