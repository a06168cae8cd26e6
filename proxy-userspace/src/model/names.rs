//! Names, stored once however many objects repeat them.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use proxy_common::addr::Family;

/// A namespaced object: a Service, an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One service port in one family: the unit of programming.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    /// Empty for an unnamed port.
    pub port: Arc<str>,
    /// IANA number.
    pub proto: u8,
    pub family: Family,
}

/// Shares equal strings: node, zone, namespace and port names repeat a hundred thousand times.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashSet<Arc<str>>,
    /// Size at which names that nobody uses any more are dropped.
    sweep_at: usize,
}

impl Names {
    const SMALLEST_SWEEP: usize = 1024;

    pub(super) fn share(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.known.get(name) {
            return Arc::clone(known);
        }
        self.sweep_when_grown();
        let shared: Arc<str> = name.into();
        self.known.insert(Arc::clone(&shared));
        shared
    }

    /// Doubling the limit after each sweep keeps its cost constant per name.
    fn sweep_when_grown(&mut self) {
        if self.known.len() >= self.sweep_at.max(Self::SMALLEST_SWEEP) {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = self.known.len() * 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_allocation() {
        let mut names = Names::default();
        assert!(Arc::ptr_eq(&names.share("node-1"), &names.share("node-1")));
    }

    #[test]
    fn names_that_nobody_uses_are_dropped() {
        let mut names = Names::default();
        let kept = names.share("kept");
        for n in 0..10 * Names::SMALLEST_SWEEP {
            names.share(&n.to_string());
        }
        assert!(names.known.len() <= Names::SMALLEST_SWEEP + 1);
        assert!(Arc::ptr_eq(&kept, &names.share("kept")));
    }
}
