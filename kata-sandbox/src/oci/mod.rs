//! From an OCI runtime specification in JSON (config.md, config-linux.md; 1.0 to 1.3) to the agent's. Pure.
//!
//! ```text
//!  config.json ──reader (strict, by path)──► process, mounts, linux, resources, seccomp ──► Converted
//! ```
//!
//! Owns what each field means in a sandbox. What is not known or makes no sense is
//! [`InvalidContainer`](ErrorKind::InvalidContainer), what asks for something of the host or cannot be done is
//! [`Unsupported`](ErrorKind::Unsupported), each by the field's path; nothing is dropped. Must not know where the
//! result goes.
//!
//! | of the host | here |
//! |---|---|
//! | a bind mount, a file system on a device | unsupported: nothing of the host is shared |
//! | `linux.namespaces[..].path` | unsupported |
//! | a network namespace without a path | the sandbox's own network, as all its containers have |
//! | `linux.cgroupsPath` | unsupported: the agent chooses the cgroup, in the guest |
//! | hooks but `startContainer`, whose programs are the host's | unsupported |
//! | devices, sysctls, resources, every other namespace | the guest's |
//! | annotations | are handed on; `org.opencontainers.image.stopSignal` has its meaning |

mod linux;
mod mounts;
mod process;
mod reader;
mod resources;
mod seccomp;
#[cfg(test)]
mod tests;

use kata_agent_proto::oci::{Hook, Hooks, Spec};
use protobuf::MessageField;

use self::reader::{Node, quoted};
use crate::error::Error;

/// The annotation by which images hand on their stop signal (image-spec conversion.md).
pub(crate) const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// The longest host name (sethostname(2), `HOST_NAME_MAX`), and domain name.
const NAME_BYTES_MAX: usize = 64;

/// Minor versions of the specification's major version 1 whose fields are known.
const MINOR_MAX: u32 = 3;

/// What a specification says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Converted {
    /// For the agent; its root has no path yet. No process where it has none.
    pub(crate) spec: Spec,
    /// `root.path`, in the bundle or absolute.
    pub(crate) root_path: Option<String>,
}

/// Reads a specification.
pub(crate) fn convert(json: &str) -> Result<Converted, Error> {
    let mut fields = Node::parse(json)?.object()?;
    for other in ["solaris", "windows", "vm", "zos", "freebsd"] {
        fields.refuse(other, "is for another platform than Linux")?;
    }
    let version = version(fields.need("ociVersion")?)?;
    let (root, root_path) = fields.take("root").map_or(Ok((None, None)), root)?;
    let process = fields.take("process").map(process::process).transpose()?;
    let spec = Spec {
        version,
        process: process.into(),
        root: root.into(),
        hostname: fields.read("hostname", name)?,
        domainname: fields.read("domainname", name)?,
        mounts: fields.read("mounts", mounts::mounts)?,
        hooks: fields.take("hooks").map(hooks).transpose()?.flatten().into(),
        annotations: fields.read("annotations", Node::texts)?,
        linux: MessageField::some(fields.read("linux", linux::linux)?),
        ..Spec::default()
    };
    fields.finish()?;
    Ok(Converted { spec, root_path })
}

/// `1.MINOR.PATCH`, perhaps with a pre-release or build behind it.
fn version(node: Node) -> Result<String, Error> {
    let text = node.text()?;
    let release = text.split(['-', '+']).next().unwrap_or_default();
    let numbers: Option<Vec<u32>> = release.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([1, 0..=MINOR_MAX, _]) => Ok(text.to_owned()),
        Some([_, _, _]) => {
            let what = format_args!("{} is not one of 1.0 to 1.{MINOR_MAX}", quoted(text));
            Err(node.unsupported(what))
        }
        _ => Err(node.invalid(format_args!("{} is no version", quoted(text)))),
    }
}

fn root(node: Node) -> Result<(Option<kata_agent_proto::oci::Root>, Option<String>), Error> {
    let mut fields = node.object()?;
    let path = fields.need("path")?;
    if path.text()?.is_empty() {
        return Err(path.invalid("is empty"));
    }
    let root = kata_agent_proto::oci::Root {
        readonly: fields.read("readonly", Node::bool)?,
        ..kata_agent_proto::oci::Root::default()
    };
    fields.finish()?;
    Ok((Some(root), Some(path.string()?)))
}

fn name(node: Node) -> Result<String, Error> {
    match node.text()?.len() {
        0..=NAME_BYTES_MAX => node.string(),
        long => Err(node.invalid(format_args!(
            "is {long} bytes long, and {NAME_BYTES_MAX} are the most"
        ))),
    }
}

/// Only what runs inside of the container is a program that a guest has.
fn hooks(node: Node) -> Result<Option<Hooks>, Error> {
    const OF_THE_HOST: [&str; 5] = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ];
    let mut fields = node.object()?;
    for moment in OF_THE_HOST {
        let Some(node) = fields.take(moment) else {
            continue;
        };
        let unsupported =
            node.unsupported("its programs are the host's, and nothing of a sandbox runs there");
        // An empty list asks for nothing.
        if !node.list(hook)?.is_empty() {
            return Err(unsupported);
        }
    }
    let start_container = fields.read("startContainer", |node| node.list(hook))?;
    fields.finish()?;
    Ok((!start_container.is_empty()).then(|| Hooks {
        start_container,
        ..Hooks::default()
    }))
}

fn hook(node: Node) -> Result<Hook, Error> {
    let mut fields = node.object()?;
    let hook = Hook {
        path: fields.need("path")?.absolute()?,
        args: fields.read("args", Node::strings)?,
        env: fields.read("env", Node::strings)?,
        timeout: fields.read("timeout", |node| node.within(1..=i64::MAX))?,
        ..Hook::default()
    };
    fields.finish()?;
    Ok(hook)
}
