//! The options of a mount as what system calls take.
//!
//! Owns their words (config.md#linux-mount-options, mount(8)); what is none of them is the file system's own. Must not
//! touch the system.

use rustix::mount::MountFlags;

/// `MOUNT_ATTR_*` (linux/mount.h).
pub(super) mod attribute {
    pub(in crate::birth) const RDONLY: u64 = 0x0000_0001;
    pub(in crate::birth) const NOSUID: u64 = 0x0000_0002;
    pub(in crate::birth) const NODEV: u64 = 0x0000_0004;
    pub(in crate::birth) const NOEXEC: u64 = 0x0000_0008;
    /// The three ways to keep times of access exclude each other: a field, of which 0 is `relatime`.
    pub(in crate::birth) const ATIME: u64 = 0x0000_0070;
    pub(in crate::birth) const NOATIME: u64 = 0x0000_0010;
    pub(in crate::birth) const STRICTATIME: u64 = 0x0000_0020;
    pub(in crate::birth) const NODIRATIME: u64 = 0x0000_0080;
    pub(in crate::birth) const IDMAP: u64 = 0x0010_0000;
    pub(in crate::birth) const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// How a mount shares what happens below it (mount(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Propagation {
    /// One of MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE.
    pub(super) kind: u64,
    pub(super) recursive: bool,
}

impl Propagation {
    /// By a word, such as `rslave`.
    pub(super) fn of(word: &str) -> Option<Self> {
        let kind = |word: &str| {
            Some(match word {
                "private" => libc::MS_PRIVATE,
                "shared" => libc::MS_SHARED,
                "slave" => libc::MS_SLAVE,
                "unbindable" => libc::MS_UNBINDABLE,
                _ => return None,
            })
        };
        let recursive = word.strip_prefix('r').and_then(kind);
        Some(Propagation {
            kind: recursive.or_else(|| kind(word))?,
            recursive: recursive.is_some(),
        })
    }
}

/// What attributes of a mount become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) set: u64,
    pub(super) clear: u64,
}

impl Change {
    /// The last word on an attribute counts.
    fn add(&mut self, (set, clear): (u64, u64)) {
        self.set = (self.set & !clear) | set;
        // A field is cleared before it is set; a single attribute that is set is not cleared.
        self.clear = (self.clear & !(set & !attribute::ATIME)) | clear;
    }

    pub(super) fn is_empty(self) -> bool {
        self == Change::default()
    }
}

/// The options of one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// A directory or file that exists, instead of a file system. With what is mounted below it, or without.
    pub(super) bind: Option<Recursive>,
    pub(super) remount: bool,
    /// Of the file system itself, and not of the mount.
    pub(super) flags: MountFlags,
    pub(super) change: Change,
    /// Also of what is mounted below.
    pub(super) recursive_change: Change,
    pub(super) propagation: Vec<Propagation>,
    /// A tmpfs begins with what it covers.
    pub(super) copy_up: bool,
    pub(super) id_map: Option<Recursive>,
    /// What is the file system's own, as text.
    pub(super) data: String,
}

/// Whether what is mounted below is meant, too.
pub(super) type Recursive = bool;

/// Attributes of a mount by their words: what each sets and clears.
fn attribute(word: &str) -> Option<(u64, u64)> {
    use attribute::{ATIME, NOATIME, NODEV, NODIRATIME, NOEXEC, NOSUID, NOSYMFOLLOW, RDONLY, STRICTATIME};
    let on = |attribute| (attribute, 0);
    let off = |attribute| (0, attribute);
    Some(match word {
        "ro" => on(RDONLY),
        "rw" => off(RDONLY),
        "nosuid" => on(NOSUID),
        "suid" => off(NOSUID),
        "nodev" => on(NODEV),
        "dev" => off(NODEV),
        "noexec" => on(NOEXEC),
        "exec" => off(NOEXEC),
        "nodiratime" => on(NODIRATIME),
        "diratime" => off(NODIRATIME),
        "nosymfollow" => on(NOSYMFOLLOW),
        "symfollow" => off(NOSYMFOLLOW),
        "noatime" => (NOATIME, ATIME),
        "strictatime" => (STRICTATIME, ATIME),
        // What the kernel does where nothing is said.
        "relatime" | "atime" | "nostrictatime" | "norelatime" => (0, ATIME),
        _ => return None,
    })
}

/// Flags of a file system by their words, on or off.
fn flag(word: &str) -> Option<(MountFlags, bool)> {
    let mandatory = MountFlags::from_bits_retain(64);
    let version = MountFlags::from_bits_retain(1 << 23);
    Some(match word {
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "lazytime" => (MountFlags::LAZYTIME, true),
        "nolazytime" => (MountFlags::LAZYTIME, false),
        "mand" => (mandatory, true),
        "nomand" => (mandatory, false),
        "silent" => (MountFlags::SILENT, true),
        "loud" => (MountFlags::SILENT, false),
        "iversion" => (version, true),
        "noiversion" => (version, false),
        _ => return None,
    })
}

