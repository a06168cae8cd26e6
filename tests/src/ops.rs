//! What an agent would write for a service, for tests that have none: operations in the order in which it writes them.
//!
//! In: addresses, and the ids that the test chose. Out: [`Op`]s. Refuses to know whose tables they are for.

use std::net::SocketAddr;

use proxy_common::abi::{Backend, Frontend, FrontendKey, Range, Version, Word};
use proxy_common::addr::Be16;
use proxy_common::index::{self, Hash, WORDS};
use proxy_common::tables::Capacity;

use proxy_userspace::plan::Op;

/// A backend of `service` that serves everybody.
pub fn backend(at: SocketAddr, service: u32) -> Backend {
    let flags = Backend::IN_CLUSTER_SET | Backend::SERVING;
    Backend { addr: at.ip().into(), port: Be16::new(at.port()), flags, service, generation: 1, zone: 0 }
}

/// From now on `backends`, which take the slots from `start` on, are those of `service`; version `number` says so.
pub fn switch(service: u32, number: u32, start: u32, backends: Vec<u32>) -> [Op; 3] {
    let value = Version {
        cluster: Range { start, len: backends.len() as u32 },
        local: Range::default(),
        affinity_seconds: 0,
        flags: if backends.is_empty() { 0 } else { Version::HAS_ANY },
        service,
        scheduler: Version::SCHEDULER_RANDOM,
    };
    [
        Op::Slots { start, backends: backends.into() },
        Op::Version { number, value },
        Op::Service { id: service, word: Word::Version(number).word() },
    ]
}

/// Frontend `id`, below eight: who dials `key` as a ClusterIP gets `service`, in tables of this capacity.
pub fn publish(tables: &Capacity, id: u32, key: FrontendKey, service: u32) -> [Op; 2] {
    let value = Frontend { key, service, kind: Frontend::KIND_CLUSTER_IP };
    let word = index::Word::leading_to(id, &value).word();
    [Op::Frontend { id, value }, Op::Index { place: place(tables, id, &key), word }]
}

/// Nobody has the `key` of frontend `id` any more.
pub fn withdraw(tables: &Capacity, id: u32, key: &FrontendKey) -> Op {
    Op::Index { place: place(tables, id, key), word: 0 }
}

/// In the first bucket of its key each frontend has a word of its own.
fn place(tables: &Capacity, id: u32, key: &FrontendKey) -> u32 {
    let [first, _] = Hash::of(key).buckets(index::buckets(tables.frontends));
    first * WORDS as u32 + id % WORDS as u32
}
