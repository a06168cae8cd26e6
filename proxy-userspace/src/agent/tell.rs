//! What an operator is told: about one round, and about tables that are nearly full.

use tracing::{error, warn};

use crate::converge::Report;
use crate::maps::kernel::option;
use crate::plan::{Alarm, Ledger, Pressure};

/// How many damaged entries are told one by one: where a table could not be taken over, what led there is damaged as a whole.
const DAMAGES: usize = 10;

/// What an operator must know about one round. `cramped` tables are to grow later.
pub(super) fn tell(report: &Report, cramped: bool) {
    for damage in report.damage.iter().take(DAMAGES) {
        warn!("table {}, {}: {}; it is written anew", damage.table, damage.entry, damage.fault);
    }
    if let more @ 1.. = report.damage.len().saturating_sub(DAMAGES) {
        warn!("and {more} more entries, which are written anew");
    }
    for claim in &report.claims {
        warn!("{claim}");
    }
    for (port, full) in &report.full {
        error!(
            namespace = port.service.namespace(),
            service = port.service.name(),
            port = &*port.port,
            "not served as it should be: {full}; {}",
            if cramped { "the table cannot grow now".to_owned() } else { way_out(full.table) }
        );
    }
    if let Some(full) = &report.addresses_full {
        error!("some ClusterIPs or own addresses are not known to the tables: {full}");
    }
}

/// Names the tables that have just become nearly full.
pub(super) fn tell_pressure(alarm: &mut Alarm, ledger: Option<&Ledger>) {
    for Pressure { table, used, capacity } in alarm.news(ledger.into_iter().flat_map(Ledger::pressure)) {
        let way_out = way_out(table);
        warn!("table {table} is nearly full: {used} entries of {capacity} that it may grow to; {way_out}");
    }
}

fn way_out(table: &str) -> String {
    match option(table) {
        Some(option) => format!("delete Services, or start again with a larger {option}"),
        None => "delete Services; no option makes it larger".to_owned(),
    }
}
