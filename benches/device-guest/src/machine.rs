//! What a guest does before it is of any use: `/dev`, and the modules of its kernel.

use std::fs::{self, File};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::Failure;

/// Where the modules are, with a file `order` that lists them in the order that loads. A kernel that has
/// everything built in comes without.
const MODULES: &str = "/lib/modules";

pub(crate) fn prepare() -> Result<(), Failure> {
    fs::create_dir_all("/dev")?;
    match mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None) {
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => return Err(format!("cannot mount /dev: {error}").into()),
    }
    let directory = Path::new(MODULES);
    let order = directory.join("order");
    if !order.exists() {
        return Ok(());
    }
    for name in fs::read_to_string(order)?.lines() {
        let module = File::open(directory.join(name))?;
        match rustix::system::finit_module(module, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(format!("cannot load {name}: {error}").into()),
        }
    }
    Ok(())
}
