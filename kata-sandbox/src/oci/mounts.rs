//! `mounts` (config.md#mounts).

use kata_agent_proto::oci::Mount;

use super::linux::id_mapping;
use super::reader::{Node, quoted};
use crate::error::Error;

/// File systems that the guest's kernel makes of nothing (filesystems(5), `nodev`).
const KERNELS: [&str; 16] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "mqueue",
    "cgroup",
    "cgroup2",
    "hugetlbfs",
    "securityfs",
    "debugfs",
    "tracefs",
    "configfs",
    "bpf",
    "binfmt_misc",
    "devtmpfs",
];

const SHARED: &str = "is the host's, and nothing of the host is shared with a sandbox";

/// The most mounts of a container: making each looks at those before it.
const MOUNTS_MAX: usize = 4096;

pub(super) fn mounts(node: Node) -> Result<Vec<Mount>, Error> {
    match node.len() {
        Some(count) if count > MOUNTS_MAX => {
            Err(node.invalid(format_args!("{count} are too many: {MOUNTS_MAX} are the most")))
        }
        _ => node.list(mount),
    }
}

fn mount(node: Node) -> Result<Mount, Error> {
    let mut fields = node.object()?;
    let destination = fields.need("destination")?.absolute()?;
    let source = fields.take("source");
    let options = fields.read("options", Node::strings)?;
    let kind = fields.take("type");
    let name = kind.as_ref().map(Node::text).transpose()?.unwrap_or_default();
    let binds = name == "bind"
        || options
            .iter()
            .any(|option| matches!(option.as_str(), "bind" | "rbind"));
    match (&kind, &source) {
        (_, Some(source)) if binds => return Err(source.unsupported(SHARED)),
        (Some(kind), None) if binds => return Err(kind.invalid("a bind mount without a source")),
        (None, _) => return Err(fields.invalid("a mount without a type, which does not bind either")),
        (Some(kind), _) if !KERNELS.contains(&name) => {
            let what = format_args!(
                "a file system {} would be the host's: known are {}",
                quoted(name),
                KERNELS.join(", ")
            );
            return Err(kind.unsupported(what));
        }
        _ => {}
    }
    let mount = Mount {
        destination,
        type_: name.to_owned(),
        source: source
            .map(Node::string)
            .transpose()?
            .unwrap_or_else(|| name.to_owned()),
        options,
        uid_mappings: fields.read("uidMappings", |node| node.list(id_mapping))?,
        gid_mappings: fields.read("gidMappings", |node| node.list(id_mapping))?,
        ..Mount::default()
    };
    fields.finish()?;
    Ok(mount)
}
