//! Where a proxy hears about the cluster: a replayed API server of any size, or a real one.
//!
//! In: objects as [`proxy_tests::cluster`] makes them up. Out: when a change was on its way at the latest.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use proxy_tests::apiserver::ControlPlane;
use proxy_tests::replay::{Lists, Replay, Sent};
use proxy_tests::world::World;
use serde_json::{Value, json};

/// Where the replayed API server is.
const API: &str = "192.0.2.1:8001";

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Replayed,
    Real,
}

pub(crate) enum Feed {
    Replayed(Replay),
    Real(Box<ControlPlane>),
}

/// A change that a proxy is told.
pub(crate) enum Told {
    /// Its bytes have left, or will when somebody watches.
    Sent(Arc<Sent>),
    /// The API server was asked to take it in: what it takes itself counts too.
    Asked(Instant),
}

impl Told {
    pub(crate) fn at(&self) -> Option<Instant> {
        match self {
            Self::Sent(sent) => sent.at(),
            Self::Asked(at) => Some(*at),
        }
    }
}

impl Feed {
    pub(crate) fn start(source: Source, world: &World) -> Result<Self> {
        match source {
            Source::Replayed => Replay::start(&world.uplink, API.parse()?, Lists::Streamed).map(Self::Replayed),
            Source::Real => {
                let plane = ControlPlane::start(world)?;
                plane.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "load" } }))?;
                Ok(Self::Real(Box::new(plane)))
            }
        }
    }

    pub(crate) fn kubeconfig(&self) -> Result<PathBuf> {
        match self {
            Self::Replayed(replay) => replay.kubeconfig(),
            Self::Real(plane) => plane.kubeconfig(),
        }
    }

    pub(crate) fn apply(&self, object: &Value) -> Result<Told> {
        match self {
            Self::Replayed(replay) => Ok(Told::Sent(replay.apply(object))),
            Self::Real(plane) => {
                let object = as_a_client_writes(object);
                let asked = Instant::now();
                plane.apply(&object)?;
                Ok(Told::Asked(asked))
            }
        }
    }

    /// When the last byte of the lists had left; a real API server does not say.
    pub(crate) fn listed(&self) -> Option<Instant> {
        match self {
            Self::Replayed(replay) => replay.listed(),
            Self::Real(_) => None,
        }
    }
}

/// Without what only the server writes, and without what would make its controllers write endpoints of their own.
fn as_a_client_writes(object: &Value) -> Value {
    const FOREIGN: [(&str, &[&str]); 3] = [
        ("/metadata", &["uid", "creationTimestamp", "generation", "generateName", "ownerReferences"]),
        ("/metadata/labels", &["endpointslice.kubernetes.io/managed-by"]),
        ("/spec", &["selector"]),
    ];
    let mut object = object.clone();
    for (parent, fields) in FOREIGN {
        if let Some(parent) = object.pointer_mut(parent).and_then(Value::as_object_mut) {
            parent.retain(|field, _| !fields.contains(&field.as_str()));
        }
    }
    object
}
