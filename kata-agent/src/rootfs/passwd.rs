//! Users and groups as the image knows them.
//!
//! Reads the text of `/etc/passwd` and `/etc/group` (passwd(5), group(5)); a static program has no name
//! service. Owns the meaning of a user given as text; must not know where the files are.

use kata_agent_proto::{Failed, FailureKind};

use serde::{Deserialize, Serialize};

/// A user by name or number.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: String,
    pub(crate) gid: String,
    pub(crate) additional_gids: Vec<String>,
}

/// A user in numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) additional_gids: Vec<u32>,
    /// The home directory, when the image knows the user.
    pub(crate) home: Option<String>,
}

/// The image's two files.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Accounts {
    /// The user in numbers. A number needs no entry; a name does. Without a group the user's own is
    /// taken, with the groups that list the user.
    ///
    /// # Errors
    /// No such user or group.
    pub(crate) fn resolve(&self, user: &User) -> Result<Resolved, Failed> {
        let entry = self.entry(&user.uid);
        let uid = match (&entry, user.uid.parse()) {
            (Some(entry), _) => entry.uid,
            (None, Ok(uid)) => uid,
            (None, Err(_)) if user.uid.is_empty() => 0,
            (None, Err(_)) => return Err(Failed::new(FailureKind::NoSuchUser, &user.uid)),
        };
        let mut additional_gids = Vec::new();
        let gid = if user.gid.is_empty() {
            additional_gids = entry
                .as_ref()
                .map_or_else(Vec::new, |entry| self.memberships(entry.name));
            entry.as_ref().map_or(0, |entry| entry.gid)
        } else {
            self.gid(&user.gid)?
        };
        for group in &user.additional_gids {
            additional_gids.push(self.gid(group)?);
        }
        let home = entry.map(|entry| entry.home.to_owned());
        Ok(Resolved {
            uid,
            gid,
            additional_gids,
            home,
        })
    }

    /// The home directory of a user known by number.
    pub(crate) fn home(&self, uid: u32) -> Option<String> {
        self.entries()
            .find(|entry| entry.uid == uid)
            .map(|entry| entry.home.to_owned())
    }

    /// A name wins over a number, as docker has it.
    fn entry(&self, user: &str) -> Option<Entry<'_>> {
        let user = if user.is_empty() { "0" } else { user };
        let number = user.parse().ok();
        let named = self.entries().find(|entry| entry.name == user);
        named.or_else(|| self.entries().find(|entry| Some(entry.uid) == number))
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            let (_comment, home) = (fields.next()?, fields.next()?);
            Some(Entry { name, uid, gid, home })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or("")))
        })
    }

    fn memberships(&self, user: &str) -> Vec<u32> {
        let member = |members: &str| members.split(',').any(|member| member == user);
        self.groups()
            .filter(|(_, _, members)| member(members))
            .map(|(_, gid, _)| gid)
            .collect()
    }

    fn gid(&self, group: &str) -> Result<u32, Failed> {
        let named = self
            .groups()
            .find(|(name, ..)| *name == group)
            .map(|(_, gid, _)| gid);
        named
            .or_else(|| group.parse().ok())
            .ok_or_else(|| Failed::new(FailureKind::NoSuchGroup, group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\n# a comment\nweb:x:33:34:www,,,:/var/www:/bin/false\n"
                .into(),
            group: "root:x:0:\nweb:x:34:\naudio:x:29:web,other\nvideo:x:44:other\n".into(),
        }
    }

    fn user(uid: &str, gid: &str) -> User {
        User {
            uid: uid.into(),
            gid: gid.into(),
            additional_gids: Vec::new(),
        }
    }

    #[test]
    fn a_name_gives_number_group_memberships_and_home() {
        let expected = Resolved {
            uid: 33,
            gid: 34,
            additional_gids: vec![29],
            home: Some("/var/www".into()),
        };
        assert_eq!(accounts().resolve(&user("web", "")), Ok(expected));
    }

    #[test]
    fn a_known_number_is_the_same_as_its_name() {
        assert_eq!(
            accounts().resolve(&user("33", "")),
            accounts().resolve(&user("web", ""))
        );
    }

    #[test]
    fn an_unknown_number_is_itself_with_group_zero_and_no_home() {
        let expected = Resolved {
            uid: 4711,
            ..Resolved::default()
        };
        assert_eq!(accounts().resolve(&user("4711", "")), Ok(expected));
    }

    #[test]
    fn a_given_group_replaces_the_users_own_and_the_memberships() {
        let resolved = accounts().resolve(&user("web", "video")).expect("known");
        assert_eq!((resolved.gid, resolved.additional_gids), (44, vec![]));
        let resolved = accounts().resolve(&user("web", "1234")).expect("a number");
        assert_eq!(resolved.gid, 1234);
    }

    #[test]
    fn additional_groups_are_added_by_name_or_number() {
        let user = User {
            additional_gids: vec!["video".into(), "7".into()],
            ..user("web", "")
        };
        assert_eq!(
            accounts().resolve(&user).expect("known").additional_gids,
            [29, 44, 7]
        );
    }

    #[test]
    fn unknown_names_are_failures_with_their_kind() {
        let failed = accounts().resolve(&user("nobody", "")).expect_err("no such user");
        assert_eq!(
            (failed.kind, failed.subject.as_str()),
            (FailureKind::NoSuchUser, "nobody")
        );
        let failed = accounts()
            .resolve(&user("web", "nogroup"))
            .expect_err("no such group");
        assert_eq!(
            (failed.kind, failed.subject.as_str()),
            (FailureKind::NoSuchGroup, "nogroup")
        );
    }

    #[test]
    fn no_user_is_root() {
        assert_eq!(
            accounts().resolve(&user("", "")).expect("root").home,
            Some("/root".into())
        );
        assert_eq!(
            Accounts::default().resolve(&user("", "")),
            Ok(Resolved::default())
        );
    }
}
