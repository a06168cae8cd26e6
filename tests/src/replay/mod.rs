//! An API server that plays a cluster: lists and watches of any size, fed by the test, no control plane behind it.
//!
//! In: objects as JSON. Out: what a real server sends for Services, EndpointSlices, Nodes and ServiceCIDRs: lists in
//! pages or streamed into a watch, changes, bookmarks, 410 for who has been away too long. It says when the bytes of a
//! change left. Selectors are not looked at, but for a name: give it only what a proxy would be sent. Nothing is validated, and
//! Events are kept.

mod http;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Bound;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{Shutdown, shutdown};
use serde_json::{Value, json};

use crate::netns::Netns;
use http::{Request, answer, chunk, refusal, status};

/// Changes of a kind that a watch can still be resumed from.
const REMEMBERED: usize = 4096;
/// Real servers send a bookmark about once a minute.
const BETWEEN_BOOKMARKS: Duration = Duration::from_mins(1);
/// Bytes of a streamed list that go out together.
const BURST: usize = 64 << 10;

/// The kinds that can be listed, and where.
const PATHS: [(&str, &str, &str); 4] = [
    ("/api/v1/services", "v1", "Service"),
    ("/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("/api/v1/nodes", "v1", "Node"),
    ("/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
];

/// How complete lists are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lists {
    /// Also as the beginning of a watch, as servers of today do.
    Streamed,
    /// Only in pages, as older servers do.
    Paged,
}

/// A running server. It ends with the handle.
pub struct Replay {
    cluster: Arc<Cluster>,
    listener: TcpListener,
    address: SocketAddr,
}

impl Replay {
    /// Serves at `address` in `netns`.
    pub fn start(netns: &Netns, address: SocketAddr, lists: Lists) -> Result<Self> {
        let listener = netns.inside(|| TcpListener::bind(address).with_context(|| format!("listen at {address}")))?;
        let kinds = PATHS.iter().map(|(_, _, kind)| (*kind, Collection::default())).collect();
        let state = State { version: 1, kinds, events: Vec::new(), listed: None, ended: false };
        let cluster = Arc::new(Cluster { lists, state: Mutex::new(state), changed: Condvar::new() });
        let (incoming, shared) = (listener.try_clone()?, Arc::clone(&cluster));
        thread::spawn(move || {
            for stream in incoming.incoming().map_while(Result::ok) {
                let cluster = Arc::clone(&shared);
                // Who closes the connection is not interested any more.
                thread::spawn(move || cluster.serve(&stream).unwrap_or_default());
            }
        });
        Ok(Self { cluster, listener, address })
    }

    /// Writes a kubeconfig for it, into the world of whoever asks.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let path = Path::new("/run/kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "replay",
            "contexts": [{ "name": "replay", "context": { "cluster": "replay", "user": "nobody" } }],
            "clusters": [{ "name": "replay", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "nobody", "user": {} }],
        });
        fs::write(path, config.to_string()).context("write a kubeconfig")?;
        Ok(path.to_owned())
    }

    /// Creates an object or puts it in the place of the one of its name.
    pub fn apply(&self, object: &Value) -> Arc<Sent> {
        self.cluster.state().put(object, &self.cluster.changed)
    }

    /// When the last byte left of the complete list that was sent last.
    pub fn listed(&self) -> Option<Instant> {
        self.cluster.state().listed
    }

    /// The Events that it was told.
    pub fn events(&self) -> Vec<Value> {
        self.cluster.state().events.clone()
    }

    /// Deletes the object of this kind and name.
    pub fn delete(&self, object: &Value) -> Arc<Sent> {
        self.cluster.state().delete(object, &self.cluster.changed)
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.cluster.state().ended = true;
        self.cluster.changed.notify_all();
        // Wakes whoever waits for the next connection.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

/// One change, and when its bytes left for the first time.
#[derive(Debug)]
pub struct Sent {
    version: u64,
    line: String,
    at: OnceLock<Instant>,
}

impl Sent {
    /// `None` as long as nobody watches.
    pub fn at(&self) -> Option<Instant> {
        self.at.get().copied()
    }
}

struct Cluster {
    lists: Lists,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The last resourceVersion given away.
    version: u64,
    kinds: HashMap<&'static str, Collection>,
    events: Vec<Value>,
    /// When the last byte of a complete list left.
    listed: Option<Instant>,
    ended: bool,
}

/// The objects of one kind.
#[derive(Default)]
struct Collection {
    /// JSON by namespace and name.
    objects: BTreeMap<String, Arc<str>>,
    /// The last changes, oldest first.
    changes: VecDeque<Arc<Sent>>,
    /// The version of the last change that is not remembered.
    forgotten: u64,
}

impl State {
    fn put(&mut self, object: &Value, changed: &Condvar) -> Arc<Sent> {
        self.version += 1;
        let (collection, key) = self.collection(object);
        let known = collection.objects.contains_key(&key);
        let text: Arc<str> = self.versioned(object).into();
        self.collection(object).0.objects.insert(key, Arc::clone(&text));
        self.tell(if known { "MODIFIED" } else { "ADDED" }, object, &text, changed)
    }

    fn delete(&mut self, object: &Value, changed: &Condvar) -> Arc<Sent> {
        self.version += 1;
        let (collection, key) = self.collection(object);
        collection.objects.remove(&key);
        let text = self.versioned(object);
        self.tell("DELETED", object, &text, changed)
    }

    fn versioned(&self, object: &Value) -> String {
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        object.to_string()
    }

    fn collection(&mut self, object: &Value) -> (&mut Collection, String) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = format!("{}/{}", text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        let kind = text(&object["kind"]);
        (self.kinds.get_mut(&*kind).unwrap_or_else(|| panic!("nobody lists kind {kind:?}")), key)
    }

    fn tell(&mut self, what: &str, object: &Value, text: &str, changed: &Condvar) -> Arc<Sent> {
        let sent = Arc::new(Sent { version: self.version, line: event(what, text), at: OnceLock::new() });
        let (collection, _) = self.collection(object);
        collection.changes.push_back(Arc::clone(&sent));
        if collection.changes.len() > REMEMBERED {
            collection.forgotten = collection.changes.pop_front().map_or(0, |oldest| oldest.version);
        }
        changed.notify_all();
        sent
    }
}

impl Cluster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }

    /// Answers requests until the client closes or the server ends.
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut reader, mut writer) = (BufReader::new(stream), stream);
        while let Some(request) = Request::read(&mut reader)? {
            let path = everywhere(&request.path);
            let Some((_, version, kind)) = PATHS.into_iter().find(|(known, _, _)| *known == path) else {
                writer.write_all(&self.elsewhere(&request))?;
                continue;
            };
            let streamed = request.is("sendInitialEvents");
            if streamed && self.lists == Lists::Paged {
                writer.write_all(&refusal(422, "Invalid", "sendInitialEvents is forbidden for watch"))?;
            } else if request.is("watch") {
                return self.watch(writer, &request, kind, version, streamed);
            } else {
                writer.write_all(&self.page(&request, kind, version))?;
                self.state().listed = Some(Instant::now());
            }
        }
        Ok(())
    }

    /// What every client asks beside its lists: the version, and to keep the events that it makes up.
    fn elsewhere(&self, request: &Request) -> Vec<u8> {
        match request.path.as_str() {
            "/version" => answer(200, r#"{"major":"1","minor":"36","gitVersion":"v1.36.3"}"#),
            path if path.ends_with("/events") => {
                self.state().events.extend(serde_json::from_slice::<Value>(&request.body));
                answer(201, &String::from_utf8_lossy(&request.body))
            }
            _ => refusal(404, "NotFound", "the server could not find the requested resource"),
        }
    }

    /// One page of a list; `continue` is the version of the first page and the last key of the page before.
    fn page(&self, request: &Request, kind: &str, api_version: &str) -> Vec<u8> {
        let state = self.state();
        let (version, after) = match request.get("continue").split_once(' ') {
            Some((version, after)) => (version.to_owned(), Bound::Excluded(after)),
            None => (state.version.to_string(), Bound::Unbounded),
        };
        let limit = request.get("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let mut objects = state.kinds[kind].objects.range::<str, _>((after, Bound::Unbounded));
        let page: Vec<_> = objects.by_ref().filter(|(key, _)| request.selects(key)).take(limit).collect();
        let next = match (objects.next(), page.last()) {
            (Some(_), Some((last, _))) => format!("{version} {last}"),
            _ => String::new(),
        };
        let metadata = json!({ "resourceVersion": version, "continue": next });
        let items: Vec<&str> = page.iter().map(|(_, text)| &***text).collect();
        let list = format!(
            r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{metadata},"items":[{}]}}"#,
            items.join(",")
        );
        drop(state);
        answer(200, &list)
    }

    /// Sends changes for as long as the client wants, the complete list first if `streamed`.
    fn watch(
        &self,
        mut to: impl Write,
        request: &Request,
        kind: &str,
        api_version: &str,
        streamed: bool,
    ) -> io::Result<()> {
        let bookmark = |version: u64, annotations: &Value| {
            let metadata = json!({ "resourceVersion": version.to_string(), "annotations": annotations });
            let object = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
            event("BOOKMARK", &object.to_string())
        };
        to.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
        let mut seen = request.get("resourceVersion").parse().unwrap_or(0);
        if streamed {
            let (version, objects) = self.snapshot(request, kind);
            seen = version;
            let mut burst = String::new();
            for object in objects {
                burst += &event("ADDED", &object);
                if burst.len() > BURST {
                    chunk(&mut to, &std::mem::take(&mut burst))?;
                }
            }
            chunk(&mut to, &(burst + &bookmark(seen, &json!({ "k8s.io/initial-events-end": "true" }))))?;
            self.state().listed = Some(Instant::now());
        }
        let seconds = request.get("timeoutSeconds").parse().unwrap_or(u64::MAX >> 32);
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            let Some(changes) = self.wait_for_changes(kind, seen, end) else {
                let expired = status(410, "Expired", "too old resource version");
                return chunk(&mut to, &event("ERROR", &expired.to_string())).and_then(|()| chunk(&mut to, ""));
            };
            for sent in &changes {
                let _ = sent.at.set(Instant::now());
                chunk(&mut to, &sent.line)?;
                seen = sent.version;
            }
            if self.state().ended {
                return Ok(());
            }
            if changes.is_empty() {
                seen = self.version_of(kind, seen);
                chunk(&mut to, &bookmark(seen, &json!({})))?;
            }
        }
        chunk(&mut to, "")
    }

    fn snapshot(&self, request: &Request, kind: &str) -> (u64, Vec<Arc<str>>) {
        let state = self.state();
        let objects = state.kinds[kind].objects.iter().filter(|(key, _)| request.selects(key));
        (state.version, objects.map(|(_, text)| Arc::clone(text)).collect())
    }

    /// Where a watch stands that has seen everything of its kind up to `seen`, unless something came up since.
    fn version_of(&self, kind: &str, seen: u64) -> u64 {
        let state = self.state();
        let newer = state.kinds[kind].changes.back().is_some_and(|last| last.version > seen);
        if newer { seen } else { state.version }
    }

    /// What happened after `seen`; nothing when it is time for a bookmark, `None` when that is no longer known.
    fn wait_for_changes(&self, kind: &str, seen: u64, end: Instant) -> Option<Vec<Arc<Sent>>> {
        let patience = BETWEEN_BOOKMARKS.min(end.saturating_duration_since(Instant::now()));
        let idle = |state: &mut State| {
            !state.ended && state.kinds[kind].changes.back().is_none_or(|last| last.version <= seen)
        };
        let (state, _) =
            self.changed.wait_timeout_while(self.state(), patience, idle).expect("no panic under the lock");
        let collection = &state.kinds[kind];
        (seen >= collection.forgotten).then(|| {
            let from = collection.changes.partition_point(|change| change.version <= seen);
            collection.changes.range(from..).cloned().collect()
        })
    }
}

/// The path of a kind in all namespaces, of that in one of them.
fn everywhere(path: &str) -> String {
    match path.split_once("/namespaces/").and_then(|(api, rest)| Some((api, rest.split_once('/')?.1))) {
        Some((api, kind)) => format!("{api}/{kind}"),
        None => path.to_owned(),
    }
}

fn event(what: &str, object: &str) -> String {
    format!("{{\"type\":\"{what}\",\"object\":{object}}}\n")
}
