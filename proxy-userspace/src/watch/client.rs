//! A client for the API server that notices a dead peer within seconds.
//!
//! In: a kubeconfig, the pod's service account, or a URL. Out: a [`Client`]. Host names are resolved by the C library, which
//! the static binary carries whole (files and DNS; tried in an empty chroot).

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use crate::config::ClusterAccess;

/// A silent peer is asked after this long, then every [`KEEPALIVE_INTERVAL`], and given up after [`PEER_DEAD_AFTER`].
/// Watches are mostly silent, so without it a connection whose packets vanish would look alive for minutes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(4);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_PROBES: u32 = 3;
/// The same limit for bytes that were sent and never acknowledged.
const PEER_DEAD_AFTER: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes that a connection reads at once. It keeps the room for them through all the silence after a list; hyper would take
/// 400 KiB.
const READ_AT_ONCE: usize = 64 << 10;

/// Builds the client; does not talk to the server yet. The second value is where the server is, for messages.
pub async fn connect(access: &ClusterAccess) -> Result<(Client, String)> {
    let config = config(access).await?;
    let server = config.cluster_url.to_string();
    let client = client(&config).with_context(|| format!("prepare a connection to the API server {server}"))?;
    Ok((client, server))
}

async fn config(access: &ClusterAccess) -> Result<Config> {
    let mut config = match (&access.kubeconfig, &access.master) {
        (Some(path), _) => from_kubeconfig(path).await?,
        (None, Some(_)) => Config::new(http::Uri::from_static("https://placeholder.invalid")),
        (None, None) => Config::incluster().context(
            "not running in a pod with a service account; give --kubeconfig FILE, --master URL or --manifests PATH",
        )?,
    };
    if let Some(master) = &access.master {
        config.cluster_url = master.parse().map_err(|error| anyhow!("--master: {master} is not a URL: {error}"))?;
    }
    // Where no certificate is looked at, a system without a certificate store (an empty chroot) must do.
    if config.accept_invalid_certs || config.cluster_url.scheme() == Some(&http::uri::Scheme::HTTP) {
        config.root_cert.get_or_insert_default();
    }
    Ok(config)
}

async fn from_kubeconfig(path: &std::path::Path) -> Result<Config> {
    let named = || format!("--kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(named)?;
    if kubeconfig.clusters.is_empty() {
        bail!("{}: it names no cluster; a kubeconfig has clusters, users, contexts and current-context", named());
    }
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(named)
}

fn client(config: &Config) -> Result<Client> {
    let https = config
        .rustls_https_connector_with_connector(connector())
        .context("certificates; on a system without them the kubeconfig must have certificate-authority-data")?;
    let http = HttpClient::builder(TokioExecutor::new()).http1_max_buf_size(READ_AT_ONCE).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new::<_, _, String>(service, config.default_namespace.clone()))
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE_AFTER));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(PEER_DEAD_AFTER));
    connector
}
