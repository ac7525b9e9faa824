//! What a container is to be, read before anything is made.
//!
//! Owns the reading of an OCI specification into what system calls take; what has no meaning is an error that names its
//! field. Must not touch the system.

use std::fmt::Display;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use kata_agent_proto::{Failed, FailureKind};
use rustix::fs::FileType;
use rustix::thread::ThreadNameSpaceType;
use serde_json::Value;

use super::hooks::{self, Hook};
use super::options::{Options, Propagation};
use crate::exec::{self, Traits, name_space};
use crate::rootfs::passwd::User;
use crate::spec::json::{number, strings};

/// See the module.
pub(super) struct Plan {
    pub(super) root: PathBuf,
    pub(super) read_only_root: bool,
    pub(super) hostname: Option<String>,
    pub(super) domainname: Option<String>,
    pub(super) namespaces: Namespaces,
    pub(super) mounts: Vec<Mount>,
    pub(super) devices: Vec<Device>,
    pub(super) masked_paths: Vec<PathBuf>,
    pub(super) read_only_paths: Vec<PathBuf>,
    pub(super) propagation: Option<Propagation>,
    pub(super) sysctls: Vec<Sysctl>,
    pub(super) hooks: Hooks,
    pub(super) process: exec::Plan,
}

/// Namespaces of a container, and what they are made with.
#[derive(Debug)]
pub(super) struct Namespaces {
    pub(super) new: ThreadNameSpaceType,
    pub(super) joined: Vec<Joined>,
    pub(super) uid_map: String,
    pub(super) gid_map: String,
    pub(super) time_offsets: String,
}

/// A namespace that exists.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) kind: ThreadNameSpaceType,
    pub(super) path: PathBuf,
    /// Where it stands in the specification.
    pub(super) field: String,
}

impl Namespaces {
    pub(super) fn makes(&self, kind: ThreadNameSpaceType) -> bool {
        self.new.contains(kind)
    }

    pub(super) fn joins(&self, kind: ThreadNameSpaceType) -> bool {
        self.joined.iter().any(|joined| joined.kind == kind)
    }

    pub(super) fn has(&self, kind: ThreadNameSpaceType) -> bool {
        self.makes(kind) || self.joins(kind)
    }
}

/// A mount of a specification.
#[derive(Debug)]
pub(super) struct Mount {
    /// Where it stands in the specification, as `mounts[0]`.
    pub(super) field: String,
    pub(super) destination: PathBuf,
    pub(super) source: String,
    pub(super) kind: String,
    pub(super) options: Options,
    pub(super) uid_map: String,
    pub(super) gid_map: String,
}

/// A node that a container needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) field: String,
    pub(super) path: PathBuf,
    pub(super) kind: FileType,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A parameter of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sysctl {
    pub(super) name: String,
    /// Below `/proc/sys`.
    pub(super) path: PathBuf,
    pub(super) value: String,
}

/// The hooks of a container's making.
pub(super) struct Hooks {
    pub(super) prestart: Vec<Hook>,
    pub(super) create_runtime: Vec<Hook>,
    pub(super) create_container: Vec<Hook>,
    pub(super) start_container: Vec<Hook>,
}

fn invalid(field: &str, what: impl Display) -> Failed {
    Failed::new(FailureKind::Invalid, format!("{field}: {what}"))
}

