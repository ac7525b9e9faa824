//! Files into a container and out of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "this is test code"
)]

mod bed;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bed::{Bed, script, script_in, sh, text};
use kata_sandbox::report::Omitted;
use kata_sandbox::{Container, ContainerHandle, ErrorKind, MiB, Sandbox, blocking};
use serde_json::{Value, json};

/// A tree with what is easily lost on the way.
fn make_tree(tree: &Path) {
    fs::create_dir_all(tree.join("deep/er")).unwrap();
    fs::write(tree.join("deep/file"), "text").unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    fs::hard_link(tree.join("deep/file"), tree.join("second")).unwrap();
    symlink("/no/where", tree.join("dangling")).unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(tree.join("deep/er"), fs::Permissions::from_mode(0o1710)).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 1 << 30).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(tree.join("empty"), Some(33), Some(34)).unwrap();
        std::os::unix::fs::lchown(tree.join("dangling"), Some(1), Some(2)).unwrap();
    }
}

/// What is kept of each file, a line each, as a shell in the container would tell it.
fn listing(tree: &Path) -> String {
    let mut find = std::process::Command::new("sh");
    find.arg("-c").arg(LIST).current_dir(tree);
    let output = find.output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// CAP_NET_BIND_SERVICE for whoever executes it, as a host has it (linux/capability.h, `vfs_cap_data`, revision 2).
const CAPABILITY: &str = "security.capability";
const MAY_BIND: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A container that idles and whose users are not the guest's.
fn with_users(bed: &Bed) -> Container {
    let mut spec: Value = serde_json::from_str(include_str!("oci/full.json")).unwrap();
    spec.as_object_mut().unwrap().remove("process");
    spec["root"]["readonly"] = json!(false);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_534}]);
    spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 200_000, "size": 65_534}]);
    Container::from_spec(&bed.rootfs, &spec.to_string())
        .unwrap()
        .name("users")
}

/// What a container with users of its own cannot have or do is told, and no copy can do more than it.
async fn has_no_rights_over_others(container: &ContainerHandle, host: &Path) {
    let check = |result: Result<_, kata_sandbox::Error>, named: &[&str]| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Agent, "{error:?}");
        assert!(
            named.iter().all(|part| error.to_string().contains(part)),
            "{error:?}"
        );
        assert!(!error.is_sandbox_lost());
    };
    // An owner that it has not.
    let foreign = host.join("foreign");
    fs::write(&foreign, "text").unwrap();
    std::os::unix::fs::chown(&foreign, Some(70_000), Some(0)).unwrap();
    check(
        container.copy_in(&foreign, "/var/tmp/foreign").await,
        &["/var/tmp/foreign", "owner 70000:0"],
    );
    let left = script_in(container, "test -e /var/tmp/foreign || echo nothing").await;
    assert_eq!(text(&left), "nothing");
    // What is the guest's root's, and for that one alone.
    fs::write(host.join("file"), "text").unwrap();
    check(
        container.copy_in(host.join("file"), "/etc/passwd").await,
        &["/etc/passwd", "ermission denied"],
    );
    check(
        container.copy_out("/etc/shadow", host.join("shadow")).await,
        &["/etc/shadow", "ermission denied"],
    );
    // A device node is nothing that it could make itself.
    let device = host.join("device");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &device,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let copied = container.copy_in(&device, "/var/tmp/device").await.unwrap();
    assert_eq!(copied.left_out_count, 1, "{copied:?}");
    assert_eq!(copied.left_out[0].what, Omitted::Device);
}

const LIST: &str = "find . -printf '%P %y %m %U:%G %s %T@ %n %l\\n' | grep -v ' d ' | sort; \
                    find . -type d -printf '%P %m %U:%G %T@\\n' | sort";

