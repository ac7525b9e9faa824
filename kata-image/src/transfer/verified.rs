//! A reader that gives only what its descriptor promises, and goes on where a connection broke.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{Patience, TransferError};
use crate::oci::{Blobs, Descriptor, Digest};

/// After so many bytes without a break, earlier breaks are forgotten. It bounds the attempts: one set of them for
/// each such stretch.
const STRETCH_BYTES: u64 = 1 << 20;

/// Bytes of a blob: counted, hashed, and read again from where a connection broke.
///
/// Its end is an error unless size and digest are right; [`finish`](Self::finish) reads up to there. The error of a
/// failed `read` has a [`TransferError`] inside.
pub struct Verified<'a> {
    blobs: &'a dyn Blobs,
    descriptor: Descriptor,
    input: Option<Box<dyn Read + Send>>,
    hasher: Sha256,
    received: u64,
    /// Where the last break was.
    broke_at: u64,
    patience: Patience,
    end: Option<Result<(), TransferError>>,
}

impl fmt::Debug for Verified<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Verified")
            .field("digest", &self.descriptor.digest)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl<'a> Verified<'a> {
    pub(super) fn new(blobs: &'a dyn Blobs, descriptor: Descriptor) -> Self {
        Self {
            patience: blobs.patience(),
            blobs,
            descriptor,
            input: None,
            hasher: Sha256::new(),
            received: 0,
            broke_at: 0,
            end: None,
        }
    }

    /// How many bytes have come so far.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received
    }

    /// Reads what is left, and tells whether the whole is what it should be. What an earlier `read` found wrong is
    /// told again, so that a reader which failed because of it can name the cause.
    ///
    /// # Errors
    /// When it is of another size or digest, or cannot be read to its end.
    pub fn finish(mut self) -> Result<(), TransferError> {
        let copied = io::copy(&mut self, &mut io::sink());
        match (copied, self.end.take()) {
            (_, Some(end)) => end,
            (Ok(_), None) => self.check(),
            (Err(source), None) => Err(self.broken(source)),
        }
    }

    /// Whether all of it was read, or what is wrong with it is known.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// What a `read` that failed with `source` found wrong.
    pub(crate) fn failure(self, source: io::Error) -> TransferError {
        match self.end {
            Some(Err(error)) => error,
            _ => self.broken(source),
        }
    }

    fn broken(&self, source: io::Error) -> TransferError {
        TransferError::Broken {
            digest: self.descriptor.digest.clone(),
            expected: self.descriptor.size,
            received: self.received,
            source: Arc::new(source),
        }
    }

    fn size(&self, received: u64) -> TransferError {
        TransferError::Size {
            digest: self.descriptor.digest.clone(),
            expected: self.descriptor.size,
            received,
        }
    }

    fn check(&mut self) -> Result<(), TransferError> {
        if self.received != self.descriptor.size {
            return Err(self.size(self.received));
        }
        let received = Digest::finish(std::mem::take(&mut self.hasher));
        if received == self.descriptor.digest {
            return Ok(());
        }
        Err(TransferError::Digest {
            expected: self.descriptor.digest.clone(),
            received,
            bytes: self.received,
        })
    }

    /// Bytes of the input, however often it has to be opened; 0 at its end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TransferError> {
        loop {
            let error = match self.read_once(buffer) {
                Ok(count) => return Ok(count),
                Err(error) => error,
            };
            self.input = None;
            if self.received >= self.broke_at + STRETCH_BYTES {
                self.patience.restore();
            }
            self.broke_at = self.received;
            if !error.is_temporary() {
                return Err(error);
            }
            let Some(pause) = self.patience.next_pause(error.retry_after()) else {
                return Err(error);
            };
            log::debug!("{error}; asking again in {pause:?}");
            std::thread::sleep(pause);
        }
    }

    fn read_once(&mut self, buffer: &mut [u8]) -> Result<usize, TransferError> {
        if self.input.is_none() {
            self.input = Some(self.blobs.blob(&self.descriptor, self.received)?);
        }
        let Some(input) = &mut self.input else {
            return Ok(0);
        };
        loop {
            match input.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => return Ok(count),
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    fn step(&mut self, buffer: &mut [u8]) -> Result<usize, TransferError> {
        let left = self.descriptor.size - self.received;
        if left == 0 {
            // One byte more tells that there are too many. How a connection ends whose bytes have all come is
            // of no interest.
            let count = match self.descriptor.size {
                0 => self.fill(&mut [0])?,
                _ => self.read_once(&mut [0]).unwrap_or(0),
            };
            return match count {
                0 => self.check().map(|()| 0),
                _ => Err(self.size(self.received + 1)),
            };
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.fill(&mut buffer[..most])?;
        if count == 0 {
            return self.check().map(|()| 0);
        }
        self.hasher.update(&buffer[..count]);
        self.received += count as u64;
        Ok(count)
    }
}

impl Read for Verified<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if let Some(end) = &self.end {
            return end.clone().map(|()| 0).map_err(io::Error::other);
        }
        let step = self.step(buffer);
        match &step {
            Ok(0) => self.end = Some(Ok(())),
            Ok(_) => {}
            Err(error) => self.end = Some(Err(error.clone())),
        }
        step.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::oci::Document;
    use crate::transfer::open;

    /// A place whose connections each give what the list says, then break or end.
    struct Scripted {
        whole: Vec<u8>,
        /// Bytes of each connection, and whether it ends in an error.
        script: Mutex<Vec<(usize, bool)>>,
        offsets: Mutex<Vec<u64>>,
    }

    struct Connection {
        bytes: io::Cursor<Vec<u8>>,
        breaks: bool,
    }

    impl Read for Connection {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.bytes.read(buffer)? {
                0 if self.breaks => Err(io::ErrorKind::ConnectionReset.into()),
                count => Ok(count),
            }
        }
    }

    impl Blobs for Scripted {
        fn root(&self) -> Result<Document, TransferError> {
            unreachable!("blobs only")
        }

        fn document(&self, _: &Descriptor) -> Result<Document, TransferError> {
            unreachable!("blobs only")
        }

        fn blob(&self, _: &Descriptor, offset: u64) -> Result<Box<dyn Read + Send>, TransferError> {
            self.offsets.lock().unwrap().push(offset);
            let mut script = self.script.lock().unwrap();
            let (count, breaks) = if script.is_empty() {
                (usize::MAX, false)
            } else {
                script.remove(0)
            };
            let rest = &self.whole[usize::try_from(offset).unwrap()..];
            let bytes = io::Cursor::new(rest[..count.min(rest.len())].to_vec());
            Ok(Box::new(Connection { bytes, breaks }))
        }

        fn patience(&self) -> Patience {
            Patience::new(3, Duration::ZERO)
        }
    }

    fn place(script: &[(usize, bool)]) -> (Scripted, Descriptor) {
        let whole: Vec<u8> = (0..100_u8).collect();
        let descriptor = Descriptor::of("x", &whole);
        let (script, offsets) = (Mutex::new(script.to_vec()), Mutex::default());
        (
            Scripted {
                whole,
                script,
                offsets,
            },
            descriptor,
        )
    }

    #[test]
    fn what_broke_goes_on_where_it_broke() {
        let (place, descriptor) = place(&[(10, true), (0, true), (25, true)]);
        let mut bytes = Vec::new();
        let mut reader = open(&place, &descriptor);
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(reader.received_bytes(), 100);
        reader.finish().unwrap();
        assert_eq!(bytes, place.whole);
        assert_eq!(*place.offsets.lock().unwrap(), [0, 10, 10, 35]);
    }

    #[test]
    fn what_always_breaks_is_given_up() {
        let (place, descriptor) = place(&[(1, true); 9]);
        let error = open(&place, &descriptor).finish().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{} broke off after 4 of 100 bytes", descriptor.digest)
        );
        assert_eq!(place.offsets.lock().unwrap().len(), 4);
    }

    #[test]
    fn too_few_and_too_many_bytes_are_counted() {
        let (place, descriptor) = place(&[(99, false)]);
        let error = open(&place, &descriptor).finish().unwrap_err();
        assert!(
            matches!(
                error,
                TransferError::Size {
                    received: 99,
                    expected: 100,
                    ..
                }
            ),
            "{error}"
        );
        let (mut place, descriptor) = self::place(&[]);
        place.whole.push(7);
        let error = open(&place, &descriptor).finish().unwrap_err();
        assert!(
            matches!(error, TransferError::Size { received: 101, .. }),
            "{error}"
        );
        let empty = Descriptor::of("x", b"");
        let error = open(&place, &empty).finish().unwrap_err();
        assert!(
            matches!(
                error,
                TransferError::Size {
                    received: 1,
                    expected: 0,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn wrong_bytes_are_an_error_of_the_reader_and_of_finish() {
        let (mut place, descriptor) = place(&[]);
        place.whole[50] ^= 1;
        let mut reader = open(&place, &descriptor);
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        let inner = error.get_ref().unwrap().downcast_ref::<TransferError>();
        assert!(
            matches!(inner, Some(TransferError::Digest { bytes: 100, .. })),
            "{error}"
        );
        let again = reader.read(&mut [0]).unwrap_err();
        assert_eq!(again.to_string(), error.to_string());
        let error = reader.finish().unwrap_err();
        let received = Digest::of(&place.whole);
        let expected = format!("what should be {} is {received}, 100 bytes", descriptor.digest);
        assert_eq!(error.to_string(), expected);
    }
}
