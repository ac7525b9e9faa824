//! The numbers on the wire are those of Kata Containers' published API.

use kata_agent_proto::{agent, csi, health, kata, oci, types};
use protobuf::reflect::MessageDescriptor;
use protobuf::{Message, MessageFull};

/// Messages with their fields as `name=number`, the published numbers in the published order.
fn published() -> Vec<(MessageDescriptor, &'static str)> {
    let mut table = containers();
    table.extend(sandbox());
    table.extend(specification());
    table
}

fn containers() -> Vec<(MessageDescriptor, &'static str)> {
    vec![
        (
            agent::CreateContainerRequest::descriptor(),
            "container_id=1 exec_id=2 string_user=3 devices=4 storages=5 oci=6 sandbox_pidns=7 shared_mounts=8 \
             stdin_port=9 stdout_port=10 stderr_port=11",
        ),
        (agent::StartContainerRequest::descriptor(), "container_id=1"),
        (
            agent::RemoveContainerRequest::descriptor(),
            "container_id=1 timeout=2",
        ),
        (
            agent::ExecProcessRequest::descriptor(),
            "container_id=1 exec_id=2 string_user=3 process=4 stdin_port=5 stdout_port=6 stderr_port=7",
        ),
        (
            agent::SignalProcessRequest::descriptor(),
            "container_id=1 exec_id=2 signal=3",
        ),
        (
            agent::WaitProcessRequest::descriptor(),
            "container_id=1 exec_id=2",
        ),
        (agent::WaitProcessResponse::descriptor(), "status=1"),
        (
            agent::UpdateContainerRequest::descriptor(),
            "container_id=1 resources=2",
        ),
        (agent::CloseStdinRequest::descriptor(), "container_id=1 exec_id=2"),
        (
            agent::TtyWinResizeRequest::descriptor(),
            "container_id=1 exec_id=2 row=3 column=4",
        ),
        (
            agent::WriteStreamRequest::descriptor(),
            "container_id=1 exec_id=2 data=3",
        ),
        (
            agent::ReadStreamRequest::descriptor(),
            "container_id=1 exec_id=2 len=3",
        ),
        (agent::StringUser::descriptor(), "uid=1 gid=2 additional_gids=3"),
        (
            agent::Device::descriptor(),
            "id=1 type=2 vm_path=3 container_path=4 options=5",
        ),
        (
            agent::Storage::descriptor(),
            "driver=1 driver_options=2 source=3 fstype=4 options=5 mount_point=6 fs_group=7",
        ),
        (agent::FSGroup::descriptor(), "group_id=2 group_change_policy=3"),
        (
            agent::SharedMount::descriptor(),
            "name=1 src_ctr=2 src_path=3 dst_ctr=4 dst_path=5",
        ),
    ]
}

fn sandbox() -> Vec<(MessageDescriptor, &'static str)> {
    vec![
        (
            agent::CreateSandboxRequest::descriptor(),
            "hostname=1 dns=2 storages=3 sandbox_pidns=4 sandbox_id=5 guest_hook_path=6 kernel_modules=7",
        ),
        (agent::KernelModule::descriptor(), "name=1 parameters=2"),
        (
            agent::GuestDetailsRequest::descriptor(),
            "mem_block_size=1 mem_hotplug_probe=2",
        ),
        (
            agent::GuestDetailsResponse::descriptor(),
            "mem_block_size_bytes=1 agent_details=2 support_mem_hotplug_probe=3",
        ),
        (
            agent::AgentDetails::descriptor(),
            "version=1 init_daemon=2 device_handlers=3 storage_handlers=4 supports_seccomp=5 extra_features=6",
        ),
        (agent::SetGuestDateTimeRequest::descriptor(), "sec=1 usec=2"),
        (agent::ReseedRandomDevRequest::descriptor(), "data=2"),
        (
            agent::OnlineCPUMemRequest::descriptor(),
            "wait=1 nb_cpus=2 cpu_only=3",
        ),
        (
            agent::CopyFileRequest::descriptor(),
            "path=1 file_size=2 file_mode=3 dir_mode=4 uid=5 gid=6 offset=7 data=8",
        ),
        (
            agent::StatsContainerResponse::descriptor(),
            "cgroup_stats=1 network_stats=2",
        ),
        (
            agent::CgroupStats::descriptor(),
            "cpu_stats=1 memory_stats=2 pids_stats=3 blkio_stats=4 hugetlb_stats=5",
        ),
        (
            agent::CpuUsage::descriptor(),
            "total_usage=1 percpu_usage=2 usage_in_kernelmode=3 usage_in_usermode=4",
        ),
        (
            agent::MemoryStats::descriptor(),
            "cache=1 usage=2 swap_usage=3 kernel_usage=4 use_hierarchy=5 stats=6",
        ),
        (
            agent::MemoryData::descriptor(),
            "usage=1 max_usage=2 failcnt=3 limit=4",
        ),
        (agent::PidsStats::descriptor(), "current=1 limit=2"),
        (
            agent::MemAgentMemcgConfig::descriptor(),
            "disabled=1 swap=2 swappiness_max=3 period_secs=4 period_psi_percent_limit=5 \
             eviction_psi_percent_limit=6 eviction_run_aging_count_min=7",
        ),
        (
            health::VersionCheckResponse::descriptor(),
            "grpc_version=1 agent_version=2",
        ),
        (health::HealthCheckResponse::descriptor(), "status=1"),
        (
            csi::VolumeUsage::descriptor(),
            "available=1 total=2 used=3 unit=4",
        ),
        (
            types::Interface::descriptor(),
            "device=1 name=2 ip_addresses=3 mtu=4 hw_addr=5 device_path=6 type=7 raw_flags=8",
        ),
        (
            types::Route::descriptor(),
            "dest=1 gateway=2 device=3 source=4 scope=5 family=6 flags=7",
        ),
    ]
}

