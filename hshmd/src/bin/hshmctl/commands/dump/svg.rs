//! The picture as SVG: a rectangle for each page, large block and stretch of free memory.

use std::fmt::Write as _;

use hshm_client::{Content, Stretch};
use hshmd::size::format_size;

use super::share;
use crate::text::count;

/// Pixels of a unit, a side.
const SIDE: u64 = 10;
/// Units of a line.
const LINE_UNITS: u64 = 96;
/// Bytes of a unit.
const UNIT_BYTES: u64 = 64 << 10;
/// Lines at most: of a longer segment, a rectangle's length stands for more.
const LINES: u64 = 256;
/// Where the picture begins.
const TOP: u64 = 30;

/// Draws the stretches, line by line.
pub(super) fn draw(name: &str, stretches: &[Stretch]) -> String {
    let start = stretches.first().map_or(0, |stretch| stretch.offset);
    let end = stretches.last().map_or(0, |stretch| stretch.offset + stretch.bytes);
    let line_bytes = (LINE_UNITS * UNIT_BYTES).max((end - start).div_ceil(LINES));
    let (width, height) = (LINE_UNITS * SIDE, TOP + (end - start).div_ceil(line_bytes) * SIDE);
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <text x=\"0\" y=\"18\">segment {name}: pages in a colour for each block size, the darker the fuller; large blocks black, free white; a line is {}</text>",
        format_size(line_bytes)
    );
    let scale = (width as f64) / line_bytes as f64;
    for stretch in stretches {
        let (fill, opacity) = paint(&stretch.content);
        let mut from = stretch.offset - start;
        let to = from + stretch.bytes;
        while from < to {
            let upto = to.min((from / line_bytes + 1) * line_bytes);
            let (x, y) = ((from % line_bytes) as f64 * scale, TOP + from / line_bytes * SIDE);
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.2}\" y=\"{y}\" width=\"{:.2}\" height=\"{}\" fill=\"{fill}\" fill-opacity=\"{opacity:.2}\" stroke=\"#ccc\" stroke-width=\"0.3\"><title>{}</title></rect>",
                (upto - from) as f64 * scale,
                SIDE - 1,
                words(stretch)
            );
            from = upto;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// A colour, and how much of it.
fn paint(content: &Content) -> (String, f64) {
    match content {
        Content::Free => ("#fff".to_owned(), 1.0),
        Content::Large => ("#222".to_owned(), 1.0),
        Content::Cache | Content::Changing => ("#999".to_owned(), 1.0),
        Content::Unknown => ("#f0f".to_owned(), 1.0),
        Content::Page { block_bytes, blocks, allocated_blocks } => {
            // A doubling of the size goes a sixth of the way round the colours.
            let hue = ((*block_bytes).max(1) as f64).log2() * 60.0 % 360.0;
            (format!("hsl({hue:.0},70%,45%)"), 0.15 + 0.85 * share(*allocated_blocks, *blocks))
        }
    }
}

/// What a reader sees who points at it.
fn words(stretch: &Stretch) -> String {
    let owner = match stretch.owner {
        0 => String::new(),
        slot => format!(", of worker {slot}"),
    };
    let what = match &stretch.content {
        Content::Free => "free".to_owned(),
        Content::Large => "a large block".to_owned(),
        Content::Cache => "what a worker caches".to_owned(),
        Content::Changing => "changing".to_owned(),
        Content::Unknown => "unknown".to_owned(),
        Content::Page { block_bytes, blocks, allocated_blocks } => format!(
            "{} of {} blocks of {}",
            count(*allocated_blocks),
            count(*blocks),
            format_size(*block_bytes)
        ),
    };
    format!("{} at {:#x}: {what}{owner}", format_size(stretch.bytes), stretch.offset)
}
