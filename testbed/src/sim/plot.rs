//! Draws mean time to first token against load, one line a policy, as a self-contained SVG.
//!
//! The vertical axis is logarithmic: policies differ by orders of magnitude near saturation.

use std::fmt::Write;

use super::report::Cell;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 54.0;
/// Told apart by people with any colour vision (Okabe and Ito), then by dashes.
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999",
];

/// Maps load and time to the page.
struct Axes {
    loads: (f64, f64),
    /// log10 of seconds.
    times: (f64, f64),
}

impl Axes {
    fn around(cells: &[Cell]) -> Self {
        let loads = cells.iter().map(|cell| cell.load_percent);
        let times = cells
            .iter()
            .map(|cell| cell.summary.ttft_mean_s.max(1e-4).log10());
        let span = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
                (low.min(v), high.max(v))
            })
        };
        let mut axes = Self {
            loads: span(&mut loads.clone()),
            times: span(&mut times.clone()),
        };
        axes.times = (axes.times.0.floor(), axes.times.1.ceil());
        if axes.times.1 <= axes.times.0 {
            axes.times.1 = axes.times.0 + 1.0;
        }
        if axes.loads.1 <= axes.loads.0 {
            axes.loads = (axes.loads.0 - 1.0, axes.loads.1 + 1.0);
        }
        axes
    }

    fn x(&self, load: f64) -> f64 {
        LEFT + (load - self.loads.0) / (self.loads.1 - self.loads.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, seconds: f64) -> f64 {
        let part = (seconds.max(1e-4).log10() - self.times.0) / (self.times.1 - self.times.0);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    }
}

/// The whole drawing. `cells` may be in any order; policies keep the order of first appearance.
///
/// # Errors
/// None in practice: writing to a string does not fail.
pub fn svg(title: &str, cells: &[Cell]) -> Result<String, std::fmt::Error> {
    let axes = Axes::around(cells);
    let mut out = String::new();
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>",
        escape(title)
    )?;
    grid(&axes, cells, &mut out)?;
    let mut policies: Vec<&str> = Vec::new();
    for cell in cells {
        if !policies.contains(&cell.policy.as_str()) {
            policies.push(&cell.policy);
        }
    }
    for (number, policy) in policies.iter().enumerate() {
        let points = cells.iter().filter(|cell| cell.policy == *policy);
        line(&axes, number, policy, points, &mut out)?;
    }
    out.push_str("</svg>\n");
    Ok(out)
}

fn grid(axes: &Axes, cells: &[Cell], out: &mut String) -> std::fmt::Result {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    for power in axes.times.0 as i32..=axes.times.1 as i32 {
        let seconds = 10f64.powi(power);
        let y = axes.y(seconds);
        writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{seconds} s</text>",
            LEFT - 8.0,
            y + 4.0
        )?;
    }
    let mut loads: Vec<f64> = cells.iter().map(|cell| cell.load_percent).collect();
    loads.sort_by(f64::total_cmp);
    loads.dedup();
    for load in loads {
        let x = axes.x(load);
        writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#eee\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{load} %</text>",
            bottom + 18.0
        )?;
    }
    writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">load</text>\
         <text x=\"{LEFT}\" y=\"{}\">mean time to first token</text>",
        (LEFT + right) / 2.0,
        HEIGHT - 14.0,
        TOP - 6.0
    )
}

/// One policy: its line, its points, its entry in the legend.
fn line<'a>(
    axes: &Axes,
    number: usize,
    policy: &str,
    cells: impl Iterator<Item = &'a Cell>,
    out: &mut String,
) -> std::fmt::Result {
    let mut points: Vec<(f64, f64)> = cells
        .map(|cell| (cell.load_percent, cell.summary.ttft_mean_s))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let colour = COLOURS
        .get(number % COLOURS.len())
        .copied()
        .unwrap_or("#000");
    let dash = match number / COLOURS.len() {
        0 => "",
        1 => " stroke-dasharray=\"6 3\"",
        _ => " stroke-dasharray=\"2 3\"",
    };
    let mut path = String::new();
    for (at, (load, seconds)) in points.iter().enumerate() {
        let pen = if at == 0 { 'M' } else { 'L' };
        write!(path, "{pen}{:.1} {:.1}", axes.x(*load), axes.y(*seconds))?;
        writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
            axes.x(*load),
            axes.y(*seconds)
        )?;
    }
    let (x, y) = (WIDTH - RIGHT + 16.0, TOP + 12.0 + 20.0 * number as f64);
    writeln!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>\n\
         <path d=\"M{x} {:.1}h22\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>\
         <text x=\"{}\" y=\"{y}\">{}</text>",
        y - 4.0,
        x + 28.0,
        escape(policy)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::statistics::Summary;

    #[test]
    fn every_policy_has_a_line_with_its_points() {
        let cell = |policy: &str, load_percent, ttft_mean_s| Cell {
            policy: policy.into(),
            load_percent,
            rate_per_s: 1.0,
            seeds: 1,
            chosen: None,
            run_s: 0.0,
            summary: Summary {
                ttft_mean_s,
                ..Summary::default()
            },
        };
        let cells = [
            cell("a<b", 60.0, 0.5),
            cell("a<b", 100.0, 20.0),
            cell("c", 60.0, 0.3),
        ];
        let svg = svg("title", &cells).unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a&lt;b</text>") && svg.contains(">100 %</text>"));
        assert!(svg.contains(">0.1 s<") && svg.contains(">100 s<") && !svg.contains("NaN"));
    }
}
