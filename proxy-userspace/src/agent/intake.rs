//! Where news become knowledge, and how much of it the first write waits for.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::sync::mpsc::Receiver;
use tracing::{error, warn};

use crate::config::{Config, Source};
use crate::desired::{Detector, ExternalIps, ThisNode};
use crate::model::{Change, Event, Model};
use crate::news::News;

/// Specification F4: without its Node object the node is served all the same after this long.
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// Specification F4: podCIDRs are allocated after the Node is made.
const POD_CIDR_PATIENCE: Duration = Duration::from_mins(5);

/// Where news become knowledge.
pub(super) struct Intake {
    pub patience: Patience,
    /// When the first of the news was heard that are not in the tables yet.
    pub heard: Option<Instant>,
}

impl Intake {
    pub(super) fn new(config: &Config) -> Self {
        Self { patience: Patience::new(config), heard: None }
    }

    /// Takes in what comes until `ready` is; calls `listed` when the lists are complete.
    pub(super) async fn take_until<T>(
        &mut self,
        ready: impl Future<Output = T>,
        model: &mut Model,
        news: &mut Receiver<News>,
        listed: impl FnOnce(&Model),
    ) -> T {
        let (mut ready, mut listed) = (pin!(ready), Some(listed));
        loop {
            tokio::select! {
                done = &mut ready => return done,
                Some(news) = news.recv() => self.take(model, news),
            }
            if model.synced()
                && let Some(listed) = listed.take()
            {
                listed(model);
            }
        }
    }

    pub(super) fn take(&mut self, model: &mut Model, News { change, heard }: News) {
        self.patience.see(&change);
        self.heard.get_or_insert(heard);
        for problem in model.apply(change) {
            warn!("{problem}");
        }
    }
}

/// How long the first write waits for what does not strictly need to be there (specification F4): without the own Node,
/// node ports and topology would be wrong for a moment; without ServiceCIDRs, tables would change twice; without the other nodes,
/// where their addresses are refused as externalIPs, these would be served for a moment.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// When everything else was there.
    started: Option<Instant>,
    /// Files say everything at once; a server may be asked too early.
    waits: bool,
    needs_pod_cidrs: bool,
    needs_other_nodes: bool,
    has_addresses: bool,
    has_pod_cidrs: bool,
    has_service_cidrs: bool,
    has_other_nodes: bool,
    exhausted: bool,
}

impl Patience {
    fn new(config: &Config) -> Self {
        let waits = matches!(config.source, Source::Cluster(_));
        Self {
            waits,
            needs_pod_cidrs: waits && config.detector == Detector::NodeCidr,
            needs_other_nodes: config.external_ips == ExternalIps::Restricted,
            ..Self::default()
        }
    }

    pub(super) fn start(&mut self) {
        self.started.get_or_insert_with(Instant::now);
    }

    fn see(&mut self, change: &Change) {
        match change {
            Change::Node(Event::Apply(node)) => {
                self.has_addresses |= !node.status.addresses.is_empty();
                self.has_pod_cidrs |= !node.spec.pod_cidrs.is_empty();
            }
            Change::ServiceCidr(Event::End | Event::Reset(_)) => self.has_service_cidrs = true,
            Change::OtherNode(Event::End) => self.has_other_nodes = true,
            _ => {}
        }
    }

    pub(super) fn is_over(&self) -> bool {
        let knows_nodes = self.has_addresses && (self.has_other_nodes || !self.needs_other_nodes);
        let complete = knows_nodes && self.has_service_cidrs;
        !self.waits || ((complete || self.exhausted) && (self.has_pod_cidrs || !self.needs_pod_cidrs))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let patience = if self.exhausted { POD_CIDR_PATIENCE } else { NODE_PATIENCE };
        self.started.filter(|_| !self.is_over()).map(|started| started + patience)
    }

    /// The deadline has passed. Only missing podCIDRs are fatal: every local pod would be taken for a stranger.
    pub(super) fn run_out(&mut self, this: &ThisNode) -> Result<()> {
        let name = &this.name;
        if self.exhausted {
            let minutes = POD_CIDR_PATIENCE.as_secs() / 60;
            bail!(
                "--detect-local-mode=NodeCIDR: node {name} got no podCIDRs in {minutes} min; is a controller to allocate them?"
            );
        }
        self.exhausted = true;
        if !self.has_addresses {
            error!("{}", unknown_node(name));
        }
        if self.needs_other_nodes && !self.has_other_nodes {
            error!("{}", unknown_nodes());
        }
        Ok(())
    }
}

fn unknown_node(name: &str) -> String {
    format!(
        "node {name} does not exist or has no address after {} s; going on with this host's own. \
         --hostname-override must name the Node object",
        NODE_PATIENCE.as_secs()
    )
}

fn unknown_nodes() -> String {
    format!(
        "other nodes are not known after {} s; going on without: until they are, externalIPs that are theirs are served",
        NODE_PATIENCE.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::build::node;

    fn patient(needs_pod_cidrs: bool) -> Patience {
        let mut patience = Patience { waits: true, needs_pod_cidrs, ..Patience::default() };
        patience.start();
        patience
    }

    #[test]
    fn the_first_write_waits_for_the_own_node_and_the_service_cidrs() {
        let mut patience = patient(false);
        patience.see(&node("node-1").apply());
        patience.see(&Change::ServiceCidr(Event::End));
        assert!(!patience.is_over(), "a Node without an address says nothing yet");
        patience.see(&node("node-1").internal_ip("192.0.2.1").apply());
        assert!(patience.is_over());
        assert_eq!(patience.deadline(), None);
    }

    #[test]
    fn it_waits_for_the_other_nodes_too_where_their_addresses_are_refused() {
        let mut patience = Patience { needs_other_nodes: true, ..patient(false) };
        patience.see(&node("node-1").internal_ip("192.0.2.1").apply());
        patience.see(&Change::ServiceCidr(Event::End));
        patience.see(&Change::OtherNode(Event::Begin));
        assert!(!patience.is_over());
        patience.see(&Change::OtherNode(Event::End));
        assert!(patience.is_over());
    }

    #[test]
    fn it_does_not_wait_for_ever_unless_pods_could_not_be_told_apart() {
        let this = ThisNode::default();
        let mut patience = patient(false);
        patience.run_out(&this).unwrap();
        assert!(patience.is_over());

        let mut strict = patient(true);
        strict.run_out(&this).unwrap();
        assert!(!strict.is_over());
        assert!(strict.run_out(&this).unwrap_err().to_string().contains("got no podCIDRs in 5 min"));
    }

    #[test]
    fn an_unknown_node_is_waited_for_half_a_minute_and_then_named_with_the_way_out() {
        let patience = patient(false);
        assert_eq!(patience.deadline(), Some(patience.started.unwrap() + Duration::from_secs(30)));
        let message = unknown_node("node-7");
        assert!(message.starts_with("node node-7 does not exist or has no address after 30 s"), "{message}");
        assert!(message.ends_with("--hostname-override must name the Node object"), "{message}");
    }

    #[test]
    fn files_are_not_waited_for() {
        assert!(Patience::default().is_over());
    }
}
