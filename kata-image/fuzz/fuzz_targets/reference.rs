//! Any text as a reference: refused, or whole, and read the same again in both of its forms.
//!
//! `cargo +nightly fuzz run reference ../tests/corpus/reference`.
#![no_main]

use kata_image::Reference;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(reference) = text.parse::<Reference>() else { return };
    assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
    assert_eq!(reference.familiar().parse().as_ref(), Ok(&reference));
    assert!(reference.tag().is_some() || reference.digest().is_some());
    assert!(!reference.path().split('/').any(|name| name.is_empty() || name == ".."));
});
