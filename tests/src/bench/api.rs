//! Clusters of made-up Services, and nodes as proxies leave them.
//!
//! In: objects as JSON. Out: kernel state: agent and kube-proxy are ended once everything is programmed, so that what is measured
//! beside it has the machine for itself.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::apiserver::node_object;
use crate::cluster;
use crate::kube_proxy::{KubeProxy, Mode};
use crate::node::Node;
use crate::replay::{Lists, Replay};
use crate::world::World;

/// Where the API server of each cluster listens.
const FIRST_PORT: u16 = 6100;
/// A first sync of many Services takes long on a busy machine.
const PATIENCE: Duration = Duration::from_mins(10);

/// One API server, and what a proxy needs to follow it.
pub struct Api {
    replay: Replay,
    kubeconfig: PathBuf,
}

impl Api {
    /// Number `number` of `world`.
    pub fn start(world: &World, number: u16) -> Result<Self> {
        let at = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), FIRST_PORT + number);
        let replay = Replay::start(&world.uplink, at, Lists::Streamed)?;
        replay.apply(&cluster::service_cidr());
        Ok(Self { replay, kubeconfig: kubeconfig(at)? })
    }

    pub fn apply(&self, object: &Value) {
        self.replay.apply(object);
    }

    /// The agent tidies up in the first pause after a start, and only then ABSENT says where nothing is.
    pub fn program_by_sluice(&self, node: &Node, more: &[&str]) -> Result<()> {
        self.apply(&node_object(node));
        let agent = Agent::start_following(node, &self.kubeconfig, &[&["--v=2"], more].concat())?;
        agent.logged_within(PATIENCE, "gave back what went out of use").map(drop)
    }

    pub fn program_by_kube_proxy(&self, node: &Node, mode: Mode) -> Result<()> {
        self.apply(&node_object(node));
        KubeProxy::start(node, mode, &self.kubeconfig)?.wait_until_programmed(PATIENCE)
    }
}

fn kubeconfig(api: SocketAddr) -> Result<PathBuf> {
    let path = PathBuf::from(format!("/run/kubeconfig-{}", api.port()));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "replay",
        "contexts": [{ "name": "replay", "context": { "cluster": "replay", "user": "nobody" } }],
        "clusters": [{ "name": "replay", "cluster": { "server": format!("http://{api}") } }],
        "users": [{ "name": "nobody", "user": {} }],
    });
    fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
