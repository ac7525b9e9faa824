//! The agent's methods for the guest as a whole: its network, volumes, machine and figures.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod bed;

use api::{MAIN, client, creation, read_all, run, start};
use bed::Bed;
use kata_agent_proto::agent::{
    ARPNeighbors, AddARPNeighborsRequest, AddSwapPathRequest, AddSwapRequest, CopyFileRequest,
    CreateSandboxRequest, DestroySandboxRequest, GetIPTablesRequest, GetMetricsRequest, GuestDetailsRequest,
    ListInterfacesRequest, ListRoutesRequest, MemAgentCompactConfig, MemAgentMemcgConfig,
    MemHotplugByProbeRequest, OnlineCPUMemRequest, RemoveStaleVirtiofsShareMountsRequest,
    ReseedRandomDevRequest, ResizeVolumeRequest, Routes, SetGuestDateTimeRequest, SetIPTablesRequest,
    SetPolicyRequest, Storage, UpdateEphemeralMountsRequest, UpdateInterfaceRequest, UpdateRoutesRequest,
    VolumeStatsRequest,
};
use kata_agent_proto::types::{ARPNeighbor, IPAddress, Interface, Route};
use kata_agent_proto::{CallError, Client, FailureKind, oci};
use kata_sandbox::Sandbox;
use protobuf::MessageField;

/// The host's directory in the guest.
const SHARED: &str = "/run/kata-containers/shared/containers";

fn ip_address(address: &str, mask: &str) -> IPAddress {
    IPAddress {
        address: address.into(),
        mask: mask.into(),
        ..Default::default()
    }
}

async fn interfaces(client: &Client) {
    let update = |interface: Interface| UpdateInterfaceRequest {
        interface: MessageField::some(interface),
        ..Default::default()
    };
    let loopback = Interface {
        device: "lo".into(),
        name: "lo".into(),
        mtu: 9000,
        ip_addresses: vec![ip_address("127.0.0.1", "8"), ip_address("192.0.2.7", "24")],
        ..Default::default()
    };
    client.update_interface(update(loopback.clone())).await.unwrap();
    let listed = client
        .list_interfaces(ListInterfacesRequest::new())
        .await
        .unwrap()
        .interfaces;
    let found = listed.iter().find(|interface| interface.name == "lo").unwrap();
    let addresses: Vec<_> = found
        .ip_addresses
        .iter()
        .map(|ip| (ip.address.as_str(), ip.mask.as_str()))
        .collect();
    assert_eq!(
        (found.mtu, addresses),
        (9000, vec![("127.0.0.1", "8"), ("192.0.2.7", "24")])
    );
    assert_eq!(found.raw_flags & 1, 1, "up");
    // The other address is gone when it is not asked for any more.
    let fewer = Interface {
        ip_addresses: vec![ip_address("127.0.0.1", "8")],
        ..loopback
    };
    client.update_interface(update(fewer)).await.unwrap();
    let listed = client
        .list_interfaces(ListInterfacesRequest::new())
        .await
        .unwrap()
        .interfaces;
    let found = listed.iter().find(|interface| interface.name == "lo").unwrap();
    assert_eq!(found.ip_addresses.len(), 1);
    let unknown = Interface {
        hw_addr: "02:00:00:00:12:34".into(),
        ..Default::default()
    };
    let failed = client.update_interface(update(unknown)).await.unwrap_err();
    assert_eq!(failed.kind(), Some(FailureKind::NoSuchInterface));
}

