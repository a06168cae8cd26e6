//! What the API server is told: an Event about each externalIP that is somebody else's, and one about each object that names
//! addresses which are always refused.
//!
//! In: [`Warning`]s. Out: Events, each under a name that says what it is about: who finds it there, told by another node or an
//! earlier agent, need not tell it. Nobody waits for it, and where it may not be told the log still has it.

use std::net::IpAddr;

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
use crate::model::{ObjectName, Refused};

/// How many may wait for the server.
const WAITING: usize = 64;
/// Who tells, as Events name it.
const CONTROLLER: &str = "sluice";
/// As much of a long name as leaves room for the rest of an Event's.
const NAME: usize = 180;
/// How many addresses an Event names one by one.
const NAMED: usize = 5;

/// What is to be told, and about which object.
#[derive(Clone, Debug)]
pub struct Warning {
    kind: &'static str,
    object: ObjectName,
    reason: &'static str,
    /// What tells it from others about the object.
    key: String,
    note: String,
}

impl From<&Claim> for Warning {
    fn from(claim: &Claim) -> Self {
        Self {
            kind: "Service",
            object: claim.service.clone(),
            reason: "ClaimedExternalIP",
            key: Addr::from(claim.ip).octets().map(|octet| format!("{octet:02x}")).concat(),
            note: claim.message.clone(),
        }
    }
}

impl From<&Refused> for Warning {
    /// One about each object, whatever else it comes to name.
    fn from(refused: &Refused) -> Self {
        Self {
            kind: refused.kind,
            object: refused.object.clone(),
            reason: "RefusedAddress",
            key: "refused".to_owned(),
            note: format!(
                "nothing is sent to or served at {}: loopback, link-local, multicast and unspecified addresses mean something \
                 else on every node; remove them",
                named(&refused.ips)
            ),
        }
    }
}

fn named(ips: &[IpAddr]) -> String {
    let named: Vec<_> = ips.iter().take(NAMED).map(ToString::to_string).collect();
    match ips.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// Takes what is to be told.
#[derive(Clone, Debug)]
pub struct Events(Sender<Warning>);

impl Events {
    /// Tells `client`'s server in the name of this node, for as long as somebody may have something to tell.
    pub fn start(client: Client, node_name: &str) -> Self {
        let (sender, warnings) = mpsc::channel(WAITING);
        tokio::spawn(tell(client, node_name.to_owned(), warnings));
        Self(sender)
    }

    /// When too many wait, this one is in the log alone.
    pub fn tell(&self, warning: Warning) {
        let _ = self.0.try_send(warning);
    }
}

async fn tell(client: Client, node_name: String, mut warnings: Receiver<Warning>) {
    let mut is_refused = false;
    let mut backoff = Backoff::new();
    while let Some(warning) = warnings.recv().await {
        while let Err(error) = publish(&client, &node_name, &warning).await {
            let Some(kube::Error::Api(status)) = error.downcast_ref() else {
                debug!(error = format!("{error:#}"), "an Event has to wait");
                sleep(backoff.after_failure(None)).await;
                continue;
            };
            if !std::mem::replace(&mut is_refused, true) {
                warn!("Events about addresses cannot be written, and are in this log alone: {}", status.message);
            }
            break;
        }
    }
}

async fn publish(client: &Client, node_name: &str, warning: &Warning) -> Result<()> {
    let (namespace, name) = (warning.object.namespace(), warning.object.name());
    // People find an Event by the id of what it is about. We may list these kinds, but not get one.
    let selection = ListParams::default().fields(&format!("metadata.name={name}"));
    let request = Request::new(api(warning.kind, namespace).1).list(&selection)?;
    let list: Value = client.request(request).await?;
    let Some(uid) = list["items"][0]["metadata"]["uid"].as_str() else { return Ok(()) };
    let event = serde_json::to_vec(&event(warning, uid, node_name, Timestamp::now())).context("write an Event")?;
    let events = Request::new(format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"));
    match client.request::<Value>(events.create(&PostParams::default(), event)?).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        answer => Ok(answer.map(drop)?),
    }
}

/// The API of a kind, and where its objects of a namespace are listed.
fn api(kind: &str, namespace: &str) -> (&'static str, String) {
    match kind {
        "EndpointSlice" => {
            let api = "discovery.k8s.io/v1";
            (api, format!("/apis/{api}/namespaces/{namespace}/endpointslices"))
        }
        _ => ("v1", format!("/api/v1/namespaces/{namespace}/services")),
    }
}

fn event(warning: &Warning, uid: &str, node_name: &str, now: Timestamp) -> Value {
    let Warning { kind, object, reason, key, note } = warning;
    let (namespace, name) = (object.namespace(), object.name());
    // What is cut may end where no name may.
    let short = name.get(..NAME).unwrap_or(name).trim_end_matches(['.', '-']);
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": format!("{short}.{uid}.{key}"), "namespace": namespace },
        "eventTime": format!("{now:.6}"),
        "type": "Warning",
        "reason": reason,
        "action": "Serve",
        "note": note,
        "reportingController": CONTROLLER,
        "reportingInstance": node_name,
        "regarding": {
            "apiVersion": api(kind, namespace).0, "kind": kind, "namespace": namespace, "name": name, "uid": uid,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_named_after_the_service_and_the_address() {
        let name = |ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            let claim = Claim { service: ObjectName::new("shop", "web"), ip, message: "externalIPs".to_owned() };
            let event = event(&Warning::from(&claim), "0b5d", "one", Timestamp::UNIX_EPOCH);
            assert_eq!(event["eventTime"], "1970-01-01T00:00:00.000000Z");
            event["metadata"]["name"].as_str().unwrap().to_owned()
        };
        assert_eq!(name("192.0.2.1"), "web.0b5d.00000000000000000000ffffc0000201");
        assert_eq!(name("2001:db8::1"), "web.0b5d.20010db8000000000000000000000001");
    }

    #[test]
    fn one_event_tells_of_all_addresses_that_an_object_may_not_name() {
        let ips = (1..8).map(|last| IpAddr::from([127, 0, 0, last])).collect();
        let slice = format!("{}-x7k2p", "web.".repeat(60));
        let refused = Refused { kind: "EndpointSlice", object: ObjectName::new("shop", &slice), ips };
        let event = event(&Warning::from(&refused), "0b5d", "one", Timestamp::UNIX_EPOCH);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let note = text(&event["note"]);
        assert!(note.contains(" 127.0.0.1, 127.0.0.2, 127.0.0.3, 127.0.0.4, 127.0.0.5 and 2 more: "), "{note}");
        let about = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "namespace": "shop", "name": slice, "uid": "0b5d",
        });
        assert_eq!(event["regarding"], about);
        assert_eq!(text(&event["metadata"]["name"]), format!("{}web.0b5d.refused", "web.".repeat(44)));
    }
}
