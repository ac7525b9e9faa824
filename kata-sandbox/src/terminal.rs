//! The size of a terminal. What a process does with it, and who draws it, this must not know.

/// Rows and columns of a terminal, in cells of one character.
///
/// 0 stands for a number that is not known, as in a terminal that nobody has sized (ioctl_tty(2), `TIOCSWINSZ`).
///
/// ```
/// use kata_sandbox::process::TerminalSize;
///
/// let size = TerminalSize { rows: 24, columns: 80 };
/// assert_eq!(size.to_string(), "24x80");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TerminalSize {
    /// Lines from top to bottom.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

impl std::fmt::Display for TerminalSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.rows, self.columns)
    }
}
