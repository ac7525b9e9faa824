//! The agent's methods for files and volumes of the guest.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod bed;

use api::inside::Inside;
use api::{MAIN, client, creation, read_all, run, start};
use bed::Bed;
use kata_agent_proto::agent::{
    CopyFileRequest, ResizeVolumeRequest, Storage, UpdateEphemeralMountsRequest, VolumeStatsRequest,
};
use kata_agent_proto::csi::volume_usage::Unit;
use kata_agent_proto::{CallError, Client, FailureKind, oci};
use kata_sandbox::Sandbox;

/// The host's directory in the guest.
const SHARED: &str = "/run/kata-containers/shared/containers";

fn failed(kind: FailureKind, subject: &str) -> CallError {
    let subject = subject.to_owned();
    CallError::Failed { kind, subject }
}

/// Bytes of a volume, all and used, and the same of its files.
async fn usage(client: &Client, volume: &str) -> [(u64, u64); 2] {
    let request = VolumeStatsRequest {
        volume_guest_path: volume.into(),
        ..Default::default()
    };
    let stats = client.get_volume_stats(request).await.unwrap();
    assert!(!stats.volume_condition.abnormal);
    let units: Vec<_> = stats.usage.iter().map(|usage| usage.unit.unwrap()).collect();
    assert_eq!(units, [Unit::BYTES, Unit::INODES]);
    [0, 1].map(|index| {
        let usage = &stats.usage[index];
        assert_eq!(usage.total, usage.used + usage.available);
        (usage.total, usage.used)
    })
}

async fn resize(client: &Client, volume: &str, size: u64) -> Result<(), CallError> {
    let request = ResizeVolumeRequest {
        volume_guest_path: volume.into(),
        size,
        ..Default::default()
    };
    client.resize_volume(request).await
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

/// A volume of memory is counted, and gets another size while it is used.
async fn memory(client: &Client) {
    let volume = "/run/kata-containers/main/writable";
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
    let [before, files] = usage(client, volume).await;
    assert_ne!(before.0, 32 << 20);
    client.update_ephemeral_mounts(update("ephemeral")).await.unwrap();
    assert_eq!(usage(client, volume).await, [(32 << 20, before.1), files]);
    let script = "head -c 5242880 /dev/zero > /five; head -c 40000000 /dev/zero > /forty; rm /forty";
    let (_, complaint) = run(client, MAIN, "fills", &format!("exec 2>&1; {script}")).await;
    assert!(complaint.ends_with("No space left on device\n"), "{complaint}");
    let [bytes, inodes] = usage(client, volume).await;
    assert_eq!(bytes, (32 << 20, before.1 + (5 << 20)));
    assert_eq!(inodes, (files.0, files.1 + 1));
    let other = "updating a mount of driver \"blk\" with file system \"tmpfs\"";
    assert_eq!(
        client.update_ephemeral_mounts(update("blk")).await,
        Err(failed(FailureKind::Unsupported, other))
    );
    let grown = resize(client, volume, 64 << 20).await;
    let only = format!("{volume}: resizing anything but ext4");
    assert_eq!(grown, Err(failed(FailureKind::Unsupported, &only)));
}

/// Whether the kernel lets a process of this host grow a file system: not every root may (capabilities(7),
/// CAP_SYS_RESOURCE is number 24).
fn may_grow() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() >> 24 & 1 == 1
}

/// A file system grows with its disk, while it is used.
async fn disk(bed: &Bed, client: &Client) {
    const VOLUME: &str = "/run/kata-containers/volume-on-disk";
    let mut inside = Inside::new(client).await;
    let disk = inside.disk("/volume.img", 32 << 20).await;
    inside.done(&format!("mkfs.ext4 -q -F {disk}")).await;
    inside.mount(&disk, VOLUME, "ext4").await;
    // The agent's files are seen by way of its process.
    let file = format!("/proc/1/root{VOLUME}/file");
    inside.done(&format!("echo kept > {file}")).await;
    let [bytes, inodes] = usage(client, VOLUME).await;
    assert!((24 << 20..32 << 20).contains(&bytes.0), "{bytes:?}");
    assert!(bytes.1 > 0 && inodes.1 > 0, "{bytes:?} {inodes:?}");

    if !bed.has_guest() && !may_grow() {
        let refused = failed(
            FailureKind::Guest,
            &format!("{VOLUME}: Operation not permitted (os error 1)"),
        );
        assert_eq!(resize(client, VOLUME, 64 << 20).await, Err(refused));
        assert_eq!(usage(client, VOLUME).await, [bytes, inodes]);
        return;
    }
    // The disk has no place for it yet.
    let early = resize(client, VOLUME, 64 << 20).await;
    let no_place = failed(
        FailureKind::Guest,
        &format!("{VOLUME}: No space left on device (os error 28)"),
    );
    assert_eq!(early, Err(no_place));
    assert_eq!(usage(client, VOLUME).await, [bytes, inodes]);

    inside
        .done(&format!(
            "truncate -s {} /volume.img && losetup --set-capacity {disk}",
            64 << 20
        ))
        .await;
    resize(client, VOLUME, 64 << 20).await.unwrap();
    let [grown, more_files] = usage(client, VOLUME).await;
    let growth = grown.0 - bytes.0;
    assert!((28 << 20..=32 << 20).contains(&growth), "{bytes:?} {grown:?}");
    assert!(
        more_files.0 > inodes.0 && more_files.1 == inodes.1,
        "{inodes:?} {more_files:?}"
    );
    // There is place for what there was none before.
    let fill = format!("head -c 41943040 /dev/zero > {file}.large && cat {file}");
    assert_eq!(inside.done(&fill).await, "kept");

    for (size, kind, subject) in [
        (
            16 << 20,
            FailureKind::Guest,
            format!("{VOLUME}: Invalid argument (os error 22)"),
        ),
        (100, FailureKind::Invalid, "size 100".to_owned()),
    ] {
        assert_eq!(
            resize(client, VOLUME, size).await,
            Err(failed(kind, &subject)),
            "smaller"
        );
        assert_eq!(usage(client, VOLUME).await[0].0, grown.0);
    }
    let nowhere = failed(
        FailureKind::Guest,
        "/run/nowhere: No such file or directory (os error 2)",
    );
    assert_eq!(
        resize(client, "/run/nowhere", 64 << 20).await,
        Err(nowhere.clone())
    );
    let request = VolumeStatsRequest {
        volume_guest_path: "/run/nowhere".into(),
        ..Default::default()
    };
    assert_eq!(client.get_volume_stats(request).await, Err(nowhere));
}

on_every_backend! {
    /// Conformance: api CopyFile
    async fn files_are_copied_in_pieces_and_mounted(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        files(&client).await;
        sandbox.stop().await.unwrap();
    }

    /// Conformance: api GetVolumeStats
    /// Conformance: api UpdateEphemeralMounts
    async fn a_volume_of_memory_is_counted_and_gets_another_size(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        memory(&client(&sandbox).await).await;
        sandbox.stop().await.unwrap();
    }

    /// Conformance: api GetVolumeStats
    /// Conformance: api ResizeVolume
    async fn a_file_system_grows_with_its_disk(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        disk(&bed, &client(&sandbox).await).await;
        sandbox.stop().await.unwrap();
    }
}
