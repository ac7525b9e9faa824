//! Doors to parsers that are not public, for the fuzzers and the tests of their corpora. No part of the interface.

use crate::oci::{ConfigDocument, Document, Parsed};
use crate::registry::challenge;

/// How many challenges of a `WWW-Authenticate` header are understood.
#[must_use]
pub fn challenges(header: &str) -> usize {
    challenge::parse(header).len()
}

/// What bytes are: `manifest`, `index` or `configuration`.
///
/// # Errors
/// With what is wrong with a manifest or index, when they are no configuration either.
pub fn document(bytes: &[u8]) -> Result<&'static str, String> {
    if let Ok(config) = ConfigDocument::parse(bytes) {
        config.image_config();
        return Ok("configuration");
    }
    let document = Document {
        media_type: String::new(),
        bytes: bytes.to_vec(),
    };
    match document.parse() {
        Ok(Parsed::Manifest(_)) => Ok("manifest"),
        Ok(Parsed::Index(_)) => Ok("index"),
        Err(error) => Err(error.to_string()),
    }
}
