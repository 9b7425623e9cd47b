//! The results as a picture: a panel for each workload, a row for each case, a dot for each
//! allocator's median with a line from its least to its most.

use std::fmt::Write;

use clap::ValueEnum;

use crate::allocator::Name;
use crate::case::Workload;
use crate::report::{Report, Row, Spread, label, short};

const WIDTH: f64 = 960.0;
/// Where the axis begins, and ends.
const LEFT: f64 = 190.0;
const RIGHT: f64 = WIDTH - 30.0;
const ROW: f64 = 26.0;

/// A row of a panel: what it is, and each allocator's numbers.
type Line = (String, Vec<(Name, Spread)>);

/// The picture as SVG.
pub(crate) fn draw(report: &Report) -> String {
    let mut body = String::new();
    let mut y = legend(&mut body, report);
    for workload in Workload::value_variants() {
        let rows: Vec<_> =
            report.rows.iter().filter(|row| row.case.workload == *workload).collect();
        let (unit, lines) = lines(*workload, &rows);
        let unit = unit.unwrap_or_else(|| format!("{} for each operation", report.clock.unit()));
        if !lines.is_empty() {
            y = panel(&mut body, y, &format!("{workload}: {unit} (logarithmic)"), &lines);
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{y:.0}\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// What the workload's panel shows, and in which unit if not the report's.
fn lines(workload: Workload, rows: &[&Row]) -> (Option<String>, Vec<Line>) {
    let found = || rows.iter().filter_map(|row| Some((*row, row.found.as_ref().ok()?)));
    if workload == Workload::Pages {
        let names: Vec<_> = found().flat_map(|(_, found)| found.extra.keys()).collect();
        let mut lines: Vec<Line> = Vec::new();
        for name in names {
            if lines.iter().all(|(label, _)| *label != name.replace('_', " ")) {
                let spreads = found()
                    .filter_map(|(row, found)| Some((row.allocator, *found.extra.get(name)?)));
                lines.push((name.replace('_', " "), spreads.collect()));
            }
        }
        return (Some("resident bytes".to_owned()), lines);
    }
    let mut lines: Vec<Line> = Vec::new();
    for (row, found) in found() {
        let label = row.case.label();
        let spread = (row.allocator, found.ns_per_op);
        match lines.iter_mut().find(|(other, _)| *other == label) {
            Some((_, spreads)) => spreads.push(spread),
            None => lines.push((label, vec![spread])),
        }
    }
    (None, lines)
}

fn legend(body: &mut String, report: &Report) -> f64 {
    let mut x = 20.0;
    for name in Name::value_variants() {
        if report.rows.iter().any(|row| row.allocator == *name && row.found.is_ok()) {
            dot(body, *name, x, 20.0);
            let _ = writeln!(body, "<text x=\"{}\" y=\"24\">{}</text>", x + 9.0, label(*name));
            x += 94.0;
        }
    }
    44.0
}

fn panel(body: &mut String, top: f64, title: &str, lines: &[Line]) -> f64 {
    let all = || lines.iter().flat_map(|(_, spreads)| spreads.iter().map(|(_, spread)| spread));
    let least = all().map(|spread| spread.min).fold(f64::INFINITY, f64::min).max(1e-3);
    let most = all().map(|spread| spread.max).fold(0.0, f64::max);
    let (low, high) = (least.log10() - 0.05, most.log10().max(least.log10() + 0.3) + 0.05);
    let x = |value: f64| LEFT + (value.max(1e-3).log10() - low) / (high - low) * (RIGHT - LEFT);
    let _ = writeln!(
        body,
        "<text x=\"20\" y=\"{:.0}\" font-weight=\"bold\">{title}</text>",
        top + 14.0
    );
    let first = top + 36.0;
    let bottom = first + lines.len() as f64 * ROW;
    for tick in ticks(low, high) {
        let x = x(tick);
        let _ = writeln!(
            body,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.0}\" y2=\"{:.0}\" stroke=\"#ddd\"/>\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#666\">{}</text>",
            first - 12.0,
            bottom - 12.0,
            bottom + 2.0,
            plain(tick),
        );
    }
    for (at, (label, spreads)) in lines.iter().enumerate() {
        let y = first + at as f64 * ROW;
        let _ = writeln!(
            body,
            "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.0}\" y2=\"{y:.0}\" stroke=\"#eee\"/>\
             <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{label}</text>",
            LEFT - 10.0,
            y + 4.0,
        );
        for (name, spread) in spreads {
            let (colour, from, to) = (colour(*name), x(spread.min), x(spread.max));
            let _ = writeln!(
                body,
                "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y:.0}\" y2=\"{y:.0}\" \
                 stroke=\"{colour}\" stroke-width=\"2\" opacity=\"0.5\"/>",
            );
        }
        // Ours last, so that no other dot hides it.
        let ours = |name: &Name| *name == Name::Hshm;
        let others = spreads.iter().filter(|(name, _)| !ours(name));
        for (name, spread) in others.chain(spreads.iter().filter(|(name, _)| ours(name))) {
            dot(body, *name, x(spread.median), y);
        }
    }
    bottom + 24.0
}

/// 1, 2 and 5 of each power of ten between two logarithms; fewer if there were too many.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let steps: &[f64] = if high - low > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let mut ticks = Vec::new();
    let mut decade = 10_f64.powf(low.floor());
    while decade.log10() <= high {
        let within = steps.iter().map(|step| step * decade);
        ticks.extend(within.filter(|tick| (low..=high).contains(&tick.log10())));
        decade *= 10.0;
    }
    ticks
}

/// A tick's number without needless digits.
fn plain(tick: f64) -> String {
    if (1.0..1e6).contains(&tick) { format!("{tick:.0}") } else { short(tick) }
}

fn dot(body: &mut String, name: Name, x: f64, y: f64) {
    let colour = colour(name);
    let _ = if name == Name::Hshm {
        writeln!(
            body,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\" fill=\"{colour}\" \
             stroke=\"white\" transform=\"rotate(45 {x:.1} {y:.1})\"/>",
            x - 5.5,
            y - 5.5,
        )
    } else {
        writeln!(
            body,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\" stroke=\"white\"/>"
        )
    };
}

/// Colours that the colour-blind tell apart (after Okabe and Ito), as far as they reach.
fn colour(name: Name) -> &'static str {
    match name {
        Name::Null => "#bbbbbb",
        Name::Hshm => "#d55e00",
        Name::Mimalloc => "#0072b2",
        Name::Snmalloc => "#56b4e9",
        Name::Jemalloc => "#009e73",
        Name::Rpmalloc => "#e69f00",
        Name::Tcmalloc => "#cc79a7",
        Name::Glibc => "#000000",
        Name::Boost => "#882255",
        Name::Iceoryx2 => "#999933",
    }
}
