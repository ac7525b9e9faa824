//! The plot: a bar for each figure, how many times as fast as QEMU's own devices ours are.

use std::error::Error;

use plotters::prelude::*;

use crate::report::Row;

const SIZE: (u32, u32) = (900, 420);
const OURS: RGBColor = RGBColor(68, 119, 170);
const VHOST_USER: RGBColor = RGBColor(204, 187, 68);

/// Draws; gives back the SVG.
pub(crate) fn draw(rows: &[Row]) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    let most = rows
        .iter()
        .map(|row| row.ratio.max(row.vhost_user_ratio))
        .fold(1.0, f64::max);
    let count = i32::try_from(rows.len())?;
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(
                "Our devices against QEMU's own (1 is as fast)",
                ("sans-serif", 18),
            )
            .margin(12)
            .x_label_area_size(36)
            .build_cartesian_2d(0.0..most * 1.4, 0..2 * count)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_desc("times as fast: in our monitor (blue), behind QEMU by vhost-user (yellow)")
            .draw()?;
        for (place, row) in (0..count).rev().zip(rows) {
            for (y, ratio, colour) in [
                (2 * place + 1, row.ratio, OURS),
                (2 * place, row.vhost_user_ratio, VHOST_USER),
            ] {
                chart.draw_series([Rectangle::new([(0.0, y), (ratio, y + 1)], colour.filled())])?;
            }
            let text = format!(
                "{} ({:.2}, {:.2})",
                row.name.replace('_', " "),
                row.ratio,
                row.vhost_user_ratio
            );
            let x = row.ratio.max(row.vhost_user_ratio) + most / 100.0;
            chart.draw_series([Text::new(text, (x, 2 * place + 2), ("sans-serif", 13))])?;
        }
        chart.draw_series([PathElement::new([(1.0, 0), (1.0, 2 * count)], BLACK)])?;
        area.present()?;
    }
    Ok(svg)
}
