//! What the tables cost the kernel, in bytes.
//!
//! In: layouts, capacities, how full the growing ones are, CPUs. Out: a sum. A calculation, so that it is known before a
//! table is made; sizes of the kernel's own structures are those of 64-bit kernels 5.10 to 6.18.

use proxy_common::tables::Capacity;

use super::pinned::Layout;
use crate::sys::bpf::map_type;

/// `struct htab_elem` before the key (`kernel/bpf/hashtab.c`).
const HASH_ELEMENT: u64 = 48;
/// What the allocator puts before an element that is made when it is needed (`kernel/bpf/memalloc.c`).
const ALLOCATED: u64 = 8;
/// `struct bucket`: a list head and a lock.
const HASH_BUCKET: u64 = 16;
/// `struct lpm_trie_node` before the data (`kernel/bpf/lpm_trie.c`).
const TRIE_NODE: u64 = 40;

/// Bytes of one table with room for `capacity`, of which `used` entries are taken. Memory of sockets is the sockets' own.
pub fn bytes(layout: &Layout, capacity: &Capacity, used: u64, cpus: u64) -> u64 {
    let entries = u64::from(layout.entries.of(capacity));
    let (key, value) = (words(layout.key_size), words(layout.value_size));
    let buckets = HASH_BUCKET * entries.next_power_of_two();
    match layout.map_type {
        map_type::ARRAY => value * entries,
        map_type::PERCPU_ARRAY => value * entries * cpus,
        map_type::HASH => buckets + (ALLOCATED + HASH_ELEMENT + key + value) * used,
        map_type::LRU_HASH => buckets + (HASH_ELEMENT + key + value) * entries,
        // An entry may need a node of its own to branch off from.
        map_type::LPM_TRIE => 2 * (TRIE_NODE + key + value) * used,
        _ => 0,
    }
}

