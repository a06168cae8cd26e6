//! Events in, dirty Services and problems out.

mod bad_objects;
mod events;
mod joining;

use super::build::{self, Service, Slice};
use super::{Model, ObjectName};

fn web() -> Service {
    build::service("shop/web").cluster_ip("10.96.0.10").port(80)
}

fn web_slice() -> Slice {
    build::slice("shop/web").port(8080).endpoint("10.1.0.1")
}

/// The names of dirty Services since the last time.
fn dirty(model: &mut Model) -> Vec<String> {
    model.take_dirty().services.iter().map(ToString::to_string).collect()
}

fn name() -> ObjectName {
    ObjectName::new("shop", "web")
}
