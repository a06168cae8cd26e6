//! What the API server is told: an Event about each externalIP that is somebody else's.
//!
//! In: [`Claim`]s. Out: Events, each under a name that says what it is about: who finds it there, told by another node or an
//! earlier agent, need not tell it. Nobody waits for it, and where it may not be told the log still has it.

use anyhow::{Context, Result};
use jiff::Timestamp;
use kube::Client;
use kube::api::{ListParams, PostParams};
use kube::core::request::Request;
use proxy_common::addr::Addr;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::backoff::Backoff;
use crate::desired::Claim;

/// How many may wait for the server.
const WAITING: usize = 64;
/// Who tells, as Events name it.
const CONTROLLER: &str = "sluice";

/// Takes what is to be told.
#[derive(Clone, Debug)]
pub struct Events(Sender<Claim>);

impl Events {
    /// Tells `client`'s server in the name of this node, for as long as somebody may have something to tell.
    pub fn start(client: Client, node_name: &str) -> Self {
        let (sender, claims) = mpsc::channel(WAITING);
        tokio::spawn(tell(client, node_name.to_owned(), claims));
        Self(sender)
    }

    /// When too many wait, this one is in the log alone.
    pub fn tell(&self, claim: &Claim) {
        let _ = self.0.try_send(claim.clone());
    }
}

async fn tell(client: Client, node_name: String, mut claims: Receiver<Claim>) {
    let mut is_refused = false;
    let mut backoff = Backoff::new();
    while let Some(claim) = claims.recv().await {
        while let Err(error) = publish(&client, &node_name, &claim).await {
            let Some(kube::Error::Api(status)) = error.downcast_ref() else {
                debug!(error = format!("{error:#}"), "an Event has to wait");
                sleep(backoff.after_failure(None)).await;
                continue;
            };
            if !std::mem::replace(&mut is_refused, true) {
                warn!("Events about externalIPs cannot be written, and are in this log alone: {}", status.message);
            }
            break;
        }
    }
}

async fn publish(client: &Client, node_name: &str, claim: &Claim) -> Result<()> {
    let (namespace, name) = (claim.service.namespace(), claim.service.name());
    // People find an Event by the id of what it is about. We may list Services, but not get one.
    let selection = ListParams::default().fields(&format!("metadata.name={name}"));
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/services")).list(&selection)?;
    let list: Value = client.request(request).await?;
    let Some(uid) = list["items"][0]["metadata"]["uid"].as_str() else { return Ok(()) };
    let event = serde_json::to_vec(&event(claim, uid, node_name, Timestamp::now())).context("write an Event")?;
    let events = Request::new(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"));
    match client.request::<Value>(events.create(&PostParams::default(), event)?).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        answer => Ok(answer.map(drop)?),
    }
}

fn event(claim: &Claim, uid: &str, node_name: &str, now: Timestamp) -> Value {
    let (namespace, name) = (claim.service.namespace(), claim.service.name());
    let ip = Addr::from(claim.ip).octets().map(|octet| format!("{octet:02x}")).concat();
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": format!("{name}.{uid}.{ip}"), "namespace": namespace },
        "eventTime": format!("{now:.6}"),
        "type": "Warning",
        "reason": "ClaimedExternalIP",
        "action": "Serve",
        "note": claim.message,
        "reportingController": CONTROLLER,
        "reportingInstance": node_name,
        "regarding": { "apiVersion": "v1", "kind": "Service", "namespace": namespace, "name": name, "uid": uid },
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::model::ObjectName;

    #[test]
    fn an_event_is_named_after_the_service_and_the_address() {
        let name = |ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            let claim = Claim { service: ObjectName::new("shop", "web"), ip, message: "externalIPs".to_owned() };
            let event = event(&claim, "0b5d", "one", Timestamp::UNIX_EPOCH);
            assert_eq!(event["eventTime"], "1970-01-01T00:00:00.000000Z");
            event["metadata"]["name"].as_str().unwrap().to_owned()
        };
        assert_eq!(name("192.0.2.1"), "web.0b5d.00000000000000000000ffffc0000201");
        assert_eq!(name("2001:db8::1"), "web.0b5d.20010db8000000000000000000000001");
    }
}
