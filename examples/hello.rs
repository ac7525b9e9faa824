//! A container in a virtual machine of its own, and what that took:
//! `cargo run --release --example hello -- ROOTFS.tar|DIRECTORY`.
//!
//! `Sandbox::run` would do it in one call; this takes the steps one by one, to look at the machine while it
//! is there.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use examples::{fetch, print_error};
use kata_sandbox::report::{Info, Usage};
use kata_sandbox::{Container, Output, Sandbox};

/// What the container runs: its own idea of where it is. The image needs no more than a shell and coreutils.
const SCRIPT: &str = r#"
uname -a
echo; cat /etc/os-release
echo; echo "processes:"
for process in /proc/[0-9]*; do
    read -r name <"$process/comm" && printf '%5s  %s\n' "${process#/proc/}" "$name"
done
echo; echo "memory:"
head -n 3 /proc/meminfo
exit 7
"#;

/// How [`SCRIPT`] ends.
const STATUS: i32 = 7;

#[tokio::main]
async fn main() -> ExitCode {
    let Some(rootfs) = std::env::args_os().nth(1) else {
        eprintln!("usage: hello ROOTFS.tar|DIRECTORY");
        return ExitCode::from(2);
    };
    match fetch_and_run(rootfs).await {
        Ok(output) if output.status.code() == STATUS => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("expected exit status {STATUS}");
            ExitCode::FAILURE
        }
        Err(error) => {
            print_error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

async fn fetch_and_run(image: OsString) -> Result<Output, Box<dyn Error + Send + Sync>> {
    let name = image.clone();
    // It reads files or the network, for long maybe.
    let fetched = tokio::task::spawn_blocking(move || fetch(&name));
    fetched.await??;
    Ok(hello(Container::new(image).args(["sh", "-c", SCRIPT])).await?)
}

async fn hello(container: Container) -> Result<Output, kata_sandbox::Error> {
    let sandbox = Sandbox::boot(container).await?;
    let output = sandbox.spawn().await?.output().await?;
    let usage = sandbox.usage().await?;
    let info = sandbox.info().clone();
    sandbox.stop().await?;

    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    println!("\n--- {}, as it was told to ---\n", output.status);
    println!("{}", output.timings);
    print_machine(&info);
    print_cost(&usage);
    Ok(output)
}

fn print_machine(info: &Info) {
    println!(
        "hypervisor  {}, machine {}",
        info.hypervisor_version, info.machine_type
    );
    println!("why         {}", info.selection.reason);
    println!(
        "guest       Linux {}, {} MiB, {} vCPU",
        info.kernel_release,
        info.memory_bytes >> 20,
        info.vcpus
    );
}

fn print_cost(usage: &Usage) {
    match usage.host_memory_bytes {
        Some(bytes) => println!(
            "memory      {} MiB of the host (PSS of monitor and hypervisor)",
            bytes >> 20
        ),
        None => println!("memory      the host does not let us read it"),
    }
    println!(
        "processor   {:.1} ms in the container",
        usage.cpu_time.unwrap_or_default().as_secs_f64() * 1e3
    );
}
