//! What the runs say: medians, ranges and ratios, as a table for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::ValueEnum;
use serde::Serialize;

use crate::allocator::{Kind, Name};
use crate::case::{Case, Measurement, Workload};
use crate::clock::Clock;
use crate::run::Outcome;
use crate::system;

/// Median, least and most of several numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[half]
        } else {
            f64::midpoint(values[half - 1], values[half])
        };
        Some(Self { median, min, max })
    }
}

/// One case with one allocator.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) allocator: Name,
    /// The numbers, or why there are none.
    pub(crate) found: Result<Found, String>,
}

/// What was found of one case with one allocator.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) ns_per_op: Spread,
    bytes_faulted: Option<f64>,
    peak_rss: f64,
    pub(crate) extra: BTreeMap<String, Spread>,
}

impl Found {
    fn of(runs: &[Measurement]) -> Option<Self> {
        let spread =
            |of: &dyn Fn(&Measurement) -> Option<f64>| Spread::of(runs.iter().filter_map(of));
        let names = runs.first()?.extra.keys();
        let extra = names
            .filter_map(|name| Some((name.clone(), spread(&|run| run.extra.get(name).copied())?)));
        Some(Self {
            ns_per_op: spread(&|run| Some(run.ns_per_op))?,
            bytes_faulted: spread(&|run| run.bytes_faulted.map(|b| b as f64)).map(|s| s.median),
            peak_rss: spread(&|run| Some(run.peak_rss as f64))?.median,
            extra: extra.collect(),
        })
    }
}

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    runs: u32,
    pub(crate) clock: Clock,
}

/// A line of JSON.
#[derive(Serialize)]
struct Line<'r> {
    workload: Workload,
    size: usize,
    order: crate::case::Order,
    threads: usize,
    processes: usize,
    allocator: Name,
    kind: Kind,
    called: &'static str,
    runs: u32,
    ns_per_op: f64,
    min: f64,
    max: f64,
    harness_ns: Option<f64>,
    ratio_to_mimalloc: Option<f64>,
    ratio_to_best_private: Option<f64>,
    best_private: Option<Name>,
    ratio_to_boost: Option<f64>,
    bytes_faulted: Option<f64>,
    peak_rss: f64,
    #[serde(flatten)]
    extra: BTreeMap<&'r str, f64>,
}

#[derive(Serialize)]
struct SkippedLine<'r> {
    #[serde(flatten)]
    case: Case,
    allocator: Name,
    skipped: &'r str,
}

