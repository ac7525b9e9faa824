//! A container that may do in a guest what the agent may: to make there what the agent's methods are about.

use kata_agent_proto::agent::RemoveContainerRequest;
use kata_agent_proto::{Client, oci};

use super::{creation, run, start};

/// Its name.
const INSIDE: &str = "inside";

/// Nodes of devices that a container has not by itself, if the guest's kernel has these devices.
const NODES: &str = "mkdir -p /dev/net && mknod /dev/net/tun c 10 200 && mknod /dev/loop-control c 10 237";

/// Goes into the mount namespace of the agent, which is process 1, and does what is left of the program there. A
/// container has perl, and few guests have anything.
const ENTER: &str = r#"
sub check { my ($what, $done) = @_; die "$what: $!\n" if $done < 0 }
sub enter {
    open my $namespace, "<", "/proc/1/ns/mnt" or die "namespace: $!\n";
    check("setns", syscall 308, fileno $namespace, 0x20000);
}
sub mount {
    my ($source, $target, $type, $flags) = @_;
    check("mount of $source at $target", syscall 165, $source, $target, $type, $flags + 0, 0);
}
"#;

/// The container, with a count of what ran in it.
pub(crate) struct Inside<'a> {
    client: &'a Client,
    ran: u32,
}

impl<'a> Inside<'a> {
    /// Makes it: with the guest's processes and network in sight, and the root of the first container.
    pub(crate) async fn new(client: &'a Client) -> Self {
        let mut request = creation(INSIDE, "exec sleep 100000");
        let spec = request.oci.as_mut().unwrap();
        spec.mounts.push(oci::Mount {
            destination: "/sys".into(),
            source: "sysfs".into(),
            type_: "sysfs".into(),
            ..Default::default()
        });
        spec.linux.as_mut().unwrap().namespaces = vec![oci::LinuxNamespace {
            type_: "mount".into(),
            ..Default::default()
        }];
        let everything = oci::LinuxDeviceCgroup {
            allow: true,
            access: "rwm".into(),
            ..Default::default()
        };
        spec.linux.as_mut().unwrap().resources = protobuf::MessageField::some(oci::LinuxResources {
            devices: vec![everything],
            ..Default::default()
        });
        start(client, request).await;
        let mut inside = Self { client, ran: 0 };
        inside.done(NODES).await;
        inside
    }

    /// Runs a script to its end: its status and output, and what it complained of.
    pub(crate) async fn script(&mut self, script: &str) -> (i32, String) {
        self.ran += 1;
        let id = format!("script-{}", self.ran);
        run(self.client, INSIDE, &id, &format!("exec 2>&1; {script}")).await
    }

    /// Runs a script that has to succeed; what it said, without the last line end.
    pub(crate) async fn done(&mut self, script: &str) -> String {
        let (status, output) = self.script(script).await;
        assert_eq!(status, 0, "{script}: {output}");
        output.trim_end().to_owned()
    }

    /// Runs a program of perl that has to succeed.
    pub(crate) async fn perl(&mut self, program: &str) -> String {
        assert!(!program.contains('\''), "the shell's");
        self.done(&format!("perl -Mstrict -e '{ENTER}{program}'")).await
    }

    /// Makes a file of so many bytes a disk: the name of its device. On a host, somebody else may be faster to take it.
    pub(crate) async fn disk(&mut self, file: &str, bytes: u64) -> String {
        let script = format!(
            "truncate -s {bytes} {file} && for try in 1 2 3 4 5 6 7 8 9; do disk=$(losetup --find) || exit; \
             [ -e $disk ] || mknod $disk b 7 ${{disk#/dev/loop}}; losetup $disk {file} 2>/dev/null && break; done; \
             losetup --list --noheadings --output BACK-FILE $disk >/dev/null && echo $disk"
        );
        self.done(&script).await
    }

    /// Mounts a file system of a disk where the agent sees it; the disk goes with its last user.
    pub(crate) async fn mount(&mut self, disk: &str, target: &str, fstype: &str) {
        // The device is the one that is open, whatever the agent sees by its name.
        let program = format!(
            r#"open my $disk, "+<", "{disk}" or die "{disk}: $!\n";
            my $source = "/proc/self/fd/" . fileno $disk;
            enter; mkdir "{target}"; mount $source, "{target}", "{fstype}", 0;"#
        );
        self.perl(&program).await;
        self.done(&format!("losetup --detach {disk}")).await;
    }

    /// Ends it.
    pub(crate) async fn remove(self) {
        let request = RemoveContainerRequest {
            container_id: INSIDE.into(),
            timeout: 30,
            ..Default::default()
        };
        self.client.remove_container(request).await.unwrap();
    }
}
