//! OCI bundles on the host's disk (runtime-spec bundle.md): a directory, its `config.json`, its root.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::container::Container;
use crate::error::{Error, ErrorKind};
use crate::oci::{self, Converted};
use crate::report::Stage;

const CONFIG: &str = "config.json";

/// The largest specification that is read: ten thousand mounts are a megabyte.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Reads a bundle.
pub(crate) fn read(directory: &Path) -> Result<Container, Error> {
    let no_bundle = |cause: io::Error| {
        let message = format!(
            "{} is no bundle: its {CONFIG} cannot be read",
            directory.display()
        );
        invalid(message).with_source(cause)
    };
    let json = config(&directory.join(CONFIG)).map_err(no_bundle)?;
    let Converted { spec, root_path } = oci::convert(&json)?;
    let root = root_path.ok_or_else(|| invalid("root: is missing".to_owned()))?;
    // Absolute, so that it is taken for a path whatever it looks like.
    let image = std::path::absolute(directory.join(root)).map_err(no_bundle)?;
    Ok(Container {
        spec: Some(Box::new(spec)),
        ..Container::new(image)
    })
}

fn config(path: &Path) -> io::Result<String> {
    let mut json = String::new();
    let read = File::open(path)?
        .take(CONFIG_BYTES_MAX + 1)
        .read_to_string(&mut json)?;
    match u64::try_from(read) {
        Ok(0..=CONFIG_BYTES_MAX) => Ok(json),
        _ => Err(io::Error::other(format!(
            "it is larger than {CONFIG_BYTES_MAX} bytes"
        ))),
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidContainer, Stage::Plan, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_bundle_is_the_image() {
        let directory = tempfile::tempdir().unwrap();
        let write = |json: &str| std::fs::write(directory.path().join(CONFIG), json).unwrap();
        write(r#"{"ociVersion": "1.0.2", "root": {"path": "rootfs"}}"#);
        let container = read(directory.path()).unwrap();
        assert_eq!(container.image, directory.path().join("rootfs"));
        write(r#"{"ociVersion": "1.0.2", "root": {"path": "/srv/root"}}"#);
        assert_eq!(read(directory.path()).unwrap().image, "/srv/root");
        write(r#"{"ociVersion": "1.0.2"}"#);
        assert_eq!(
            read(directory.path()).unwrap_err().to_string(),
            "plan: root: is missing"
        );
    }

    #[test]
    fn what_is_no_bundle_is_told_by_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let error = read(directory.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidContainer);
        let name = directory.path().display();
        assert_eq!(
            error.to_string(),
            format!("plan: {name} is no bundle: its config.json cannot be read")
        );
        let large = File::create(directory.path().join(CONFIG)).unwrap();
        large.set_len(CONFIG_BYTES_MAX + 1).unwrap();
        let error = read(directory.path()).unwrap_err();
        assert!(
            format!("{error:?}").contains("larger than 16777216 bytes"),
            "{error:?}"
        );
    }
}
