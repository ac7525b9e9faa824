//! The baseline: the same guest kernel under bare QEMU, with an initramfs whose init says one line.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use benches::guest::initramfs;
use kata_sandbox::Sandbox;

pub(crate) const HELLO: &str = "baseline-init-says-hello";

pub(crate) struct Baseline {
    qemu: PathBuf,
    kernel: PathBuf,
    initramfs: tempfile::NamedTempFile,
    accelerator: &'static str,
}

impl Baseline {
    pub(crate) fn new(kernel: &Path, init: &Path) -> Result<Self, Box<dyn Error>> {
        let capabilities = Sandbox::probe();
        let initramfs = initramfs(init, &[])?;
        let accelerator = if capabilities.kvm.is_ok() { "kvm" } else { "tcg" };
        Ok(Self {
            qemu: capabilities.qemu?.binary,
            kernel: kernel.to_owned(),
            initramfs,
            accelerator,
        })
    }

    /// From the start of QEMU to the line on the console.
    pub(crate) fn run(&self) -> Result<Duration, Box<dyn Error>> {
        let begin = Instant::now();
        let mut qemu = self
            .command()?
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()?;
        let console = qemu.stdout.take().ok_or("no console")?;
        let mut said = String::new();
        for line in BufReader::new(console).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            if line.contains(HELLO) {
                let elapsed = begin.elapsed();
                qemu.kill()?;
                qemu.wait()?;
                return Ok(elapsed);
            }
            said.push_str(&line);
            said.push('\n');
        }
        qemu.wait()?;
        Err(format!("the baseline guest did not say hello:\n{said}").into())
    }

    /// As kata-vmm starts QEMU, less the devices and the kernel words that only a sandbox needs.
    fn command(&self) -> Result<Command, Box<dyn Error>> {
        let (cpu, clock) = match self.accelerator {
            "kvm" => ("host", ""),
            _ => ("max", "tsc=reliable "),
        };
        let words = format!(
            "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests initcall_blacklist=jent_mod_init \
             noreplace-smp no_timer_check {clock}tsc_early_khz={}",
            tsc_khz()?
        );
        let mut command = Command::new(&self.qemu);
        command.args([
            "-M",
            "microvm,acpi=on,rtc=on,pic=off,pit=off,x-option-roms=off",
            "-accel",
            self.accelerator,
            "-cpu",
            cpu,
        ]);
        command.args([
            "-m",
            "256",
            "-smp",
            "1",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ]);
        command.args(["-display", "none", "-serial", "stdio", "-append", &words]);
        command
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(self.initramfs.path());
        Ok(command)
    }
}

/// The host's time-stamp counter frequency as proc(5) `cpuinfo` has it.
fn tsc_khz() -> Result<u64, Box<dyn Error>> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("cpu MHz"))
        .ok_or("no cpu MHz in cpuinfo")?;
    let (whole, fraction) = line
        .rsplit(':')
        .next()
        .unwrap_or_default()
        .trim()
        .split_once('.')
        .ok_or("no fraction in cpu MHz")?;
    Ok(whole.parse::<u64>()? * 1000 + fraction.get(..3).unwrap_or("0").parse::<u64>()?)
}
