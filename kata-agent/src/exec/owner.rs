//! To whom the standard streams of a process belong.
//!
//! Owns the change of their owner, by the numbers that this process or a user namespace knows. Must not know who is to
//! own them.

use std::os::fd::AsFd;

use kata_agent_proto::{Failed, FailureKind};

/// Makes the standard streams that are pipes or a terminal the user's own, so that `/dev/stdout` can be opened.
pub(crate) fn own_streams(uid: u32, gid: u32) -> Result<(), Failed> {
    give_streams(uid, gid).map_err(|error| match error {
        rustix::io::Errno::INVAL => {
            let text =
                format!("process.user.uid, process.user.gid: {uid}:{gid} is nobody in the user namespace");
            Failed::new(FailureKind::Invalid, text)
        }
        error => Failed::new(FailureKind::Container, format!("standard streams: {error}")),
    })
}

/// Gives the standard streams to a user, by the numbers that this process sees.
pub(crate) fn give_streams(uid: u32, gid: u32) -> rustix::io::Result<()> {
    own_stream(&rustix::stdio::stdin(), uid, gid)?;
    own_stream(&rustix::stdio::stdout(), uid, gid)?;
    own_stream(&rustix::stdio::stderr(), uid, gid)
}

/// Gives one stream that is a pipe or a terminal to a user.
pub(crate) fn own_stream(stream: &impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let mode = rustix::fs::fstat(stream)?.st_mode;
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::Fifo => rustix::fs::fchown(stream, Some(uid), Some(gid)),
        // Its group is that of terminals.
        _ if rustix::termios::isatty(stream) => rustix::fs::fchown(stream, Some(uid), None),
        _ => Ok(()),
    }
}

/// The user and group that a process's namespace knows as root, as this process knows them.
pub(crate) fn host_root(pid: i32) -> rustix::io::Result<(u32, u32)> {
    let root = |file: &str| {
        let map = std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        let map =
            map.map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))?;
        root_of(&map).ok_or(rustix::io::Errno::INVAL)
    };
    Ok((root("uid_map")?, root("gid_map")?))
}

/// Who is 0 inside, in the text of a map (user_namespaces(7)).
fn root_of(map: &str) -> Option<u32> {
    let mut lines = map
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|line| line.first() == Some(&"0"))?;
    line.get(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_in_a_map() {
        assert_eq!(root_of("         0     100000      65536\n"), Some(100_000));
        assert_eq!(root_of("1 5 1\n0 7 1\n"), Some(7));
        assert_eq!(root_of("1 5 1\n"), None);
    }
}
