//! Initramfs images with nothing but an init, its console and modules.

use std::error::Error;
use std::path::Path;

use kata_image::initramfs::Builder;

/// A kernel module's file name and content.
pub type Module = (String, Vec<u8>);

/// A file with this program as its init, and `modules` in `/lib/modules` in the
/// order that loads, which `/lib/modules/order` says.
///
/// # Errors
/// When the program cannot be read, or the file cannot be written.
pub fn initramfs(init: &Path, modules: &[Module]) -> Result<tempfile::NamedTempFile, Box<dyn Error>> {
    let mut image = Builder::new();
    image.file("/init", 0o755, &std::fs::read(init)?)?;
    // Linux Documentation/admin-guide/devices.txt: character device 5:1 is the system console.
    image.device("/dev/console", 0o600, 5, 1)?;
    if !modules.is_empty() {
        let mut order = String::new();
        for (name, content) in modules {
            image.file(&format!("/lib/modules/{name}"), 0o644, content)?;
            order.push_str(name);
            order.push('\n');
        }
        image.file("/lib/modules/order", 0o644, order.as_bytes())?;
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), image.build()?)?;
    Ok(file)
}
