//! The numbers on the wire are those of Kata Containers' published API.
#![expect(clippy::expect_used, reason = "a test may panic")]

use std::path::Path;

use kata_agent_proto::agent;
use protobuf::Message;
use protobuf::descriptor::FileDescriptorProto;

/// The first number of a field that this project adds.
const ADDED: i32 = 1000;

/// Messages with their fields as `name=number`, the published numbers in the published order.
fn published() -> Vec<(&'static str, &'static str)> {
    let mut table = containers();
    table.extend(sandbox());
    table.extend(specification());
    table
}

fn containers() -> Vec<(&'static str, &'static str)> {
    vec![
        (
            "grpc.CreateContainerRequest",
            "container_id=1 exec_id=2 string_user=3 devices=4 storages=5 oci=6 sandbox_pidns=7 shared_mounts=8 \
             stdin_port=9 stdout_port=10 stderr_port=11",
        ),
        ("grpc.StartContainerRequest", "container_id=1"),
        ("grpc.RemoveContainerRequest", "container_id=1 timeout=2"),
        (
            "grpc.ExecProcessRequest",
            "container_id=1 exec_id=2 string_user=3 process=4 stdin_port=5 stdout_port=6 stderr_port=7",
        ),
        ("grpc.SignalProcessRequest", "container_id=1 exec_id=2 signal=3"),
        ("grpc.WaitProcessRequest", "container_id=1 exec_id=2"),
        ("grpc.WaitProcessResponse", "status=1"),
        ("grpc.UpdateContainerRequest", "container_id=1 resources=2"),
        ("grpc.CloseStdinRequest", "container_id=1 exec_id=2"),
        (
            "grpc.TtyWinResizeRequest",
            "container_id=1 exec_id=2 row=3 column=4",
        ),
        ("grpc.WriteStreamRequest", "container_id=1 exec_id=2 data=3"),
        ("grpc.ReadStreamRequest", "container_id=1 exec_id=2 len=3"),
        ("grpc.StringUser", "uid=1 gid=2 additional_gids=3"),
        ("grpc.Device", "id=1 type=2 vm_path=3 container_path=4 options=5"),
        (
            "grpc.Storage",
            "driver=1 driver_options=2 source=3 fstype=4 options=5 mount_point=6 fs_group=7",
        ),
        ("grpc.FSGroup", "group_id=2 group_change_policy=3"),
        (
            "grpc.SharedMount",
            "name=1 src_ctr=2 src_path=3 dst_ctr=4 dst_path=5",
        ),
    ]
}

fn sandbox() -> Vec<(&'static str, &'static str)> {
    vec![
        (
            "grpc.CreateSandboxRequest",
            "hostname=1 dns=2 storages=3 sandbox_pidns=4 sandbox_id=5 guest_hook_path=6 kernel_modules=7",
        ),
        ("grpc.KernelModule", "name=1 parameters=2"),
        ("grpc.GuestDetailsRequest", "mem_block_size=1 mem_hotplug_probe=2"),
        (
            "grpc.GuestDetailsResponse",
            "mem_block_size_bytes=1 agent_details=2 support_mem_hotplug_probe=3",
        ),
        (
            "grpc.AgentDetails",
            "version=1 init_daemon=2 device_handlers=3 storage_handlers=4 supports_seccomp=5 extra_features=6",
        ),
        ("grpc.SetGuestDateTimeRequest", "sec=1 usec=2"),
        ("grpc.ReseedRandomDevRequest", "data=2"),
        ("grpc.OnlineCPUMemRequest", "wait=1 nb_cpus=2 cpu_only=3"),
        (
            "grpc.CopyFileRequest",
            "path=1 file_size=2 file_mode=3 dir_mode=4 uid=5 gid=6 offset=7 data=8",
        ),
        ("grpc.StatsContainerResponse", "cgroup_stats=1 network_stats=2"),
        (
            "grpc.CgroupStats",
            "cpu_stats=1 memory_stats=2 pids_stats=3 blkio_stats=4 hugetlb_stats=5",
        ),
        (
            "grpc.CpuUsage",
            "total_usage=1 percpu_usage=2 usage_in_kernelmode=3 usage_in_usermode=4",
        ),
        (
            "grpc.MemoryStats",
            "cache=1 usage=2 swap_usage=3 kernel_usage=4 use_hierarchy=5 stats=6",
        ),
        ("grpc.MemoryData", "usage=1 max_usage=2 failcnt=3 limit=4"),
        ("grpc.PidsStats", "current=1 limit=2"),
        (
            "grpc.MemAgentMemcgConfig",
            "disabled=1 swap=2 swappiness_max=3 period_secs=4 period_psi_percent_limit=5 \
             eviction_psi_percent_limit=6 eviction_run_aging_count_min=7",
        ),
        ("grpc.VersionCheckResponse", "grpc_version=1 agent_version=2"),
        ("grpc.HealthCheckResponse", "status=1"),
        ("grpc.VolumeUsage", "available=1 total=2 used=3 unit=4"),
        (
            "types.Interface",
            "device=1 name=2 ip_addresses=3 mtu=4 hw_addr=5 device_path=6 type=7 raw_flags=8",
        ),
        (
            "types.Route",
            "dest=1 gateway=2 device=3 source=4 scope=5 family=6 flags=7",
        ),
    ]
}

