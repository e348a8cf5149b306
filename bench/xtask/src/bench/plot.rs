//! Figures as bars, such as `bench/results.svg`: CPU a request, one group a case, with the interval as a whisker.

use std::fmt::Write;

use super::measure::CaseResult;
use super::peers::Peer;
use super::stats::Estimate;

const LEFT: f64 = 210.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 13.0;
const GROUP_GAP: f64 = 26.0;

/// One bar, with the interval as a whisker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bar {
    pub peer: Peer,
    pub value: Estimate,
    /// How many decimals are written beside it
    pub digits: usize,
}

/// Bars that have one scale.
#[derive(Debug)]
pub(super) struct Group {
    pub title: String,
    pub bars: Vec<Bar>,
}

/// CPU a request, one group a case.
pub(super) fn svg(cases: &[CaseResult]) -> String {
    // Each group has its own scale: from 10 us with one route to hundreds with 5,000 would hide the small ones.
    let groups = cases.iter().map(|result| Group {
        title: result.case.title.to_owned(),
        bars: result.rows.iter().map(|row| Bar { peer: row.peer, value: row.cpu, digits: 1 }).collect(),
    });
    chart("CPU microseconds a request (shorter is better)", &groups.collect::<Vec<_>>())
}

/// A picture of groups below each other.
pub(super) fn chart(title: &str, groups: &[Group]) -> String {
    let mut y = 34.0;
    let mut body = String::new();
    for group in groups {
        y += GROUP_GAP;
        let _ = writeln!(
            body,
            "<text x=\"10\" y=\"{:.0}\" class=\"title\">{}</text>",
            y - 5.0,
            escape(&group.title)
        );
        let longest = group.bars.iter().map(|bar| bar.value.high).fold(1.0, f64::max);
        for bar in &group.bars {
            body += &bar.drawn(y, WIDTH / longest);
            y += BAR + 3.0;
        }
    }
    let (width, height) = (LEFT + WIDTH + 110.0, y + 20.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <style>.title {{ font-weight: bold }} .ours {{ fill: #c2410c }} .theirs {{ fill: #64748b }} \
         .whisker {{ stroke: #111; stroke-width: 1 }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"14\" class=\"title\">{}</text>\n\
         {body}</svg>\n",
        escape(title)
    )
}

impl Bar {
    fn drawn(&self, y: f64, scale: f64) -> String {
        let Self { peer, value, digits } = *self;
        let class = if peer == Peer::Sixfold { "ours" } else { "theirs" };
        let end = LEFT + value.median * scale;
        let middle = y + BAR / 2.0;
        let (low, high) = (LEFT + value.low * scale, LEFT + value.high * scale);
        format!(
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" class=\"{class}\"/>\
             <line x1=\"{low:.1}\" y1=\"{middle:.1}\" x2=\"{high:.1}\" y2=\"{middle:.1}\" class=\"whisker\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.digits$}</text>\n",
            LEFT - 8.0,
            y + 10.5,
            escape(peer.name()),
            end - LEFT,
            high.max(end) + 6.0,
            y + 10.5,
            value.median
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::cases::CASES;
    use super::super::load::Latency;
    use super::super::measure::Row;
    use super::*;

    fn row(peer: Peer, cpu: f64) -> Row {
        let of = |median| Estimate { median, low: median * 0.9, high: median * 1.1 };
        let latency = Latency { p50: 1.0, p99: 2.0 };
        Row { peer, cpu: of(cpu), rate: of(1.0), latency, idle: 1.0, after: 1.0, ratio: of(1.0) }
    }

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let rows = vec![row(Peer::Sixfold, 10.0), row(Peer::Envoy, 40.0)];
        let case = CaseResult { case: CASES.first().unwrap(), rows, load_average: 0.0 };
        let picture = svg(&[case]);
        let widths = picture.split("width=\"").skip(3).map(|part| part.split('"').next().unwrap());
        let widths: Vec<f64> = widths.map(|width| width.parse().unwrap()).collect();
        assert_eq!(widths.len(), 2);
        assert!((widths[1] / widths[0] - 4.0).abs() < 0.01, "{widths:?}");
    }
}
