//! How large the tables should be: what was planned needs its place, and a little more comes soon.
//!
//! In: what the [`super::Ledger`] needs, what the tables hold now, what they may hold at most. Out: new sizes, when the old
//! ones do not do. Larger tables mean that every program is loaded again, so growth goes in steps of a tenth, and what
//! is nearly full grows along. Nothing ever shrinks: that would take ids away from those who hold them.

use proxy_common::abi::SLOTS_PER_PAIR;
use proxy_common::tables::Capacity;

/// Room that is left in the smallest cluster.
const ROOM: Capacity = Capacity {
    frontends: 512,
    services: 256,
    versions: 256,
    slots: 2048,
    backends: 1024,
    sources: 0,
    affinity: 0,
    sockets: 0,
    flows: 0,
};

/// Clients of a service port with affinity that should be remembered: clients are network namespaces of this node.
const CLIENTS: u32 = 256;
/// AFFINITY where anybody needs it. Every CPU may keep 128 entries to itself: in a smaller table they would be missed.
const FEWEST_CLIENTS: u32 = 16_384;
/// AFFINITY where nobody needs it.
const NO_CLIENTS: u32 = 64;

/// Entries of AFFINITY for so many service ports; doubled rather than raised, since it forgets instead of being full.
pub(super) fn clients(service_ports: u32) -> u32 {
    match service_ports {
        0 => NO_CLIENTS,
        _ => service_ports.saturating_mul(CLIENTS).clamp(FEWEST_CLIENTS, 1 << 31).next_power_of_two(),
    }
}

/// The tables of a node that has yet to learn what the cluster holds.
pub fn smallest(limit: &Capacity) -> Capacity {
    let Capacity { sources, sockets, flows, .. } = *limit;
    Capacity { affinity: NO_CLIENTS, sources, sockets, flows, ..ROOM }.zip(limit, u32::min)
}

/// Whether a table is made larger before it is full; `entries` picks it.
pub fn grows_before_it_is_full(entries: fn(&Capacity) -> u32) -> bool {
    entries(&ROOM) > 0
}

/// Whether a table begins smaller than it may become. What does not is made once.
pub fn grows(entries: fn(&Capacity) -> u32) -> bool {
    entries(&smallest(&Capacity::LIMIT)) < entries(&Capacity::LIMIT)
}

/// The sizes that tables of the sizes `now` should get, `None` when they do.
pub fn sizes(needs: &Capacity, now: &Capacity, limit: &Capacity) -> Option<Capacity> {
    // AFFINITY makes do with its limit.
    let needs = needs.zip(limit, u32::min);
    // Flows cannot move: room for them is made where there is none yet.
    let needs = Capacity { flows: if now.flows == 0 { needs.flows } else { 0 }, ..needs };
    if needs.zip(now, u32::max) == *now {
        return None;
    }
    let wanted = needs.zip(&ROOM, |need, room| need.saturating_add(room.max(need / 10)));
    let Capacity { affinity, flows, .. } = needs;
    let slots = wanted.slots.next_multiple_of(SLOTS_PER_PAIR);
    let wanted = Capacity { affinity, flows, slots, ..wanted }.zip(limit, u32::min);
    let nearly_full = needs.zip(now, |need, now| u32::from(u64::from(need) * 5 >= u64::from(now) * 4));
    Some(wanted.zip(&nearly_full, |wanted, nearly_full| wanted * nearly_full).zip(now, u32::max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Capacity = Capacity::LIMIT;

    fn first(needs: &Capacity) -> Capacity {
        sizes(needs, &smallest(&LIMIT), &LIMIT).unwrap()
    }

    #[test]
    fn tables_grow_with_a_tenth_of_room() {
        let large = first(&Capacity { backends: 100_001, services: 10_001, ..Capacity::default() });
        assert_eq!((large.backends, large.services, large.affinity), (110_001, 11_001, 64));
        assert_eq!((large.sources, large.sockets, large.flows), (LIMIT.sources, LIMIT.sockets, LIMIT.flows));
        assert_eq!(first(&Capacity { backends: 1025, ..Capacity::default() }).backends, 2049, "or some where few are");
    }

    #[test]
    fn tables_that_do_are_left_alone_to_their_last_entry() {
        let now = smallest(&LIMIT);
        assert_eq!(sizes(&now, &now, &LIMIT), None);
    }

    #[test]
    fn what_is_nearly_full_grows_along_and_the_rest_stays() {
        let now = Capacity { backends: 1000, services: 1000, versions: 1000, ..smallest(&LIMIT) };
        let needs = Capacity { backends: 1001, services: 800, versions: 799, ..Capacity::default() };
        let grown = sizes(&needs, &now, &LIMIT).unwrap();
        assert_eq!(grown, Capacity { backends: 2025, services: 1056, ..now });
    }

    #[test]
    fn nothing_shrinks_and_nothing_passes_its_limit() {
        let now = Capacity { backends: 5000, sockets: 128, ..smallest(&LIMIT) };
        let limit = Capacity { services: 600, backends: 2000, affinity: 100, ..LIMIT };
        let needs = Capacity { services: 590, affinity: 16_384, ..Capacity::default() };
        let grown = sizes(&needs, &now, &limit).unwrap();
        assert_eq!((grown.services, grown.backends, grown.affinity, grown.sockets), (600, 5000, 100, 128));
        assert_eq!(sizes(&Capacity { affinity: 16_384, ..Capacity::default() }, &grown, &limit), None);
    }

    #[test]
    fn room_for_flows_is_made_where_there_is_none_and_stays_as_it_is() {
        let with = |flows| Capacity { flows, ..smallest(&LIMIT) };
        let needs = Capacity { flows: 1000, ..Capacity::default() };
        assert_eq!(sizes(&needs, &with(0), &LIMIT), Some(with(1000)));
        assert_eq!(sizes(&needs, &with(500), &LIMIT), None);
    }

    #[test]
    fn what_grows_is_all_but_what_is_made_once_and_affinity_forgets_instead_of_being_full() {
        let kinds = |entries| (grows(entries), grows_before_it_is_full(entries));
        assert_eq!([kinds(|c| c.frontends), kinds(|c| c.slots)], [(true, true); 2]);
        assert_eq!(kinds(|c| c.affinity), (true, false));
        assert_eq!([kinds(|c| c.sources), kinds(|c| c.sockets), kinds(|c| c.flows)], [(false, false); 3]);
    }

    #[test]
    fn who_remembers_clients_gets_room_for_them() {
        assert_eq!([0, 1, 64, 65, 1_000_000_000].map(clients), [64, 16_384, 16_384, 32_768, 1 << 31]);
    }
}
