//! Figures: medians with their spread, for JSON lines and tables. Pure.

use std::time::Duration;

use serde::Serialize;

/// One measured quantity.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What it is.
    pub figure: String,
    /// The middle value.
    pub median: f64,
    /// The value that a tenth is below.
    pub p10: f64,
    /// The value that a tenth is above.
    pub p90: f64,
    /// How many values there were.
    pub n: usize,
}

impl Figure {
    /// Of times, in milliseconds.
    #[must_use]
    pub fn milliseconds(name: &str, times: &[Duration]) -> Self {
        Self::of(name, times.iter().map(|time| time.as_secs_f64() * 1e3).collect())
    }

    /// Of sizes in bytes, in MiB.
    pub fn mebibytes(name: &str, sizes: impl Iterator<Item = u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "memory sizes are far below 2^52 bytes")]
        let mebibytes = sizes.map(|bytes| bytes as f64 / f64::from(1 << 20)).collect();
        Self::of(name, mebibytes)
    }

    /// Of pairs that were measured one after the other.
    #[must_use]
    pub fn ratio(name: &str, ours: &[Duration], baseline: &[Duration]) -> Self {
        let pairs = ours.iter().zip(baseline);
        Self::of(
            name,
            pairs
                .map(|(ours, base)| ours.as_secs_f64() / base.as_secs_f64())
                .collect(),
        )
    }

    /// Of a stage's times, in milliseconds.
    #[must_use]
    pub fn stage(stage: &str, times: &[Duration]) -> Self {
        Self::milliseconds(&format!("stage_{}_ms", stage.replace(' ', "_")), times)
    }

    /// Of any values.
    #[must_use]
    pub fn of(name: &str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let last = values.len().saturating_sub(1);
            values
                .get((last * percent + 50) / 100)
                .copied()
                .unwrap_or(f64::NAN)
        };
        Self {
            figure: name.to_owned(),
            median: at(50),
            p10: at(10),
            p90: at(90),
            n: values.len(),
        }
    }
}

/// The middle one; zero of none.
#[must_use]
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_middle_of_its_values() {
        let times: Vec<Duration> = [5, 1, 9, 3, 7].map(Duration::from_millis).into();
        let figure = Figure::milliseconds("x", &times);
        assert!((figure.median - 5.0).abs() < 1e-9 && (figure.p90 - 9.0).abs() < 1e-9);
        assert_eq!(median(&times), Duration::from_millis(5));
        assert_eq!(
            serde_json::to_string(&Figure::ratio("r", &times[..1], &times[1..2])).unwrap(),
            r#"{"figure":"r","median":5.0,"p10":5.0,"p90":5.0,"n":1}"#
        );
    }
}
