//! The init of the baseline guest of `cargo xtask bench boot`: prints one line and powers off.
//!
//! Built static and put alone into an initramfs; whatever it costs more to run a container than to run
//! this is what the project adds.

use std::io::Write;

fn main() {
    let _ = std::io::stdout().write_all(b"baseline-init-says-hello\n");
    // As PID 1 there is nobody to report a failure to; leaving instead panics the guest, which ends it too.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
}
