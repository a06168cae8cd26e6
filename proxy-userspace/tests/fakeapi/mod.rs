//! An API server that misbehaves on request: just enough HTTP for lists and watches.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proxy_userspace::config::ClusterAccess;
use proxy_userspace::model::{Change, Event};
use proxy_userspace::news::News;
use proxy_userspace::watch::{self, Nodes};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";

/// One request, and how many of its path came before it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) query: HashMap<String, String>,
    pub(crate) before: usize,
}

impl Request {
    pub(crate) fn get(&self, key: &str) -> &str {
        self.query.get(key).map_or("", String::as_str)
    }

    pub(crate) fn is_watch(&self) -> bool {
        self.get("watch") == "true"
    }

    pub(crate) fn wants_streamed_list(&self) -> bool {
        self.get("sendInitialEvents") == "true"
    }
}

pub(crate) enum Answer {
    Json(u16, Value),
    /// Watch events, then silence.
    Watch(Vec<Value>),
    /// Watch events, then the end of the connection in the middle of the stream.
    Broken(Vec<Value>),
}

/// The server and the requests it saw.
pub(crate) struct FakeApi {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FakeApi {
    /// Serves until the test ends. `answer` is asked for services; other kinds are empty lists.
    pub(crate) async fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&seen), Arc::clone(&answer)));
            }
        });
        Self { url, requests }
    }

    /// What was asked of `path` so far.
    pub(crate) fn requests(&self, path: &str) -> Vec<Request> {
        self.requests.lock().unwrap().iter().filter(|request| request.path == path).cloned().collect()
    }

    /// Follows this server as the node `node-1`.
    pub(crate) async fn follow(&self) -> Receiver<News> {
        self.follow_nodes(Nodes::Own).await
    }

    pub(crate) async fn follow_nodes(&self, nodes: Nodes) -> Receiver<News> {
        let access = ClusterAccess { kubeconfig: None, master: Some(self.url.clone()) };
        let (client, _) = watch::connect(&access).await.unwrap();
        let (sender, receiver) = channel(1024);
        watch::start(&client, "node-1", nodes, &sender);
        receiver
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: Arc<Mutex<Vec<Request>>>,
    answer: Arc<impl Fn(&Request) -> Answer + Send + Sync + 'static>,
) {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        while lines.next_line().await.is_ok_and(|header| header.is_some_and(|header| !header.is_empty())) {}
        let request = record(&line, &seen);
        let answered = if request.path == SERVICES { answer(&request) } else { nothing(&request) };
        let (events, broken) = match answered {
            Answer::Json(status, body) => {
                let body = body.to_string();
                let head = format!("HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n\r\n", body.len());
                if writer.write_all((head + &body).as_bytes()).await.is_err() {
                    return;
                }
                continue;
            }
            Answer::Watch(events) => (events, false),
            Answer::Broken(events) => (events, true),
        };
        let mut text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
        for event in events {
            let line = format!("{event}\n");
            write!(text, "{:x}\r\n{line}\r\n", line.len()).unwrap();
        }
        if writer.write_all(text.as_bytes()).await.is_err() || broken {
            return;
        }
    }
}

fn record(line: &str, seen: &Mutex<Vec<Request>>) -> Request {
    let target = line.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(key, value)| (key.to_owned(), decoded(value))).collect();
    let mut seen = seen.lock().unwrap();
    let before = seen.iter().filter(|request| request.path == path).count();
    let request = Request { path: path.to_owned(), query, before };
    seen.push(request.clone());
    request
}

fn decoded(value: &str) -> String {
    let mut parts = value.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at(2);
        text.push(char::from(u8::from_str_radix(code, 16).unwrap()));
        text += rest;
    }
    text
}

fn nothing(request: &Request) -> Answer {
    if request.path == SERVICE_CIDRS {
        return refusal(404, "the server could not find the requested resource");
    }
    if request.wants_streamed_list() { Answer::Watch(vec![end_of_list(1)]) } else { Answer::Watch(Vec::new()) }
}

pub(crate) fn refusal(code: u16, message: &str) -> Answer {
    Answer::Json(code, status(code, message))
}

pub(crate) fn status(code: u16, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code })
}

pub(crate) fn service(name: &str, version: u64) -> Value {
    json!({
        "kind": "Service",
        "metadata": { "name": name, "namespace": "shop", "resourceVersion": version.to_string() },
        "spec": { "clusterIP": "10.96.0.10", "ports": null },
    })
}

#[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
pub(crate) fn event(kind: &str, object: Value) -> Value {
    json!({ "type": kind, "object": object })
}

pub(crate) fn added(name: &str, version: u64) -> Value {
    event("ADDED", service(name, version))
}

pub(crate) fn bookmark(version: u64) -> Value {
    event(
        "BOOKMARK",
        json!({ "kind": "Service", "apiVersion": "v1", "metadata": { "resourceVersion": version.to_string() } }),
    )
}

pub(crate) fn end_of_list(version: u64) -> Value {
    let mut event = bookmark(version);
    event["object"]["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    event
}

pub(crate) fn page(names: &[&str], version: u64, next: &str) -> Answer {
    let items: Vec<Value> = names.iter().map(|name| service(name, version)).collect();
    Answer::Json(
        200,
        json!({ "metadata": { "resourceVersion": version.to_string(), "continue": next }, "items": items }),
    )
}

/// The next thing learned about Services, as a word.
pub(crate) async fn learned(changes: &mut Receiver<News>) -> String {
    loop {
        let news =
            timeout(Duration::from_mins(1), changes.recv()).await.expect("something is learned in time").unwrap();
        let Change::Service(event) = news.change else { continue };
        return match event {
            Event::Apply(service) => format!("apply {}", service.metadata.name),
            Event::Delete { namespace, name } => format!("delete {namespace}/{name}"),
            Event::Reset(list) => format!("reset {}", list.len()),
            Event::Begin => "begin".to_owned(),
            Event::End => "end".to_owned(),
        };
    }
}

/// Fails with both lists in full when what is learned next differs.
pub(crate) async fn expect(changes: &mut Receiver<News>, expected: &[&str]) {
    let mut got = Vec::new();
    for _ in expected {
        got.push(learned(changes).await);
    }
    assert_eq!(got, expected);
}
