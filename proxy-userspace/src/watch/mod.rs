//! What an API server says, as [`Change`]s; and what it is told, [`Events`].
//!
//! In: a client. Out: for every kind first the complete list ([`Event::Begin`] to [`Event::End`]), then each change.
//! Selection happens on the server (specification A1). What is known stays known while the server is away: nothing is ever deleted on a partial
//! view. Refuses to know what a change is for.

mod backoff;
mod client;
mod decode;
mod events;
mod follow;

use std::time::Duration;

use kube::Client;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

pub use client::connect;
pub use events::{Events, Warning};

use crate::model::objects::{EndpointSlice, Metadata, Node, OtherNode, Service, ServiceCidr};
use crate::model::{Change, Event};
use crate::news::News;

/// A kind of object that is followed.
trait Kind: DeserializeOwned + Clone + Send + 'static {
    /// As people and RBAC call it, in plural.
    const NAME: &'static str;
    const PATH: &'static str;
    /// Older API servers, or the role that they give to kube-proxy, do not have it; it then counts as an empty list.
    const OPTIONAL: bool = false;
    fn metadata(&self) -> &Metadata;
    fn change(event: Event<Self>) -> Change;
}

impl Kind for Service {
    const NAME: &'static str = "services";
    const PATH: &'static str = "/api/v1/services";
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn change(event: Event<Self>) -> Change {
        Change::Service(event)
    }
}

impl Kind for EndpointSlice {
    const NAME: &'static str = "endpointslices";
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn change(event: Event<Self>) -> Change {
        Change::EndpointSlice(event)
    }
}

impl Kind for Node {
    const NAME: &'static str = "nodes";
    const PATH: &'static str = "/api/v1/nodes";
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn change(event: Event<Self>) -> Change {
        Change::Node(event)
    }
}

impl Kind for OtherNode {
    const NAME: &'static str = "nodes";
    const PATH: &'static str = Node::PATH;
    fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }
    fn change(event: Event<Self>) -> Change {
        Change::OtherNode(event)
    }
}

impl Kind for ServiceCidr {
    const NAME: &'static str = "servicecidrs";
    const PATH: &'static str = "/apis/networking.k8s.io/v1/servicecidrs";
    const OPTIONAL: bool = true;
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn change(event: Event<Self>) -> Change {
        Change::ServiceCidr(event)
    }
}

/// Which objects of a kind the server sends.
#[derive(Clone, Debug, Default)]
struct Selection {
    labels: Option<String>,
    fields: Option<String>,
}

/// Which Nodes are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes {
    /// This node's.
    Own,
    /// All of them: that costs what every node of the cluster says, twelve times an hour or more.
    All,
}

/// Follows every kind until the receiver of `news` is dropped.
pub fn start(client: &Client, node_name: &str, nodes: Nodes, news: &Sender<News>) {
    let labels = |text: &str| Selection { labels: Some(text.to_owned()), fields: None };
    let services = Selection {
        fields: Some("spec.clusterIP!=None".to_owned()),
        ..labels("!service.kubernetes.io/service-proxy-name")
    };
    let fields = |text: String| Selection { labels: None, fields: Some(text) };
    let own_node = fields(format!("metadata.name={node_name}"));
    tokio::spawn(follow::follow::<Service>(client.clone(), services, news.clone()));
    let slices = labels("!service.kubernetes.io/headless");
    tokio::spawn(follow::follow::<EndpointSlice>(client.clone(), slices, news.clone()));
    tokio::spawn(follow::follow::<Node>(client.clone(), own_node, news.clone()));
    if nodes == Nodes::All {
        let others = fields(format!("metadata.name!={node_name}"));
        tokio::spawn(follow::follow::<OtherNode>(client.clone(), others, news.clone()));
    }
    tokio::spawn(follow::follow::<ServiceCidr>(client.clone(), Selection::default(), news.clone()));
}

/// Waits until the API server answers anything at all, at most this long; the error says what went wrong last.
pub async fn reachable(client: &Client, patience: Duration) -> Result<(), String> {
    let mut backoff = backoff::Backoff::new();
    let deadline = tokio::time::Instant::now() + patience;
    let mut last = "no answer".to_owned();
    loop {
        match tokio::time::timeout_at(deadline, client.apiserver_version()).await {
            // Any answer of a server will do: whether we may list is a question of RBAC, with messages of its own.
            Ok(Ok(_) | Err(kube::Error::Api(_) | kube::Error::SerdeError(_))) => return Ok(()),
            Ok(Err(error)) => last = follow::chain(&error),
            Err(_) => return Err(last),
        }
        let wait = backoff.after_failure(None);
        if tokio::time::timeout_at(deadline, tokio::time::sleep(wait)).await.is_err() {
            return Err(last);
        }
    }
}
