//! Signals by the names that images and people use. Pure.

/// The signal that ends a container unless its image names another.
pub(crate) const SIGTERM: i32 = 15;

/// The first of the real-time signals that programs may use: glibc and musl keep 32 and 33 to themselves
/// (signal(7), "Real-time signals").
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// The signals of x86_64 by number, from 1 on (signal(7), "Signal numbering for standard signals").
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The number of a signal that is named as docker takes it: `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
pub(crate) fn number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let plain = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|known| *known == plain) {
        return i32::try_from(index + 1).ok();
    }
    let offset = |text: &str, sign: char| match text.strip_prefix(sign) {
        Some(digits) => digits.parse::<i32>().ok(),
        None => text.is_empty().then_some(0),
    };
    let number = match (plain.strip_prefix("RTMIN"), plain.strip_prefix("RTMAX")) {
        (Some(rest), _) => SIGRTMIN.checked_add(offset(rest, '+')?)?,
        (_, Some(rest)) => SIGRTMAX.checked_sub(offset(rest, '-')?)?,
        _ => return None,
    };
    (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_docker_takes_them() {
        let known = [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("sigquit", 3),
            ("15", 15),
            ("SIGSYS", 31),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("64", 64),
        ];
        for (name, expected) in known {
            assert_eq!(number(name), Some(expected), "{name}");
        }
        for name in [
            "",
            "SIG",
            "TERMS",
            "0",
            "65",
            "-9",
            "SIGRTMIN+31",
            "RTMAX-31",
            "RTMIN-1",
            "RTMIN+",
        ] {
            assert_eq!(number(name), None, "{name}");
        }
    }

    #[test]
    fn the_numbers_are_the_kernels() {
        for (name, signal) in [
            ("HUP", rustix::process::Signal::HUP),
            ("USR2", rustix::process::Signal::USR2),
            ("STKFLT", rustix::process::Signal::STKFLT),
            ("CHLD", rustix::process::Signal::CHILD),
            ("SYS", rustix::process::Signal::SYS),
        ] {
            assert_eq!(number(name), Some(signal.as_raw()), "{name}");
        }
    }
}
