//! A directory of the host in, some work on it, and the result out: the host's files are never shared.
//! `cargo run --release --example copy -- IMAGE INPUT_DIRECTORY OUTPUT_DIRECTORY PROGRAM [ARGUMENT]...`.
//!
//! The program runs in `/data/in` and leaves what it makes in `/data/out`. What the guest's kernel logs is shown if
//! `LOGS` is set.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::process::ExitCode;

use examples::print_error;
use kata_sandbox::report::{Copied, CopyProgress};
use kata_sandbox::{Command, Container, Sandbox};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, input, output, program @ ..] = arguments.as_slice() else {
        return usage();
    };
    if program.is_empty() {
        return usage();
    }
    match work(image, input, output, program).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            print_error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: copy IMAGE INPUT_DIRECTORY OUTPUT_DIRECTORY PROGRAM [ARGUMENT]...");
    ExitCode::from(2)
}

async fn work(image: &str, input: &str, output: &str, program: &[String]) -> Result<u8, Box<dyn Error>> {
    let sandbox = Sandbox::boot(Container::new(image).idle()).await?;
    print!("{}", sandbox.info().timings);
    if std::env::var_os("LOGS").is_some() {
        let mut logs = sandbox.logs().await?;
        tokio::spawn(async move {
            while let Some(log) = logs.next().await {
                eprintln!("{log}");
            }
        });
    }
    let made = sandbox
        .exec(Command::new("mkdir").args(["-p", "/data/out"]))
        .await?;
    if !made.wait().await?.success() {
        return Err("the container has no room for /data".into());
    }
    let copied = sandbox.copy_in(input, "/data/in").progress(show).await?;
    tell("in", &copied);
    let command = Command::new(&program[0]).args(&program[1..]).cwd("/data/in");
    let done = sandbox.exec(command).await?.output().await?;
    print!("{}", String::from_utf8_lossy(&done.stdout));
    eprint!("{}", String::from_utf8_lossy(&done.stderr));
    if let Some(receipt) = &done.receipt {
        let (cpu, wall) = (receipt.cpu_time(), receipt.wall);
        let peak_mib = receipt.memory_peak_bytes >> 20;
        println!(
            "{}: {cpu:.2?} of processor time in {wall:.2?}, {peak_mib} MiB at most",
            done.status
        );
    }
    let copied = sandbox.copy_out("/data/out", output).progress(show).await?;
    tell("out", &copied);
    sandbox.stop().await?;
    Ok(u8::try_from(done.status.code()).unwrap_or(u8::MAX))
}

fn show(progress: CopyProgress) {
    eprint!("\r{progress}");
}

fn tell(direction: &str, copied: &Copied) {
    eprintln!();
    println!(
        "{} entries with {} bytes went {direction}",
        copied.entries, copied.bytes
    );
    for left in &copied.left_out {
        println!("  left out: {:?} of {}", left.what, left.path.display());
    }
}
