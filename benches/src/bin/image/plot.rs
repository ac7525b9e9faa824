//! The plot: our store as one bar, above the steps of the pipeline, end to end.

use std::error::Error;

use benches::figure::Figure;
use plotters::prelude::*;

use crate::report::Row;

const SIZE: (u32, u32) = (900, 300);
const OURS: RGBColor = RGBColor(68, 119, 170);
/// Distinguishable also without colour vision: each step is labelled as well.
const STEPS: [RGBColor; 4] = [
    RGBColor(204, 187, 68),
    RGBColor(238, 102, 119),
    RGBColor(34, 136, 51),
    RGBColor(170, 51, 119),
];

/// Draws; gives back the SVG.
pub(crate) fn draw(ours: &Row, steps: &[Row], speedup: &Figure) -> Result<String, Box<dyn Error>> {
    let total: f64 = steps.iter().map(|step| step.wall.median).sum();
    let end = total.max(ours.wall.median) * 1.3;
    let rows = i32::try_from(steps.len() + 1)?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let caption = format!(
            "From a reference to EROFS: {:.1} times as fast (medians)",
            speedup.median
        );
        let mut chart = ChartBuilder::on(&area)
            .caption(caption, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(36)
            .build_cartesian_2d(0.0..end, 0..rows)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc("milliseconds")
            .draw()?;
        let mut begin = 0.0;
        let bars = std::iter::once((ours, 0.0, OURS)).chain(steps.iter().zip(STEPS).map(|(step, colour)| {
            let from = begin;
            begin += step.wall.median;
            (step, from, colour)
        }));
        for (row, (what, from, colour)) in (0..rows).rev().zip(bars) {
            let to = from + what.wall.median;
            chart.draw_series([Rectangle::new([(from, row), (to, row + 1)], colour.filled())])?;
            let text = format!("{} ({:.0} ms)", what.name, what.wall.median);
            chart.draw_series([Text::new(text, (to + end / 200.0, row + 1), ("sans-serif", 13))])?;
        }
        area.present()?;
    }
    Ok(svg)
}