fn specification() -> Vec<(&'static str, &'static str)> {
    vec![
        (
            "grpc.Spec",
            "version=1 process=2 root=3 hostname=4 mounts=5 hooks=6 annotations=7 linux=8 solaris=9 windows=10",
        ),
        (
            "grpc.Process",
            "terminal=1 console_size=2 user=3 args=4 env=5 cwd=6 capabilities=7 rlimits=8 no_new_privileges=9 \
             apparmor_profile=10 oom_score_adj=11 selinux_label=12",
        ),
        ("grpc.User", "uid=1 gid=2 additional_gids=3 username=4"),
        (
            "grpc.LinuxCapabilities",
            "bounding=1 effective=2 inheritable=3 permitted=4 ambient=5",
        ),
        ("grpc.POSIXRlimit", "type=1 hard=2 soft=3"),
        ("grpc.Mount", "destination=1 source=2 type=3 options=4"),
        ("grpc.Root", "path=1 readonly=2"),
        (
            "grpc.Linux",
            "uid_mappings=1 gid_mappings=2 sysctl=3 resources=4 cgroups_path=5 namespaces=6 devices=7 seccomp=8 \
             rootfs_propagation=9 masked_paths=10 readonly_paths=11 mount_label=12 intel_rdt=13",
        ),
        ("grpc.LinuxNamespace", "type=1 path=2"),
        (
            "grpc.LinuxDevice",
            "path=1 type=2 major=3 minor=4 file_mode=5 uid=6 gid=7",
        ),
        (
            "grpc.LinuxResources",
            "devices=1 memory=2 cpu=3 pids=4 block_io=5 hugepage_limits=6 network=7",
        ),
        (
            "grpc.LinuxMemory",
            "limit=1 reservation=2 swap=3 kernel=4 kernel_tcp=5 swappiness=6 disable_oom_killer=7",
        ),
        (
            "grpc.LinuxCPU",
            "shares=1 quota=2 period=3 realtime_runtime=4 realtime_period=5 cpus=6 mems=7",
        ),
        (
            "grpc.LinuxDeviceCgroup",
            "allow=1 type=2 major=3 minor=4 access=5",
        ),
        ("grpc.LinuxSyscall", "names=1 action=2 errnoret=3 args=4"),
    ]
}

/// The published methods of `grpc.AgentService`, sorted.
const METHODS: &str = "AddARPNeighbors AddSwap AddSwapPath CloseStdin CopyFile CreateContainer CreateSandbox DestroySandbox \
    ExecProcess GetGuestDetails GetIPTables GetMetrics GetOOMEvent GetVolumeStats ListInterfaces ListRoutes \
    MemAgentCompactSet MemAgentMemcgSet MemHotplugByProbe OnlineCPUMem PauseContainer ReadStderr ReadStdout \
    RemoveContainer RemoveStaleVirtiofsShareMounts ReseedRandomDev ResizeVolume ResumeContainer SetGuestDateTime \
    SetIPTables SetPolicy SignalProcess StartContainer StatsContainer TtyWinResize UpdateContainer \
    UpdateEphemeralMounts UpdateInterface UpdateRoutes WaitProcess WriteStdin";

/// The files that the crate's code is generated from. The generated code itself carries no descriptors,
/// which would double the size of the agent.
fn files() -> Vec<FileDescriptorProto> {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("protos");
    let inputs =
        ["agent", "csi", "health", "kata", "oci", "types"].map(|name| protos.join(format!("{name}.proto")));
    let parsed = protobuf_parse::Parser::new()
        .pure()
        .include(&protos)
        .inputs(inputs)
        .parse_and_typecheck();
    parsed.expect("the files are well-formed").file_descriptors
}

fn file<'a>(files: &'a [FileDescriptorProto], name: &str) -> &'a FileDescriptorProto {
    files.iter().find(|file| file.name() == name).expect("parsed")
}

#[test]
fn fields_have_their_published_numbers() {
    let files = files();
    for (name, expected) in published() {
        let (package, message) = name.split_once('.').expect("a package");
        let mut messages = files
            .iter()
            .filter(|file| file.package() == package)
            .flat_map(|file| &file.message_type);
        let message = messages
            .find(|candidate| candidate.name() == message)
            .expect(name);
        // What is added has numbers that will never be published.
        let fields: Vec<String> = message
            .field
            .iter()
            .filter(|field| field.number() < ADDED)
            .map(|field| format!("{}={}", field.name(), field.number()))
            .collect();
        assert_eq!(fields.join(" "), expected, "{name}");
    }
}

#[test]
fn packages_and_services_have_their_published_names() {
    let files = files();
    let agent = file(&files, "agent.proto");
    assert_eq!(agent.package(), "grpc");
    assert_eq!(agent.service[0].name(), "AgentService");
    let mut methods: Vec<&str> = agent.service[0]
        .method
        .iter()
        .map(|method| method.name())
        .collect();
    methods.sort_unstable();
    assert_eq!(methods.join(" "), METHODS);
    assert_eq!(file(&files, "health.proto").service[0].name(), "Health");
    assert_eq!(file(&files, "types.proto").package(), "types");
    assert_eq!(file(&files, "kata.proto").package(), "kata.sandbox.v1");
}

#[test]
fn requests_encode_to_the_published_bytes() {
    let wait = agent::WaitProcessRequest {
        container_id: "c".into(),
        exec_id: "e".into(),
        ..Default::default()
    };
    assert_eq!(wait.write_to_bytes().expect("encoded"), b"\x0a\x01c\x12\x01e");

    let create = agent::CreateContainerRequest {
        container_id: "c".into(),
        stdin_port: 3,
        stderr_port: 300,
        ..Default::default()
    };
    assert_eq!(
        create.write_to_bytes().expect("encoded"),
        b"\x0a\x01c\x48\x03\x58\xac\x02"
    );

    let seed = agent::ReseedRandomDevRequest {
        data: vec![7],
        ..Default::default()
    };
    assert_eq!(seed.write_to_bytes().expect("encoded"), b"\x12\x01\x07");
}