impl Plan {
    /// The plan of a specification.
    ///
    /// # Errors
    /// Invalid, or unsupported, by the field.
    pub(super) fn new(spec: &Value, user: Option<&User>, traits: &Arc<Traits>) -> Result<Self, Failed> {
        let linux = &spec["linux"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let plan = Plan {
            root: PathBuf::from(spec["root"]["path"].as_str().unwrap_or_default()),
            read_only_root: spec["root"]["readonly"].as_bool().unwrap_or(false),
            hostname: text(&spec["hostname"]),
            domainname: text(&spec["domainname"]),
            namespaces: namespaces(linux)?,
            mounts: mounts(&spec["mounts"])?,
            devices: devices(&linux["devices"])?,
            masked_paths: paths("linux.maskedPaths", &linux["maskedPaths"])?,
            read_only_paths: paths("linux.readonlyPaths", &linux["readonlyPaths"])?,
            propagation: propagation(linux["rootfsPropagation"].as_str())?,
            sysctls: sysctls(&linux["sysctl"])?,
            hooks: Hooks {
                prestart: hooks::of(spec, "prestart")?,
                create_runtime: hooks::of(spec, "createRuntime")?,
                create_container: hooks::of(spec, "createContainer")?,
                start_container: hooks::of(spec, "startContainer")?,
            },
            process: exec::Plan::new(&spec["process"], user, traits)?,
        };
        plan.check()?;
        Ok(plan)
    }

    /// What only makes sense beside something else.
    fn check(&self) -> Result<(), Failed> {
        let spaces = &self.namespaces;
        if !spaces.makes(ThreadNameSpaceType::MOUNT) {
            // Otherwise the mounts would stay where they were made, for others to see.
            let asked = [
                (!self.mounts.is_empty(), "mounts"),
                (self.read_only_root, "root.readonly"),
                (!self.masked_paths.is_empty(), "linux.maskedPaths"),
                (!self.read_only_paths.is_empty(), "linux.readonlyPaths"),
                (self.propagation.is_some(), "linux.rootfsPropagation"),
                (self.process.terminal.is_some(), "process.terminal"),
            ];
            if let Some((_, field)) = asked.into_iter().find(|(asked, _)| *asked) {
                return Err(Failed::new(
                    FailureKind::Unsupported,
                    format!("{field}: without a new mount namespace"),
                ));
            }
        }
        if self.domainname.is_some() && !spaces.has(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME) {
            return Err(invalid("domainname", "without a UTS namespace"));
        }
        Ok(())
    }
}

fn namespaces(linux: &Value) -> Result<Namespaces, Failed> {
    let mut spaces = Namespaces {
        new: ThreadNameSpaceType::empty(),
        joined: Vec::new(),
        uid_map: id_map("linux.uidMappings", &linux["uidMappings"])?,
        gid_map: id_map("linux.gidMappings", &linux["gidMappings"])?,
        time_offsets: time_offsets(&linux["timeOffsets"])?,
    };
    for (index, item) in linux["namespaces"].as_array().into_iter().flatten().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let word = item["type"].as_str().unwrap_or_default();
        let kind = name_space(word).filter(|kind| !spaces.has(*kind));
        let kind = kind.ok_or_else(|| invalid(&format!("{field}.type"), format_args!("{word:?}")))?;
        match item["path"].as_str() {
            None => spaces.new |= kind,
            Some(path) => spaces.joined.push(Joined {
                kind,
                path: checked_path(&format!("{field}.path"), path)?,
                field: format!("{field}.path"),
            }),
        }
    }
    let new_user = spaces.makes(ThreadNameSpaceType::USER);
    for (field, map) in [
        ("linux.uidMappings", &spaces.uid_map),
        ("linux.gidMappings", &spaces.gid_map),
    ] {
        match (new_user, map.is_empty()) {
            (true, true) => return Err(invalid(field, "none for a new user namespace")),
            (false, false) => return Err(invalid(field, "without a new user namespace")),
            _ => {}
        }
    }
    if !spaces.time_offsets.is_empty() && !spaces.makes(ThreadNameSpaceType::TIME) {
        return Err(invalid("linux.timeOffsets", "without a new time namespace"));
    }
    Ok(spaces)
}

/// Mappings as the lines of `/proc/<pid>/uid_map` (user_namespaces(7)).
fn id_map(field: &str, list: &Value) -> Result<String, Failed> {
    let mut map = String::new();
    for (index, item) in list.as_array().into_iter().flatten().enumerate() {
        let part = |name: &str| number(&item[name]);
        let (inside, outside, size) = (part("containerID"), part("hostID"), part("size"));
        let fits = |first: u32| first.checked_add(size).is_some();
        if size == 0 || !fits(inside) || !fits(outside) {
            return Err(invalid(
                &format!("{field}[{index}]"),
                format_args!("{inside} {outside} {size}"),
            ));
        }
        map.push_str(&format!("{inside} {outside} {size}\n"));
    }
    Ok(map)
}

/// Offsets as the lines of `/proc/<pid>/timens_offsets` (time_namespaces(7)).
fn time_offsets(offsets: &Value) -> Result<String, Failed> {
    let mut lines = String::new();
    for (clock, offset) in offsets.as_object().into_iter().flatten() {
        let field = format!("linux.timeOffsets.{clock}");
        if !["monotonic", "boottime"].contains(&clock.as_str()) {
            return Err(invalid(&field, "no such clock"));
        }
        let (seconds, nanoseconds) = (offset["secs"].as_i64().unwrap_or(0), number(&offset["nanosecs"]));
        if nanoseconds >= 1_000_000_000 {
            return Err(invalid(&field, format_args!("{nanoseconds} nanoseconds")));
        }
        lines.push_str(&format!("{clock} {seconds} {nanoseconds}\n"));
    }
    Ok(lines)
}

fn checked_path(field: &str, path: &str) -> Result<PathBuf, Failed> {
    if path.contains('\0') {
        return Err(invalid(field, "a text with a null byte"));
    }
    if !path.starts_with('/') {
        return Err(invalid(field, format_args!("{path:?} is not absolute")));
    }
    Ok(PathBuf::from(path))
}

fn paths(field: &str, list: &Value) -> Result<Vec<PathBuf>, Failed> {
    let paths = strings(list);
    let paths = paths.iter().enumerate();
    paths
        .map(|(index, path)| checked_path(&format!("{field}[{index}]"), path))
        .collect()
}

fn propagation(word: Option<&str>) -> Result<Option<Propagation>, Failed> {
    let Some(word) = word else { return Ok(None) };
    let known = Propagation::of(word);
    known
        .map(Some)
        .ok_or_else(|| invalid("linux.rootfsPropagation", format_args!("{word:?}")))
}

fn mounts(list: &Value) -> Result<Vec<Mount>, Failed> {
    let list = list.as_array().into_iter().flatten().enumerate();
    list.map(|(index, mount)| self::mount(format!("mounts[{index}]"), mount))
        .collect()
}

