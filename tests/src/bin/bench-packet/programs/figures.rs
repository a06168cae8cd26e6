//! What was measured, as tables, targets and plots.

use proxy_tests::bench::{Bar, Bound, Kind, Percentile, Plot, Report, Summary, Table, Target};

use super::Measured;
use super::lane::{
    AGAIN, EMPTY, Flows, LANES, LOOK_FLOW, LOOK_UP, NEW_FULL, NEW_ROOM, REPLY, REPLY_ENTERS, REQUEST, REQUEST_LEAVES,
};

/// What one family's programs cost, and what that is held to.
pub(crate) fn tell(report: &mut Report, family: &str, measured: &Measured) {
    let table = table(family, measured);
    let of = |name: &str| table.rows.iter().find(|row| row.name == name).map_or(f64::NAN, |row| row.summary.p10);
    let mut target = |what: String, value: f64, unit: &str, bound: f64, stretch: f64| {
        let target = Target::new(what, value, unit, Bound::AtMost(bound));
        report.targets.push(target.stretch(Bound::AtMost(stretch)));
    };
    let (established, new) = ([REQUEST, REPLY, REQUEST_LEAVES, REPLY_ENTERS], [NEW_ROOM, NEW_FULL]);
    for name in established {
        target(format!("9: {family}, {name}: above {EMPTY}"), of(name) - of(EMPTY), "ns", 120.0, 100.0);
    }
    for name in new {
        target(format!("10: {family}, {name}: above {EMPTY}"), of(name) - of(EMPTY), "ns", 700.0, 450.0);
    }
    for name in established {
        target(format!("11: {family}, {name} / {LOOK_UP}"), of(name) / of(LOOK_UP), "", 3.0, 2.0);
    }
    for name in new {
        target(format!("11: {family}, {name} / {LOOK_UP}"), of(name) / of(LOOK_UP), "", 15.0, 8.0);
    }
    // The key that they look for themselves is longer than that of an address, and the kernel hashes all of it.
    for name in established {
        target(format!("11: {family}, {name} / {LOOK_FLOW}"), of(name) / of(LOOK_FLOW), "", 3.0, 2.0);
    }
    let noise = table.ratio(AGAIN, REQUEST).unwrap_or(f64::NAN);
    report.targets.push(Target::new(
        format!("noise: {family}, {AGAIN} / {REQUEST}"),
        noise,
        "",
        Bound::Between(0.99, 1.01),
    ));
    report.plot(&format!("packet-{}", family.to_lowercase()), plot(family, &table));
    report.also_documented(&format!("{family}, one packet"), &table);
    report.tables.push(table);
}

/// Each lane as if its program had run alone: without the first program, which the empty one is measured with and without.
fn table(family: &str, measured: &Measured) -> Table {
    let Measured { alone, lanes } = measured;
    let first = Summary::of(&lanes[0]).p10 - Summary::of(alone).p10;
    let rows = LANES.iter().zip(lanes).map(|(lane, samples)| {
        let samples: Vec<f64> = samples.iter().map(|sample| sample - first).collect();
        (lane.name.to_owned(), Summary::of(&samples))
    });
    Table::new(&format!("{family}, in the program of a packet"), "ns", Percentile::P10, rows)
}

fn plot(family: &str, table: &Table) -> Plot {
    let rows = LANES.iter().zip(&table.rows).filter(|(lane, _)| lane.name != AGAIN);
    let bars = rows.map(|(lane, row)| Bar {
        name: row.name.clone(),
        value: row.summary.p10,
        kind: match lane.flows {
            _ if !lane.program.starts_with("tc_") => Kind::Baseline,
            Flows::One => Kind::Sluice,
            Flows::Each | Flows::New => Kind::SluiceHarder,
        },
    });
    Plot::Bars { title: format!("{family}: one packet through the program of a device, ns"), bars: bars.collect() }
}
