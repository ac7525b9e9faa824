//! Who may depend on whom, and what an embedder has to compile.

use serde::Deserialize;

use super::{TidyError, Violation};
use crate::process;
use crate::workspace::Workspace;

/// Which packages of this workspace may use which others.
const LAW: &[(&str, &[&str])] = &[
    ("kata-agent-proto", &[]),
    ("kata-agent", &["kata-agent-proto"]),
    ("kata-virtio", &[]),
    ("kata-vmm", &["kata-virtio"]),
    ("kata-image", &[]),
    ("kata-sandbox", &["kata-vmm", "kata-agent-proto", "kata-image"]),
    ("kata-runtime", &["kata-sandbox"]),
    // What the guest of a benchmark and its host agree on.
    ("device-guest", &[]),
];

/// Packages that may use every library: they are used by nobody.
const ENDS: &[&str] = &["examples", "benches", "xtask", "bed-init"];

/// An embedder compiles fewer packages than this, ours included.
const PACKAGES: usize = 150;

/// What never reaches an embedder.
const FOREIGN: &[&str] = &["clap", "hyper", "containerd", "opentelemetry"];

/// As much of `cargo metadata` as the law needs.
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
}

/// The packages of the workspace and what their manifests name.
pub(super) fn metadata(workspace: &Workspace) -> Result<Metadata, TidyError> {
    let mut command = workspace.cargo(&["metadata", "--format-version=1", "--no-deps", "--offline"]);
    Ok(serde_json::from_str(&process::read(&mut command)?)?)
}

/// Uses of one package by another, of any kind, that the law does not know.
pub(super) fn edges(metadata: &Metadata) -> Vec<Violation> {
    let mut violations = Vec::new();
    for package in &metadata.packages {
        let allowed = LAW.iter().find(|(name, _)| *name == package.name);
        if allowed.is_none() && !ENDS.contains(&package.name.as_str()) {
            violations.push(Violation::new(
                &package.name,
                "the dependency law does not know this package",
            ));
        }
        let forbidden = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_some())
            .map(|dependency| dependency.name.as_str())
            // A package's tests may ask for features of the package itself.
            .filter(|name| *name != package.name)
            .filter(|name| match allowed {
                Some((_, allowed)) => !allowed.contains(name),
                None => ENDS.contains(name),
            });
        violations.extend(forbidden.map(|name| {
            Violation::new(
                &package.name,
                format!("the dependency law does not let it use {name}"),
            )
        }));
    }
    violations
}

/// What an embedder of the SDK compiles for this kind of machine, as `name version`.
pub(super) fn sandbox_tree(workspace: &Workspace) -> Result<Vec<String>, TidyError> {
    let mut command = workspace.cargo(&[
        "tree",
        "--package=kata-sandbox",
        "--edges=normal,build",
        "--prefix=none",
        "--no-dedupe",
    ]);
    let listing = process::read(&mut command)?;
    let mut packages: Vec<String> = listing
        .lines()
        .map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    packages.sort();
    packages.dedup();
    Ok(packages)
}

/// Too many packages, or one that has no business there.
pub(super) fn weight(packages: &[String]) -> Vec<Violation> {
    let mut violations = Vec::new();
    if packages.len() >= PACKAGES {
        let message = format!(
            "its tree has {} packages, and {PACKAGES} are too many",
            packages.len()
        );
        violations.push(Violation::new("kata-sandbox", message));
    }
    let foreign = packages
        .iter()
        .filter(|package| FOREIGN.iter().any(|name| is_of_family(package, name)));
    violations.extend(
        foreign
            .map(|package| Violation::new("kata-sandbox", format!("{package} must not reach an embedder"))),
    );
    violations
}

/// Whether a package is `family` or one of its parts, such as `clap_derive` or `hyper-util`.
fn is_of_family(package: &str, family: &str) -> bool {
    package
        .strip_prefix(family)
        .is_some_and(|rest| rest.starts_with(['-', '_', ' ']))
}

/// A manifest that does not take the workspace's lints; a workspace of its own, such as a fuzz target, cannot.
pub(super) fn lints(path: &str, manifest: &str) -> Option<Violation> {
    if manifest.lines().any(|line| line.trim() == "[workspace]") {
        return None;
    }
    let takes_them = manifest
        .lines()
        .skip_while(|line| line.trim() != "[lints]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .any(|line| line.replace(' ', "") == "workspace=true");
    (!takes_them).then(|| Violation::new(path, "must say `[lints] workspace = true`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches(package: &str, uses: &[&str]) -> Vec<String> {
        let dependencies = uses
            .iter()
            .map(|name| Dependency {
                name: (*name).to_owned(),
                path: Some("..".to_owned()),
            })
            .collect();
        let packages = vec![Package {
            name: package.to_owned(),
            dependencies,
        }];
        edges(&Metadata { packages })
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_law_knows_who_may_use_whom() {
        assert!(breaches("kata-sandbox", &["kata-vmm", "kata-image", "kata-agent-proto"]).is_empty());
        assert!(breaches("xtask", &["kata-image"]).is_empty());
        assert_eq!(
            breaches("kata-vmm", &["kata-image"]),
            ["kata-vmm: the dependency law does not let it use kata-image"]
        );
        assert_eq!(
            breaches("examples", &["xtask"]),
            ["examples: the dependency law does not let it use xtask"]
        );
        assert_eq!(
            breaches("kata-extra", &[]),
            ["kata-extra: the dependency law does not know this package"]
        );
    }

    #[test]
    fn packages_of_a_registry_are_no_matter_of_the_law() {
        let dependency = Dependency {
            name: "serde".into(),
            path: None,
        };
        let packages = vec![Package {
            name: "kata-image".into(),
            dependencies: vec![dependency],
        }];
        assert_eq!(edges(&Metadata { packages }), []);
    }

    #[test]
    fn an_embedder_compiles_little_and_nothing_foreign() {
        let many: Vec<String> = (0..PACKAGES).map(|n| format!("p{n} v1")).collect();
        assert_eq!(weight(&many[1..]), []);
        assert_eq!(weight(&many).len(), 1);
        let foreign = ["clap_derive v4", "clapper v1", "hyper v1"].map(str::to_owned);
        assert_eq!(weight(&foreign).len(), 2);
    }

    #[test]
    fn every_package_takes_the_workspaces_lints() {
        assert_eq!(
            lints("a/Cargo.toml", "[package]\n[lints]\nworkspace = true\n"),
            None
        );
        assert_eq!(lints("a/fuzz/Cargo.toml", "[package]\n[workspace]\n"), None);
        assert!(lints("a/Cargo.toml", "[package]\nworkspace = true\n").is_some());
        assert!(lints("a/Cargo.toml", "[lints]\n[lib]\nworkspace = true\n").is_some());
    }
}
