//! Charts of a report as SVG: bars of a histogram, and a line over time.

use super::figures::Spread;
use crate::table::thousands;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 180.0;
const NUM_BARS: usize = 32;
/// Room below for the numbers.
const FOOT: f64 = 22.0;

/// How often values lie in each of equal ranges. Empty without values.
pub(super) fn histogram(values: &[f64]) -> String {
    let Some(Spread { least, most, .. }) = Spread::of(values) else { return String::new() };
    let width = ((most - least) / NUM_BARS as f64).max(f64::MIN_POSITIVE);
    let mut counts = [0_u64; NUM_BARS];
    for value in values {
        let bar = ((value - least) / width) as usize;
        counts[bar.min(NUM_BARS - 1)] += 1;
    }
    let highest = counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let bar_width = WIDTH / NUM_BARS as f64;
    let bars: String = counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(idx, &count)| {
            let height = (HEIGHT - FOOT) * count as f64 / highest;
            let (x, y) = (idx as f64 * bar_width, HEIGHT - FOOT - height);
            let from = least + idx as f64 * width;
            format!(
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{} from {} to {}</title></rect>",
                x + 1.0,
                bar_width - 2.0,
                thousands(count),
                short(from),
                short(from + width)
            )
        })
        .collect();
    svg(&bars, least, most)
}

/// Values over time, both from the first to the last.
pub(super) fn line(points: &[(f64, f64)]) -> String {
    let (Some(&(start, _)), Some(&(end, _))) = (points.first(), points.last()) else { return String::new() };
    let highest = points.iter().map(|&(_, value)| value).fold(f64::MIN_POSITIVE, f64::max);
    let span = (end - start).max(f64::MIN_POSITIVE);
    let path: Vec<String> = points
        .iter()
        .map(|&(at, value)| {
            let y = (HEIGHT - FOOT) * (1.0 - 0.95 * value.max(0.0) / highest);
            format!("{:.1},{y:.1}", WIDTH * (at - start) / span)
        })
        .collect();
    let inside =
        format!("<polyline points=\"{}\"/><text x=\"4\" y=\"12\">{}</text>", path.join(" "), short(highest));
    svg(&inside, 0.0, span)
}

fn svg(inside: &str, from: f64, to: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">{inside}<text x=\"0\" y=\"{y}\">{}</text>\
         <text x=\"{WIDTH}\" y=\"{y}\" text-anchor=\"end\">{}</text></svg>",
        short(from),
        short(to),
        y = HEIGHT - 5.0
    )
}

/// A number in few characters.
fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        1e9.. => format!("{:.1}G", value / 1e9),
        1e6.. => format!("{:.1}M", value / 1e6),
        1e4.. => format!("{:.1}k", value / 1e3),
        100.0.. => format!("{value:.0}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_hold_all_values() {
        let chart = histogram(&[1.0, 1.0, 2.0, 33.0]);
        assert_eq!(chart.matches("<rect").count(), 3);
        assert!(chart.contains("<title>2 from 1 to 2</title>"), "{chart}");
        assert!(histogram(&[5.0; 3]).matches("<rect").count() == 1 && histogram(&[]).is_empty());
        let chart = line(&[(10.0, 1.0), (15.0, 4.0), (20.0, 2.0)]);
        assert!(chart.contains("points=\"0.0,120.5 320.0,7.9 640.0,83.0\""), "{chart}");
        assert!(line(&[]).is_empty() && line(&[(3.0, 0.0)]).contains("polyline"));
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.5, -1.25, 250.4, 12_345.0, 7.2e6, 3e9].map(short);
        assert_eq!(texts, ["0", "0.50", "-1.25", "250", "12.3k", "7.2M", "3.0G"]);
    }
}
