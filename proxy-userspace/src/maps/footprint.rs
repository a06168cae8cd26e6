//! What the tables cost the kernel, in bytes.
//!
//! In: layouts, capacities, how full the growing ones are, CPUs. Out: a sum. A calculation, so that it is known before a
//! table is made; sizes of the kernel's own structures are those of 64-bit kernels 5.10 to 6.18.

use proxy_common::tables::Capacity;

use super::pinned::{Entries, Layout};
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
    let entries = u64::from(match layout.entries {
        Entries::Chosen(entries) => entries(capacity),
        Entries::Fixed(entries) => entries,
    });
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
    use proxy_common::tables::name;

    use super::*;
    use crate::maps::pinned::layouts;

    /// 10,000 Services of one port, 100,000 endpoints; each Service has a ClusterIP.
    fn used(table: &str) -> u64 {
        if table == name::FRONTENDS || table == name::ADDRS { 10_000 } else { 0 }
    }

    fn kilobytes(table: &str) -> u64 {
        let layout = layouts().find(|layout| layout.name == table).unwrap();
        bytes(layout, &Capacity::DEFAULT, used(table), 64) / 1024
    }

    #[test]
    fn every_table_at_its_default_size_on_64_cpus() {
        for (table, expected) in [
            (name::FRONTENDS, 1024 + 859),
            (name::FRONTEND, 2048),
            (name::SERVICE, 256),
            (name::VERSION, 2048),
            (name::SLOTS, 3072),
            (name::BACKENDS, 8192),
            (name::STATS, 2048),
            (name::ADDRS, 1024 + 781),
            (name::SOURCES, 0),
            (name::CONFIG, 0),
            (name::AFFINITY, 1024 + 5632),
            (name::SOCKETS, 4096),
            (name::SOCKETS_MORE, 0),
            (name::REASONS, 32),
        ] {
            assert_eq!(kilobytes(table), expected, "{table}");
        }
    }

    #[test]
    fn all_tables_together_stay_below_forty_megabytes() {
        let all: u64 = layouts().map(|layout| bytes(layout, &Capacity::DEFAULT, used(layout.name), 64)).sum();
        assert!(all < 40 << 20, "{all} bytes");
    }

    #[test]
    fn only_counters_grow_with_the_number_of_cpus() {
        for layout in layouts() {
            let on = |cpus| bytes(layout, &Capacity::DEFAULT, used(layout.name), cpus);
            assert_eq!(on(1) == on(64), layout.name != name::REASONS, "{}", layout.name);
        }
    }
}