/// The name as users write it.
pub(crate) fn label(name: Name) -> String {
    name.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

impl Report {
    pub(crate) fn new(outcomes: Vec<Outcome>, runs: u32, clock: Clock) -> Self {
        let rows = outcomes.into_iter().map(|outcome| {
            let found = outcome.runs.and_then(|runs| Found::of(&runs).ok_or("no run".to_owned()));
            Row { case: outcome.case, allocator: outcome.allocator, found }
        });
        Self { rows: rows.collect(), runs, clock }
    }

    fn median(&self, case: &Case, allocator: Name) -> Option<f64> {
        let mut rows = self.rows.iter();
        let row = rows.find(|row| row.case == *case && row.allocator == allocator)?;
        row.found.as_ref().ok().map(|found| found.ns_per_op.median)
    }

    /// The fastest private allocator at this case, or at the one with threads for processes.
    pub(crate) fn best_private(&self, case: &Case) -> Option<(Name, f64)> {
        let case = if case.needs_shared() { case.reference() } else { *case };
        let private = Name::value_variants().iter().filter(|name| name.kind() == Kind::Private);
        let medians = private.filter_map(|&name| Some((name, self.median(&case, name)?)));
        medians.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// One JSON object a line: first the machine, then each case with each allocator.
    pub(crate) fn json(&self) -> String {
        let versions: BTreeMap<_, _> = Name::value_variants()
            .iter()
            .map(|name| {
                (label(*name), name.version().unwrap_or_else(|why| format!("absent: {why}")))
            })
            .collect();
        let command: Vec<_> = std::env::args().skip(1).collect();
        let head = serde_json::json!({
            "machine": system::machine(), "versions": versions, "arguments": command,
            "unit": self.clock.unit(),
        });
        let mut text = format!("{head}\n");
        for row in &self.rows {
            let line = match &row.found {
                Ok(found) => serde_json::to_string(&self.line(row, found)),
                Err(why) => serde_json::to_string(&SkippedLine {
                    case: row.case,
                    allocator: row.allocator,
                    skipped: why,
                }),
            };
            // Numbers, names and text always have a JSON form.
            let _ = writeln!(text, "{}", line.unwrap_or_default());
        }
        text
    }

    fn line<'r>(&self, row: &Row, found: &'r Found) -> Line<'r> {
        let Case { workload, size, order, threads, processes } = row.case;
        let Spread { median, min, max } = found.ns_per_op;
        let best = self.best_private(&row.case);
        let reference = if row.case.needs_shared() { row.case.reference() } else { row.case };
        Line {
            workload,
            size,
            order,
            threads,
            processes,
            allocator: row.allocator,
            kind: row.allocator.kind(),
            called: row.allocator.called(),
            runs: self.runs,
            ns_per_op: median,
            min,
            max,
            harness_ns: self.median(&row.case, Name::Null),
            ratio_to_mimalloc: self.median(&reference, Name::Mimalloc).map(|peer| median / peer),
            ratio_to_best_private: best.map(|(_, peer)| median / peer),
            best_private: best.map(|(name, _)| name),
            ratio_to_boost: self.median(&row.case, Name::Boost).map(|peer| median / peer),
            bytes_faulted: found.bytes_faulted,
            peak_rss: found.peak_rss,
            extra: found.extra.iter().map(|(name, s)| (name.as_str(), s.median)).collect(),
        }
    }

    /// The tables, one for each workload.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{} for each operation, medians of {} runs; ratios are to the fastest private \
             allocator, of threads where it has no processes.\n",
            self.clock.unit(),
            self.runs
        );
        for workload in Workload::value_variants() {
            let rows: Vec<_> =
                self.rows.iter().filter(|row| row.case.workload == *workload).collect();
            if !rows.is_empty() {
                self.workload_table(&mut text, *workload, &rows);
            }
        }
        let mut calls = String::new();
        for name in Name::value_variants() {
            if self.rows.iter().any(|row| row.allocator == *name && row.found.is_ok()) {
                let version = name.version().unwrap_or_default();
                let _ = writeln!(calls, "  {:<10}{version}; {}", label(*name), name.called());
            }
        }
        text + "\nhow each was called\n" + &calls
    }

    fn workload_table(&self, text: &mut String, workload: Workload, rows: &[&Row]) {
        let mut cases: Vec<Case> = rows.iter().map(|row| row.case).collect();
        cases.dedup();
        let mut table = vec![heading(&workload.to_string(), cases.iter().map(Case::label))];
        let extras: Vec<_> = rows.iter().filter_map(|row| row.found.as_ref().ok()).collect();
        let extras = extras.first().map(|found| found.extra.keys().cloned().collect::<Vec<_>>());
        let extras = extras.unwrap_or_default();
        table[0].extend(extras.iter().map(|name| name.replace('_', " ")));
        for name in Name::value_variants() {
            let mine: Vec<_> = rows.iter().filter(|row| row.allocator == *name).collect();
            if !mine.iter().any(|row| row.found.is_ok()) {
                continue;
            }
            let mut line = vec![label(*name)];
            line.extend(
                cases.iter().map(|case| {
                    self.median(case, *name).map(short).unwrap_or_else(|| "-".to_owned())
                }),
            );
            let found = mine.iter().find_map(|row| row.found.as_ref().ok());
            line.extend(extras.iter().map(|extra| {
                found.and_then(|f| f.extra.get(extra)).map(|s| short(s.median)).unwrap_or_default()
            }));
            table.push(line);
        }
        let ratios = cases.iter().map(|case| {
            let ours = self.median(case, Name::Hshm)?;
            let (name, peer) = self.best_private(case)?;
            Some(format!("{:.2} {}", ours / peer, label(name)))
        });
        let ratios: Vec<_> = ratios.map(Option::unwrap_or_default).collect();
        if ratios.iter().any(|ratio| !ratio.is_empty()) {
            table.push(heading("hshm ratio", ratios.into_iter()));
        }
        text.push('\n');
        render(text, &table);
        let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for row in rows {
            if let Err(why) = &row.found {
                let names = reasons.entry(why).or_default();
                let name = format!("{} {}", label(row.allocator), row.case.label());
                names.push(name.trim().to_owned());
            }
        }
        for (why, names) in reasons {
            let _ = writeln!(text, "  skipped, since {why}: {}", names.join(", "));
        }
    }
}

fn heading(first: &str, rest: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(rest).collect()
}

/// Three or so significant digits.
pub(crate) fn short(value: f64) -> String {
    match value {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        100.0..1e6 => format!("{value:.0}"),
        _ => format!("{value:.3e}"),
    }
}

/// Appends the table's lines, with columns as wide as they need.
fn render(text: &mut String, table: &[Vec<String>]) {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| table.iter().filter_map(|l| l.get(column)).map(String::len).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for line in table {
        let mut cells = line.iter().zip(&widths);
        if let Some((first, width)) = cells.next() {
            let _ = write!(text, "{first:<width$}");
        }
        for (cell, width) in cells {
            let _ = write!(text, "  {cell:>width$}");
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
}
