//! The decision: what a client dialled, seen through the tables, becomes a backend, a refusal, or nothing of ours.
//!
//! In: a [`FrontendKey`], a [`Client`] and [`Tables`]. Out: a [`Verdict`]. Refuses to know what a hook or a socket is.
//! Rules are those of nftables mode: look-up order and sets (specification B5), affinity (B8), source ranges (B9).

use crate::abi::{Affinity, AffinityKey, Backend, Cidr, Config, Frontend, FrontendKey, Range, Version, Word, address};
use crate::addr::{Addr, Be16, Family};
use crate::index;
use crate::policy::{Place, Set, endpoint_set};
use crate::reason::Reason;
use crate::tables::Tables;

/// Who dials, and the moment. Asked only for what is needed: in the kernel an answer may be a helper call.
pub trait Client {
    /// Whether it is steered at all. Who is not is left alone.
    fn is_steered(&self) -> bool {
        true
    }
    /// Where it is, as policies see it. A pod is a pod, whether there is a detector or not.
    fn place(&self) -> Place;
    /// What source ranges are held against.
    fn origin(&self) -> Origin;
    /// Whom session affinity remembers as this client of service port `service`.
    fn affinity(&self, service: u32) -> AffinityKey;
    /// Uniform; which member of a set it becomes.
    fn random(&self) -> u32;
    /// `CLOCK_MONOTONIC` in nanoseconds.
    fn now(&self) -> u64;
}

/// The address a client dials from, as far as the hook that sees it can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Known(Addr),
    /// Not chosen yet; it will be one of the node's own.
    OfTheNode,
    /// Not chosen yet, and nobody can tell.
    Unknown,
}

/// What to do with a new connection or flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours.
    Leave,
    To(Choice),
    /// Specification B5 "reject": a socket gets ECONNREFUSED, a packet is answered.
    Refuse(Reason),
    /// Specification B5 "drop": a socket is told EHOSTUNREACH at once, a packet is dropped silently.
    Unreachable(Reason),
}

/// A backend, and what remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub backend: u32,
    pub generation: u32,
    pub addr: Addr,
    pub port: Be16,
    /// `Frontend::KIND_*` of what was dialled.
    pub kind: u32,
    /// Flags of [`Backend`].
    pub flags: u16,
    /// Flags of [`Version`]: the policies that it was chosen by.
    pub policies: u32,
}

/// Two tables contradict each other: one of them changed in between.
struct Changing;

/// Decides where `key`, dialled by `client`, goes.
#[inline(always)]
pub fn balance(tables: &impl Tables, client: &impl Client, key: &FrontendKey) -> Verdict {
    serve(tables, client, find(tables, client, key))
}

/// The second half of [`balance`]: decides where who dialled what was found goes.
#[inline(always)]
pub fn serve(tables: &impl Tables, client: &impl Client, found: Found) -> Verdict {
    match found {
        Found::Frontend(frontend) => serve_frontend(tables, client, &frontend),
        Found::Nothing(verdict) => Ok(verdict),
    }
    .unwrap_or(Verdict::Refuse(Reason::TablesChanging))
}

/// What a dialled address turned out to be.
#[derive(Clone, Copy)]
pub enum Found {
    Frontend(Frontend),
    Nothing(Verdict),
}

/// The frontend of `key`: the exact one, else the node port (B5 "look-up order"). Who dials "any" means this machine;
/// in the tables, "any" is the key of node ports.
#[inline(always)]
pub fn find(tables: &impl Tables, client: &impl Client, key: &FrontendKey) -> Found {
    if key.addr.is_unspecified() {
        return Found::Nothing(Verdict::Leave);
    }
    if tables.is_absent(&key.addr) {
        return Found::Nothing(unknown_address(tables, &key.addr));
    }
    if let Some((_, frontend)) = index::find(tables, key) {
        return Found::Frontend(frontend);
    }
    let flags = tables.address(&key.addr).unwrap_or(0);
    find_node_port(tables, client, key, flags)
}

/// As [`find`], for who has asked already what `flags` the address has.
#[inline(always)]
pub fn find_at(tables: &impl Tables, client: &impl Client, key: &FrontendKey, flags: u32) -> Found {
    if key.addr.is_unspecified() {
        return Found::Nothing(Verdict::Leave);
    }
    match index::find(tables, key) {
        Some((_, frontend)) => Found::Frontend(frontend),
        None => find_node_port(tables, client, key, flags),
    }
}

#[inline(always)]
fn find_node_port(tables: &impl Tables, client: &impl Client, key: &FrontendKey, flags: u32) -> Found {
    if serves_node_ports(flags, client) {
        let node_port = FrontendKey { addr: Addr::unspecified(key.addr.family()), ..*key };
        if let Some((_, frontend)) = index::find(tables, &node_port) {
            return Found::Frontend(frontend);
        }
    }
    Found::Nothing(undefined_port(tables, &key.addr, flags))
}

