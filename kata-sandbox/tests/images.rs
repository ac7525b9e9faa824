//! Images as people have them: from a registry on loopback, with layers and defaults, and what they write on
//! disks.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;
mod registry;

use bed::Bed;
use kata_sandbox::image::{Pull, PullPolicy};
use kata_sandbox::{Command, Container, ErrorKind, MiB, Output, Sandbox};
use registry::Registry;

/// A name that only this test uses, so that nobody has its image yet.
fn repository(bed: &Bed, test: &str) -> String {
    format!("{test}-{}-{}", bed.name, std::process::id())
}

async fn run(container: Container) -> Output {
    Sandbox::run(container).await.unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

on_every_backend! {
    async fn an_image_of_python_runs_from_a_registry(bed: Bed) {
        let Some(registry) = Registry::start() else { return };
        let image = registry.image(&repository(&bed, "python"), "python");
        let program = "import sys; print(sum(range(101)), sys.version_info[0])";
        let output = run(bed.of_image(&image).args(["python3", "-c", program])).await;
        assert_eq!(text(&output), "5050 3\n", "{}", String::from_utf8_lossy(&output.stderr));
        let asked = registry.requests();
        // Its manifest and its configuration; the layers may have come with another image.
        assert!(asked >= 2, "{asked} requests");
        // The second time nobody is asked.
        let again = run(bed.of_image(&image).args(["python3", "-c", "print(7 * 6)"])).await;
        assert_eq!(text(&again), "42\n");
        assert_eq!(registry.requests(), asked);
    }

    async fn what_the_image_says_is_what_runs(bed: Bed) {
        let Some(registry) = Registry::start() else { return };
        let image = registry.image(&repository(&bed, "defaults"), "base");
        // The base says /bin/sh, which reads its script from its standard input.
        let output = run(bed.of_image(&image).stdin("echo from the shell; exit 5")).await;
        assert_eq!((text(&output).as_str(), output.status.code()), ("from the shell\n", 5));
        let sandbox = Sandbox::boot(bed.of_image(&image).idle()).await.unwrap();
        assert_eq!(sandbox.info().image.cmd, ["/bin/sh"]);
        assert!(sandbox.info().image_digest.starts_with("sha256:"));
        let output = sandbox.exec(Command::new("echo").arg("idle")).await.unwrap().output().await.unwrap();
        assert_eq!(output.stdout, b"idle\n");
        sandbox.stop().await.unwrap();
    }

    async fn layers_are_one_tree(bed: Bed) {
        let Some(registry) = Registry::start() else { return };
        let image = registry.image(&repository(&bed, "layers"), "python");
        let script = "set -e; test -x /usr/bin/python3; test -x /bin/sh; stat -c %a /tmp; cat /var/lib/dpkg/status | wc -l | \
                      grep -qv '^0$'; echo changed > /etc/hostname; mkdir -p /usr/lib/new; cat /etc/hostname";
        let output = run(bed.of_image(&image).args(["sh", "-c", script])).await;
        assert_eq!(text(&output), "1777\nchanged\n", "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Conformance: semantics 26
    async fn a_disk_has_its_size_and_is_gone_afterwards(bed: Bed) {
        let script = "head -c 8000000 /dev/zero > /a && echo fits; head -c 80000000 /dev/zero > /b && echo more; \
                      stat -f -c %T / >/dev/null; df -k / | tail -1 | awk '{print ($2 < 40000 && $2 > 20000)}'";
        for _ in 0..2 {
            let container = bed.shell(script).disk(MiB(32));
            let output = run(container).await;
            assert_eq!(text(&output), "fits\n1\n", "{}", String::from_utf8_lossy(&output.stderr));
            assert!(String::from_utf8_lossy(&output.stderr).contains("No space left on device"));
        }
    }

    async fn what_is_kept_is_there_the_next_time(bed: Bed) {
        let name = repository(&bed, "kept");
        let run = async |script: &str| text(&run(bed.shell(script).kept_disk(&name, MiB(16))).await);
        assert_eq!(run("cat /srv/count 2>/dev/null || echo none; echo 1 > /srv/count; sync").await, "none\n");
        assert_eq!(run("cat /srv/count; rm /srv/count; sync").await, "1\n");
        assert_eq!(run("cat /srv/count 2>/dev/null || echo none").await, "none\n");
        let store = kata_image::Store::open(kata_image::Store::default_directory().unwrap()).unwrap();
        store.remove_kept(&name).unwrap();
    }

    /// Conformance: semantics 21
    async fn a_disk_that_is_in_use_is_an_error_that_says_so(bed: Bed) {
        let name = repository(&bed, "busy");
        let sandbox = Sandbox::boot(bed.idle().kept_disk(&name, MiB(16))).await.unwrap();
        let error = Sandbox::boot(bed.idle().kept_disk(&name, MiB(16))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState);
        assert!(format!("{error:?}").contains("is in use"), "{error:?}");
        sandbox.stop().await.unwrap();
        let store = kata_image::Store::open(kata_image::Store::default_directory().unwrap()).unwrap();
        store.remove_kept(&name).unwrap();
    }
}

#[tokio::test]
async fn an_image_that_nobody_has_says_where_it_was_looked_for() {
    let container = Container::new("127.0.0.1:1/no/such:image").args(["true"]);
    let error = Sandbox::run(container).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Image);
    let text = format!("{error:?}");
    assert!(
        text.contains("127.0.0.1:1/no/such:image") && text.contains("refused"),
        "{text}"
    );
    let never = Pull::default().policy(PullPolicy::Never);
    let container = Container::new("127.0.0.1:1/no/such:image")
        .args(["true"])
        .pull(never);
    let text = format!("{:?}", Sandbox::run(container).await.unwrap_err());
    assert!(text.contains("is not in the image store"), "{text}");
}