on_every_backend! {
    /// Conformance: api CopyIn
    /// Conformance: api CopyOut
    async fn a_tree_goes_in_and_comes_out_as_it_was(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let host = tempfile::tempdir().unwrap();
        let tree = host.path().join("tree");
        make_tree(&tree);
        let copied = sandbox.copy_in(&tree, "/var/tmp").await.unwrap();
        assert_eq!((copied.entries, copied.left_out_count), (8, 0), "{copied:?}");
        assert!(copied.bytes < 1 << 20, "holes are not copied: {copied:?}");
        let inside = script(&sandbox, &format!("cd /var/tmp/tree && {LIST}")).await;
        assert_eq!(text(&inside), listing(&tree));
        let used = text(&script(&sandbox, "du -k /var/tmp/tree/sparse | cut -f1").await);
        assert!(used.parse::<u64>().unwrap() < 1024, "a hole stays one: {used}");

        sandbox.copy_out("/var/tmp/tree", host.path().join("back")).await.unwrap();
        assert_eq!(listing(&host.path().join("back")), listing(&tree));
        let inode = |path: &str| fs::metadata(host.path().join("back").join(path)).unwrap().ino();
        assert_eq!(inode("second"), inode("deep/file"));

        // Into a directory and over what is there, by the rules of docker; links inside lead nowhere else.
        script(&sandbox, "mkdir /srv/www; echo old > /srv/www/kept; ln -s /etc /var/tmp/link; umask 0; mkdir /srv/open").await;
        sandbox.copy_in(tree.join("deep/."), "/srv/www").await.unwrap();
        sandbox.copy_in(tree.join("deep/file"), "/srv/www/kept").await.unwrap();
        sandbox.copy_in(tree.join("deep/file"), "/var/tmp/link/copied").await.unwrap();
        sandbox.copy_in(tree.join("deep/."), "/srv/open").await.unwrap();
        let seen = script(&sandbox, "cat /srv/www/kept /etc/copied /srv/www/file; stat -c %a /srv/open").await;
        assert_eq!(text(&seen), "texttexttext777");
        assert!(!Path::new("/etc/copied").exists());
    }

    async fn what_cannot_be_copied_is_an_error_with_its_path_and_the_sandbox_goes_on(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle().disk(MiB(64))).await.unwrap();
        let host = tempfile::tempdir().unwrap();
        let file = host.path().join("file");
        fs::write(&file, "text").unwrap();
        let check = |result: Result<_, kata_sandbox::Error>, kind, path: &str| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(error.to_string().contains(path) && !error.is_sandbox_lost(), "{error:?}");
        };
        check(sandbox.copy_in(host.path().join("none"), "/").await, ErrorKind::NoSuchFile, "none");
        check(sandbox.copy_in(&file, "/no/such/place").await, ErrorKind::NoSuchFile, "/no/such");
        check(sandbox.copy_in(&file, "/etc/passwd/x").await, ErrorKind::NotADirectory, "/etc/passwd/x");
        check(sandbox.copy_in(host.path(), "/etc/passwd").await, ErrorKind::NotADirectory, "/etc/passwd");
        check(sandbox.copy_out("/no/such/file", host.path()).await, ErrorKind::NoSuchFile, "/no/such");
        check(sandbox.copy_out("/etc", &file).await, ErrorKind::NotADirectory, "file");
        check(sandbox.copy_out("/etc/passwd", file.join("x")).await, ErrorKind::NotADirectory, "file/x");
        // A full disk in the container, and more than the host allows.
        let large = host.path().join("large");
        let mut file = fs::File::create(&large).unwrap();
        let mebibyte = vec![1; 1 << 20];
        (0..96).for_each(|_| file.write_all(&mebibyte).unwrap());
        check(sandbox.copy_in(&large, "/var/tmp").await, ErrorKind::NoSpace, "/var/tmp/large");
        assert_eq!(text(&script(&sandbox, "ls /var/tmp").await), "", "no part of a file stays");
        let endless = sandbox.copy_out("/usr", host.path().join("usr")).limit(MiB(1)).await;
        check(endless, ErrorKind::OutputTooLarge, "limit");
        assert!(script(&sandbox, "true").await.status.success());
    }

    async fn a_host_makes_no_privileges_that_it_did_not_ask_for(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let prepared = script(&sandbox, "mkdir /srv/x; cp /bin/true /srv/x/suid; chmod 6755 /srv/x/suid; \
            mknod /srv/x/null c 1 3; mkfifo /srv/x/pipe; ln -s /etc/passwd /srv/x/link").await;
        assert!(prepared.status.success(), "{prepared:?}");
        let host = tempfile::tempdir().unwrap();
        let copied = sandbox.copy_out("/srv/x", host.path().join("x")).await.unwrap();
        let mut left: Vec<_> = copied.left_out.iter().map(|left| (left.path.to_str().unwrap(), left.what)).collect();
        left.sort_unstable_by_key(|(path, _)| path.to_owned());
        assert_eq!(left, [("null", Omitted::Device), ("suid", Omitted::SetId)]);
        let mode = fs::metadata(host.path().join("x/suid")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o755);
        assert!(!host.path().join("x/null").exists() && host.path().join("x/pipe").exists());
        assert_eq!(fs::read_link(host.path().join("x/link")).unwrap(), Path::new("/etc/passwd"));
        if rustix::process::geteuid().is_root() {
            let trusted = host.path().join("trusted");
            let copied = sandbox.copy_out("/srv/x", &trusted).keep_privileges().await.unwrap();
            assert_eq!(copied.left_out_count, 0, "{copied:?}");
            assert_eq!(fs::metadata(trusted.join("suid")).unwrap().mode() & 0o7777, 0o6755);
            assert_eq!(fs::metadata(trusted.join("null")).unwrap().rdev(), 0x103);
        }
        // Without what is the kernel's own below it, and without its devices.
        let copied = sandbox.copy_out("/dev", host.path().join("dev")).await.unwrap();
        let left = |path: &str, what| {
            copied.left_out.iter().any(|left| left.path == Path::new(path) && left.what == what)
        };
        assert!(left("pts", Omitted::KernelFiles) && left("null", Omitted::Device), "{copied:?}");
        assert_eq!(fs::read_dir(host.path().join("dev/pts")).unwrap().count(), 0);
        assert_eq!(fs::read_link(host.path().join("dev/fd")).unwrap(), Path::new("/proc/self/fd"));
    }

    async fn a_large_file_is_copied_with_progress_and_flat_memory(bed: Bed) {
        const SIZE: usize = 64 << 20;
        /// The memory that is looked at is the whole process's.
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _alone = ALONE.lock().await;
        let sandbox = Sandbox::boot(bed.idle().memory(MiB(256)).disk(MiB(256))).await.unwrap();
        let host = tempfile::tempdir().unwrap();
        let pattern: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at % 251).unwrap()).collect();
        fs::write(host.path().join("large"), &pattern).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        let before = bed::private_memory(std::process::id());
        sandbox.copy_in(host.path().join("large"), "/var/tmp/")
            .progress(move |progress| tell.lock().unwrap().push(progress.bytes))
            .await
            .unwrap();
        let grown = bed::private_memory(std::process::id()).saturating_sub(before);
        assert!(grown < 16 << 20, "memory grew by {grown} bytes");
        {
            let told = told.lock().unwrap();
            assert!(told.len() > 8 && told.is_sorted(), "{told:?}");
            assert_eq!(told.last(), Some(&(SIZE as u64)));
        }
        sandbox.copy_out("/var/tmp/large", host.path().join("back")).await.unwrap();
        assert!(fs::read(host.path().join("back")).unwrap() == pattern);
        // A copy that nobody waits for ends, and leaves the sandbox as it was.
        let copying = sandbox.copy_in(host.path().join("large"), "/var/tmp/other").into_future();
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), copying).await.is_err());
        assert!(script(&sandbox, "true").await.status.success());
    }

    async fn a_container_that_ends_ends_its_copies(bed: Bed) {
        let sandbox = Sandbox::boot(bed.shell("exec sleep 1000")).await.unwrap();
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("file"), "text").unwrap();
        // It is only created, and has its files.
        sandbox.copy_in(host.path().join("file"), "/var/tmp/early").await.unwrap();
        let process = sandbox.spawn().await.unwrap();
        assert_eq!(text(&script(&sandbox, "cat /var/tmp/early").await), "text");
        let (begun, begins) = tokio::sync::oneshot::channel();
        let hold = Arc::new(std::sync::Barrier::new(2));
        let mut first = Some((begun, Arc::clone(&hold)));
        let copying = sandbox
            .copy_out("/usr", host.path().join("usr"))
            .progress(move |_| {
                if let Some((begun, hold)) = first.take() {
                    let _ = begun.send(());
                    hold.wait();
                }
            });
        let copying = tokio::spawn(copying.into_future());
        begins.await.unwrap();
        process.kill().await.unwrap();
        process.wait().await.unwrap();
        tokio::task::spawn_blocking(move || hold.wait()).await.unwrap();
        let error = copying.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState, "{error:?}");
        let error = sandbox.copy_out("/etc/passwd", host.path()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState, "{error:?}");
        let container = bed.idle().name("second");
        let second = sandbox.create_container(container).await;
        if let Ok(second) = second {
            second.copy_in(host.path().join("file"), "/var/tmp").await.unwrap();
            let seen = second.exec(sh("cat /var/tmp/file")).await.unwrap().output().await.unwrap();
            assert_eq!(text(&seen), "text");
            second.remove().await.unwrap();
            let error = second.copy_in(host.path().join("file"), "/var/tmp").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
        }
    }

    /// Conformance: api CopyIn
    /// Conformance: api CopyOut
    async fn a_paused_container_is_copied_into_and_out_of(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let container = sandbox.create_container(bed.member("held").idle()).await.unwrap();
        let ticks = "while :; do date +%s%N >/var/tmp/tick.new; mv /var/tmp/tick.new /var/tmp/tick; sleep 0.02; done";
        let ticking = container.exec(sh(ticks)).await.unwrap();
        bed::eventually("it ticks", async || {
            script_in(&container, "test -e /var/tmp/tick").await.status.success()
        }).await;
        let host = tempfile::tempdir().unwrap();
        let tree = host.path().join("tree");
        make_tree(&tree);

        // Paused in the middle of a copy, which goes on to its end.
        let (begun, begins) = tokio::sync::oneshot::channel();
        let hold = Arc::new(std::sync::Barrier::new(2));
        let mut first = Some((begun, Arc::clone(&hold)));
        let copying = container.copy_out("/usr/bin", host.path().join("bin")).progress(move |_| {
            if let Some((begun, hold)) = first.take() {
                let _ = begun.send(());
                hold.wait();
            }
        });
        let copying = tokio::spawn(copying.into_future());
        begins.await.unwrap();
        container.pause().await.unwrap();
        tokio::task::spawn_blocking(move || hold.wait()).await.unwrap();
        let copied = copying.await.unwrap().unwrap();
        assert!(copied.entries > 10, "{copied:?}");

        let tick = async |name: &str| {
            container.copy_out("/var/tmp/tick", host.path().join(name)).await.unwrap();
            fs::read_to_string(host.path().join(name)).unwrap()
        };
        let stands = tick("first").await;
        container.copy_in(&tree, "/var/tmp").await.unwrap();
        container.copy_out("/var/tmp/tree", host.path().join("back")).await.unwrap();
        assert_eq!(listing(&host.path().join("back")), listing(&tree));
        // Nothing of it ran for that, nor was it let go on; it finds what came when it is.
        assert_eq!(tick("second").await, stands);
        container.resume().await.unwrap();
        let inside = script_in(&container, &format!("cd /var/tmp/tree && {LIST}")).await;
        assert_eq!(text(&inside), listing(&tree));
        bed::eventually("it ticks again", async || tick("third").await != stands).await;
        ticking.kill().await.unwrap();

        // Removed while it is paused it ends its copies as any other.
        container.pause().await.unwrap();
        container.remove().await.unwrap();
        let error = container.copy_in(&tree, "/var/tmp").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    }

    /// Conformance: api CopyIn
    /// Conformance: api CopyOut
    async fn owners_are_those_of_a_containers_own_users(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let container = sandbox.create_container(with_users(&bed)).await.unwrap();
        let host = tempfile::tempdir().unwrap();
        let tree = host.path().join("tree");
        make_tree(&tree);
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            fs::write(tree.join("suid"), "").unwrap();
            std::os::unix::fs::chown(tree.join("suid"), Some(7), Some(8)).unwrap();
            fs::set_permissions(tree.join("suid"), fs::Permissions::from_mode(0o6755)).unwrap();
            let may = fs::File::create(tree.join("may")).unwrap();
            rustix::fs::fsetxattr(&may, CAPABILITY, &MAY_BIND, rustix::fs::XattrFlags::empty()).unwrap();
        }
        container.copy_in(&tree, "/var/tmp").await.unwrap();
        let inside = script_in(&container, &format!("cd /var/tmp/tree && {LIST}")).await;
        assert_eq!(text(&inside), listing(&tree));
        // They are its own: it may do with them what it likes, and its users what their owners may.
        let uses = "cd /var/tmp/tree && chown 5:6 empty && chown -h 7:8 dangling && chmod 600 second && echo its";
        assert_eq!(text(&script_in(&container, uses).await), "its");
        let writes = sh("umask 027; echo mine >/var/tmp/mine; stat -c %u:%g:%a /var/tmp/mine").user("33:34");
        let wrote = container.exec(writes).await.unwrap().output().await.unwrap();
        assert_eq!(text(&wrote), "33:34:640");

        container.copy_out("/var/tmp/tree", host.path().join("back")).keep_privileges().await.unwrap();
        container.copy_out("/var/tmp/mine", host.path().join("mine")).await.unwrap();
        // What is nobody's in there is nobody's out here.
        container.copy_out("/etc/passwd", host.path().join("passwd")).await.unwrap();
        let inside = script_in(&container, &format!("cd /var/tmp/tree && {LIST}")).await;
        if is_root {
            let back = host.path().join("back");
            assert_eq!(listing(&back), text(&inside));
            let owner = |path: &str| {
                let file = fs::symlink_metadata(host.path().join(path)).unwrap();
                (file.uid(), file.gid())
            };
            let owners = ["back/empty", "back/dangling", "back/suid", "mine", "passwd"].map(owner);
            assert_eq!(owners, [(5, 6), (7, 8), (7, 8), (33, 34), (65534, 65534)]);
            let mut capability = [0_u8; 64];
            let may = fs::File::open(back.join("may")).unwrap();
            let length = rustix::fs::fgetxattr(&may, CAPABILITY, &mut capability[..]).unwrap();
            assert_eq!(capability[..length], MAY_BIND);
            has_no_rights_over_others(&container, host.path()).await;
        }
        assert_eq!(text(&script(&sandbox, "echo goes on").await), "goes on");
    }

    async fn programs_that_are_not_asynchronous_copy_too(bed: Bed) {
        let container = bed.idle();
        let host = tempfile::tempdir().unwrap();
        let path = host.path().to_owned();
        fs::write(path.join("file"), "text").unwrap();
        tokio::task::spawn_blocking(move || {
            let sandbox = blocking::Sandbox::boot(container).unwrap();
            let copied = sandbox.copy_in(path.join("file"), "/var/tmp").progress(|_| {}).run().unwrap();
            assert_eq!((copied.entries, copied.bytes), (1, 4));
            let copied = sandbox.copy_out("/var/tmp/file", path.join("back")).limit(MiB(1)).run().unwrap();
            assert_eq!(copied.bytes, 4);
            let receipt = sandbox.exec(sh("exit 4")).unwrap().receipt().unwrap();
            assert_eq!(receipt.status.code(), 4);
            let mut logs = sandbox.logs().unwrap();
            sandbox.stop().unwrap();
            // It has an end.
            while logs.next().is_some() {}
        })
        .await
        .unwrap();
        assert_eq!(fs::read_to_string(host.path().join("back")).unwrap(), "text");
    }
}