impl Options {
    pub(super) fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut options = Options {
            bind: None,
            remount: false,
            flags: MountFlags::empty(),
            change: Change::default(),
            recursive_change: Change::default(),
            propagation: Vec::new(),
            copy_up: false,
            id_map: None,
            data: String::new(),
        };
        words.into_iter().for_each(|word| options.add(word));
        options
    }

    fn add(&mut self, word: &str) {
        let recursive = word.strip_prefix('r');
        match word {
            "defaults" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.id_map = Some(self.id_map.unwrap_or(false)),
            "ridmap" => self.id_map = Some(true),
            _ => {
                if let Some(change) = attribute(word) {
                    self.change.add(change);
                } else if let Some((flag, on)) = flag(word) {
                    self.flags.set(flag, on);
                } else if let Some(propagation) = Propagation::of(word) {
                    self.propagation.push(propagation);
                } else if let Some(change) = recursive.and_then(attribute) {
                    self.recursive_change.add(change);
                } else {
                    self.add_data(word);
                }
            }
        }
    }

    fn add_data(&mut self, word: &str) {
        if !self.data.is_empty() {
            self.data.push(',');
        }
        self.data.push_str(word);
    }

    /// Everything for a new file system, in the words of mount(2).
    pub(super) fn mount_flags(&self) -> MountFlags {
        const WORDS: [(u64, MountFlags); 6] = [
            (attribute::RDONLY, MountFlags::RDONLY),
            (attribute::NOSUID, MountFlags::NOSUID),
            (attribute::NODEV, MountFlags::NODEV),
            (attribute::NOEXEC, MountFlags::NOEXEC),
            (attribute::NODIRATIME, MountFlags::NODIRATIME),
            (attribute::NOSYMFOLLOW, MountFlags::from_bits_retain(256)),
        ];
        let set = self.change.set;
        let mut flags = self.flags;
        for (attribute, flag) in WORDS {
            flags.set(flag, set & attribute != 0);
        }
        match set & attribute::ATIME {
            attribute::NOATIME => flags | MountFlags::NOATIME,
            attribute::STRICTATIME => flags | MountFlags::STRICTATIME,
            _ => flags,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::attribute::*;
    use super::*;

    fn change(words: &[&str]) -> (u64, u64) {
        let change = Options::of(words.iter().copied()).change;
        (change.set, change.clear)
    }

    #[test]
    fn attributes_are_set_and_cleared_and_the_last_word_counts() {
        assert_eq!(change(&["ro", "nosuid", "nodev"]), (RDONLY | NOSUID | NODEV, 0));
        assert_eq!(change(&["ro", "rw"]), (0, RDONLY));
        assert_eq!(change(&["rw", "ro"]), (RDONLY, 0));
        assert_eq!(change(&["noatime"]), (NOATIME, ATIME));
        assert_eq!(change(&["noatime", "strictatime"]), (STRICTATIME, ATIME));
        assert_eq!(change(&["strictatime", "relatime"]), (0, ATIME));
        assert_eq!(
            change(&["noexec", "exec", "nodiratime", "nosymfollow"]),
            (NODIRATIME | NOSYMFOLLOW, NOEXEC)
        );
    }

    #[test]
    fn words_with_an_r_are_for_the_whole_tree() {
        let options = Options::of(["rbind", "rro", "rnosuid", "rrw", "ratime"]);
        assert_eq!(options.bind, Some(true));
        let Change { set, clear } = options.recursive_change;
        assert_eq!((set, clear), (NOSUID, RDONLY | ATIME));
        assert!(options.change.is_empty() && options.data.is_empty());
        // These begin with an r of their own.
        let options = Options::of(["rw", "relatime", "remount"]);
        assert!(options.recursive_change.is_empty() && options.remount);
    }

    #[test]
    fn propagation_keeps_its_order() {
        let options = Options::of(["rslave", "shared"]);
        let expected = [(libc::MS_SLAVE, true), (libc::MS_SHARED, false)];
        let expected = expected.map(|(kind, recursive)| Propagation { kind, recursive });
        assert_eq!(options.propagation, expected);
        assert_eq!(Propagation::of("rw"), None);
        assert!(Propagation::of("runbindable").is_some_and(|one| one.recursive));
    }

    #[test]
    fn the_rest_is_the_file_systems_own() {
        let words = [
            "size=1m",
            "sync",
            "mode=755",
            "noexec",
            "newinstance",
            "tmpcopyup",
            "strictatime",
        ];
        let options = Options::of(words);
        assert_eq!(options.data, "size=1m,mode=755,newinstance");
        assert!(options.copy_up);
        let expected = MountFlags::SYNCHRONOUS | MountFlags::NOEXEC | MountFlags::STRICTATIME;
        assert_eq!(options.mount_flags(), expected);
        let options = Options::of(["sync", "async", "ro"]);
        assert_eq!(options.mount_flags(), MountFlags::RDONLY);
    }
}