async fn routes(client: &Client) {
    let update = |routes: Vec<Route>| UpdateRoutesRequest {
        routes: MessageField::some(Routes {
            routes,
            ..Default::default()
        }),
        ..Default::default()
    };
    let route = Route {
        dest: "198.51.100.0/24".into(),
        device: "lo".into(),
        ..Default::default()
    };
    let has = |routes: &Routes| {
        routes
            .routes
            .iter()
            .any(|found| found.dest == route.dest && found.device == "lo")
    };
    assert!(has(&client
        .update_routes(update(vec![route.clone()]))
        .await
        .unwrap()));
    assert!(has(&client.list_routes(ListRoutesRequest::new()).await.unwrap()));
    assert!(!has(&client.update_routes(update(Vec::new())).await.unwrap()));
    let wrong = Route {
        dest: "198.51.100.0/99".into(),
        ..Default::default()
    };
    let failed = client.update_routes(update(vec![wrong])).await.unwrap_err();
    assert_eq!(failed.kind(), Some(FailureKind::Invalid));
    let neighbors = |device: &str| AddARPNeighborsRequest {
        neighbors: MessageField::some(ARPNeighbors {
            arp_neighbors: vec![ARPNeighbor {
                to_ip_address: MessageField::some(ip_address("127.0.0.9", "")),
                device: device.into(),
                lladdr: "02:00:00:00:00:09".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    client.add_arp_neighbors(neighbors("lo")).await.unwrap();
    let failed = client.add_arp_neighbors(neighbors("none")).await.unwrap_err();
    assert_eq!(failed.kind(), Some(FailureKind::NoSuchInterface));
    // The programs of a packet filter are not in every guest, and not every kernel has one.
    let tables = client.get_ip_tables(GetIPTablesRequest::new()).await;
    let answered = tables.as_ref().map_err(CallError::kind).map(drop);
    assert!(
        matches!(
            answered,
            Ok(()) | Err(Some(FailureKind::NotFound | FailureKind::Guest))
        ),
        "{tables:?}"
    );
    let nonsense = SetIPTablesRequest {
        data: b"nonsense\n".to_vec(),
        ..Default::default()
    };
    let kind = client.set_ip_tables(nonsense).await.unwrap_err().kind();
    assert!(
        matches!(kind, Some(FailureKind::NotFound | FailureKind::Guest)),
        "{kind:?}"
    );
}

/// A file in pieces, a directory and a link, and a container that mounts them.
async fn files(client: &Client) {
    let request = |name: &str, mode: u32, data: &[u8]| CopyFileRequest {
        path: format!("{SHARED}/given/{name}"),
        file_size: i64::try_from(data.len()).unwrap(),
        file_mode: mode,
        dir_mode: 0o755,
        uid: 33,
        gid: 44,
        data: data.to_vec(),
        ..Default::default()
    };
    let content = vec![b'x'; 3 << 20];
    for (index, piece) in content.chunks(1 << 20).enumerate() {
        let mut piece = request("file", 0o100_640, piece);
        (piece.offset, piece.file_size) = (i64::try_from(index).unwrap() << 20, 3 << 20);
        client.copy_file(piece).await.unwrap();
    }
    client.copy_file(request("dir", 0o040_750, b"")).await.unwrap();
    let mut link = request("link", 0o120_777, b"file");
    link.file_size = 0;
    client.copy_file(link).await.unwrap();
    let mut reader = creation(
        "reader",
        "wc -c < /in/link; ls -lnd /in/file /in/dir; cat /in/link | tr -d x",
    );
    reader.oci.as_mut().unwrap().mounts.push(oci::Mount {
        destination: "/in".into(),
        source: format!("{SHARED}/given"),
        type_: "bind".into(),
        options: vec!["bind".into(), "ro".into()],
        ..Default::default()
    });
    start(client, reader).await;
    let text = String::from_utf8(read_all(client, "reader", "").await).unwrap();
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0], ["3145728"]);
    let mut listed: Vec<_> = lines[1..]
        .iter()
        .map(|words| (words[0], words[2], words[3]))
        .collect();
    listed.sort_unstable();
    assert_eq!(listed, [("-rw-r-----", "33", "44"), ("drwxr-x---", "33", "44")]);
    for path in [
        "/etc/passwd",
        "/run/kata-containers/../passwd",
        "/run/kata-containers",
    ] {
        let outside = CopyFileRequest {
            path: path.into(),
            ..Default::default()
        };
        let failed = client.copy_file(outside).await.unwrap_err();
        assert_eq!(failed.kind(), Some(FailureKind::Invalid), "{path}");
    }
}

async fn volumes(client: &Client) {
    let volume = "/run/kata-containers/main/writable";
    let stats = async || {
        let request = VolumeStatsRequest {
            volume_guest_path: volume.into(),
            ..Default::default()
        };
        client.get_volume_stats(request).await.unwrap().usage
    };
    let update = |driver: &str| UpdateEphemeralMountsRequest {
        storages: vec![Storage {
            driver: driver.into(),
            fstype: "tmpfs".into(),
            mount_point: volume.into(),
            options: vec!["size=32m".into()],
            ..Default::default()
        }],
        ..Default::default()
    };
    assert_ne!(stats().await[0].total, 32 << 20);
    client.update_ephemeral_mounts(update("ephemeral")).await.unwrap();
    let usage = stats().await;
    assert_eq!(usage[0].total, 32 << 20, "bytes");
    assert_eq!(usage[1].total, usage[1].used + usage[1].available, "inodes");
    let failed = client.update_ephemeral_mounts(update("blk")).await.unwrap_err();
    assert_eq!(failed.kind(), Some(FailureKind::Unsupported));
    let resize = ResizeVolumeRequest {
        volume_guest_path: volume.into(),
        size: 64 << 20,
        ..Default::default()
    };
    let failed = client.resize_volume(resize).await.unwrap_err();
    assert_eq!(failed.kind(), Some(FailureKind::Unsupported), "only ext4 grows");
    client
        .remove_stale_virtiofs_share_mounts(RemoveStaleVirtiofsShareMountsRequest::new())
        .await
        .unwrap();
}

async fn machine(bed: &Bed, client: &Client) {
    let details = client
        .get_guest_details(GuestDetailsRequest {
            mem_hotplug_probe: true,
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(details.agent_details.init_daemon, bed.has_guest());
    let online = |wait: bool, nb_cpus: u32| OnlineCPUMemRequest {
        wait,
        nb_cpus,
        ..Default::default()
    };
    client.online_cpu_mem(online(true, 0)).await.unwrap();
    let failed = client.online_cpu_mem(online(true, 3)).await.unwrap_err();
    assert_eq!(failed.kind(), Some(FailureKind::Guest), "no processor is added");
    if !details.support_mem_hotplug_probe || !bed.has_guest() {
        let failed = client
            .mem_hotplug_by_probe(MemHotplugByProbeRequest::new())
            .await
            .unwrap_err();
        assert_eq!(failed.kind(), Some(FailureKind::Unsupported));
    }
    let swap = AddSwapPathRequest {
        path: "/dev/null".into(),
        ..Default::default()
    };
    let kind = client.add_swap_path(swap).await.unwrap_err().kind();
    let expected = if bed.has_guest() {
        FailureKind::Guest
    } else {
        FailureKind::Unsupported
    };
    assert_eq!(kind, Some(expected), "no swap area");
    let seed = ReseedRandomDevRequest {
        data: vec![7; 64],
        ..Default::default()
    };
    client.reseed_random_dev(seed).await.unwrap();
    if bed.has_guest() {
        let clock = SetGuestDateTimeRequest {
            sec: 4_102_444_800,
            ..Default::default()
        };
        client.set_guest_date_time(clock).await.unwrap();
        assert_eq!(
            run(client, MAIN, "date", "date -u +%Y").await,
            (0, "2100\n".into())
        );
    }
    let metrics = client
        .get_metrics(GetMetricsRequest::new())
        .await
        .unwrap()
        .metrics;
    for metric in [
        "kata_guest_meminfo{item=\"mem_total\"} ",
        "kata_agent_threads 1\n",
    ] {
        assert!(metrics.contains(metric), "{metric} in {metrics}");
    }
}

async fn not_offered(client: &Client) {
    let answers = [
        client.add_swap(AddSwapRequest::new()).await,
        client.set_policy(SetPolicyRequest::new()).await,
        client.mem_agent_memcg_set(MemAgentMemcgConfig::new()).await,
        client.mem_agent_compact_set(MemAgentCompactConfig::new()).await,
    ];
    for answer in answers {
        assert_eq!(answer, Err(CallError::Unimplemented));
    }
}

on_every_backend! {
    /// Conformance: api ListInterfaces
    /// Conformance: api UpdateInterface
    /// Conformance: api ListRoutes
    /// Conformance: api UpdateRoutes
    /// Conformance: api AddARPNeighbors
    /// Conformance: api GetIPTables
    /// Conformance: api SetIPTables
    /// Conformance: api CopyFile
    /// Conformance: api GetVolumeStats
    /// Conformance: api ResizeVolume
    /// Conformance: api UpdateEphemeralMounts
    /// Conformance: api RemoveStaleVirtiofsShareMounts
    /// Conformance: api GetGuestDetails
    /// Conformance: api OnlineCPUMem
    /// Conformance: api MemHotplugByProbe
    /// Conformance: api AddSwapPath
    /// Conformance: api AddSwap
    /// Conformance: api SetPolicy
    /// Conformance: api MemAgentMemcgSet
    /// Conformance: api MemAgentCompactSet
    /// Conformance: api ReseedRandomDev
    /// Conformance: api SetGuestDateTime
    /// Conformance: api GetMetrics
    /// Conformance: api Check
    /// Conformance: api Version
    /// Conformance: api CreateSandbox
    /// Conformance: api DestroySandbox
    async fn the_guest_answers_every_method(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        client.check().await.unwrap();
        assert_eq!(client.version().await.unwrap().grpc_version, "0.0.1");
        interfaces(&client).await;
        routes(&client).await;
        files(&client).await;
        volumes(&client).await;
        machine(&bed, &client).await;
        not_offered(&client).await;
        // The SDK has set the sandbox up.
        let again = client.create_sandbox(CreateSandboxRequest::new()).await.unwrap_err();
        assert_eq!(again.kind(), Some(FailureKind::AlreadyExists));
        client.destroy_sandbox(DestroySandboxRequest::new()).await.unwrap();
        client.closed().await;
        assert_eq!(client.check().await, Err(CallError::Closed));
    }
}
