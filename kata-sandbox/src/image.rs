//! Images before they are run: how they are got, and the store that keeps them.
//!
//! A [`Container`](crate::Container) needs none of this: what its image is missing is fetched when it is run. This
//! is for who wants to see the progress, to log in, or to make room.
//!
//! ```no_run
//! use kata_sandbox::image::{ImageSource, Pull, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::open(Store::default_directory()?)?;
//! let source = ImageSource::detect("docker.io/library/debian:12")?;
//! let image = store.image(&source, &Pull::default(), &mut |progress| eprintln!("{progress}"))?;
//! println!("{} has {} layers", image.digest, image.layers.len());
//! store.prune(10 << 30)?;
//! # Ok(())
//! # }
//! ```

pub use kata_image::{
    Image, ImageConfig, ImageSource, Platform, Progress, Pruned, Pull, PullPolicy, ReadyImage, Reference,
    Registries, Stage, Store, StoreError, StoredImage, Verified,
};
