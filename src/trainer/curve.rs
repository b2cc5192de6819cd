//! The loss over a run, as CSV and as a drawing.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use plotters::prelude::*;

use crate::error::{Error, Result};

/// Losses at a step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Point {
    /// Steps so far.
    pub step: u64,
    /// The epoch, from 1.
    pub epoch: u64,
    /// Mean loss of the steps since the last point.
    pub loss: Option<f64>,
    /// Of the validation set.
    pub valid_loss: Option<f64>,
    pub accuracy: Option<f64>,
}

impl Point {
    pub const COLUMNS: usize = 5;

    /// The point as numbers; NaN where there is none.
    pub fn row(&self) -> [f64; Point::COLUMNS] {
        let of = |x: Option<f64>| x.unwrap_or(f64::NAN);
        [self.step as f64, self.epoch as f64, of(self.loss), of(self.valid_loss), of(self.accuracy)]
    }

    /// The point of a row.
    pub fn of(row: &[f64]) -> Point {
        let some = |x: f64| (!x.is_nan()).then_some(x);
        let (loss, valid_loss, accuracy) = (some(row[2]), some(row[3]), some(row[4]));
        Point { step: row[0] as u64, epoch: row[1] as u64, loss, valid_loss, accuracy }
    }
}

/// Writes `PATH.csv` and `PATH.svg`.
pub(super) fn write(path: &Path, points: &[Point]) -> Result<()> {
    let with = |extension: &str| -> PathBuf {
        let mut name = path.as_os_str().to_os_string();
        name.push(extension);
        name.into()
    };
    let put = |path: PathBuf, text: String| std::fs::write(&path, text).map_err(|e| Error::written(&path, &e));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::written(folder, &e))?;
    }
    put(with(".csv"), csv(points))?;
    let drawn = draw(points).map_err(|why| Error::File { path: with(".svg").display().to_string(), why })?;
    put(with(".svg"), drawn)
}

fn csv(points: &[Point]) -> String {
    let mut text = String::from("step,epoch,loss,valid_loss,accuracy\n");
    let cell = |x: Option<f64>| x.map(|x| x.to_string()).unwrap_or_default();
    for Point { step, epoch, loss, valid_loss, accuracy } in points {
        // a string takes all that is written
        let _ = writeln!(text, "{step},{epoch},{},{},{}", cell(*loss), cell(*valid_loss), cell(*accuracy));
    }
    text
}

fn draw(points: &[Point]) -> Result<String, String> {
    let line = |of: fn(&Point) -> Option<f64>| -> Vec<(f64, f64)> {
        points.iter().filter_map(|point| Some((point.step as f64, of(point)?))).collect()
    };
    let (train, valid) = (line(|point| point.loss), line(|point| point.valid_loss));
    let all = || train.iter().chain(&valid).map(|(_, loss)| *loss);
    let (low, high) = (all().fold(f64::INFINITY, f64::min).min(0.0), all().fold(f64::MIN, f64::max));
    // an axis has some length
    let high = if high > low { high + 0.05 * (high - low) } else { low + 1.0 };
    let last = points.last().map_or(1.0, |point| point.step.max(1) as f64);
    let mut text = String::new();
    let told = |e: DrawingAreaErrorKind<_>| e.to_string();
    {
        let area = SVGBackend::with_string(&mut text, (720, 440)).into_drawing_area();
        area.fill(&WHITE).map_err(told)?;
        let mut chart = ChartBuilder::on(&area);
        let chart = chart.margin(12).x_label_area_size(40).y_label_area_size(60);
        let mut chart = chart.build_cartesian_2d(0.0..last, low..high).map_err(told)?;
        chart.configure_mesh().light_line_style(WHITE).x_desc("step").y_desc("loss").draw().map_err(told)?;
        for (line, name, colour) in [(train, "training", BLUE), (valid, "validation", RED)] {
            if line.is_empty() {
                continue;
            }
            let drawn = chart.draw_series(LineSeries::new(line, colour.stroke_width(2))).map_err(told)?;
            drawn.label(name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour));
        }
        let mut labels = chart.configure_series_labels();
        labels.background_style(WHITE.mix(0.8)).border_style(BLACK).draw().map_err(told)?;
        area.present().map_err(told)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_show_both_losses() {
        let point = |step, loss, valid_loss| Point { step, epoch: 1, loss, valid_loss, accuracy: None };
        let points = [point(5, Some(2.5), None), point(10, Some(1.25), Some(1.5)), point(20, None, Some(0.5))];
        let lines: Vec<String> = csv(&points).lines().map(String::from).collect();
        assert_eq!(lines[1..], ["5,1,2.5,,", "10,1,1.25,1.5,", "20,1,,0.5,"]);
        let svg = draw(&points).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert_eq!(svg.matches("<polyline").filter(|_| true).count(), svg.matches("points=").count());
        assert!(svg.contains("training") && svg.contains("validation"));
        let alone = draw(&points[..1]).unwrap();
        assert!(alone.contains("training") && !alone.contains("validation"));
        assert!(draw(&[]).is_ok());
        assert!(draw(&[point(1, Some(0.0), None)]).is_ok());
        assert_eq!(points.iter().map(|p| Point::of(&p.row())).collect::<Vec<_>>(), points);
    }
}
