//! Two containers in one sandbox, which talk over 127.0.0.1: `cargo run --release --example pod -- ROOTFS.tar|IMAGE`.
//!
//! The image needs perl and bash, as Debian's smallest has them.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use examples::{fetch, print_error};
use kata_sandbox::process::Limits;
use kata_sandbox::report::Event;
use kata_sandbox::{Container, MiB, Sandbox};
use tokio::io::{AsyncBufReadExt, BufReader};

/// Greets whoever connects, by what it is told.
const SERVER: &str = r#"
use IO::Socket::INET;
$| = 1;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 5000, Listen => 5) or die "$@\n";
$SIG{TERM} = sub { exit 0 };
print "listens\n";
while (my $client = $server->accept) {
    my $name = <$client>;
    chomp $name;
    print $client "hello $name, this is ", `hostname`;
    close $client;
}
"#;

const CLIENT: &str = "exec 3<>/dev/tcp/127.0.0.1/5000; hostname >&3; cat <&3";

#[tokio::main]
async fn main() -> ExitCode {
    let Some(image) = std::env::args_os().nth(1) else {
        eprintln!("usage: pod ROOTFS.tar|DIRECTORY|IMAGE");
        return ExitCode::from(2);
    };
    match pod(image).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

async fn pod(image: OsString) -> Result<(), Box<dyn Error + Send + Sync>> {
    let name = image.clone();
    // It reads files or the network, for long maybe.
    tokio::task::spawn_blocking(move || fetch(&name)).await??;

    let first = Container::new(&image)
        .name("server")
        .hostname("server")
        .args(["perl", "-e", SERVER])
        .limits(Limits::new().memory(MiB(64)));
    let sandbox = Sandbox::boot(first.memory(MiB(256))).await?;
    let mut events = sandbox.events();
    let mut server = sandbox.spawn().await?;
    if let Some(stdout) = server.stdout.take() {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).await?;
        println!("the server {}", line.trim_end());
    }

    let second = Container::new(&image)
        .name("client")
        .hostname("client")
        .args(["bash", "-c", CLIENT]);
    let client = sandbox.create_container(second).await?;
    let output = client.spawn().await?.output().await?;
    print!("the client hears: {}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));

    for (name, stats) in sandbox
        .stats(Duration::from_secs(1))
        .next()
        .await
        .transpose()?
        .into_iter()
        .flat_map(|sample| sample.containers)
    {
        println!(
            "{name:<8}{:>6} KiB, {:?} of processor time",
            stats.memory_bytes >> 10,
            stats.cpu_time
        );
    }
    client.remove().await?;
    sandbox.container().stop(Duration::from_secs(10)).await?;
    sandbox.stop().await?;
    while let Some(event) = events.next().await {
        match event {
            Event::ContainerExited { container, status } => println!("{container}: {status}"),
            Event::SandboxEnded { message, .. } => println!("the end: {message}"),
            other => println!("{other:?}"),
        }
    }
    Ok(())
}
