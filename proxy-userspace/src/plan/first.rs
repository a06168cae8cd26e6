//! How large the first tables should be, before anything is planned: programs are loaded over tables, so who knows the
//! sizes in time loads them once.
//!
//! In: the [`Model`] of a listed cluster. Out: about what the [`super::Ledger`] will need. Endpoints that are passed over
//! count too, local sets do not: what turns out too small grows.

use proxy_common::abi::SLOTS_PER_PAIR;
use proxy_common::tables::Capacity;

use super::growth;
use crate::model::Model;
use crate::model::service::Service;

/// The sizes to begin with.
pub fn sizes(model: &Model, limit: &Capacity) -> Capacity {
    let smallest = growth::smallest(limit);
    growth::sizes(&needs(model), &smallest, limit).unwrap_or(smallest)
}

fn needs(model: &Model) -> Capacity {
    // Zero is no id.
    let mut needs = Capacity { frontends: 1, services: 1, versions: 1, backends: 1, ..Capacity::default() };
    let mut sticky = 0;
    for service in model.services() {
        for (port, family) in service.service_ports() {
            let endpoints = model.endpoint_count(&service.name, port, family);
            needs.services += 1;
            needs.versions += u32::from(!is_plain(service));
            needs.frontends += service.frontends(port, family).len() as u32;
            needs.backends += endpoints;
            needs.slots += endpoints.next_multiple_of(SLOTS_PER_PAIR);
            sticky += u32::from(service.affinity_seconds != 0);
        }
    }
    // Addresses have entries of their own.
    needs.frontends += (model.cluster_ips().count() + model.external_ips().count()) as u32;
    needs.affinity = growth::clients(sticky);
    needs
}

/// Whether its service ports will be [`crate::desired::WantedService::is_plain`].
fn is_plain(service: &Service) -> bool {
    service.affinity_seconds == 0
        && service.source_ranges().is_empty()
        && !service.internal_local
        && !service.external_local
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{self, ThisNode};
    use crate::model::build::{service, slice};
    use crate::plan::Ledger;

    const LIMIT: Capacity = Capacity::LIMIT;

    #[test]
    fn what_is_planned_for_a_listed_cluster_fits_the_first_tables_and_fills_them() {
        let mut model = Model::default();
        for number in 0..2000_u32 {
            let [_, _, high, low] = number.to_be_bytes();
            let name = format!("shop/number-{number}");
            let service = service(&name).cluster_ip(&format!("10.96.{high}.{low}")).named_port("a", "TCP", 80);
            model.apply(
                service.named_port("b", "UDP", 53).node_port(20_000 + number.cast_signed()).affinity(Some(60)).apply(),
            );
            let slice = slice(&name).named_port("a", "TCP", 80).named_port("b", "UDP", 53);
            model.apply(slice.endpoint(&format!("10.244.{high}.{low}")).apply());
        }
        let first = sizes(&model, &LIMIT);
        let dirty = model.take_dirty();
        let wanted = desired::services(&model, &ThisNode::default(), &dirty);
        let mut ledger = Ledger::new(LIMIT);
        ledger.plan_all(wanted.iter().map(|(name, wanted)| (name, wanted.as_ref())));
        let needs = ledger.required();
        assert_eq!(growth::sizes(&needs, &first, &LIMIT), None);
        assert_eq!((needs.services, needs.backends), (4001, 4001));
        assert_eq!((first.services, first.backends, first.affinity), (4401, 5025, LIMIT.affinity));
    }

    #[test]
    fn a_small_cluster_begins_with_the_smallest_tables() {
        assert_eq!(sizes(&Model::default(), &LIMIT), growth::smallest(&LIMIT));
    }
}
