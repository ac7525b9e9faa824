//! Volumes of the guest: what they hold, and changing them while they are mounted.
//!
//! Must not know containers: a volume is a path outside of them.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use kata_agent_proto::agent::{ResizeVolumeRequest, UpdateEphemeralMountsRequest, VolumeStatsRequest};
use kata_agent_proto::csi::volume_usage::Unit;
use kata_agent_proto::csi::{VolumeCondition, VolumeStatsResponse, VolumeUsage};
use kata_agent_proto::{Failed, FailureKind, agent};
use protobuf::well_known_types::empty::Empty;

use super::{guest_failure, storage};
use crate::sys;

/// Where a host's shared directories are mounted.
const SHARES: &str = "/run/kata-containers/shared/containers/";

/// Type of ext2, ext3 and ext4 (linux/magic.h).
const EXT4_SUPER_MAGIC: i64 = 0xef53;

/// Gives ephemeral volumes that are mounted other options, such as a size.
pub(super) fn update_ephemeral_mounts(request: UpdateEphemeralMountsRequest) -> Result<Empty, Failed> {
    if let Some(other) = request.storages.iter().find(|storage| !is_ephemeral(storage)) {
        let agent::Storage { driver, fstype, .. } = other;
        return Err(Failed::new(
            FailureKind::Unsupported,
            format!("updating a mount of driver {driver:?} with file system {fstype:?}"),
        ));
    }
    for volume in &request.storages {
        let (flags, text) = storage::parse_options(&volume.options);
        let remounted = std::ffi::CString::new(text)
            .map_err(io::Error::from)
            .and_then(|text| {
                Ok(rustix::mount::mount_remount(
                    &volume.mount_point,
                    flags,
                    text.as_c_str(),
                )?)
            });
        remounted
            .map_err(|error| Failed::new(FailureKind::Mount, format!("{}: {error}", volume.mount_point)))?;
    }
    Ok(Empty::new())
}

fn is_ephemeral(storage: &agent::Storage) -> bool {
    storage.driver == "ephemeral" && storage.fstype == "tmpfs"
}

/// Looks at every directory that the host shares, so that what is gone there is forgotten here.
pub(super) fn visit_shares() -> Result<Empty, Failed> {
    let mounts = fs::read_to_string("/proc/self/mountinfo");
    let mounts = mounts.map_err(|error| guest_failure("mountinfo", &error))?;
    for share in mount_points(&mounts).filter(|path| path.starts_with(SHARES)) {
        // That it is gone is what shall be noticed.
        let _ = fs::metadata(share);
    }
    Ok(Empty::new())
}

/// The fifth field of each line (proc_pid_mountinfo(5)).
fn mount_points(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4))
}

/// What a volume has and holds, in bytes and in files.
pub(super) fn stats(request: VolumeStatsRequest) -> Result<VolumeStatsResponse, Failed> {
    let path = &request.volume_guest_path;
    let stats = rustix::fs::statvfs(path).map_err(|error| guest_failure(path, &error.into()))?;
    let usage = |unit: Unit, total: u64, available: u64, size: u64| VolumeUsage {
        unit: unit.into(),
        total: total.saturating_mul(size),
        available: available.saturating_mul(size),
        used: total.saturating_sub(available).saturating_mul(size),
        ..Default::default()
    };
    Ok(VolumeStatsResponse {
        usage: vec![
            usage(Unit::BYTES, stats.f_blocks, stats.f_bfree, stats.f_bsize),
            usage(Unit::INODES, stats.f_files, stats.f_ffree, 1),
        ],
        volume_condition: Some(VolumeCondition {
            abnormal: false,
            message: "OK".into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    })
}

/// Grows the file system of a volume, whose device has grown, to a size in bytes.
pub(super) fn resize(request: ResizeVolumeRequest) -> Result<Empty, Failed> {
    let path = Path::new(&request.volume_guest_path);
    let failure = |error: io::Error| guest_failure(path.display(), &error);
    let volume = File::open(path).map_err(failure)?;
    let stats = rustix::fs::fstatfs(&volume).map_err(|error| failure(error.into()))?;
    if stats.f_type != EXT4_SUPER_MAGIC {
        return Err(Failed::new(
            FailureKind::Unsupported,
            format!("{}: resizing anything but ext4", path.display()),
        ));
    }
    let blocks = u64::try_from(stats.f_bsize)
        .ok()
        .and_then(|block| request.size.checked_div(block));
    let blocks = blocks.filter(|blocks| *blocks > 0);
    let blocks = blocks.ok_or_else(|| Failed::new(FailureKind::Invalid, format!("size {}", request.size)))?;
    sys::resize_ext4(&volume, blocks).map_err(failure)?;
    Ok(Empty::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_counted_in_bytes_and_files() {
        let request = |path: &str| VolumeStatsRequest {
            volume_guest_path: path.into(),
            ..Default::default()
        };
        let stats = super::stats(request("/")).expect("counted");
        let [bytes, inodes] = &stats.usage[..] else {
            unreachable!("two counts")
        };
        assert_eq!(
            (bytes.unit, inodes.unit),
            (Unit::BYTES.into(), Unit::INODES.into())
        );
        assert_eq!(bytes.total, bytes.used + bytes.available);
        assert!(bytes.total > 0);
        assert_eq!(
            super::stats(request("/no/such/volume")).expect_err("none").kind,
            FailureKind::Guest
        );
    }

    #[test]
    fn mount_points_are_told_from_the_rest() {
        let text = "22 1 0:21 / /proc rw - proc proc rw\n23 1 0:22 / /run/kata-containers/shared/containers/x rw - virtiofs kata rw\n";
        let found: Vec<&str> = mount_points(text)
            .filter(|path| path.starts_with(SHARES))
            .collect();
        assert_eq!(found, ["/run/kata-containers/shared/containers/x"]);
    }

    #[test]
    fn only_ephemeral_mounts_are_updated() {
        let request = UpdateEphemeralMountsRequest {
            storages: vec![agent::Storage {
                driver: "blk".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let failed = update_ephemeral_mounts(request).expect_err("refused");
        assert_eq!(failed.kind, FailureKind::Unsupported);
    }
}
