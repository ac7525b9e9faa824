//! Archives that no honest writer makes.

use tar::{EntryType, Header};

/// An archive that is put together byte by byte, with paths that honest writers refuse.
#[derive(Default, Clone)]
pub(crate) struct Forged(pub(crate) Vec<u8>);

impl Forged {
    pub(crate) fn add(self, kind: EntryType, path: &[u8], link: &[u8], contents: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(contents.len() as u64);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        self.raw(&header, contents)
    }

    pub(crate) fn raw(mut self, header: &Header, contents: &[u8]) -> Self {
        self.0.extend(header.as_bytes());
        self.0.extend(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, contents: &str) -> Self {
        self.add(EntryType::Regular, path.as_bytes(), b"", contents.as_bytes())
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut contents = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..)
                .find(|length| length.to_string().len() + rest == *length)
                .unwrap();
            contents.extend(format!("{length} {key}=").as_bytes());
            contents.extend(*value);
            contents.push(b'\n');
        }
        self.add(EntryType::XHeader, b"pax", b"", &contents)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}