fn specification() -> Vec<(MessageDescriptor, &'static str)> {
    vec![
        (
            oci::Spec::descriptor(),
            "version=1 process=2 root=3 hostname=4 mounts=5 hooks=6 annotations=7 linux=8 solaris=9 windows=10",
        ),
        (
            oci::Process::descriptor(),
            "terminal=1 console_size=2 user=3 args=4 env=5 cwd=6 capabilities=7 rlimits=8 no_new_privileges=9 \
             apparmor_profile=10 oom_score_adj=11 selinux_label=12",
        ),
        (
            oci::User::descriptor(),
            "uid=1 gid=2 additional_gids=3 username=4",
        ),
        (
            oci::LinuxCapabilities::descriptor(),
            "bounding=1 effective=2 inheritable=3 permitted=4 ambient=5",
        ),
        (oci::POSIXRlimit::descriptor(), "type=1 hard=2 soft=3"),
        (
            oci::Mount::descriptor(),
            "destination=1 source=2 type=3 options=4",
        ),
        (oci::Root::descriptor(), "path=1 readonly=2"),
        (
            oci::Linux::descriptor(),
            "uid_mappings=1 gid_mappings=2 sysctl=3 resources=4 cgroups_path=5 namespaces=6 devices=7 seccomp=8 \
             rootfs_propagation=9 masked_paths=10 readonly_paths=11 mount_label=12 intel_rdt=13",
        ),
        (oci::LinuxNamespace::descriptor(), "type=1 path=2"),
        (
            oci::LinuxDevice::descriptor(),
            "path=1 type=2 major=3 minor=4 file_mode=5 uid=6 gid=7",
        ),
        (
            oci::LinuxResources::descriptor(),
            "devices=1 memory=2 cpu=3 pids=4 block_io=5 hugepage_limits=6 network=7",
        ),
        (
            oci::LinuxMemory::descriptor(),
            "limit=1 reservation=2 swap=3 kernel=4 kernel_tcp=5 swappiness=6 disable_oom_killer=7",
        ),
        (
            oci::LinuxCPU::descriptor(),
            "shares=1 quota=2 period=3 realtime_runtime=4 realtime_period=5 cpus=6 mems=7",
        ),
        (
            oci::LinuxDeviceCgroup::descriptor(),
            "allow=1 type=2 major=3 minor=4 access=5",
        ),
        (
            oci::LinuxSyscall::descriptor(),
            "names=1 action=2 errnoret=3 args=4",
        ),
    ]
}

#[test]
fn fields_have_their_published_numbers() {
    for (message, expected) in published() {
        let fields: Vec<String> = message
            .fields()
            .map(|field| format!("{}={}", field.name(), field.number()))
            .collect();
        assert_eq!(fields.join(" "), expected, "{}", message.full_name());
    }
}

#[test]
fn packages_and_services_have_their_published_names() {
    let service = agent::file_descriptor().proto();
    assert_eq!(service.package(), "grpc");
    assert_eq!(service.service[0].name(), "AgentService");
    let methods: Vec<&str> = service.service[0]
        .method
        .iter()
        .map(|method| method.name())
        .collect();
    assert_eq!(methods.len(), 41);
    for method in [
        "CreateContainer",
        "AddARPNeighbors",
        "GetOOMEvent",
        "OnlineCPUMem",
        "SetIPTables",
    ] {
        assert!(methods.contains(&method), "{method}");
    }
    assert_eq!(health::file_descriptor().proto().service[0].name(), "Health");
    assert_eq!(types::file_descriptor().proto().package(), "types");
    assert_eq!(kata::file_descriptor().proto().package(), "kata.sandbox.v1");
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
