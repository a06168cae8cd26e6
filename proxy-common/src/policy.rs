//! Which set of endpoints a client gets and whether its address is rewritten (specification B5).
//!
//! In: the kind of the frontend, the policies of the service port, where the client is. Out: [`Set`] and masquerade. Knows
//! no endpoints, tables or packets: the socket hooks, the packet hooks and the tests of the agent ask the same rule.

use crate::abi::{Frontend, Version};

/// Where a client is, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A pod that the local-traffic detector (specification B6) would tell from others.
    Pod,
    /// The node itself: the source address is its own.
    Node,
    /// Anything else: outside of the cluster, or a pod that no detector recognises.
    Outside,
}

/// Whose sockets are steered to backends where they dial (`--socket-lb`). The packets of all others keep the Service's
/// address until a hook at a device sees them: for meshes that redirect them first, and for sandboxes that no cgroup sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Steered {
    #[default]
    Everybody = 0,
    /// Processes in the node's own network namespace, no pods of theirs.
    TheNode = 1,
    Nobody = 2,
}

impl Steered {
    /// Who was meant by `as u8`. What nobody means is everybody: Services must not stop for a number.
    #[inline(always)]
    pub const fn read(number: u8) -> Self {
        match number {
            1 => Self::TheNode,
            2 => Self::Nobody,
            _ => Self::Everybody,
        }
    }

    /// Whether who dials is among them; where it is, is only asked when that matters.
    #[inline(always)]
    pub fn has(self, place: impl FnOnce() -> Place) -> bool {
        match self {
            Self::Everybody => true,
            Self::TheNode => matches!(place(), Place::Node),
            Self::Nobody => false,
        }
    }
}

/// What the policies of specification B5 depend on, besides the service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// A local-traffic detector exists for the family.
    pub detector: bool,
    /// `masqueradeAll`.
    pub masquerade_all: bool,
}

/// The endpoints that a flow chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    Cluster,
    Local,
}

impl Place {
    /// Without a detector a pod is like any other client.
    #[inline(always)]
    #[must_use]
    pub const fn as_detected(self, detector: bool) -> Self {
        match self {
            Self::Pod if !detector => Self::Outside,
            place => place,
        }
    }
}

/// The set for a client at `place` of a frontend of `kind` (`Frontend::KIND_*`) with the policies in `flags` (`Version`).
///
/// internalTrafficPolicy decides for ClusterIPs only, externalTrafficPolicy for all others; there pods and the node itself
/// take the short way to the whole cluster.
#[inline(always)]
pub const fn endpoint_set(kind: u32, flags: u32, place: Place, detector: bool) -> Set {
    let is_local = if kind == Frontend::KIND_CLUSTER_IP {
        flags & Version::INTERNAL_LOCAL != 0
    } else {
        flags & Version::EXTERNAL_LOCAL != 0 && matches!(place.as_detected(detector), Place::Outside)
    };
    if is_local { Set::Local } else { Set::Cluster }
}

/// True when the backend must see an address of this node. A flow that returns to its own client (`hairpin`) always does.
#[inline(always)]
pub const fn masquerade(kind: u32, flags: u32, place: Place, settings: Settings, hairpin: bool) -> bool {
    let place = place.as_detected(settings.detector);
    let by_policy = if kind == Frontend::KIND_CLUSTER_IP {
        settings.masquerade_all || (settings.detector && !matches!(place, Place::Pod))
    } else {
        flags & Version::EXTERNAL_LOCAL == 0 || matches!(place, Place::Node)
    };
    by_policy || hairpin
}

/// Where the chosen backend is, seen from this node and from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Elsewhere,
    OnThisNode,
    /// The flow returns to its own client: a hairpin.
    TheClient,
}

