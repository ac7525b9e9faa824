//! Loads the kernel modules that the initramfs brings, in the order that it gives.

use std::fs::{self, File};
use std::path::Path;

use crate::Failure;

/// Where they are.
const DIRECTORY: &str = "/lib/modules";

/// Loads every file that `order` names.
pub(crate) fn load() -> Result<(), Failure> {
    let directory = Path::new(DIRECTORY);
    for name in fs::read_to_string(directory.join("order"))?.lines() {
        load_one(&directory.join(name)).map_err(|error| format!("cannot load {name}: {error}"))?;
    }
    Ok(())
}

fn load_one(path: &Path) -> Result<(), Failure> {
    match rustix::system::finit_module(File::open(path)?, c"", 0) {
        // A kernel that loads on demand may have been faster.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
