//! Which endpoints may serve: readiness, terminating fallback, policies (specification B3), topology (B4).
//!
//! Follows `topology.go CategorizeEndpoints` of kube-proxy. Where it differs: serving endpoints outside of both sets are
//! kept as backends without a set, so that existing flows find them (C1).

use proxy_common::abi::Backend;
use proxy_common::addr::Family;

use super::WantedBackend;
use crate::model::Joined;
use crate::model::endpoints::Endpoint;
use crate::model::service::{Port, Service};

/// Where this node stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) node: &'a str,
    /// Empty when unknown.
    pub(super) zone: &'a str,
}

/// Which sets a service port needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    uses_cluster: bool,
    uses_local: bool,
}

/// The endpoints worth keeping, and whether any is usable somewhere.
#[derive(Debug)]
pub(super) struct Selected {
    pub(super) backends: Vec<WantedBackend>,
    pub(super) has_any: bool,
}

impl Rules {
    pub(super) fn of(service: &Service, port: &Port, family: Family) -> Self {
        let external = service.externally_accessible(port, family);
        Self {
            uses_cluster: !service.internal_local || external,
            uses_local: service.internal_local || (service.external_local && external),
        }
    }
}

pub(super) fn select(endpoints: &[Joined<'_>], rules: Rules, place: Place<'_>) -> Selected {
    let cluster = if rules.uses_cluster { cluster_set(endpoints, place) } else { Set::Empty };
    let local = if rules.uses_local { local_set(endpoints, place) } else { Set::Empty };
    let flags = |endpoint: &Endpoint| {
        flag(cluster.holds(endpoint, place), Backend::IN_CLUSTER_SET)
            | flag(local.holds(endpoint, place), Backend::IN_LOCAL_SET)
            | flag(endpoint.is_serving(), Backend::SERVING)
            | flag(endpoint.is_on(place.node), Backend::ON_THIS_NODE)
            | flag(endpoint.is_terminating(), Backend::TERMINATING)
    };
    let wanted = endpoints.iter().map(|joined| WantedBackend {
        addr: joined.addr,
        port: joined.port,
        flags: flags(joined.endpoint),
    });
    // Nearly always all of them: room is asked for once.
    let mut backends = Vec::with_capacity(endpoints.len());
    backends.extend(wanted.filter(is_worth_keeping));
    Selected { backends, has_any: has_any(endpoints, rules, cluster) }
}

fn flag(is_set: bool, flag: u16) -> u16 {
    if is_set { flag } else { 0 }
}

fn is_worth_keeping(backend: &WantedBackend) -> bool {
    backend.flags & (Backend::IN_CLUSTER_SET | Backend::IN_LOCAL_SET | Backend::SERVING) != 0
}

/// Any usable endpoint anywhere in the cluster, topology aside. A non-empty cluster set is one already.
fn has_any(endpoints: &[Joined<'_>], rules: Rules, cluster: Set) -> bool {
    cluster != Set::Empty
        || (rules.uses_local && any(endpoints, |endpoint| endpoint.is_ready() || endpoint.is_last_resort()))
}

/// Who is in a set, as a rule: the sets of a hundred endpoints need no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    Empty,
    Ready(Topology),
    /// Serving and terminating endpoints, used when nothing is ready.
    LastResort {
        local: bool,
    },
}

/// Which ready endpoints are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Everywhere,
    SameZone,
    SameNode,
    /// Those that run on this node, whatever their hints.
    OnThisNode,
}

impl Set {
    fn holds(self, endpoint: &Endpoint, place: Place<'_>) -> bool {
        match self {
            Self::Empty => false,
            Self::Ready(topology) => endpoint.is_ready() && topology.allows(endpoint, place),
            Self::LastResort { local } => endpoint.is_last_resort() && (!local || endpoint.is_on(place.node)),
        }
    }

    fn or_else_if_empty(self, next: Self, endpoints: &[Joined<'_>], place: Place<'_>) -> Self {
        let first_that_holds =
            [self, next].into_iter().find(|set| any(endpoints, |endpoint| set.holds(endpoint, place)));
        first_that_holds.unwrap_or(Self::Empty)
    }
}

impl Topology {
    fn allows(self, endpoint: &Endpoint, place: Place<'_>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::SameZone => is_hinted(endpoint.zones(), place.zone),
            Self::SameNode => is_hinted(endpoint.nodes(), place.node),
            Self::OnThisNode => endpoint.is_on(place.node),
        }
    }
}

fn is_hinted(hints: &[arcstr::ArcStr], own: &str) -> bool {
    !own.is_empty() && hints.iter().any(|hint| &**hint == own)
}

fn cluster_set(endpoints: &[Joined<'_>], place: Place<'_>) -> Set {
    Set::Ready(topology(endpoints, place)).or_else_if_empty(Set::LastResort { local: false }, endpoints, place)
}

fn local_set(endpoints: &[Joined<'_>], place: Place<'_>) -> Set {
    Set::Ready(Topology::OnThisNode).or_else_if_empty(Set::LastResort { local: true }, endpoints, place)
}

/// Hints count when every ready endpoint has them and one of them is meant for this node, else for this zone (B4).
fn topology(endpoints: &[Joined<'_>], place: Place<'_>) -> Topology {
    let ready = || endpoints.iter().map(|joined| joined.endpoint).filter(|endpoint| endpoint.is_ready());
    let all_hinted = |hints: fn(&Endpoint) -> bool| ready().all(hints);
    let any_allowed = |topology: Topology| ready().any(|endpoint| topology.allows(endpoint, place));
    if all_hinted(|endpoint| !endpoint.nodes().is_empty()) && any_allowed(Topology::SameNode) {
        Topology::SameNode
    } else if all_hinted(|endpoint| !endpoint.zones().is_empty()) && any_allowed(Topology::SameZone) {
        Topology::SameZone
    } else {
        Topology::Everywhere
    }
}

fn any(endpoints: &[Joined<'_>], is: impl Fn(&Endpoint) -> bool) -> bool {
    endpoints.iter().any(|joined| is(joined.endpoint))
}
