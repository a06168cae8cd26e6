//! Pictures of figures, as SVG text: bars for what is compared, lines for what grows.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::number;
use crate::kube_proxy::Mode;

/// Whose figure it is; the same colour in every plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What everybody is held against: nothing in between.
    Baseline,
    Sluice,
    /// Sluice under harder conditions.
    SluiceHarder,
    Nftables,
    IptablesLegacy,
    IptablesNft,
}

impl From<Mode> for Kind {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Nftables => Self::Nftables,
            Mode::IptablesLegacy => Self::IptablesLegacy,
            Mode::IptablesNft => Self::IptablesNft,
        }
    }
}

impl Kind {
    const fn color(self) -> RGBColor {
        match self {
            Self::Baseline => RGBColor(0x88, 0x8e, 0x98),
            Self::Sluice => RGBColor(0x12, 0x6e, 0xb8),
            Self::SluiceHarder => RGBColor(0x63, 0xaa, 0xdc),
            Self::Nftables => RGBColor(0xe0, 0x8a, 0x1e),
            Self::IptablesLegacy => RGBColor(0xb8, 0x43, 0x2f),
            Self::IptablesNft => RGBColor(0x8a, 0x5a, 0xa8),
        }
    }
}

/// A figure of a bar plot.
#[derive(Clone, Debug)]
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub kind: Kind,
}

/// A series of a line plot: (x, y).
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub kind: Kind,
}

/// What to draw.
#[derive(Clone, Debug)]
pub enum Plot {
    /// Horizontal bars from zero, each with its number; `title` says the unit.
    Bars { title: String, bars: Vec<Bar> },
    /// Lines over a logarithmic x. `y_log` where values span decades.
    Lines { title: String, x: String, y: String, y_log: bool, lines: Vec<Line> },
}

const WIDTH: u32 = 760;
const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const PALE: RGBColor = RGBColor(0xd9, 0xdd, 0xe3);
const FONT: &str = "sans-serif";

impl Plot {
    /// The picture as the text of an SVG file.
    pub fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        match self {
            Self::Bars { title, bars } => draw_bars(&mut svg, title, bars),
            Self::Lines { title, x, y, y_log, lines } => draw_lines(&mut svg, title, [x, y], *y_log, lines),
        }
        .map_err(|error| anyhow!("draw {self:?}: {error}"))?;
        Ok(svg)
    }
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

fn anchored(size: u32, h: HPos) -> TextStyle<'static> {
    text(size).pos(Pos::new(h, VPos::Center))
}

/// Rows of 26 pixels: a name, a bar, its number.
fn draw_bars(svg: &mut String, title: &str, bars: &[Bar]) -> Drawn {
    const LEFT: i32 = 310;
    const TOP: i32 = 48;
    const ROW: i32 = 26;
    /// Left of the longest bar's number.
    const ROOM: f64 = 360.0;
    let largest = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let bottom = bars.iter().fold(TOP, |top, _| top + ROW);
    let area = SVGBackend::with_string(svg, (WIDTH, bottom.unsigned_abs() + 12)).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw(&Text::new(title, (16, 24), anchored(17, HPos::Left)))?;
    for (bar, top) in bars.iter().zip((TOP..).step_by(ROW as usize)) {
        let middle = top + ROW / 2 - 2;
        let end = LEFT + (ROOM * bar.value / largest).round() as i32;
        area.draw(&Text::new(bar.name.as_str(), (LEFT - 10, middle), anchored(13, HPos::Right)))?;
        area.draw(&Rectangle::new([(LEFT, top), (end, top + ROW - 6)], bar.kind.color().filled()))?;
        area.draw(&Text::new(number(bar.value), (end + 8, middle), anchored(13, HPos::Left)))?;
    }
    area.draw(&PathElement::new([(LEFT, TOP - 4), (LEFT, bottom)], INK))?;
    area.present()?;
    drop(area);
    Ok(())
}

fn draw_lines(svg: &mut String, title: &str, axes: [&str; 2], y_log: bool, lines: &[Line]) -> Drawn {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let bounds = |values: &dyn Fn() -> Vec<f64>| {
        values().into_iter().fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (x_low, x_high) = bounds(&|| points().map(|(x, _)| x).collect());
    let (y_low, y_high) = bounds(&|| points().map(|(_, y)| y).collect());
    let area = SVGBackend::with_string(svg, (WIDTH, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    area.draw(&Text::new(title, (16, 24), anchored(17, HPos::Left)))?;
    let plot = area.margin(44, 12, 12, 28);
    let mut builder = ChartBuilder::on(&plot);
    builder.x_label_area_size(44).y_label_area_size(62);
    let x = (x_low..x_high).log_scale();
    macro_rules! chart {
        ($y:expr) => {{
            let mut chart = builder.build_cartesian_2d(x, $y)?;
            let mut mesh = chart.configure_mesh();
            mesh.x_desc(axes[0]).y_desc(axes[1]).label_style(text(12)).axis_desc_style(text(13));
            mesh.light_line_style(TRANSPARENT).bold_line_style(PALE).axis_style(INK);
            mesh.x_label_formatter(&|value| thousands(*value)).y_label_formatter(&|value| short(*value)).draw()?;
            for line in lines {
                let color = line.kind.color();
                let legend = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(3));
                chart
                    .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)).point_size(4))?
                    .label(line.name.as_str())
                    .legend(legend);
            }
            let mut legend = chart.configure_series_labels();
            legend.position(SeriesLabelPosition::UpperLeft).label_font(text(12));
            legend.background_style(WHITE.mix(0.85)).border_style(PALE).margin(10).draw()?;
        }};
    }
    if y_log {
        chart!((y_low * 0.7..y_high * 1.6).log_scale());
    } else {
        chart!(0.0..y_high * 1.25);
    }
    plot.present()?;
    Ok(())
}

/// 10000 as `10,000`.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(|group| String::from_utf8_lossy(group)).collect::<Vec<_>>().join(",")
}

/// A label of an axis: no more digits than it needs.
fn short(value: f64) -> String {
    if value >= 1000.0 { thousands(value) } else { format!("{}", (value * 1000.0).round() / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_and_lines_become_svg_text_with_their_names_and_numbers() {
        let bar = |name: &str, value, kind| Bar { name: name.to_owned(), value, kind };
        let bars = vec![bar("direct to the pod", 15.7, Kind::Baseline), bar("through Sluice", 15.9, Kind::Sluice)];
        let svg = Plot::Bars { title: "TCP connect, µs".to_owned(), bars }.svg().unwrap();
        for part in ["direct to the pod", "through Sluice", "15.70", "TCP connect, µs", "</svg>"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        let points = vec![(1.0, 2.0), (1000.0, 2.1), (50_000.0, 2.2)];
        let lines = vec![Line { name: "Sluice".to_owned(), points, kind: Kind::Sluice }];
        let axis = |text: &str| text.to_owned();
        let (x, y) = (axis("Services"), axis("µs"));
        let svg = Plot::Lines { title: axis("by Services"), x, y, y_log: true, lines }.svg().unwrap();
        assert!(svg.contains("10,000") && svg.contains("Services") && svg.contains("</svg>"), "{svg}");
    }
}
