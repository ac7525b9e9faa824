//! The files that a container expects and an image may lack: resolv.conf, hosts, hostname.
//!
//! Owns their text. A file that the image has is left alone, and so is a root that cannot be written.

use std::io;
use std::path::Path;

use kata_agent_proto::Failed;

use crate::rootfs::file_failure;
use crate::rootfs::root::Root;

/// Writes what is missing.
pub(super) fn complete(root: &Root, hostname: &str, dns: &[String]) -> Result<(), Failed> {
    let files = [
        ("resolv.conf", resolv_conf(dns)),
        ("hosts", hosts(hostname)),
        ("hostname", format!("{hostname}\n")),
    ];
    for (name, text) in files {
        let path = Path::new("/etc").join(name);
        if root.exists(&path) {
            continue;
        }
        match root.create_file(Path::new("/etc"), name, &text) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(()),
            other => other.map_err(|error| file_failure(&path, &error))?,
        }
    }
    Ok(())
}

/// Bare addresses become `nameserver` lines; others are taken as they are.
fn resolv_conf(dns: &[String]) -> String {
    let line = |entry: &String| match entry.parse::<std::net::IpAddr>() {
        Ok(address) => format!("nameserver {address}\n"),
        Err(_) => format!("{entry}\n"),
    };
    dns.iter().map(line).collect()
}

fn hosts(hostname: &str) -> String {
    let own = if hostname.is_empty() {
        String::new()
    } else {
        format!("127.0.1.1\t{hostname}\n")
    };
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_missing_is_written_and_what_is_there_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let etc = dir.path().join("etc");
        fs::create_dir(&etc).expect("made");
        fs::write(etc.join("hosts"), "mine").expect("written");
        symlink("/run/nosuch/resolv.conf", etc.join("resolv.conf")).expect("linked");
        let root = Root::open(dir.path()).expect("opened");
        complete(&root, "box", &["1.1.1.1".into(), "search lan".into()]).expect("written");
        let read = |name| fs::read_to_string(etc.join(name)).expect("read");
        assert_eq!(read("hosts"), "mine");
        assert_eq!(read("resolv.conf"), "nameserver 1.1.1.1\nsearch lan\n");
        assert_eq!(read("hostname"), "box\n");
    }

    #[test]
    fn hosts_knows_the_loopback_and_the_own_name() {
        assert!(hosts("box").contains("127.0.1.1\tbox\n"));
        assert!(hosts("").starts_with("127.0.0.1\tlocalhost\n"));
    }
}