fn mount(field: String, mount: &Value) -> Result<Mount, Failed> {
    let part = |name: &str| {
        let text = mount[name].as_str().unwrap_or_default();
        match text.contains('\0') {
            true => Err(invalid(&format!("{field}.{name}"), "a text with a null byte")),
            false => Ok(text.to_owned()),
        }
    };
    let (destination, source, kind) = (part("destination")?, part("source")?, part("type")?);
    if destination.is_empty() {
        return Err(invalid(&format!("{field}.destination"), "none"));
    }
    // One that is not absolute begins at the root (config.md#mounts).
    let destination = Path::new("/").join(destination);
    if !destination
        .components()
        .any(|part| matches!(part, Component::Normal(_)))
    {
        let field = format!("{field}.destination");
        return Err(Failed::new(
            FailureKind::Unsupported,
            format!("{field}: the root itself"),
        ));
    }
    let words = strings(&mount["options"]);
    if words.iter().any(|word| word.contains('\0')) {
        return Err(invalid(&format!("{field}.options"), "a text with a null byte"));
    }
    let mut options = Options::of(words.iter().map(String::as_str));
    if kind == "bind" && options.bind.is_none() && !options.remount {
        options.bind = Some(false);
    }
    let mapped = ["uidMappings", "gidMappings"]
        .into_iter()
        .any(|name| mount[name].is_array());
    if mapped && options.id_map.is_none() {
        // As the specification has it: mappings alone mean the same.
        options.id_map = Some(false);
    }
    check_mount(&field, &source, &kind, &options)?;
    Ok(Mount {
        uid_map: id_map(&format!("{field}.uidMappings"), &mount["uidMappings"])?,
        gid_map: id_map(&format!("{field}.gidMappings"), &mount["gidMappings"])?,
        field,
        destination,
        source,
        kind,
        options,
    })
}

fn check_mount(field: &str, source: &str, kind: &str, options: &Options) -> Result<(), Failed> {
    let file_system = options.bind.is_none() && !options.remount;
    if file_system && kind.is_empty() {
        return Err(invalid(&format!("{field}.type"), "none"));
    }
    if options.bind.is_some() && source.is_empty() && !options.remount {
        return Err(invalid(&format!("{field}.source"), "none"));
    }
    let options_field = format!("{field}.options");
    if options.bind.is_some() && !options.data.is_empty() {
        return Err(invalid(
            &options_field,
            format_args!("{:?} of a bind mount", options.data),
        ));
    }
    if options.id_map.is_some() && (options.bind.is_none() || options.remount) {
        return Err(Failed::new(
            FailureKind::Unsupported,
            format!("{options_field}: idmap without a bind mount"),
        ));
    }
    if options.copy_up && kind != "tmpfs" {
        return Err(invalid(&options_field, "tmpcopyup without a tmpfs"));
    }
    Ok(())
}

fn devices(list: &Value) -> Result<Vec<Device>, Failed> {
    let list = list.as_array().into_iter().flatten().enumerate();
    list.map(|(index, device)| self::device(format!("linux.devices[{index}]"), device))
        .collect()
}

fn device(field: String, device: &Value) -> Result<Device, Failed> {
    let word = device["type"].as_str().unwrap_or_default();
    let kind = match word {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => return Err(invalid(&format!("{field}.type"), format_args!("{word:?}"))),
    };
    let part = |name: &str| {
        let given = device[name].as_i64().unwrap_or(0);
        u32::try_from(given).map_err(|_| invalid(&format!("{field}.{name}"), given))
    };
    let path = checked_path(
        &format!("{field}.path"),
        device["path"].as_str().unwrap_or_default(),
    )?;
    if path.file_name().is_none() {
        return Err(invalid(
            &format!("{field}.path"),
            format_args!("{}", path.display()),
        ));
    }
    Ok(Device {
        path,
        kind,
        major: part("major")?,
        minor: part("minor")?,
        mode: device["fileMode"]
            .as_u64()
            .map_or(0o666, |_| number(&device["fileMode"])),
        uid: number(&device["uid"]),
        gid: number(&device["gid"]),
        field,
    })
}

fn sysctls(map: &Value) -> Result<Vec<Sysctl>, Failed> {
    let map = map.as_object().into_iter().flatten();
    map.map(|(name, value)| {
        let path = sysctl_path(name).ok_or_else(|| invalid("linux.sysctl", format_args!("{name:?}")))?;
        Ok(Sysctl {
            name: name.clone(),
            path,
            value: value.as_str().unwrap_or_default().to_owned(),
        })
    })
    .collect()
}

/// The file of a parameter. Dots separate, and a slash is a dot of a name then; or the other way round, by what comes
/// first (sysctl(8)).
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let first = name.find(['.', '/']);
    let dots = first.is_none_or(|at| name.get(at..).is_some_and(|rest| rest.starts_with('.')));
    let path: String = match dots {
        false => name.to_owned(),
        true => name
            .chars()
            .map(|letter| match letter {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
    };
    let plain = path
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    (plain && !path.contains('\0')).then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests;
