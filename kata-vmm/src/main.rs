//! The monitor as a program: see [`kata_vmm::monitor::main`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kata_vmm::monitor::main()
}
