//! What one header says together with what extends it: PAX records and long names come before the header's fields.

use std::io;

use tar::Header;

use super::ArchiveError;
use super::acl;
use super::members::{Extensions, Member, MemberKind, path_of, without_nul};
use super::pax::{self, Records};
use crate::tree::{Body, Time, XattrPair};

/// One header with everything that extends it.
pub(super) struct Decoder<'a> {
    pub(super) header: &'a Header,
    pub(super) extensions: &'a Extensions,
    pub(super) pax: &'a Records,
}

impl Decoder<'_> {
    pub(super) fn path(&self) -> Vec<u8> {
        let long = self.extensions.path.as_deref().map(without_nul);
        let pax = self.pax.get("GNU.sparse.name").or_else(|| self.pax.get("path"));
        long.or(pax)
            .map_or_else(|| self.header.path_bytes().into_owned(), <[u8]>::to_vec)
    }

    pub(super) fn link(&self) -> Vec<u8> {
        let long = self
            .extensions
            .link
            .as_deref()
            .map(without_nul)
            .or_else(|| self.pax.get("linkpath"));
        let short = || self.header.link_name_bytes().unwrap_or_default().into_owned();
        long.map_or_else(short, <[u8]>::to_vec)
    }

    pub(super) fn size(&self) -> Result<u64, ArchiveError> {
        let pax = self.pax.get("size").map(pax::decimal);
        pax.unwrap_or_else(|| self.header.entry_size().ok())
            .ok_or_else(|| self.field("size"))
    }

    pub(super) fn device(&self, body: impl FnOnce(u32, u32) -> Body) -> Result<MemberKind, ArchiveError> {
        let number = |number: io::Result<Option<u32>>| number.ok().flatten();
        let (major, minor) = (
            number(self.header.device_major()),
            number(self.header.device_minor()),
        );
        let (major, minor) = major.zip(minor).ok_or_else(|| self.field("device number"))?;
        Ok(MemberKind::Plain(body(major, minor)))
    }

    fn id(&self, name: &'static str, stored: io::Result<u64>) -> Result<u32, ArchiveError> {
        let id = self
            .pax
            .get(name)
            .map_or_else(|| stored.ok(), pax::decimal::<u64>);
        id.and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| self.field(name))
    }

    fn mtime(&self) -> Result<Time, ArchiveError> {
        let stored = || match self.header.as_old().mtime {
            // Before 1970, as GNU's tar writes it: all the bytes are one negative number.
            [0xff, _, _, _, low @ ..] => Some(i64::from_be_bytes(low)),
            _ => self
                .header
                .mtime()
                .ok()
                .and_then(|seconds| i64::try_from(seconds).ok()),
        };
        let stored = || {
            stored().map(|seconds| Time {
                seconds,
                nanoseconds: 0,
            })
        };
        self.pax
            .get("mtime")
            .map_or_else(stored, pax::time)
            .ok_or_else(|| self.field("mtime"))
    }

    fn acl(&self, key: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(text) = self.pax.get(key) else {
            return Ok(None);
        };
        let list = acl::from_text(text);
        list.map(Some).ok_or_else(|| ArchiveError::Acl {
            entry: path_of(&self.path()),
        })
    }

    fn xattrs(&self) -> Result<Vec<XattrPair>, ArchiveError> {
        let raw = self.pax.with_prefix("SCHILY.xattr.");
        let mut xattrs: Vec<_> = raw.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        let access = self
            .acl("SCHILY.acl.access")?
            .filter(|list| acl::says_more_than_mode(list));
        let default = self.acl("SCHILY.acl.default")?;
        xattrs.extend(access.map(|list| (b"system.posix_acl_access".to_vec(), list)));
        xattrs.extend(default.map(|list| (b"system.posix_acl_default".to_vec(), list)));
        Ok(xattrs)
    }

    pub(super) fn member(&self, path: Vec<u8>, kind: MemberKind) -> Result<Member, ArchiveError> {
        let mode = match &kind {
            // Linux keeps no mode of symbolic links: all have this one (symlink(7)).
            MemberKind::Plain(Body::Symlink(_)) => 0o777,
            _ => self.header.mode().map_err(|_| self.field("mode"))? & 0o7777,
        };
        Ok(Member {
            path,
            kind,
            mode: u16::try_from(mode).map_err(|_| self.field("mode"))?,
            uid: self.id("uid", self.header.uid())?,
            gid: self.id("gid", self.header.gid())?,
            mtime: self.mtime()?,
            xattrs: self.xattrs()?,
        })
    }

    pub(super) fn field(&self, field: &'static str) -> ArchiveError {
        ArchiveError::Field {
            entry: path_of(&self.path()),
            field,
        }
    }
}
