//! `mounts`, `root` and the paths of a specification: what is mounted where, how, and what cannot be reached by it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;
mod guest;

use bed::Bed;
use guest::{Guest, ROOT, bind, mount, spec, tmpfs, with_linux};
use kata_agent_proto::{FailureKind, oci};

fn with_mounts(mounts: Vec<oci::Mount>, script: &str) -> oci::Spec {
    let mut spec = spec(script);
    spec.mounts.extend(mounts);
    spec
}

fn in_root(path: &str) -> String {
    format!("{ROOT}{path}")
}

/// The options of a mount, as the kernel tells them.
fn options(path: &str) -> String {
    format!("awk '$5 == \"{path}\" {{ print $6 }}' /proc/self/mountinfo | tail -1")
}

/// Bind mounts of the guest's directories and files.
async fn binds_what_the_guest_has(guest: &Guest) {
    // Directories and files of the guest, with and without what is mounted in them. The guest's memory file system
    // `/run` has no devices, and a bind mount keeps that unless it says otherwise.
    let mounts = vec![
        bind(&in_root("/tree"), "/bound", &["bind", "ro"]),
        bind(&in_root("/tree/file"), "/etc/hostname", &["bind"]),
        bind(
            &in_root("/tree/file"),
            "/new/name",
            &["rbind", "noexec", "nosuid"],
        ),
        tmpfs("/outer", &["mode=755"]),
        tmpfs("/outer/in", &[]),
        bind("/proc", "/all", &["rbind", "rro", "rnodev"]),
        bind("/proc", "/one", &["bind"]),
    ];
    let looks = [
        "cat /bound/file /etc/hostname /new/name".into(),
        "echo x 2>/dev/null >>/bound/file || echo bound is read-only; echo more >>/etc/hostname; cat /tree/file".into(),
        options("/bound"),
        options("/new/name"),
    ];
    let seen = guest.output(with_mounts(mounts, &looks.join("; "))).await;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..3], ["file"; 3], "{seen}");
    assert_eq!(lines[3..6], ["bound is read-only", "file", "more"], "{seen}");
    assert!(lines[6].starts_with("ro,"), "{seen}");
    assert!(
        lines[7].contains("noexec") && lines[7].contains("nosuid"),
        "{seen}"
    );
}

/// A directory with files of users 0 and 5 in the agent's memory file system, whose owners can be shown as others.
async fn owned_files(guest: &Guest) -> &'static str {
    let make = "stat -f -c %T /there; mkdir /there/owned && touch /there/owned/root && install -o 5 -g 6 /dev/null /there/owned/five";
    let made = guest
        .output(with_mounts(vec![bind("/run", "/there", &["bind"])], make))
        .await;
    assert_eq!(made, "tmpfs");
    "/run/owned"
}

