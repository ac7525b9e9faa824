//! The init of the baseline guest of `cargo xtask bench boot`: says one line and stops.
//!
//! Compiled static by itself and put alone into an initramfs; whatever it costs more to run a container
//! than to run this is what the project adds.

use std::io::Write;

fn main() {
    let _ = std::io::stdout().write_all(b"baseline-init-says-hello\n");
    // A PID 1 that leaves panics its kernel; this one waits to be killed with its machine.
    loop {
        std::thread::park();
    }
}
