//! What the cluster says now, in small own types.
//!
//! In: [`Change`]s from an API server or from files, in any order. Out: which Services are dirty. Knows nothing of
//! kernel tables, clients or clocks.

pub mod objects;

use objects::{EndpointSlice, Node, Service, ServiceCidr};

/// One thing that a source learned about the cluster.
#[derive(Clone, Debug)]
pub enum Change {
    Service(Event<Service>),
    EndpointSlice(Event<EndpointSlice>),
    Node(Event<Node>),
    ServiceCidr(Event<ServiceCidr>),
}

/// What happened to the objects of one kind.
#[derive(Clone, Debug)]
pub enum Event<T> {
    /// Added or changed.
    Apply(T),
    /// Gone. `namespace` is empty for cluster-scoped kinds.
    Delete { namespace: String, name: String },
    /// The complete list: whatever is not in it is gone. The first one makes the kind "synced".
    Reset(Vec<T>),
}
