//! What the agent orders of its worker process.
//!
//! JSON in a memory file one way, one line of JSON on a pipe the other way. Owns that format; the
//! two ends are the same program, so it carries no version.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::path::PathBuf;

use kata_agent_proto::storage::VERITY;
use serde::{Deserialize, Serialize};

use crate::birth::hooks::{Hook, State};
use crate::exec::Traits;
use crate::limits::Limits;
use crate::rootfs::passwd::User;

/// One piece of work for a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Mount storages and create a container.
    Create(Box<Create>),
    /// Run hooks of a container in the agent's namespaces.
    Hooks(Hooks),
    /// Change the limits of a container.
    Update(Update),
    /// Release what a container had.
    Remove(Remove),
    /// Start a process that does nothing but hold a PID namespace of its own.
    Pause,
    /// Mount storages that belong to the sandbox.
    Mount(Storages),
    /// Copy files. The stream is the worker's standard input.
    Copy(Copy),
    /// Carry a request of the API out as it came: it is the worker's standard input, and the answer its
    /// standard output, both as protobuf.
    Call(Call),
}

/// A request that a worker carries out as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    ListInterfaces,
    UpdateInterface,
    ListRoutes,
    UpdateRoutes,
    AddNeighbors,
    GetIpTables,
    SetIpTables,
    OnlineProcessorsAndMemory,
    ProbeMemory,
    AddSwap,
    UpdateEphemeralMounts,
    VisitShares,
    GetVolumeStats,
    ResizeVolume,
    LoadModules,
}

/// Storages, with the disks that stand behind serials in process mode.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Storages {
    /// In the order of mounting.
    pub(crate) list: Vec<Storage>,
    /// Serial and descriptor of disks that are files.
    pub(crate) disks: Vec<(String, RawFd)>,
}

/// A storage of the agent's API.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Storage {
    pub(crate) driver: String,
    pub(crate) driver_options: Vec<String>,
    pub(crate) source: String,
    pub(crate) fstype: String,
    pub(crate) options: Vec<String>,
    pub(crate) mount_point: String,
    /// Whom everything in it is given to.
    pub(crate) group: Option<Group>,
}

impl Storage {
    /// What dm-verity is to check it by, where it is.
    pub(crate) fn verity(&self) -> Option<&str> {
        let mut options = self.driver_options.iter();
        options.find_map(|option| option.strip_prefix(VERITY))
    }
}

/// The group of a storage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) id: u32,
    /// Also where the root of the storage is the group's already.
    pub(crate) always: bool,
}

/// A device of the guest for a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Device {
    /// The serial of a disk, where there is no path.
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) vm_path: String,
    /// Nothing where it is only waited for.
    pub(crate) container_path: String,
}

/// A mount of another container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Share {
    /// The other container's init.
    pub(crate) source_pid: i32,
    pub(crate) source_path: String,
    /// Where this container sees it.
    pub(crate) path: String,
}

/// Creates a container. Its standard streams are the worker's own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Create {
    pub(crate) id: String,
    /// Directory of config.json and of the container's state.
    pub(crate) bundle: PathBuf,
    pub(crate) storages: Storages,
    /// Absolute path of the cgroup's directory.
    pub(crate) cgroup: PathBuf,
    pub(crate) limits: Limits,
    pub(crate) devices: Vec<Device>,
    pub(crate) shares: Vec<Share>,
    /// The OCI specification; without arguments the container idles.
    pub(crate) spec: serde_json::Value,
    pub(crate) traits: Traits,
    /// What hooks are told.
    pub(crate) state: State,
    /// Where the init waits for its start.
    pub(crate) start: RawFd,
    pub(crate) user: Option<User>,
    /// Where the terminal's master is sent to.
    pub(crate) console: Option<PathBuf>,
    /// Lines for a resolv.conf.
    pub(crate) dns: Vec<String>,
    /// For /etc/hostname and /etc/hosts.
    pub(crate) hostname: String,
}

/// Runs hooks, one after the other, until one fails.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hooks {
    pub(crate) list: Vec<Hook>,
    pub(crate) state: State,
    /// The container's, as `running`.
    pub(crate) status: String,
    pub(crate) pid: Option<i32>,
}

/// Changes the limits of a container.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Update {
    /// Absolute path of the cgroup's directory.
    pub(crate) cgroup: PathBuf,
    pub(crate) limits: Limits,
}

/// Copies files between a container and a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Copy {
    pub(crate) direction: Direction,
    /// The container's init, which is not waited for before the worker has ended.
    pub(crate) init_pid: i32,
    /// From the container's root.
    pub(crate) path: Vec<u8>,
    /// What the source is called; empty where only its contents are copied.
    pub(crate) name: Vec<u8>,
}

/// Which way files go, seen from the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Direction {
    In,
    Out,
}

/// Releases what a container had; its processes are dead or dying.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Remove {
    pub(crate) bundle: PathBuf,
    pub(crate) cgroup: PathBuf,
    /// The cgroup of all containers, which stays.
    pub(crate) base: PathBuf,
    /// Unmounted in reverse.
    pub(crate) mount_points: Vec<String>,
    /// Those of them that were read through dm-verity.
    pub(crate) verified: Vec<String>,
    /// Serials of disks whose partitions nobody may use any more.
    pub(crate) partitioned: BTreeSet<String>,
    /// Run after all.
    pub(crate) poststop: Vec<Hook>,
    pub(crate) state: State,
}