/// The kernel keeps values and keys in whole words.
fn words(size: u32) -> u64 {
    u64::from(size).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::{Backend, Config, Frontend, FrontendKey, Version, address};
    use proxy_common::addr::{Addr, Be16, Family};
    use proxy_common::tables::name;

    use super::*;
    use crate::desired::{ServicePortName, WantedBackend, WantedFrontend, WantedNode, WantedService};
    use crate::maps::pinned::layouts;
    use crate::model::ObjectName;
    use crate::plan::{Ledger, growth};

    const CPUS: u64 = 64;

    /// What a cluster needs whose every Service has a ClusterIP, one port and its share of the endpoints.
    fn needs(services: u32, endpoints: u32) -> Capacity {
        let addr = |first: u8, number: u32| {
            let [_, a, b, c] = number.to_be_bytes();
            Addr::v4([first, a, b, c])
        };
        let share = endpoints / services;
        let wanted: Vec<WantedService> = (0..services)
            .map(|number| WantedService {
                name: ServicePortName {
                    service: ObjectName::new("default", &number.to_string()),
                    port: "".into(),
                    proto: 6,
                    family: Family::V4,
                },
                frontends: vec![WantedFrontend {
                    key: FrontendKey { addr: addr(10, number), port: Be16::new(80), proto: 6, pad: 0 },
                    kind: Frontend::KIND_CLUSTER_IP,
                }],
                backends: (number * share..(number + 1) * share)
                    .map(|endpoint| WantedBackend {
                        addr: addr(11, endpoint),
                        port: Be16::new(8080),
                        flags: Backend::IN_CLUSTER_SET | Backend::SERVING,
                    })
                    .collect(),
                affinity_seconds: 0,
                flags: Version::HAS_ANY,
                source_ranges: Vec::new(),
            })
            .collect();
        let mut ledger = Ledger::new(Capacity::LIMIT);
        assert_eq!(ledger.plan_all(wanted.iter().map(|wanted| (&wanted.name, Some(wanted)))).full, []);
        let addresses: Vec<_> =
            wanted.iter().map(|wanted| (wanted.frontends[0].key.addr, address::CLUSTER_IP)).collect();
        let node = WantedNode { addresses, config: Config::default(), packets: None };
        assert_eq!(ledger.plan_node(&node).1, None);
        ledger.required()
    }

    /// Without programs at devices.
    fn first_sizes(needs: &Capacity) -> Capacity {
        let limit = Capacity { flows: 0, ..Capacity::LIMIT };
        let smallest = growth::smallest(&limit);
        growth::sizes(needs, &smallest, &limit).unwrap_or(smallest)
    }

    /// Bytes of every table as a first start makes it, filled by such a cluster.
    fn tables(services: u32, endpoints: u32) -> Vec<(&'static str, u64)> {
        let sizes = first_sizes(&needs(services, endpoints));
        layouts().map(|layout| (layout.name, bytes(layout, &sizes, 0, CPUS))).collect()
    }

    /// All tables but SOCKETS, which follows the sockets of the node.
    fn all(services: u32, endpoints: u32) -> u64 {
        tables(services, endpoints).iter().filter(|(table, _)| *table != name::SOCKETS).map(|(_, bytes)| bytes).sum()
    }

    #[test]
    fn ten_thousand_services_and_a_hundred_thousand_endpoints_take_less_than_seven_megabytes() {
        let kilobytes: Vec<_> = tables(10_000, 100_000).iter().map(|(table, bytes)| (*table, bytes / 1024)).collect();
        let expected = [
            (name::INDEX, 343),
            (name::FRONTEND, 687),
            (name::SERVICE, 85),
            (name::VERSION, 8),
            (name::SLOTS, 429),
            (name::BACKENDS, 3437),
            (name::STATS, 859),
            (name::ABSENT, 64),
            (name::SOURCES, 0),
            (name::CONFIG, 0),
            (name::PACKETS, 0),
            (name::DEVICES, 0),
            (name::UNSTEERED, 16),
            (name::AFFINITY, 6),
            (name::SOCKETS, 4096),
            (name::SOCKETS_MORE, 0),
            (name::REASONS, 32),
            (name::FLOWS4, 0),
            (name::FLOWS6, 0),
            (name::EMBRYONIC4, 0),
            (name::EMBRYONIC6, 0),
            (name::FRAGMENTS4, 0),
            (name::FRAGMENTS6, 0),
            (name::DIRECT, 0),
        ];
        assert_eq!(kilobytes, expected);
        let all = all(10_000, 100_000);
        assert!(all <= 7_000_000, "{all} bytes");
    }

    #[test]
    fn programs_at_devices_take_44_megabytes_whatever_the_cluster() {
        let bytes = |sizes| layouts().map(|layout| bytes(layout, &sizes, 0, CPUS)).sum::<u64>();
        let with = bytes(growth::smallest(&Capacity::LIMIT));
        let without = bytes(growth::smallest(&Capacity { flows: 0, ..Capacity::LIMIT }));
        assert_eq!((with - without) / 1_000_000, 44);
    }

    #[test]
    fn an_empty_cluster_takes_less_than_a_quarter_of_a_megabyte() {
        let small = all(1, 1);
        assert!(small <= 250_000, "{small} bytes");
    }

    #[test]
    fn a_service_takes_less_than_125_bytes_and_an_endpoint_less_than_50() {
        let (services, endpoints) =
            (all(20_000, 100_000) - all(10_000, 100_000), all(10_000, 200_000) - all(10_000, 100_000));
        assert!(services / 10_000 <= 125, "{} bytes per Service", services / 10_000);
        assert!(endpoints / 100_000 <= 50, "{} bytes per endpoint", endpoints / 100_000);
    }

    #[test]
    fn only_counters_grow_with_the_number_of_cpus() {
        let sizes = first_sizes(&needs(10, 10));
        for layout in layouts() {
            let on = |cpus| bytes(layout, &sizes, 0, cpus);
            assert_eq!(on(1) == on(64), layout.name != name::REASONS, "{}", layout.name);
        }
    }
}