/// A loopback address is another one in every namespace: only the node's own is the node's.
#[inline(always)]
fn serves_node_ports(flags: u32, client: &impl Client) -> bool {
    flags & address::NODE_PORT != 0 && (flags & address::LOOPBACK == 0 || client.place() == Place::Node)
}

/// An address the node owns is never hijacked, also when it is a ClusterIP (a DNS cache listens there).
#[inline(always)]
fn undefined_port(tables: &impl Tables, addr: &Addr, flags: u32) -> Verdict {
    if flags & address::OWN != 0 {
        Verdict::Leave
    } else if flags & address::CLUSTER_IP != 0 {
        Verdict::Refuse(Reason::UndefinedPort)
    } else {
        unknown_address(tables, addr)
    }
}

#[inline(always)]
fn unknown_address(tables: &impl Tables, addr: &Addr) -> Verdict {
    if is_reserved(tables, addr) { Verdict::Unreachable(Reason::UnallocatedAddress) } else { Verdict::Leave }
}

/// Whether an address is in a ServiceCIDR: it is a Service's or nobody's.
#[inline(always)]
pub fn is_reserved(tables: &impl Tables, addr: &Addr) -> bool {
    tables.config().is_some_and(|config| in_service_cidr(config, addr))
}

#[inline(always)]
fn in_service_cidr(config: &Config, addr: &Addr) -> bool {
    // The first that fits ends it, and so does the end of the list: what is carried along doubles the paths of the verifier
    // with each step.
    for (i, cidr) in config.service_cidrs.iter().enumerate() {
        if i as u32 >= config.service_cidr_count {
            return false;
        }
        if cidr.contains(addr) {
            return true;
        }
    }
    false
}

/// One service port through its policies; `frontend` is immutable until we are done.
#[inline(always)]
fn serve_frontend(tables: &impl Tables, client: &impl Client, frontend: &Frontend) -> Result<Verdict, Changing> {
    // The one word that is switched; everything behind it stays as it is until we are done (grace period).
    let version = match tables.service(frontend.service).map_or(Word::Nobody, Word::of) {
        Word::Nobody => return Ok(Verdict::Refuse(Reason::NoEndpoints)),
        Word::Plain { cluster, has_any } => Version::plain(frontend.service, cluster, has_any),
        Word::Version(number) => tables.version(number).filter(|v| v.service == frontend.service).ok_or(Changing)?,
    };
    if let Err(denied) = admit(tables, client, frontend, &version) {
        return Ok(denied);
    }
    let set = members(tables, client, frontend, &version);
    if set.range.len == 0 {
        return Ok(nobody(&version));
    }
    let choice = choose(tables, client, frontend, &version, &set)?;
    Ok(Verdict::To(choice))
}

/// loadBalancerSourceRanges (B9), before anything else.
#[inline(always)]
fn admit(tables: &impl Tables, client: &impl Client, frontend: &Frontend, version: &Version) -> Result<(), Verdict> {
    if frontend.kind != Frontend::KIND_LOAD_BALANCER || version.flags & Version::SOURCE_RANGES == 0 {
        return Ok(());
    }
    let allowed = match client.origin() {
        Origin::Known(source) => tables.source_allowed(frontend.service, &source),
        Origin::OfTheNode => version.flags & Version::SOURCE_NODE_ALLOWED != 0,
        Origin::Unknown if are_pods_seen_at_devices(tables) => return Err(Verdict::Leave),
        Origin::Unknown => return Err(Verdict::Refuse(Reason::SourceUnknown)),
    };
    if allowed { Ok(()) } else { Err(Verdict::Unreachable(Reason::SourceNotAllowed)) }
}

#[inline(always)]
fn are_pods_seen_at_devices(tables: &impl Tables) -> bool {
    tables.config().is_some_and(|config| config.flags & Config::PODS_AT_DEVICES != 0)
}

/// An empty set: reject when nobody serves anywhere, drop when only this node lacks an endpoint (B5).
#[inline(always)]
fn nobody(version: &Version) -> Verdict {
    if version.flags & Version::HAS_ANY == 0 {
        Verdict::Refuse(Reason::NoEndpoints)
    } else {
        Verdict::Unreachable(Reason::NoLocalEndpoints)
    }
}

/// The endpoints that may be chosen, the flag that they carry as members, and the policies that led here.
struct Members {
    range: Range,
    flag: u16,
    policies: u32,
}