/// True when a packet's source becomes an address of this node: [`masquerade`] with one declared difference. A backend on
/// this node goes on seeing its client, since its answers pass this node anyway; only `masqueradeAll` overrules that.
#[inline(always)]
pub const fn replaces_source(kind: u32, flags: u32, place: Place, settings: Settings, target: Target) -> bool {
    match target {
        Target::Elsewhere => masquerade(kind, flags, place, settings, false),
        Target::OnThisNode => kind == Frontend::KIND_CLUSTER_IP && settings.masquerade_all,
        Target::TheClient => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER_IP: &[u32] = &[Frontend::KIND_CLUSTER_IP];
    const EXTERNAL: &[u32] = &[Frontend::KIND_NODE_PORT, Frontend::KIND_EXTERNAL_IP, Frontend::KIND_LOAD_BALANCER];
    const DEFAULT: u32 = 0;
    const INTERNAL_LOCAL: u32 = Version::INTERNAL_LOCAL;
    const EXTERNAL_LOCAL: u32 = Version::EXTERNAL_LOCAL;

    /// The four variants of the truth table, in the order of its columns.
    const VARIANTS: [Settings; 4] = [
        Settings { detector: true, masquerade_all: false },
        Settings { detector: false, masquerade_all: false },
        Settings { detector: true, masquerade_all: true },
        Settings { detector: false, masquerade_all: true },
    ];

    const C: (Set, bool) = (Set::Cluster, false);
    const C_MASQ: (Set, bool) = (Set::Cluster, true);
    const L: (Set, bool) = (Set::Local, false);
    const L_MASQ: (Set, bool) = (Set::Local, true);

    #[test]
    fn every_row_of_the_truth_table_holds_in_all_four_variants() {
        use Place::{Node, Outside, Pod};
        for (sentence, kinds, flags, source, expected) in [
            ("pod to ClusterIP", CLUSTER_IP, DEFAULT, Pod, [C, C, C_MASQ, C_MASQ]),
            ("pod to ClusterIP, eTP Local", CLUSTER_IP, EXTERNAL_LOCAL, Pod, [C, C, C_MASQ, C_MASQ]),
            ("pod to ClusterIP, iTP Local", CLUSTER_IP, INTERNAL_LOCAL, Pod, [L, L, L_MASQ, L_MASQ]),
            ("pod to external", EXTERNAL, DEFAULT, Pod, [C_MASQ; 4]),
            ("pod to external, eTP Local", EXTERNAL, EXTERNAL_LOCAL, Pod, [C, L, C, L]),
            ("pod to external, iTP Local", EXTERNAL, INTERNAL_LOCAL, Pod, [C_MASQ; 4]),
            ("node to ClusterIP", CLUSTER_IP, DEFAULT, Node, [C_MASQ, C, C_MASQ, C_MASQ]),
            ("node to ClusterIP, eTP Local", CLUSTER_IP, EXTERNAL_LOCAL, Node, [C_MASQ, C, C_MASQ, C_MASQ]),
            ("node to ClusterIP, iTP Local", CLUSTER_IP, INTERNAL_LOCAL, Node, [L_MASQ, L, L_MASQ, L_MASQ]),
            ("node to external", EXTERNAL, DEFAULT, Node, [C_MASQ; 4]),
            ("node to external, eTP Local", EXTERNAL, EXTERNAL_LOCAL, Node, [C_MASQ; 4]),
            ("node to external, iTP Local", EXTERNAL, INTERNAL_LOCAL, Node, [C_MASQ; 4]),
            ("outside to ClusterIP", CLUSTER_IP, DEFAULT, Outside, [C_MASQ, C, C_MASQ, C_MASQ]),
            ("outside to ClusterIP, eTP Local", CLUSTER_IP, EXTERNAL_LOCAL, Outside, [C_MASQ, C, C_MASQ, C_MASQ]),
            ("outside to ClusterIP, iTP Local", CLUSTER_IP, INTERNAL_LOCAL, Outside, [L_MASQ, L, L_MASQ, L_MASQ]),
            ("outside to external", EXTERNAL, DEFAULT, Outside, [C_MASQ; 4]),
            ("outside to external, eTP Local", EXTERNAL, EXTERNAL_LOCAL, Outside, [L; 4]),
            ("outside to external, iTP Local", EXTERNAL, INTERNAL_LOCAL, Outside, [C_MASQ; 4]),
        ] {
            for (settings, expected) in VARIANTS.into_iter().zip(expected) {
                for kind in kinds {
                    let set = endpoint_set(*kind, flags, source, settings.detector);
                    let masquerade = masquerade(*kind, flags, source, settings, false);
                    assert_eq!((set, masquerade), expected, "{sentence}, kind {kind}, {settings:?}");
                }
            }
        }
    }

    #[test]
    fn the_number_of_who_is_steered_means_the_same_to_whoever_reads_it() {
        for steered in [Steered::Everybody, Steered::TheNode, Steered::Nobody] {
            assert_eq!(Steered::read(steered as u8), steered);
        }
    }

    #[test]
    fn a_flow_that_returns_to_its_client_is_always_masqueraded() {
        for kind in CLUSTER_IP.iter().chain(EXTERNAL) {
            for settings in VARIANTS {
                assert!(masquerade(*kind, EXTERNAL_LOCAL | INTERNAL_LOCAL, Place::Pod, settings, true));
            }
        }
    }

    #[test]
    fn a_backend_of_this_node_sees_its_client_unless_masquerade_all_says_otherwise() {
        for kind in CLUSTER_IP.iter().chain(EXTERNAL) {
            for settings in VARIANTS {
                for place in [Place::Pod, Place::Node, Place::Outside] {
                    let replaces = |target| replaces_source(*kind, DEFAULT, place, settings, target);
                    let masquerade_all = settings.masquerade_all && *kind == Frontend::KIND_CLUSTER_IP;
                    assert_eq!(replaces(Target::OnThisNode), masquerade_all, "kind {kind}, {place:?}, {settings:?}");
                    assert!(replaces(Target::TheClient), "kind {kind}, {place:?}, {settings:?}");
                    let elsewhere = masquerade(*kind, DEFAULT, place, settings, false);
                    assert_eq!(replaces(Target::Elsewhere), elsewhere, "kind {kind}, {place:?}, {settings:?}");
                }
            }
        }
    }
}
