//! Identity, time and what a container sees of its surroundings: `docs/conformance.md`, behaviours 17, 18 and 22.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bed::{Bed, script, text};
use kata_sandbox::{Container, MiB, Sandbox};

on_every_backend! {
    /// Conformance: semantics 17
    async fn the_clock_is_the_hosts_to_a_part_of_a_second(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let host = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let before = host();
        let guest: f64 = text(&script(&sandbox, "date +%s.%N").await).parse().unwrap();
        let after = host();
        // The machine's own clock counts whole seconds: without being set, the guest's is behind by a part of one.
        assert!((before - 0.25..after + 0.25).contains(&guest), "guest {guest}, host {before} to {after}");
    }

    /// Conformance: semantics 17
    async fn each_sandbox_has_a_name_and_entropy_of_its_own(bed: Bed) {
        let ask = "hostname; head -c 16 /dev/urandom | od -An -tx1";
        let (a, b) = tokio::join!(Sandbox::run(bed.shell(ask)), Sandbox::run(bed.shell(ask)));
        let (a, b) = (text(&a.unwrap()), text(&b.unwrap()));
        assert_ne!(a.lines().next(), b.lines().next());
        assert_ne!(a.lines().nth(1), b.lines().nth(1));
        let named = Sandbox::run(bed.shell("hostname; cat /proc/sys/kernel/hostname").hostname("box")).await;
        assert_eq!(text(&named.unwrap()), "box\nbox");
    }

    /// Conformance: semantics 18
    async fn resolv_conf_and_hosts_are_there_also_when_the_image_lacks_them(bed: Bed) {
        let directory = tempfile::tempdir().unwrap();
        let image = without_network_files(&bed, directory.path());
        let script = "cat /etc/hosts; test -f /etc/resolv.conf && test -f /etc/hostname";
        let container = Container::new(image).backend(bed.backend).args(["sh", "-c", script]);
        let output = Sandbox::run(container).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text(&output).contains("localhost"), "{}", text(&output));
    }

    /// Conformance: semantics 22
    async fn configuration_does_not_travel_on_the_kernel_command_line(bed: Bed) {
        if !bed.has_guest() {
            return bed.cannot_tell("a process has no kernel of its own");
        }
        let long = "secret".repeat(4000);
        let container = bed.shell("printf %s \"$LONG\" | wc -c; cat /proc/cmdline").env("LONG", long);
        let output = Sandbox::run(container.hostname("by-another-way")).await.unwrap();
        let (count, command_line) = text(&output).split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        assert_eq!(count.trim(), "24000");
        assert!(!command_line.contains("secret") && !command_line.contains("by-another-way"));
        assert!(command_line.len() < 512, "{command_line}");
    }

    async fn a_container_sees_a_system_of_its_own(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        assert_eq!(text(&script(&sandbox, "ls /sys/class/net").await), "lo");
        let root = text(&script(&sandbox, "awk '$2 == \"/\" { print $3 }' /proc/mounts || cat /proc/mounts").await);
        assert!(root.contains("overlay"), "{root}");
        let pids = text(&script(&sandbox, "ls /proc | grep -c '^[0-9]'").await);
        assert!(pids.parse::<u32>().unwrap() < 8, "{pids} processes");
        assert!(script(&sandbox, "echo new > /etc/motd && rm -rf /usr/games && cat /etc/motd").await.status.success());
        assert!(!script(&sandbox, "echo b > /proc/sysrq-trigger").await.status.success());
        assert!(!script(&sandbox, "mount -t tmpfs t /mnt").await.status.success(), "it has no CAP_SYS_ADMIN");
    }

    async fn what_one_sandbox_writes_no_other_sees(bed: Bed) {
        let wrote = Sandbox::run(bed.shell("echo mine > /root/file && sync && cat /root/file")).await.unwrap();
        assert_eq!(text(&wrote), "mine");
        let other = Sandbox::run(bed.shell("test -e /root/file")).await.unwrap();
        assert_eq!(other.status.code(), 1);
    }

    async fn memory_and_processors_are_what_was_asked_for(bed: Bed) {
        if !bed.has_guest() {
            return;
        }
        let container = bed.shell("nproc; awk '/MemTotal/ { print $2 }' /proc/meminfo || grep MemTotal /proc/meminfo");
        let output = Sandbox::run(container.vcpus(2).memory(MiB(320))).await.unwrap();
        let text = text(&output);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("2"), "{text}");
        let kib: u64 = lines.next().unwrap().chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap();
        assert!(((200 << 10)..(320 << 10)).contains(&kib), "{kib} KiB");
    }

    async fn info_says_where_it_runs_and_why(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let info = sandbox.info();
        assert_eq!(info.kernel_release, text(&script(&sandbox, "uname -r").await));
        assert!(info.pids.len() >= bed.processes() && info.pids[0] == info.monitor_pid);
        assert!(info.image_digest.starts_with("sha256:"));
        assert!(!info.selection.reason.to_string().is_empty());
        assert!(!info.hypervisor_version.is_empty());
        let stages: Vec<_> = info.timings.iter().map(|(stage, _)| stage).collect();
        assert!(stages.is_sorted() && stages.len() >= 8, "{stages:?}");
    }
}

/// The test's image without the files that the agent makes.
fn without_network_files(bed: &Bed, directory: &Path) -> PathBuf {
    let tree = directory.join("tree");
    std::fs::create_dir(&tree).unwrap();
    let absent = [
        "etc/resolv.conf",
        "etc/hosts",
        "etc/hostname",
        "usr/share",
        "var/lib/apt",
        "dev",
    ];
    bed.unpack_without(&absent, &tree);
    assert!(!tree.join("etc/resolv.conf").exists() && tree.join("etc/passwd").exists());
    let image = directory.join("image.erofs");
    let file = std::fs::File::create_new(&image).unwrap();
    kata_image::erofs::write(&kata_image::Source::Directory(tree), &file, &mut |_| ()).unwrap();
    image
}
