//! Where changes come from: an API server or manifest files.

use std::time::Duration;

use anyhow::{Result, anyhow};
use kube::Client;
use tokio::sync::mpsc::Sender;
use tracing::info;

use crate::config::{Config, Source};
use crate::desired::ExternalIps;
use crate::news::News;
use crate::watch::{Events, Nodes};
use crate::{manifests, watch};

/// An API server that gives no sign of life for so long, with nothing to serve, is a mistake in the settings.
const SERVER_PATIENCE: Duration = Duration::from_secs(20);

/// A source whose settings were found right.
pub(super) enum Prepared {
    Cluster { client: Client, server: String },
    Files,
}

impl Prepared {
    pub(super) async fn new(config: &Config, news: &Sender<News>) -> Result<Self> {
        match &config.source {
            Source::Cluster(access) => {
                let (client, server) = watch::connect(access).await?;
                Ok(Self::Cluster { client, server })
            }
            Source::Manifests(paths) => {
                manifests::start(paths, &config.node_name, news).await?;
                Ok(Self::Files)
            }
        }
    }

    /// Who tells the API server, where there is one.
    pub(super) fn events(&self, node_name: &str) -> Option<Events> {
        match self {
            Self::Cluster { client, .. } => Some(Events::start(client.clone(), node_name)),
            Self::Files => None,
        }
    }

    /// Starts to follow as soon as the server gives a sign of life, at last without; the error says that none came.
    pub(super) async fn start(self, config: &Config, news: &Sender<News>) -> Result<()> {
        let Self::Cluster { client, server } = self else { return Ok(()) };
        info!("node {}, API server {server}", config.node_name);
        let answered = watch::reachable(&client, SERVER_PATIENCE).await;
        let nodes = match config.external_ips {
            ExternalIps::Allowed => Nodes::Own,
            ExternalIps::Restricted => Nodes::All,
        };
        watch::start(&client, &config.node_name, nodes, news);
        answered.map_err(|reason| {
            anyhow!(
                "no answer from the API server {server} in {} s, and there is no earlier state to serve: {reason}; \
                 give its real address (not a ClusterIP) with --master URL",
                SERVER_PATIENCE.as_secs()
            )
        })
    }
}
