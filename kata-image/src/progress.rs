//! What long operations tell their caller while they run.

use std::fmt;

/// What an operation is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Reading the source and copying file contents into the image.
    Reading,
    /// Writing the image's metadata.
    Writing,
    /// Computing the image's digest.
    Hashing,
    /// Making a layer of a directory or an archive.
    Packing,
    /// Reading an image's layers from where it is, into the store.
    Downloading,
    /// Writing an image's layers into a layout or an archive, from wherever they are.
    Copying,
    /// Writing an image's layers to a registry.
    Uploading,
}

impl Stage {
    /// Whether what is counted besides bytes are layers, not entries of a filesystem.
    const fn counts_layers(self) -> bool {
        matches!(
            self,
            Self::Packing | Self::Downloading | Self::Copying | Self::Uploading
        )
    }
}

/// How far an operation has come. Reported every few MiB or few hundred entries, and at each stage's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of this stage that are done: of the archive as stored, of file contents, or of the image.
    pub done_bytes: u64,
    /// Bytes of this stage in all, where they are known.
    pub total_bytes: Option<u64>,
    /// Entries of the filesystem seen so far; layers that are done, while an image is packed or transferred.
    pub entries: u64,
}

impl Progress {
    /// What is counted besides bytes, and how many there are: `1 layer`, `7 entries`.
    ///
    /// ```
    /// use kata_image::{Progress, Stage};
    ///
    /// let progress = Progress { stage: Stage::Downloading, done_bytes: 0, total_bytes: None, entries: 1 };
    /// assert_eq!(progress.counted(), "1 layer");
    /// ```
    #[must_use]
    pub fn counted(&self) -> String {
        let unit = match (self.stage.counts_layers(), self.entries) {
            (true, 1) => "layer",
            (true, _) => "layers",
            (false, 1) => "entry",
            (false, _) => "entries",
        };
        format!("{} {unit}", self.entries)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Reading => "reading",
            Self::Writing => "writing",
            Self::Hashing => "hashing",
            Self::Packing => "packing",
            Self::Downloading => "downloading",
            Self::Copying => "copying",
            Self::Uploading => "uploading",
        })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.stage, self.done_bytes >> 20)?;
        if let Some(total) = self.total_bytes {
            write!(formatter, " of {}", total >> 20)?;
        }
        write!(formatter, " MiB, {}", self.counted())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_as_a_sentence() {
        let progress = Progress {
            stage: Stage::Reading,
            done_bytes: 3 << 20,
            total_bytes: Some(9 << 20),
            entries: 7,
        };
        assert_eq!(progress.to_string(), "reading 3 of 9 MiB, 7 entries");
        let progress = Progress {
            stage: Stage::Hashing,
            total_bytes: None,
            ..progress
        };
        assert_eq!(progress.to_string(), "hashing 3 MiB, 7 entries");
        let stage = Stage::Uploading;
        assert_eq!(
            Progress { stage, ..progress }.to_string(),
            "uploading 3 MiB, 7 layers"
        );
        let entries = 1;
        assert_eq!(Progress { entries, ..progress }.counted(), "1 entry");
    }
}
