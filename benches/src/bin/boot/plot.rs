//! The plot: the stages of a sandbox, end to end, below the baseline.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use plotters::prelude::*;

const SIZE: (u32, u32) = (900, 420);
/// Distinguishable also without colour vision: each stage is labelled as well.
const COLOURS: [RGBColor; 6] = [
    RGBColor(68, 119, 170),
    RGBColor(102, 204, 238),
    RGBColor(34, 136, 51),
    RGBColor(204, 187, 68),
    RGBColor(238, 102, 119),
    RGBColor(170, 51, 119),
];

/// Draws a row a stage, each beginning where the one before ended, and the baseline above them.
pub(crate) fn draw(
    path: &Path,
    baseline: Duration,
    stages: &[(String, Duration)],
) -> Result<(), Box<dyn Error>> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let total: f64 = stages.iter().map(|(_, time)| ms(*time)).sum();
    let end = total.max(ms(baseline)) * 1.25;
    let rows = i32::try_from(stages.len() + 1)?;
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("From create to stop, stage by stage (median)", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .build_cartesian_2d(0.0..end, 0..rows)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("milliseconds since create")
        .draw()?;
    let mut begin = 0.0;
    let bars = std::iter::once(("baseline: guest that only says hello", 0.0, ms(baseline))).chain(
        stages.iter().map(|(stage, time)| {
            let bar = (stage.as_str(), begin, begin + ms(*time));
            begin = bar.2;
            bar
        }),
    );
    for (row, (label, from, to)) in (0..rows).rev().zip(bars) {
        let colour = if row == rows - 1 {
            BLACK.mix(0.5)
        } else {
            COLOURS[row.unsigned_abs() as usize % 6].to_rgba()
        };
        chart.draw_series([Rectangle::new([(from, row), (to, row + 1)], colour.filled())])?;
        let text = format!("{label} ({:.0} ms)", to - from);
        chart.draw_series([Text::new(text, (to + end / 200.0, row + 1), ("sans-serif", 13))])?;
    }
    area.present()?;
    Ok(())
}
