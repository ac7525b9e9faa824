//! Boots a sandbox and holds it until standard input ends: `hold ROOTFS [BACKEND]`.
//!
//! It prints the processes of the sandbox on one line once the sandbox is there, or the error with all
//! of its causes. When this program dies, however it dies, so does the sandbox.

use std::error::Error as _;
use std::io::Write;
use std::process::ExitCode;

use kata_sandbox::{Backend, Container, blocking};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(rootfs) = args.next() else {
        let _ = writeln!(
            std::io::stderr(),
            "usage: hold ROOTFS [fake|qemu_tcg|qemu_kvm|kvm]"
        );
        return ExitCode::from(2);
    };
    let backend = match args.next().as_deref().map(|name| name.to_str()) {
        None => Backend::Auto,
        Some(Some("fake")) => Backend::Process,
        Some(Some("qemu_tcg")) => Backend::QemuTcg,
        Some(Some("qemu_kvm")) => Backend::QemuKvm,
        Some(Some("kvm")) => Backend::Kvm,
        Some(_) => {
            let _ = writeln!(std::io::stderr(), "hold: no such backend");
            return ExitCode::from(2);
        }
    };
    match blocking::Sandbox::boot(Container::new(rootfs).backend(backend)) {
        Ok(sandbox) => {
            let pids: Vec<String> = sandbox.info().pids.iter().map(u32::to_string).collect();
            let _ = writeln!(std::io::stdout(), "{}", pids.join(" "));
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = write!(std::io::stderr(), "{:?}: {error}", error.kind());
            let mut cause = error.source();
            while let Some(error) = cause {
                let _ = write!(std::io::stderr(), ": {error}");
                cause = error.source();
            }
            let _ = writeln!(std::io::stderr());
            ExitCode::FAILURE
        }
    }
}