on_every_backend! {
    /// Conformance: oci mounts.destination
    /// Conformance: oci mounts.source
    /// Conformance: oci mounts.type
    /// Conformance: oci mounts.options.ro
    /// Conformance: oci mounts.options.nosuid
    /// Conformance: oci mounts.options.nodev
    /// Conformance: oci mounts.options.noexec
    /// Conformance: oci mounts.options.noatime
    /// Conformance: oci mounts.options.bind
    /// Conformance: oci mounts.options.rbind
    /// Conformance: oci mounts.options.recursive
    /// Conformance: oci mounts.options.tmpcopyup
    /// Conformance: oci mounts.options.data
    async fn a_mount_is_what_its_options_say(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        guest.shell("mkdir -p /tree/sub /full && echo file >/tree/file && echo kept >/full/file && chmod 1770 /full && ln -s file /full/link").await;

        // New file systems: flags, data, order, and places that are made for them.
        let mounts = vec![
            tmpfs("/made/for/it", &["ro", "nosuid", "nodev", "noexec", "noatime", "size=64k", "mode=0710"]),
            tmpfs("/made/for/it/inner", &["strictatime", "nodiratime"]),
            tmpfs("relative", &["sync", "dirsync", "defaults", "rw", "suid", "dev", "exec"]),
        ];
        let looks = [
            options("/made/for/it"),
            "stat -c '%a %T' -f /made/for/it; stat -c %a /made/for/it; df --output=size /made/for/it | tail -1".into(),
            "touch /made/for/it/x 2>/dev/null || echo read-only; touch /made/for/it/inner/x && echo writable".into(),
            options("/made/for/it/inner"),
            options("/relative"),
            "grep ' /relative ' /proc/mounts | cut -d' ' -f4".into(),
        ];
        let seen = guest.output(with_mounts(mounts, &looks.join("; "))).await;
        let seen: Vec<&str> = seen.lines().map(str::trim).collect();
        assert_eq!(seen[0], "ro,nosuid,nodev,noexec,noatime", "{seen:?}");
        assert_eq!(seen[2..4], ["710", "64"], "{seen:?}");
        assert_eq!(seen[4..6], ["read-only", "writable"], "{seen:?}");
        assert_eq!(seen[6], "rw,nodiratime", "{seen:?}");
        assert_eq!(seen[7], "rw,relatime", "{seen:?}");
        assert!(seen[8].contains("sync") && seen[8].contains("dirsync"), "{seen:?}");

        binds_what_the_guest_has(&guest).await;

        // `bind` is one mount, `rbind` is all below it, and so are the options with an r.
        let mounts = vec![
            tmpfs("/outer", &[]),
            tmpfs("/outer/in", &[]),
            bind("/sys", "/all", &["rbind", "rro", "rnoexec", "rstrictatime"]),
            bind("/sys", "/one", &["bind", "rw"]),
        ];
        let count = |path: &str| format!("awk '$5 ~ \"^{path}\"' /proc/self/mountinfo | wc -l");
        let looks = [
            format!("test $({}) -gt 1 && echo all", count("/all")),
            count("/one"),
            "awk '$5 ~ \"^/all\" && $6 !~ /^ro.*noexec/' /proc/self/mountinfo | wc -l".into(),
        ];
        assert_eq!(guest.output(with_mounts(mounts, &looks.join("; "))).await, "all\n1\n0");

        // A tmpfs that begins with what it covers.
        let mounts = vec![tmpfs("/full", &["tmpcopyup", "mode=0755"])];
        let looks = "cat /full/file /full/link; stat -c %a /full; echo gone >/full/file; stat -f -c %T /full";
        assert_eq!(guest.output(with_mounts(mounts, looks)).await, "kept\nkept\n1770\ntmpfs");
        assert_eq!(guest.shell("cat /full/file").await, "kept");

        // A mount that is there already gets other options.
        let mounts = vec![
            tmpfs("/again", &["size=64k"]),
            mount("/again", "tmpfs", "tmpfs", &["remount", "ro", "size=128k"]),
        ];
        let looks = format!("{}; df --output=size /again | tail -1", options("/again"));
        let seen = guest.output(with_mounts(mounts, &looks)).await;
        assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["ro,relatime", "128"]);

        // Many are many.
        let many = (0..2000).map(|number| tmpfs(&format!("/many/{number}"), &["size=4k"])).collect();
        assert_eq!(guest.output(with_mounts(many, "grep -c ' /many/' /proc/self/mountinfo")).await, "2000");
        guest.stop().await;
    }

    /// Conformance: oci root.readonly
    /// Conformance: oci linux.maskedPaths
    /// Conformance: oci linux.readonlyPaths
    /// Conformance: oci linux.rootfsPropagation
    /// Conformance: oci mounts.options.propagation
    async fn what_is_hidden_or_protected_stays_so(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        guest.shell("mkdir -p /secret/dir && echo s >/secret/file && mkdir -p /kept && echo k >/kept/file").await;
        let paths = |linux: &mut oci::Linux| {
            linux.masked_paths = ["/secret/file", "/secret/dir", "/proc/cpuinfo", "/not/there"].map(String::from).to_vec();
            linux.readonly_paths = ["/kept", "/proc/sys", "/not/there"].map(String::from).to_vec();
        };
        let looks = "cat /secret/file /proc/cpuinfo; ls /secret/dir; touch /secret/dir/x 2>/dev/null || echo masked; \
                     touch /kept/x 2>/dev/null || echo protected; echo 1 2>/dev/null >/proc/sys/kernel/printk || echo settings too; \
                     cat /kept/file; touch /elsewhere && echo the rest is writable";
        let seen = guest.output(with_linux(paths, looks)).await;
        assert_eq!(seen, "masked\nprotected\nsettings too\nk\nthe rest is writable");

        let mut read_only = spec("touch /x 2>/dev/null || echo read-only; touch /dev/shm-x && echo but not /dev; cat /kept/file");
        read_only.root.mut_or_insert_default().readonly = true;
        assert_eq!(guest.output(read_only).await, "read-only\nbut not /dev\nk");

        // The fields behind the options of mountinfo(5) tell propagation.
        let tells = |path: &str| format!("awk '$5 == \"{path}\" {{ gsub(/:[0-9]+/, \"\"); print $7 }}' /proc/self/mountinfo | tail -1");
        for (word, told) in [("", "-"), ("private", "-"), ("rslave", "-"), ("shared", "shared"), ("unbindable", "unbindable")] {
            let change = |linux: &mut oci::Linux| linux.rootfs_propagation = word.into();
            assert_eq!(guest.output(with_linux(change, &tells("/"))).await, told, "rootfsPropagation {word:?}");
        }
        let mounts = vec![
            tmpfs("/a", &["shared"]),
            tmpfs("/b", &["private"]),
            tmpfs("/c", &["unbindable"]),
            bind("/proc", "/d", &["rbind", "rshared"]),
            bind("/proc", "/e", &["rbind", "rslave", "shared"]),
            bind("/sys", "/all", &["rbind", "rshared"]),
            bind("/sys", "/top", &["rbind", "rprivate", "shared"]),
            bind("/sys", "/none", &["rbind", "rshared", "rprivate"]),
        ];
        // Of what is mounted below, how many are shared.
        let below = |path: &str| {
            let count = |of: &str| format!("$(awk '$5 ~ \"^{path}/\" {of}' /proc/self/mountinfo | wc -l)");
            format!("test {} -gt 0 && echo {} of {}", count(""), count("&& $7 ~ /^shared/"), count(""))
        };
        let looks = ["/a", "/b", "/c", "/d", "/e", "/all", "/top", "/none"].map(tells);
        let seen = guest.output(with_mounts(mounts, &looks.into_iter().chain(["/all", "/top", "/none"].map(below)).collect::<Vec<_>>().join("; "))).await;
        let seen: Vec<&str> = seen.lines().collect();
        assert_eq!(seen[..8], ["shared", "-", "unbindable", "shared", "shared", "shared", "shared", "-"], "{seen:?}");
        let all = seen[8].split_once(" of ").unwrap();
        assert_eq!(all.0, all.1, "{seen:?}");
        assert!(seen[9..].iter().all(|told| told.starts_with("0 of ")), "{seen:?}");
        guest.stop().await;
    }

    /// Conformance: oci mounts.uidMappings
    async fn a_mount_can_show_other_owners(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let source = owned_files(&guest).await;
        let map = |container_id, host_id| oci::LinuxIDMapping { container_id, host_id, size: 100, ..Default::default() };
        let mapped = |source: &str| {
            let mut mapped = bind(source, "/shown", &["bind", "idmap"]);
            // In the mount, what belongs to 0 belongs to 1000.
            mapped.uid_mappings = vec![map(0, 1000)];
            mapped.gid_mappings = vec![map(0, 2000)];
            with_mounts(vec![mapped], "stat -c '%u %g' /shown/root /shown/five")
        };
        assert_eq!(guest.output(mapped(source)).await, "1000 2000\n1005 2006");
        // What cannot be mapped is the kernel's to say.
        guest.refused_as(mapped("/proc"), FailureKind::Unsupported, "mounts[4].options: idmap").await;
        let nothing = with_mounts(vec![bind("/proc", "/x", &["bind", "idmap"])], "true");
        guest.refused_as(nothing, FailureKind::Invalid, "mounts[4].uidMappings").await;
        let new = with_mounts(vec![tmpfs("/x", &["idmap"])], "true");
        guest.refused_as(new, FailureKind::Unsupported, "mounts[4].options: idmap").await;
        guest.stop().await;
    }

    async fn no_mount_leads_out_of_the_root_or_stays_behind(bed: Bed) {
        let guest = Guest::boot(&bed).await;
        let before = guest.traces().await;
        guest.shell("ln -s /../../../../tmp/out /absolute; ln -s ../../../../up /relative; mkdir -p /inside; ln -s /inside /link; ln -s /proc/1/root /magic").await;
        // Links lead where they lead in the root, and what is missing there is made there.
        let mounts = vec![
            tmpfs("/absolute", &["size=4k"]),
            tmpfs("/relative/deep", &["size=8k"]),
            tmpfs("/link/here", &["size=12k"]),
            tmpfs("/../../dots", &["size=16k"]),
        ];
        let seen = guest.output(with_mounts(mounts, "grep -E ' (/tmp/out|/up/deep|/inside/here|/dots) ' /proc/mounts | wc -l")).await;
        assert_eq!(seen, "4");
        assert_eq!(guest.traces().await, before);

        let mount_fails = |mounts: Vec<oci::Mount>, subject: &'static str| (with_mounts(mounts, "true"), FailureKind::Mount, subject);
        let invalid = |mounts: Vec<oci::Mount>, subject: &'static str| (with_mounts(mounts, "true"), FailureKind::Invalid, subject);
        let cases = vec![
            mount_fails(vec![tmpfs("/magic/etc", &[])], "mounts[4].destination"),
            mount_fails(vec![mount("/link/proc", "proc", "proc", &[])], "mounts[4].destination"),
            mount_fails(vec![tmpfs("/ok", &[]), tmpfs("/etc/passwd/x", &[])], "mounts[5].destination"),
            mount_fails(vec![tmpfs("/ok", &[]), tmpfs("/x", &["no-such-option=1"])], "mounts[5]: tmpfs"),
            mount_fails(vec![mount("/x", "no-such-fs", "none", &[])], "mounts[4]: no-such-fs"),
            mount_fails(vec![bind("/no/such/source", "/x", &["bind"])], "mounts[4].source"),
            mount_fails(vec![bind("/proc", "/etc/passwd", &["bind"])], "mounts[4].destination"),
            mount_fails(vec![mount("/not/mounted", "", "", &["remount", "ro"])], "mounts[4]"),
            invalid(vec![tmpfs("", &[])], "mounts[4].destination"),
            invalid(vec![tmpfs("/a\0b", &[])], "mounts[4].destination"),
            invalid(vec![mount("/x", "", "", &[])], "mounts[4].type"),
            invalid(vec![bind("", "/x", &["bind"])], "mounts[4].source"),
            invalid(vec![bind("/proc", "/x", &["bind", "size=1"])], "mounts[4].options"),
            (with_mounts(vec![tmpfs("/", &[])], "true"), FailureKind::Unsupported, "mounts[4].destination"),
        ];
        for (spec, kind, subject) in cases {
            guest.refused_as(spec, kind, subject).await;
        }
        let mut nowhere = spec("true");
        nowhere.root.mut_or_insert_default().path = "/no/such/root".into();
        guest.refused_as(nowhere, FailureKind::NoSuchDirectory, "/no/such/root").await;
        let mut many = (0..10_000).map(|number| tmpfs(&format!("/many/{number}"), &["size=4k"])).collect::<Vec<_>>();
        many.push(tmpfs("/x", &["no-such-option=1"]));
        guest.refused_as(with_mounts(many, "true"), FailureKind::Mount, "mounts[10004]: tmpfs").await;
        assert_eq!(guest.traces().await, before, "nothing is left");
        assert_eq!(guest.output(spec("echo goes on")).await, "goes on");
        guest.stop().await;
    }
}
