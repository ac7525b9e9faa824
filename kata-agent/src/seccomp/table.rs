//! The numbers of system calls by name.
//!
//! Of x86_64 with the two older interfaces that its kernels can have, from Linux' own headers (asm/unistd_64.h, unistd_32.h,
//! unistd_x32.h; 6.17). A line of the table has the name and the three numbers: `-` where it does not exist, `=` where it
//! is that of x86_64.

const TABLE: &str = include_str!("x86.txt");

/// The bit in the numbers of x32.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// An interface to system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    X86_64,
    X86,
    /// Pointers of 32 bits; told from x86_64 by a bit of the number.
    X32,
}

impl Architecture {
    pub(super) const NATIVE: Architecture = Architecture::X86_64;

    /// As libseccomp calls it; none of a machine that is another one, nothing when there is no such word.
    #[expect(
        clippy::option_option,
        reason = "no such word, and a word that means nothing here"
    )]
    pub(super) fn from_word(word: &str) -> Option<Option<Self>> {
        const OTHERS: [&str; 18] = [
            "ARM",
            "AARCH64",
            "MIPS",
            "MIPS64",
            "MIPS64N32",
            "MIPSEL",
            "MIPSEL64",
            "MIPSEL64N32",
            "PPC",
            "PPC64",
            "PPC64LE",
            "S390",
            "S390X",
            "PARISC",
            "PARISC64",
            "RISCV64",
            "LOONGARCH64",
            "M68K",
        ];
        match word.strip_prefix("SCMP_ARCH_")? {
            "X86_64" => Some(Some(Architecture::X86_64)),
            "X86" => Some(Some(Architecture::X86)),
            "X32" => Some(Some(Architecture::X32)),
            other => OTHERS.contains(&other).then_some(None),
        }
    }

    /// `AUDIT_ARCH_*` (linux/audit.h).
    pub(super) fn audit_number(self) -> u32 {
        match self {
            Architecture::X86_64 | Architecture::X32 => 0xc000_003e,
            Architecture::X86 => 0x4000_0003,
        }
    }
}

/// The number of a system call.
pub(super) fn number(name: &str, architecture: Architecture) -> Option<u32> {
    let mut fields = line(name)?.split(' ').skip(1);
    let native = fields.next()?;
    let (x86, x32) = (fields.next()?, fields.next()?);
    match architecture {
        Architecture::X86_64 => native.parse().ok(),
        Architecture::X86 => x86.parse().ok(),
        Architecture::X32 => {
            let number: u32 = if x32 == "=" { native } else { x32 }.parse().ok()?;
            Some(number | X32_BIT)
        }
    }
}

/// The line of a name, found by halves: the table is sorted.
fn line(name: &str) -> Option<&'static str> {
    let mut rest = TABLE;
    while !rest.is_empty() {
        let middle = rest.len() / 2;
        let begin = rest.get(..middle)?.rfind('\n').map_or(0, |end| end + 1);
        let end = rest.get(begin..)?.find('\n')? + begin;
        let line = rest.get(begin..end)?;
        match line.split(' ').next()?.cmp(name) {
            std::cmp::Ordering::Equal => return Some(line),
            std::cmp::Ordering::Less => rest = rest.get(end + 1..)?,
            std::cmp::Ordering::Greater => rest = rest.get(..begin)?,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_table_is_found() {
        for line in TABLE.lines() {
            let name = line.split(' ').next().expect("a name");
            assert_eq!(super::line(name), Some(line));
        }
        assert_eq!(number("nosuch", Architecture::X86_64), None);
        assert_eq!(number("", Architecture::X86_64), None);
        assert_eq!(number("zzz", Architecture::X86_64), None);
    }

    #[test]
    fn numbers_are_those_of_the_c_library() {
        let native = |name| number(name, Architecture::X86_64).map(i64::from);
        assert_eq!(native("read"), Some(libc::SYS_read));
        assert_eq!(native("mkdir"), Some(libc::SYS_mkdir));
        assert_eq!(native("clone3"), Some(libc::SYS_clone3));
        assert_eq!(native("mount_setattr"), Some(libc::SYS_mount_setattr));
        assert_eq!(number("socketcall", Architecture::X86_64), None);
        assert_eq!(number("socketcall", Architecture::X86), Some(102));
        assert_eq!(number("execve", Architecture::X32), Some(X32_BIT | 520));
        assert_eq!(number("close", Architecture::X32), Some(X32_BIT | 3));
        assert_eq!(number("_sysctl", Architecture::X32), None);
    }

    #[test]
    fn other_machines_have_names_and_no_rules() {
        assert_eq!(
            Architecture::from_word("SCMP_ARCH_X86"),
            Some(Some(Architecture::X86))
        );
        assert_eq!(Architecture::from_word("SCMP_ARCH_AARCH64"), Some(None));
        assert_eq!(Architecture::from_word("SCMP_ARCH_PDP11"), None);
        assert_eq!(Architecture::from_word("X86"), None);
    }
}
