//! Numbers for people.

/// A size in MiB with one decimal.
pub(crate) fn mib(bytes: u64) -> String {
    let tenths = (bytes * 10 + (1 << 19)) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::mib;

    #[test]
    fn sizes_are_rounded_to_a_tenth() {
        assert_eq!(mib(0), "0.0 MiB");
        assert_eq!(mib(4 << 20), "4.0 MiB");
        assert_eq!(mib(1_600_000), "1.5 MiB");
    }
}
