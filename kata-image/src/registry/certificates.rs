//! Whose signatures are trusted: the machine's roots, those of a host's directory, and those of the options.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ureq::tls::{Certificate, PemItem, parse_pem};

use super::Options;
use super::error::RegistryError;

/// Where docker (dockerd "verify repository client with certificates") and podman (containers-certs.d(5)) look.
pub(super) const DIRECTORIES: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];

/// The roots of Debian, Ubuntu, Arch and Gentoo; Fedora and RHEL; openSUSE; Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The machine's roots, read once.
#[derive(Default)]
pub(super) struct MachineRoots(OnceLock<Vec<Certificate<'static>>>);

impl MachineRoots {
    fn get(&self) -> Result<&[Certificate<'static>], RegistryError> {
        if let Some(roots) = self.0.get() {
            return Ok(roots);
        }
        let roots = match bundle(std::env::var_os("SSL_CERT_FILE")) {
            Some(file) => {
                let read = std::fs::read(&file).and_then(|pem| parse(&pem));
                let path = Some(file);
                read.map_err(|source| RegistryError::RootCertificate { path, source })?
            }
            None => {
                log::warn!("this machine has no root certificates ({})", BUNDLES.join(", "));
                Vec::new()
            }
        };
        Ok(self.0.get_or_init(|| roots))
    }
}

/// The file with the machine's roots: what `SSL_CERT_FILE` names, as for OpenSSL, else where distributions have it.
fn bundle(named: Option<OsString>) -> Option<PathBuf> {
    let there = || BUNDLES.map(PathBuf::from).into_iter().find(|path| path.is_file());
    named.map(PathBuf::from).or_else(there)
}

/// All certificates in a PEM text.
pub(super) fn parse(pem: &[u8]) -> io::Result<Vec<Certificate<'static>>> {
    let mut certificates = Vec::new();
    for item in parse_pem(pem) {
        if let PemItem::Certificate(certificate) = item.map_err(io::Error::other)? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "there is no certificate in it",
        ));
    }
    Ok(certificates)
}

/// Everything that is trusted for a host.
pub(super) fn roots(
    machine: &MachineRoots,
    options: &Options,
    authority: &str,
) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let mut roots = machine.get()?.to_vec();
    roots.extend_from_slice(&options.root_certificates);
    for directory in &options.certificate_directories {
        let directory = directory.join(authority);
        let failed = |path: PathBuf| {
            move |source| RegistryError::RootCertificate {
                path: Some(path),
                source,
            }
        };
        for path in files(&directory).map_err(failed(directory.clone()))? {
            let pem = std::fs::read(&path);
            let more = pem.and_then(|pem| parse(&pem)).map_err(failed(path))?;
            roots.extend(more);
        }
    }
    Ok(roots)
}

fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_named_is_not_replaced_by_another() {
        let named = bundle(Some("/nonexistent/roots.pem".into()));
        assert_eq!(named, Some("/nonexistent/roots.pem".into()));
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for text in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nx\n",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".repeat(2);
        assert_eq!(parse(pem.as_bytes()).unwrap().len(), 2);
    }

    #[test]
    fn a_host_has_its_own_directory() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("h.io:5000");
        std::fs::create_dir(&host).unwrap();
        std::fs::write(
            host.join("ca.crt"),
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        std::fs::write(host.join("client.key"), "no certificate").unwrap();
        let options = Options {
            certificate_directories: vec![directory.path().to_path_buf(), "/nonexistent".into()],
            ..Options::default()
        };
        let machine = MachineRoots(OnceLock::from(Vec::new()));
        assert_eq!(roots(&machine, &options, "h.io:5000").unwrap().len(), 1);
        assert_eq!(roots(&machine, &options, "h.io").unwrap().len(), 0);
        std::fs::write(host.join("bad.crt"), "x").unwrap();
        let error = roots(&machine, &options, "h.io:5000").unwrap_err().to_string();
        let path = host.join("bad.crt");
        assert_eq!(
            error,
            format!("the root certificate {} cannot be read", path.display())
        );
    }
}
