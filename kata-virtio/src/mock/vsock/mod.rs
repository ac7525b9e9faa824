//! The socket device's driver, and a machine of both.

mod guest;
mod machine;
mod script;
mod socket;

pub use guest::Guest;
pub use machine::Machine;
pub use script::{check_header, run_script};
pub use socket::{Socket, SocketState};