/// Who dials is only asked where a policy depends on it.
#[inline(always)]
fn members(tables: &impl Tables, client: &impl Client, frontend: &Frontend, version: &Version) -> Members {
    if version.flags & (Version::INTERNAL_LOCAL | Version::EXTERNAL_LOCAL) == 0 {
        return Members { range: version.cluster, flag: Backend::IN_CLUSTER_SET, policies: version.flags };
    }
    let detector = has_detector(tables, frontend.key.addr.family());
    let policies = version.flags;
    match endpoint_set(frontend.kind, policies, client.place(), detector) {
        Set::Cluster => Members { range: version.cluster, flag: Backend::IN_CLUSTER_SET, policies },
        Set::Local => Members { range: version.local, flag: Backend::IN_LOCAL_SET, policies },
    }
}

#[inline(always)]
pub(crate) fn has_detector(tables: &impl Tables, family: Family) -> bool {
    let flag = match family {
        Family::V4 => Config::DETECTOR_V4,
        Family::V6 => Config::DETECTOR_V6,
    };
    tables.config().is_some_and(|config| config.flags & flag != 0)
}

#[inline(always)]
fn choose(
    tables: &impl Tables,
    client: &impl Client,
    frontend: &Frontend,
    version: &Version,
    set: &Members,
) -> Result<Choice, Changing> {
    if version.affinity_seconds == 0 {
        return draw(tables, client, frontend, set);
    }
    let key = client.affinity(frontend.service);
    let now = client.now();
    let choice = match remembered(tables, &key, now, frontend, version, set) {
        Some(choice) => choice,
        None => draw(tables, client, frontend, set)?,
    };
    // Whichever way it was chosen, the timer starts again (B8).
    tables.remember(&key, &Affinity { backend: choice.backend, generation: choice.generation, used: now });
    Ok(choice)
}

/// The backend this client had, if its record is young and the backend is still a member of the set asked for.
#[inline(always)]
fn remembered(
    tables: &impl Tables,
    key: &AffinityKey,
    now: u64,
    frontend: &Frontend,
    version: &Version,
    set: &Members,
) -> Option<Choice> {
    let affinity = tables.affinity(key)?;
    if now.saturating_sub(affinity.used) >= u64::from(version.affinity_seconds) * NANOSECONDS {
        return None;
    }
    let backend = tables.backend(affinity.backend)?;
    let valid = backend.generation == affinity.generation
        && backend.service == frontend.service
        && backend.flags & set.flag != 0;
    valid.then(|| Choice::of(affinity.backend, &backend, frontend, set))
}

/// Nanoseconds in a second.
pub const NANOSECONDS: u64 = 1_000_000_000;

/// Uniformly at random, independently for each new flow (B5).
#[inline(always)]
fn draw(tables: &impl Tables, client: &impl Client, frontend: &Frontend, set: &Members) -> Result<Choice, Changing> {
    // The caller has seen that the set is not empty; the verifier has not.
    let offset = client.random().checked_rem(set.range.len).ok_or(Changing)?;
    let id = tables.slot(set.range.start.wrapping_add(offset)).ok_or(Changing)?;
    tables.fetch_stats(id);
    let backend = tables.backend(id).ok_or(Changing)?;
    // A freed id (generation 0) is one of a version that was switched away from meanwhile: the old set, which is right.
    // It is not given to anybody else before we are done, and nothing remembers a flow of generation 0.
    if backend.service != frontend.service {
        return Err(Changing);
    }
    Ok(Choice::of(id, &backend, frontend, set))
}

impl Choice {
    #[inline(always)]
    fn of(id: u32, backend: &Backend, frontend: &Frontend, set: &Members) -> Self {
        Self {
            backend: id,
            generation: backend.generation,
            addr: backend.addr,
            port: backend.port,
            kind: frontend.kind,
            flags: backend.flags,
            policies: set.policies,
        }
    }
}

impl Cidr {
    /// True when `addr` starts with the first `prefix_len` bits of this CIDR.
    #[inline(always)]
    pub fn contains(&self, addr: &Addr) -> bool {
        let (high, low) = self.addr.halves();
        let (other_high, other_low) = addr.halves();
        let len = self.prefix_len.min(2 * u64::BITS);
        let high_len = len.min(u64::BITS);
        let high_differs = (high ^ other_high) & leading_ones(high_len);
        let low_differs = (low ^ other_low) & leading_ones(len - high_len);
        high_differs | low_differs == 0
    }
}

/// A word whose first `count` bits are set, of at most all. In two steps, since no step may be a whole word long, and without
/// a branch: the verifier walks both sides of each.
#[inline(always)]
const fn leading_ones(count: u32) -> u64 {
    !(u64::MAX >> (count / 2) >> (count - count / 2))
}

#[cfg(test)]
mod tests;
