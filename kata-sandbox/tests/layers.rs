//! The files of an image below a machine that runs: they stay as long as it does, and with hash trees nothing that was
//! changed in them is read.

#![allow(clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod bed;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bed::{Bed, script, text};
use kata_image::guest::{Assets, Overrides};
use kata_image::kernel::{Ability, Feature, Kernel};
use kata_sandbox::image::{Image, ImageSource, Platform, Pull, Store};
use kata_sandbox::{Command, Container, Error, ErrorKind, Sandbox};

/// Where the large file's bytes are changed.
const MIDDLE: usize = 4 << 20;

/// An image whose highest layer nobody else has.
struct Unique {
    directory: tempfile::TempDir,
    large: Vec<u8>,
}

impl Unique {
    /// On the base of the tests' images; nothing where they are missing, which counts as a skip.
    fn make() -> Option<Self> {
        let Some(images) = std::env::var_os("KATA_TEST_IMAGES") else {
            let message = "KATA_TEST_IMAGES names no images; run `cargo xtask test`";
            bed::skip(std::thread::current().name().unwrap_or_default(), message);
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let unique = directory.path().display().to_string();
        let large: Vec<u8> = unique.bytes().cycle().take(2 * MIDDLE).collect();
        fs::create_dir_all(directory.path().join("tree/srv")).unwrap();
        fs::write(directory.path().join("tree/srv/small"), &unique).unwrap();
        fs::write(directory.path().join("tree/srv/large"), &large).unwrap();
        let base = Image::open(images, Some("base"), &Platform::host(), directory.path()).unwrap();
        let image = Image::builder()
            .base(base)
            .directory(directory.path().join("tree"));
        let image = image.build(&mut |_| ()).unwrap();
        image
            .write_layout(directory.path().join("layout"), Some("latest"), &mut |_| ())
            .unwrap();
        Some(Self { directory, large })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    /// The file of its highest layer, in the store that sandboxes use.
    fn layer(&self) -> PathBuf {
        let source = ImageSource::detect(self.path()).unwrap();
        let image = store().image(&source, &Pull::default(), &mut |_| ()).unwrap();
        image.layers.last().unwrap().path.clone()
    }

    fn remove(&self) {
        store().remove(&self.name()).unwrap();
    }

    fn name(&self) -> String {
        self.path().canonicalize().unwrap().display().to_string()
    }
}

fn store() -> Store {
    Store::open(Store::default_directory().unwrap()).unwrap()
}

/// Whether the guest's kernel checks disks; nothing where its configuration is not known.
fn can_verify(bed: &Bed) -> Option<bool> {
    if !bed.has_guest() {
        return Some(false);
    }
    let kernel = Assets::find(&Overrides::default()).unwrap().kernel;
    match Kernel::inspect(kernel).unwrap().ability(Feature::Verity) {
        Ability::BuiltIn => Some(true),
        Ability::Module | Ability::Missing => Some(false),
        Ability::Unknown => None,
    }
}

fn check_refusal(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let said = bed::chain(error);
    let expected = [
        "hash trees are checked by a guest's kernel, and a process has none",
        "the kernel has no device mapper",
    ];
    assert!(expected.iter().any(|words| said.contains(words)), "{said}");
}

on_every_backend! {
    async fn what_was_changed_below_a_machine_is_never_read(bed: Bed) {
        let Some(image) = Unique::make() else { return };
        let container = bed.of_image(image.path()).pull(Pull::default().hash_trees(true)).idle();
        let booted = Sandbox::boot(container).await;
        let can = can_verify(&bed);
        let sandbox = match booted {
            Err(error) if can != Some(true) => return check_refusal(&error),
            booted => booted.unwrap(),
        };
        assert_ne!(can, Some(false));
        let small = script(&sandbox, "cat /srv/small").await;
        assert_eq!(text(&small), image.directory.path().display().to_string());
        // Another container on the same disks, which comes and goes.
        let pull = Pull::default().hash_trees(true);
        let other = sandbox.create_container(Container::new(image.path()).pull(pull).idle()).await.unwrap();
        let read = other.exec(Command::new("cat").arg("/srv/small")).await.unwrap().output().await.unwrap();
        assert_eq!(text(&read), image.directory.path().display().to_string());
        other.kill().await.unwrap();
        other.wait().await.unwrap();
        other.remove().await.unwrap();
        // The same file that the machine has open.
        let layer = File::options().read(true).write(true).open(image.layer()).unwrap();
        let bytes = fs::read(image.layer()).unwrap();
        let start = bytes.windows(4096).position(|window| *window == image.large[..4096]).unwrap();
        layer.write_all_at(b"changed", (start + MIDDLE) as u64).unwrap();
        let large = script(&sandbox, "cat /srv/large >/dev/null").await;
        let said = String::from_utf8_lossy(&large.stderr).into_owned();
        assert!(!large.status.success() && said.contains("Input/output error"), "{said}");
        let before = script(&sandbox, "head -c 4096 /srv/large | wc -c").await;
        assert_eq!(text(&before), "4096");
        sandbox.stop().await.unwrap();
        image.remove();
    }

    async fn what_a_machine_runs_on_is_never_swept(bed: Bed) {
        let Some(image) = Unique::make() else { return };
        let sandbox = Sandbox::boot(bed.of_image(image.path()).idle()).await.unwrap();
        let layer = image.layer();
        let listed = store().list().unwrap();
        let found = listed.iter().find(|stored| stored.name == image.name()).unwrap();
        assert!(found.in_use);
        image.remove();
        assert!(layer.exists());
        let sum = script(&sandbox, "wc -c </srv/large").await;
        assert_eq!(text(&sum), image.large.len().to_string());
        sandbox.stop().await.unwrap();
        // What no image needs goes, and nothing else.
        bed::eventually("the layer is gone", async || {
            store().prune(u64::MAX).unwrap();
            !layer.exists()
        })
        .await;
    }
}
