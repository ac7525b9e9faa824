//! An image that was made here, as a place of blobs: what is new is here, the rest is the base's.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::Image;
use crate::oci::{Blobs, Descriptor, Digest, Document};
use crate::transfer::{Patience, TransferError, small_blob};

/// Blobs by their digests.
#[derive(Default)]
pub(super) struct Assembled {
    root: Option<Document>,
    blobs: HashMap<Digest, Held>,
    base: Option<Arc<dyn Blobs + Send>>,
}

enum Held {
    Bytes(Arc<[u8]>),
    File(Arc<File>),
}

impl Assembled {
    pub(super) fn insert_bytes(&mut self, descriptor: &Descriptor, bytes: Vec<u8>) {
        self.blobs
            .insert(descriptor.digest.clone(), Held::Bytes(bytes.into()));
    }

    pub(super) fn insert_file(&mut self, descriptor: &Descriptor, file: File) {
        self.blobs
            .insert(descriptor.digest.clone(), Held::File(Arc::new(file)));
    }

    pub(super) fn set_base(&mut self, base: &Image) {
        self.base = Some(base.blobs());
    }

    pub(super) fn set_root(&mut self, root: Document) {
        self.root = Some(root);
    }

    fn missing(what: &str) -> TransferError {
        TransferError::Missing {
            place: "the image".into(),
            what: what.to_owned(),
        }
    }
}

impl Blobs for Assembled {
    fn root(&self) -> Result<Document, TransferError> {
        self.root.clone().ok_or_else(|| Self::missing("manifest"))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Document, TransferError> {
        Ok(Document {
            media_type: descriptor.media_type.clone(),
            bytes: small_blob(self, descriptor)?,
        })
    }

    fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send>, TransferError> {
        match (self.blobs.get(&descriptor.digest), &self.base) {
            (Some(Held::Bytes(bytes)), _) => {
                let mut reader = io::Cursor::new(Arc::clone(bytes));
                reader.set_position(offset);
                Ok(Box::new(reader))
            }
            (Some(Held::File(file)), _) => Ok(Box::new(Positioned {
                file: Arc::clone(file),
                position: offset,
            })),
            (None, Some(base)) => base.blob(descriptor, offset),
            (None, None) => Err(Self::missing(descriptor.digest.as_str())),
        }
    }

    fn patience(&self) -> Patience {
        self.base
            .as_ref()
            .map_or_else(Patience::default, |base| base.patience())
    }

    fn repository(&self) -> Option<(&str, &str)> {
        self.base.as_ref().and_then(|base| base.repository())
    }
}

/// A file from a position on, whatever others read of it.
struct Positioned {
    file: Arc<File>,
    position: u64,
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}
