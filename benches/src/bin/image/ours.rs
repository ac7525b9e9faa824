//! What this executable is when it is called as a contender: one pull, one image of a directory, one sandbox, or the
//! same pull many times.

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use kata_image::{ImageSource, Pull, ReadyImage, Source, Store, erofs};
use kata_sandbox::report::Stage;
use kata_sandbox::{Container, Sandbox};

use crate::contenders::Run;

/// How often the store is asked for an image that it has.
const TIMES: usize = 100;

/// Makes an image ready as a sandbox does.
///
/// # Errors
/// When it cannot be had.
pub(crate) fn pull(reference: &str) -> Result<ReadyImage, Box<dyn Error>> {
    let store = Store::open(Store::default_directory()?)?;
    let source = ImageSource::detect(reference)?;
    Ok(store.image(&source, &Pull::default(), &mut |_| ())?)
}

/// Writes the image of a directory, as mkfs.erofs does.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(tree: &Path, image: &Path) -> Result<(), Box<dyn Error>> {
    let mut options = File::options();
    let out = options.read(true).write(true).create_new(true).open(image)?;
    erofs::write(&Source::Directory(tree.to_path_buf()), &out, &mut |_| ())?;
    Ok(())
}

/// Pulls again and again; prints the times in microseconds as JSON.
///
/// # Errors
/// When the image is not there already.
pub(crate) fn again(reference: &str) -> Result<String, Box<dyn Error>> {
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let begin = Instant::now();
        let image = pull(reference)?;
        times.push(microseconds(begin.elapsed()));
        if !image.cached {
            return Err("the store did not have the image".into());
        }
    }
    Ok(serde_json::to_string(&times)?)
}

/// Runs one container; its timings as JSON.
///
/// # Errors
/// When it does not say what it should.
pub(crate) fn run(reference: &str) -> Result<String, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let sandbox = Sandbox::boot(Container::new(reference).args(["echo", "hello"])).await?;
        let output = sandbox.spawn().await?.output().await?;
        let info = sandbox.info();
        let hypervisor = format!(
            "{} {}, {}",
            info.hypervisor_version, info.machine_type, info.selection.reason
        );
        sandbox.stop().await?;
        if output.stdout != b"hello\n" {
            return Err("the container did not say hello".into());
        }
        let at = |stage| output.timings.at(stage).map(microseconds);
        Ok(serde_json::to_string(&Run {
            image_us: at(Stage::Image).ok_or("no time of the image")?,
            first_output_us: at(Stage::FirstOutput).ok_or("no first output")?,
            hypervisor,
        })?)
    })
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
