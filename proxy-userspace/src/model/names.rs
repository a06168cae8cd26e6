//! Names and other values that are stored once however many objects repeat them.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use arcstr::ArcStr;
use ecow::EcoString;
use proxy_common::addr::Family;

use super::endpoints::{SlicePort, State};
use crate::hash::HashSet;

/// A namespaced object: a Service, an EndpointSlice. One text, `namespace/name`, that all who name it share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(ArcStr);

impl ObjectName {
    /// `namespace` has no slash in it; it is empty for cluster-scoped kinds.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self([namespace, "/", name].concat().into())
    }

    pub fn namespace(&self) -> &str {
        self.parts().0
    }

    pub fn name(&self) -> &str {
        self.parts().1
    }

    /// The Service that an EndpointSlice of this name is named after, as nearly all are: `web` for `web-x7k2p`.
    pub(super) fn named_after(&self) -> Option<Self> {
        split(self.name()).map(|(service, _)| Self::new(self.namespace(), service))
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once('/').expect("made with a slash")
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of an EndpointSlice, for those who know its Service: what it adds to the Service's name when it is named
/// after it, with a slash in front, which no name has; else all of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceName(EcoString);

impl SliceName {
    pub(super) fn new(service: &ObjectName, name: &str) -> Self {
        Self(match split(name) {
            Some((named, added)) if named == service.name() => ["/", added].concat().into(),
            _ => name.into(),
        })
    }

    pub(super) fn of(&self, service: &ObjectName) -> ObjectName {
        match self.0.strip_prefix('/') {
            Some(added) => ObjectName([&service.0, "-", added].concat().into()),
            None => ObjectName::new(service.namespace(), &self.0),
        }
    }

    pub(super) fn is_named_after_service(&self) -> bool {
        self.0.starts_with('/')
    }
}

/// The Service's name in that of a slice that is named after it, and what is added.
fn split(slice: &str) -> Option<(&str, &str)> {
    slice.rsplit_once('-')
}

/// One service port in one family: the unit of programming.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub service: ObjectName,
    /// Empty for an unnamed port.
    pub port: ArcStr,
    /// IANA number.
    pub proto: u8,
    pub family: Family,
}

/// Shares equal values: node, zone and port names repeat a hundred thousand times, and so do the states of
/// endpoints and the ports of slices.
#[derive(Debug)]
pub(super) struct Names {
    texts: Pool<ArcStr>,
    states: Pool<Arc<State>>,
    ports: Pool<Arc<[SlicePort]>>,
}

impl Default for Names {
    fn default() -> Self {
        let used = |name: &ArcStr| ArcStr::strong_count(name) != Some(1);
        Self {
            texts: Pool::new(used),
            states: Pool::new(|state| Arc::strong_count(state) > 1),
            ports: Pool::new(|ports| Arc::strong_count(ports) > 1),
        }
    }
}

impl Names {
    pub(super) fn share(&mut self, name: &str) -> ArcStr {
        self.texts.get(name).unwrap_or_else(|| self.texts.add(name.into()))
    }

    pub(super) fn share_state(&mut self, state: State) -> Arc<State> {
        self.states.get(&state).unwrap_or_else(|| self.states.add(Arc::new(state)))
    }

    pub(super) fn share_ports(&mut self, ports: &[SlicePort]) -> Arc<[SlicePort]> {
        self.ports.get(ports).unwrap_or_else(|| self.ports.add(ports.into()))
    }
}

/// Handles of what is shared.
#[derive(Debug)]
struct Pool<T> {
    known: HashSet<T>,
    /// Whether anybody else has it.
    is_used: fn(&T) -> bool,
    /// Size at which values that nobody uses any more are dropped.
    sweep_at: usize,
}

const SMALLEST_SWEEP: usize = 1024;

impl<T: Clone + Eq + Hash> Pool<T> {
    fn new(is_used: fn(&T) -> bool) -> Self {
        Self { known: HashSet::default(), is_used, sweep_at: SMALLEST_SWEEP }
    }

    fn get<V: Eq + Hash + ?Sized>(&self, value: &V) -> Option<T>
    where
        T: Borrow<V>,
    {
        self.known.get(value).cloned()
    }

    fn add(&mut self, value: T) -> T {
        self.sweep_when_grown();
        self.known.insert(value.clone());
        value
    }

    /// Doubling the limit after each sweep keeps its cost constant per value.
    fn sweep_when_grown(&mut self) {
        if self.known.len() >= self.sweep_at {
            self.known.retain(self.is_used);
            self.sweep_at = SMALLEST_SWEEP.max(self.known.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_allocation() {
        let mut names = Names::default();
        assert!(ArcStr::ptr_eq(&names.share("node-1"), &names.share("node-1")));
    }

    #[test]
    fn a_slice_name_says_the_whole_again_and_short_when_the_slice_is_named_after_its_service() {
        let service = ObjectName::new("shop", "web-api");
        for (name, short) in [
            ("web-api-x7k2p", true),
            ("web-api-", true),
            ("web-api", false),
            ("web-api-1-2", false),
            ("web-x7k2p", false),
            ("-x7k2p", false),
            ("a-name-that-somebody-chose", false),
        ] {
            let (whole, kept) = (ObjectName::new("shop", name), SliceName::new(&service, name));
            assert_eq!((kept.of(&service), kept.is_named_after_service()), (whole.clone(), short), "{name}");
            assert_eq!(whole.named_after() == Some(service.clone()), short, "{name}");
        }
        assert_eq!(ObjectName::new("my-shop", "web").named_after(), None, "a dash in the namespace says nothing");
    }

    #[test]
    fn names_that_nobody_uses_are_dropped() {
        let mut names = Names::default();
        let kept = names.share("kept");
        for n in 0..10 * SMALLEST_SWEEP {
            names.share(&n.to_string());
        }
        assert!(names.texts.known.len() <= SMALLEST_SWEEP + 1);
        assert!(ArcStr::ptr_eq(&kept, &names.share("kept")));
    }
}
