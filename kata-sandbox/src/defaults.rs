//! What an image or an OCI specification says about its containers, under what the caller said, as docker has it. Pure.

use std::borrow::Cow;

use kata_agent_proto::oci::Spec;
use kata_image::ImageConfig;

use crate::container::{Container, ProcessSettings};
use crate::oci;
use crate::signal;
use crate::terminal::TerminalSize;

/// The container with the defaults of its specification, or else of its image, where the caller left something open.
pub(crate) fn apply(container: Container, image: &ImageConfig) -> Container {
    let image = match &container.spec {
        Some(spec) => Cow::Owned(of_spec(spec, image)),
        None => Cow::Borrowed(image),
    };
    let mut process = process(&container, &image);
    if let Some(spec) = &container.spec {
        process.terminal = process
            .terminal
            .or_else(|| terminal(spec).filter(|_| !process.args.is_empty()));
    }
    // Of an image docker takes a signal that there is not for none.
    let image_signal = Some(&image.stop_signal).filter(|name| signal::number(name).is_some());
    Container {
        stop_signal: container.stop_signal.clone().or_else(|| image_signal.cloned()),
        volumes: image.volumes.iter().filter_map(|path| volume(path)).collect(),
        process,
        ..container
    }
}

/// A specification says all that an image would, but for the signal.
fn of_spec(spec: &Spec, image: &ImageConfig) -> ImageConfig {
    let process = &spec.process;
    let mut defaults = ImageConfig::default();
    defaults.cmd = process.args.clone();
    defaults.env = process
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(owned)
        .collect();
    defaults.working_dir = process.cwd.clone();
    let stop_signal = spec.annotations.get(oci::STOP_SIGNAL);
    defaults.stop_signal = stop_signal.unwrap_or(&image.stop_signal).clone();
    defaults
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A terminal without a size is one that nobody has sized.
fn terminal(spec: &Spec) -> Option<TerminalSize> {
    let process = spec.process.as_ref().filter(|process| process.terminal)?;
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Some(TerminalSize {
        rows: cells(process.console_size.height),
        columns: cells(process.console_size.width),
    })
}

fn process(container: &Container, image: &ImageConfig) -> ProcessSettings {
    let given = &container.process;
    let mut env = image.env.clone();
    env.retain(|(name, _)| !given.env.iter().any(|(ours, _)| ours == name));
    env.extend(given.env.iter().cloned());
    ProcessSettings {
        args: args(container, image),
        env,
        cwd: given
            .cwd
            .clone()
            .or_else(|| working_directory(&image.working_dir)),
        user: given
            .user
            .clone()
            .or_else(|| Some(image.user.clone()).filter(|user| !user.is_empty())),
        input: given.input.clone(),
        terminal: given.terminal,
    }
}

/// A caller's entrypoint takes the place of the image's, and then the image's arguments mean nothing either.
fn args(container: &Container, image: &ImageConfig) -> Vec<String> {
    if container.is_idle {
        return Vec::new();
    }
    let given = &container.process.args;
    let (entrypoint, cmd) = match &container.entrypoint {
        Some(entrypoint) => (entrypoint, given),
        None if given.is_empty() => (&image.entrypoint, &image.cmd),
        None => (&image.entrypoint, given),
    };
    entrypoint.iter().chain(cmd).cloned().collect()
}

/// A volume's path; the root is one anyway.
fn volume(path: &str) -> Option<String> {
    let path = path.trim_matches('/');
    (!path.is_empty()).then(|| format!("/{path}"))
}

/// Authors leave the slash out, and docker puts it there.
fn working_directory(directory: &str) -> Option<String> {
    match directory {
        "" => None,
        absolute if absolute.starts_with('/') => Some(absolute.to_owned()),
        relative => Some(format!("/{relative}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        let mut image = ImageConfig::default();
        image.entrypoint = vec!["/entry".into()];
        image.cmd = vec!["serve".into(), "--all".into()];
        image.env = vec![
            ("PATH".into(), "/opt/bin".into()),
            ("MODE".into(), "image".into()),
        ];
        image.user = "www-data".into();
        image.working_dir = "srv".into();
        image
    }

    fn check(container: Container, args: &[&str]) {
        assert_eq!(apply(container, &image()).process.args, args);
    }

    #[test]
    fn entrypoint_and_arguments_go_together_as_with_docker() {
        let container = || Container::new("i");
        check(container(), &["/entry", "serve", "--all"]);
        check(container().args(["once"]), &["/entry", "once"]);
        check(
            container().entrypoint(["sh", "-c"]).args(["id"]),
            &["sh", "-c", "id"],
        );
        check(container().entrypoint(["sh"]), &["sh"]);
        check(container().entrypoint([""; 0]).args(["id"]), &["id"]);
        check(container().args(["once"]).idle(), &[]);
    }

    #[test]
    fn what_the_caller_says_wins_over_the_image() {
        let process = apply(Container::new("i").env("MODE", "mine"), &image()).process;
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(process.env, [pair("PATH", "/opt/bin"), pair("MODE", "mine")]);
        assert_eq!(process.cwd.as_deref(), Some("/srv"));
        assert_eq!(process.user.as_deref(), Some("www-data"));
        let process = apply(Container::new("i").cwd("/tmp").user("0"), &image()).process;
        assert_eq!(
            (process.cwd.as_deref(), process.user.as_deref()),
            (Some("/tmp"), Some("0"))
        );
    }

    #[test]
    fn volumes_and_the_stop_signal_are_the_images_unless_the_caller_has_another() {
        let mut image = image();
        image.volumes = ["/data/", "var/lib", "/"].map(String::from).into();
        image.stop_signal = "SIGQUIT".into();
        let applied = apply(Container::new("i"), &image);
        assert_eq!(applied.volumes, ["/data", "/var/lib"]);
        assert_eq!(applied.stop_signal.as_deref(), Some("SIGQUIT"));
        let applied = apply(Container::new("i").stop_signal("2"), &image);
        assert_eq!(applied.stop_signal.as_deref(), Some("2"));
        image.stop_signal = "SIGNONSENSE".into();
        assert_eq!(apply(Container::new("i"), &image).stop_signal, None);
    }

    #[test]
    fn a_specification_takes_the_place_of_the_image_below_what_the_caller_says() {
        let json = r#"{
            "ociVersion": "1.2.0",
            "process": {
                "args": ["redis", "--all"], "env": ["A=1", "B=2=3"], "cwd": "/data",
                "terminal": true, "consoleSize": {"height": 3, "width": 4}
            },
            "annotations": {"org.opencontainers.image.stopSignal": "SIGQUIT"}
        }"#;
        let container = || Container::from_spec("i", json).unwrap();
        let applied = apply(container(), &image());
        assert_eq!(applied.process.args, ["redis", "--all"]);
        assert_eq!(applied.process.env, [owned(("A", "1")), owned(("B", "2=3"))]);
        assert_eq!(
            (applied.process.cwd.as_deref(), applied.process.user),
            (Some("/data"), None)
        );
        assert_eq!(
            applied.process.terminal,
            Some(TerminalSize { rows: 3, columns: 4 })
        );
        assert_eq!(applied.stop_signal.as_deref(), Some("SIGQUIT"));
        let applied = apply(
            container().args(["sh"]).env("A", "2").cwd("/").user("daemon"),
            &image(),
        );
        assert_eq!(applied.process.args, ["sh"]);
        assert_eq!(applied.process.env, [owned(("B", "2=3")), owned(("A", "2"))]);
        assert_eq!(
            (applied.process.cwd.as_deref(), applied.process.user.as_deref()),
            (Some("/"), Some("daemon"))
        );
        let applied = apply(container().idle(), &image());
        assert_eq!(
            (applied.process.args, applied.process.terminal),
            (Vec::new(), None)
        );
    }

    #[test]
    fn an_image_that_says_nothing_changes_nothing() {
        let container = Container::new("i").args(["x"]).env("A", "b").cwd("/c").user("d");
        assert_eq!(
            apply(container.clone(), &ImageConfig::default()).process,
            container.process
        );
    }
}
