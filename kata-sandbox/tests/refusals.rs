//! What cannot work is refused by name, and says what to do.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::path::{Path, PathBuf};
use std::process::Command;

use bed::{Bed, all_gone, chain, descendants};
use kata_image::guest::AssetError;
use kata_image::initramfs;
use kata_image::kernel::KernelError;
use kata_sandbox::{Backend, Container, ErrorKind, Sandbox};

on_every_backend! {
    async fn an_image_that_is_none_is_named(bed: Bed) {
        let missing = Container::new("/no/such/image").backend(bed.backend).args(["true"]);
        let error = Sandbox::run(missing).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Image);
        assert!(chain(&error).contains("/no/such/image"), "{}", chain(&error));
        let error = Sandbox::run(Container::new("/proc/version").backend(bed.backend).args(["true"])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Image, "{}", chain(&error));
    }

    async fn a_missing_guest_asset_is_named(bed: Bed) {
        let container = bed.shell("true");
        let containers = match bed.has_guest() {
            true => vec![container.clone().kernel("/no/kernel"), container.clone().initramfs("/no/initramfs")],
            false => vec![container.clone().agent("/no/agent")],
        };
        for container in containers.into_iter().chain([container.monitor("/no/monitor")]) {
            let error = Sandbox::run(container).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MissingAsset, "{}", chain(&error));
            assert!(chain(&error).contains("/no/"), "{}", chain(&error));
        }
    }

    /// Conformance: semantics 20
    async fn a_guest_that_panics_is_an_error_with_its_console(bed: Bed) {
        if !bed.has_guest() {
            return bed.cannot_tell("a process has no kernel of its own");
        }
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("initramfs.cpio");
        std::fs::write(&image, no_init()).unwrap();
        let error = Sandbox::boot(bed.idle().initramfs(&image)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::GuestPanicked, "{}", chain(&error));
        assert!(error.is_sandbox_lost());
        let console = error.console_tail().unwrap();
        assert!(console.contains("Kernel panic - not syncing"), "{console}");
        // The tailored kernel has the driver of pvpanic built in, and our machine the device: that is no guess.
        let kernel = std::env::var("KATA_KERNEL").unwrap_or_default();
        if bed.name == "kvm" && kernel.contains("/guest/tailored/") {
            assert!(error.to_string().ends_with(": the guest kernel panicked"), "{error}");
        }
        all_gone(&descendants(std::process::id())).await;
    }

    async fn a_kernel_that_is_none_is_refused_before_a_machine_is_made(bed: Bed) {
        if !bed.has_guest() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (image, kernel) = (directory.path().join("initramfs.cpio"), directory.path().join("garbage"));
        std::fs::write(&image, no_init()).unwrap();
        std::fs::write(&kernel, "this is no kernel").unwrap();
        let error = Sandbox::boot(bed.idle().kernel(&kernel).initramfs(&image)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingAsset, "{}", chain(&error));
        assert!(!error.is_sandbox_lost(), "there was none");
        let reason = format!(
            "{} is no kernel that can be read: the file is neither an ELF kernel nor a bzImage",
            kernel.display()
        );
        assert_eq!(chain(&error), format!("prepare: the guest kernel cannot be used: {reason}"));
        let cause = std::error::Error::source(&error).unwrap();
        let cause = cause.downcast_ref::<AssetError>().unwrap();
        assert!(matches!(cause, AssetError::Kernel(KernelError::Extract { path, .. }) if *path == kernel));
        // Named by the environment it is the same.
        let mut holder = bed::holder();
        holder.arg(&bed.rootfs).arg(bed.name).env("KATA_KERNEL", &kernel).env("KATA_INITRAMFS", &image);
        let said = refused(&mut holder);
        assert!(said.starts_with("MissingAsset") && said.contains(&reason), "{said}");
    }

    async fn a_program_is_no_kernel_and_lacks_what_one_has(bed: Bed) {
        if !bed.has_guest() {
            return;
        }
        let program = std::env::current_exe().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("initramfs.cpio");
        std::fs::write(&image, no_init()).unwrap();
        let error = Sandbox::boot(bed.idle().kernel(&program).initramfs(&image)).await.unwrap_err();
        let expected = format!("the kernel {} cannot run a sandbox: it lacks CONFIG_PVH", program.display());
        assert!(chain(&error).ends_with(&expected), "{}", chain(&error));
    }

    async fn kvm_by_name_runs_or_says_why_not(bed: Bed) {
        if !bed.has_guest() {
            return;
        }
        let container = bed.shell("true").backend(Backend::QemuKvm);
        match (Sandbox::probe().kvm, Sandbox::run(container).await) {
            (Ok(()), output) => assert!(output.unwrap().status.success()),
            (Err(why), output) => {
                let error = output.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                assert!(chain(&error).ends_with(&why.to_string()), "{}", chain(&error));
            }
        }
    }

    async fn a_host_without_qemu_says_what_to_install(bed: Bed) {
        if !matches!(bed.backend, Backend::QemuTcg | Backend::QemuKvm) {
            return;
        }
        let without = |variable, value| {
            let mut holder = bed::holder();
            holder.arg(&bed.rootfs).arg(bed.name).env_remove("KATA_QEMU").env(variable, value);
            refused(&mut holder)
        };
        let said = without("PATH", "/nonexistent");
        assert!(said.starts_with("Unsupported: plan: "), "{said}");
        assert!(said.contains("apt-get install qemu-system-x86"), "{said}");
        let said = without("KATA_QEMU", "/no/qemu");
        assert!(said.starts_with("Unsupported") && said.contains("/no/qemu"), "{said}");
    }

    async fn a_host_without_assets_says_what_to_run(bed: Bed) {
        let directory = tempfile::tempdir().unwrap();
        let mut holder = bed::holder();
        for name in ["KATA_KERNEL", "KATA_INITRAMFS", "KATA_AGENT"] {
            holder.env_remove(name);
        }
        let said = refused(holder.arg(&bed.rootfs).arg(bed.name).env("KATA_CACHE_DIR", directory.path()));
        assert!(said.starts_with("MissingAsset"), "{said}");
        assert!(said.contains("cargo xtask quickstart"), "{said}");
    }

    async fn a_full_cache_disk_is_named_and_keeps_no_half_an_image(bed: Bed) {
        if !rustix::process::geteuid().is_root() {
            return bed::skip("a_full_cache_disk", "needs root to mount a small file system");
        }
        let disk = SmallDisk::mount();
        let said = refused(bed::holder().arg(bed.convertible()).arg(bed.name).env("KATA_CACHE_DIR", disk.path()));
        assert!(said.starts_with("NoSpace"), "{said}");
        assert!(said.contains(&disk.path().display().to_string()), "{said}");
        let images: Vec<PathBuf> =
            std::fs::read_dir(disk.path().join("images")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let largest = images.iter().map(|path| path.metadata().unwrap().len()).max();
        assert!(largest.unwrap_or(0) < 4096, "{images:?}");
    }
}

/// An initramfs whose init cannot be executed: the kernel panics.
fn no_init() -> Vec<u8> {
    initramfs::Builder::new()
        .file("/init", 0o755, b"this is no program")
        .unwrap()
        .build()
        .unwrap()
}

/// Runs a holder that must fail; answers what it said.
fn refused(holder: &mut Command) -> String {
    let output = holder.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// A file system of 1 MiB, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=1m", "kata-test"])
            .arg(directory.path());
        assert!(mount.status().unwrap().success());
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
