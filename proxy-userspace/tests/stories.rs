//! Plays every `stories/*.story`: what the cluster says in, sorted facts out, while a tenth of the writes fail.
//!
//! A story is read from top to bottom. Each `== ` line begins a step:
//!
//! | step | below it |
//! |---|---|
//! | `list` | objects as YAML: everything there is, of every kind |
//! | `apply` | objects that are new or changed |
//! | `delete` | a line each: `Service default/web`, `Node node-1` |
//! | `this node` | YAML: what changed about this host |
//! | `capacity` | YAML: how many entries a table has |
//! | `restart` | nothing: a new process on the same tables, which lists everything again |
//! | `restart without lists` | nothing: the same while the API server is away |
//! | `expect` | all facts about Services |
//! | `expect node` | all facts about addresses and configuration |
//! | `expect problems` | all complaints since the last time |
//! | `expect full` | the service ports that do not fit, with the table |
//! | `expect no writes` | nothing: not one write since the last `expect` |
//!
//! `UPDATE_STORIES=1 cargo test --test stories` writes what happened into the files: read the difference.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use proxy_common::tables::Capacity;
use proxy_userspace::converge::Converger;
use proxy_userspace::desired::{Detector, ExternalIps, NodePortAddresses, ThisNode};
use proxy_userspace::facts::facts;
use proxy_userspace::maps::memory::{Failures, MemoryStore, Seed};
use proxy_userspace::model::objects::{EndpointSlice, Metadata, Node, OtherNode, Service, ServiceCidr};
use proxy_userspace::model::{Change, Event};
use proxy_userspace::plan::Ledger;
use serde::Deserialize;
use serde::de::DeserializeOwned;

const FAILING_PERCENT: u64 = 10;

/// The node that stories look from.
const OWN_NODE: &str = "node-1";

/// Nothing needs that many tries when one write of ten fails.
const MOST_TRIES: usize = 10_000;

#[test]
fn stories() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("stories");
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "story"));
    paths.sort();
    assert!(!paths.is_empty(), "no stories in {}", folder.display());
    let failures: Vec<String> = paths.iter().filter_map(|path| play(path)).collect();
    assert!(failures.is_empty(), "{} of {} stories failed\n{}", failures.len(), paths.len(), failures.join("\n"));
}

/// What went wrong, if anything did.
fn play(path: &Path) -> Option<String> {
    let title = path.file_stem().unwrap().to_string_lossy().into_owned();
    let text = fs::read_to_string(path).unwrap();
    println!("{title}: seed {}", seed(&title).0);
    let mut story = Story::new(seed(&title));
    let (preface, mut steps) = steps(&text);
    let mut failure = None;
    for step in &mut steps {
        if let Err(wrong) = story.play(step) {
            failure.get_or_insert(format!("== {title}\nseed {}, line {}: {wrong}", seed(&title).0, step.line));
        }
    }
    if std::env::var_os("UPDATE_STORIES").is_some() {
        fs::write(path, written(preface, &steps)).unwrap();
    }
    failure.or_else(|| {
        (!story.problems.is_empty()).then(|| format!("== {title}\nunexpected problems:\n{}", story.problems.join("\n")))
    })
}

/// Fixed by the name of the story (FNV-1a), so that a failure repeats.
fn seed(title: &str) -> Seed {
    Seed(
        title.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)),
    )
}

struct Step {
    line: usize,
    title: String,
    body: String,
}

/// What is above the first step, and the steps.
fn steps(text: &str) -> (&str, Vec<Step>) {
    let start = if text.starts_with("== ") { 0 } else { text.find("\n== ").expect("a story has steps") + 1 };
    let mut steps: Vec<Step> = Vec::new();
    let before = text[..start].lines().count();
    for (number, line) in text[start..].lines().enumerate() {
        if let Some(title) = line.strip_prefix("== ") {
            steps.push(Step { line: before + number + 1, title: title.trim().to_owned(), body: String::new() });
        } else {
            writeln!(steps.last_mut().expect("the first line is a step").body, "{line}").unwrap();
        }
    }
    (&text[..start], steps)
}

fn written(preface: &str, steps: &[Step]) -> String {
    let steps: Vec<String> = steps.iter().map(|step| format!("== {}\n{}", step.title, step.body.trim_end())).collect();
    let steps: Vec<&str> = steps.iter().map(|step| step.trim_end()).collect();
    format!("{preface}{}\n", steps.join("\n\n"))
}

struct Story {
    converger: Converger<MemoryStore>,
    capacity: Capacity,
    seed: Seed,
    objects: Vec<Object>,
    problems: Vec<String>,
    /// Writes at the last `expect`.
    writes: u64,
}

impl Story {
    fn new(seed: Seed) -> Self {
        let this = ThisNode {
            name: OWN_NODE.into(),
            own_addresses: vec!["192.0.2.1".parse().unwrap()],
            fallback_addresses: vec!["192.0.2.1".parse().unwrap()],
            ..ThisNode::default()
        };
        let capacity = Capacity::LIMIT;
        let failures = Failures::Percent { seed, percent: FAILING_PERCENT };
        let converger = Converger::new(MemoryStore::growing(capacity).failing(failures), this);
        Self { converger, capacity, seed, objects: Vec::new(), problems: Vec::new(), writes: 0 }
    }

    fn play(&mut self, step: &mut Step) -> Result<(), String> {
        match step.title.as_str() {
            "list" => self.list(objects(&step.body)?),
            "apply" => objects(&step.body)?.into_iter().for_each(|object| self.apply(object)),
            "delete" => step.body.lines().filter(|line| !line.is_empty()).for_each(|line| self.delete(line)),
            "this node" => self.set_node(yaml(&step.body)?),
            "capacity" => self.set_capacity(&yaml(&step.body)?),
            "restart" => {
                self.restart();
                self.list(self.objects.clone());
            }
            "restart without lists" => self.restart(),
            expectation => return self.expect(expectation, &mut step.body),
        }
        Ok(())
    }

    fn tell(&mut self, change: Change) {
        self.problems.extend(self.converger.apply(change).iter().map(ToString::to_string));
    }

    fn list(&mut self, objects: Vec<Object>) {
        self.tell(Change::Service(Event::Reset(objects.iter().filter_map(Object::service).collect())));
        self.tell(Change::EndpointSlice(Event::Reset(objects.iter().filter_map(Object::slice).collect())));
        self.tell(Change::Node(Event::Reset(objects.iter().filter_map(Object::own_node).collect())));
        self.tell(Change::OtherNode(Event::Reset(objects.iter().filter_map(Object::other_node).collect())));
        self.tell(Change::ServiceCidr(Event::Reset(objects.iter().filter_map(Object::cidr).collect())));
        self.objects = objects;
    }

    fn apply(&mut self, object: Object) {
        self.objects.retain(|other| other.title() != object.title());
        self.objects.push(object.clone());
        self.tell(object.applied());
    }

    fn delete(&mut self, title: &str) {
        self.objects.retain(|other| other.title() != title);
        let (kind, path) = title.split_once(' ').expect("kind and name");
        let (namespace, name) = path.split_once('/').unwrap_or(("", path));
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        self.tell(match kind {
            "Service" => Change::Service(Event::Delete { namespace, name }),
            "EndpointSlice" => Change::EndpointSlice(Event::Delete { namespace, name }),
            "Node" if name == OWN_NODE => Change::Node(Event::Delete { namespace, name }),
            "Node" => Change::OtherNode(Event::Delete { namespace, name }),
            "ServiceCIDR" => Change::ServiceCidr(Event::Delete { namespace, name }),
            other => panic!("no kind {other}"),
        });
    }

    fn set_node(&mut self, told: NodeStep) {
        let mut this = self.converger.node().clone();
        told.change(&mut this);
        self.converger.set_node(this);
    }

    /// Comes first: tables that became larger before would stay so.
    fn set_capacity(&mut self, told: &CapacityStep) {
        self.capacity.services = told.services.unwrap_or(self.capacity.services);
        self.capacity.backends = told.backends.unwrap_or(self.capacity.backends);
        self.start(MemoryStore::growing(self.capacity));
    }

    /// A new process: nothing is left but the tables.
    fn restart(&mut self) {
        self.start(self.converger.store().clone().reopened(self.capacity));
    }

    fn start(&mut self, store: MemoryStore) {
        let failures = Failures::Percent { seed: self.seed, percent: FAILING_PERCENT };
        self.converger = Converger::new(store.failing(failures), self.converger.node().clone());
        self.problems.clear();
        self.writes = 0;
    }

    /// Converges, then compares; `body` becomes what is true.
    fn expect(&mut self, expectation: &str, body: &mut String) -> Result<(), String> {
        self.settle()?;
        let writes =
            self.converger.store().writes() - std::mem::replace(&mut self.writes, self.converger.store().writes());
        let is_about_node = |fact: &String| NODE_FACTS.iter().any(|kind| fact.starts_with(kind));
        let facts = facts(&self.converger.store().snapshot());
        let (node_facts, service_facts): (Vec<_>, Vec<_>) = facts.into_iter().partition(is_about_node);
        let got = match expectation {
            "expect" => service_facts,
            "expect node" => node_facts,
            "expect problems" => std::mem::take(&mut self.problems),
            "expect full" => self.full(),
            "expect no writes" if writes == 0 => Vec::new(),
            "expect no writes" => return Err(format!("{writes} writes")),
            other => return Err(format!("no step is called {other:?}")),
        };
        let got = got.join("\n");
        let expected = std::mem::replace(body, format!("{got}\n"));
        if expected.trim() == got { Ok(()) } else { Err(format!("expected\n{}\n\ngot\n{got}\n", expected.trim())) }
    }

    fn settle(&mut self) -> Result<(), String> {
        let mut last = String::new();
        for _ in 0..MOST_TRIES {
            let step = self.converger.converge().map(|report| {
                self.problems.extend(report.claims.iter().map(ToString::to_string));
            });
            match step.and_then(|()| self.converger.tidy()) {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
        }
        Err(format!("still failing after {MOST_TRIES} tries: {last}"))
    }

    fn full(&self) -> Vec<String> {
        let full = self.converger.ledger().into_iter().flat_map(Ledger::full);
        full.map(|(port, full)| format!("{}: {full}", port.service)).collect()
    }
}

const NODE_FACTS: [&str; 4] = ["ADDRESS", "SERVICE-CIDR", "DETECTOR", "UDP-TIMEOUT"];

/// What changes about this host.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeStep {
    name: Option<String>,
    addresses: Option<Vec<IpAddr>>,
    node_port_addresses: Option<Vec<String>>,
    cluster_cidrs: Option<Vec<String>>,
    external_ip_policy: Option<String>,
}

impl NodeStep {
    fn change(self, this: &mut ThisNode) {
        if let Some(name) = self.name {
            this.name = name.into();
        }
        if let Some(addresses) = self.addresses {
            this.fallback_addresses.clone_from(&addresses);
            this.own_addresses = addresses;
        }
        let parse = |ranges: &[String]| ranges.iter().map(|range| range.parse().expect("a CIDR")).collect();
        if let Some(ranges) = self.node_port_addresses {
            this.node_port_addresses = match ranges.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["primary"] => NodePortAddresses::Primary,
                ["all"] => NodePortAddresses::All,
                _ => NodePortAddresses::Within { ranges: parse(&ranges), other_family_is_all: false },
            };
        }
        if let Some(policy) = self.external_ip_policy {
            this.external_ips = match policy.as_str() {
                "Restricted" => ExternalIps::Restricted,
                other => panic!("no policy {other}"),
            };
        }
        if let Some(ranges) = self.cluster_cidrs {
            this.detector = Detector::ClusterCidr(parse(&ranges));
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CapacityStep {
    services: Option<u32>,
    backends: Option<u32>,
}

#[derive(Clone)]
#[expect(clippy::large_enum_variant, reason = "a story has a handful of objects")]
enum Object {
    Service(Service),
    EndpointSlice(EndpointSlice),
    Node(Node),
    ServiceCidr(ServiceCidr),
}

impl Object {
    fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            kind: String,
        }
        let kind = yaml::<Head>(text)?.kind;
        Ok(match kind.as_str() {
            "Service" => {
                let mut service: Service = yaml(text)?;
                service.fill_in_defaults();
                Self::Service(service)
            }
            "EndpointSlice" => {
                let mut slice: EndpointSlice = yaml(text)?;
                slice.fill_in_defaults();
                Self::EndpointSlice(slice)
            }
            "Node" => Self::Node(yaml(text)?),
            "ServiceCIDR" => Self::ServiceCidr(yaml(text)?),
            other => return Err(format!("no kind {other}")),
        })
    }

    fn title(&self) -> String {
        let title = |kind, metadata: &Metadata| match metadata.namespace.as_str() {
            "" => format!("{kind} {}", metadata.name),
            namespace => format!("{kind} {namespace}/{}", metadata.name),
        };
        match self {
            Self::Service(object) => title("Service", &object.metadata),
            Self::EndpointSlice(object) => title("EndpointSlice", &object.metadata),
            Self::Node(object) => title("Node", &object.metadata),
            Self::ServiceCidr(object) => title("ServiceCIDR", &object.metadata),
        }
    }

    fn applied(self) -> Change {
        match self {
            Self::Service(object) => Change::Service(Event::Apply(object)),
            Self::EndpointSlice(object) => Change::EndpointSlice(Event::Apply(object)),
            Self::Node(object) if object.metadata.name == OWN_NODE => Change::Node(Event::Apply(object)),
            Self::Node(object) => Change::OtherNode(Event::Apply(OtherNode(object))),
            Self::ServiceCidr(object) => Change::ServiceCidr(Event::Apply(object)),
        }
    }

    fn service(&self) -> Option<Service> {
        if let Self::Service(object) = self { Some(object.clone()) } else { None }
    }

    fn slice(&self) -> Option<EndpointSlice> {
        if let Self::EndpointSlice(object) = self { Some(object.clone()) } else { None }
    }

    fn own_node(&self) -> Option<Node> {
        self.node().filter(|node| node.metadata.name == OWN_NODE).cloned()
    }

    fn other_node(&self) -> Option<OtherNode> {
        self.node().filter(|node| node.metadata.name != OWN_NODE).cloned().map(OtherNode)
    }

    fn node(&self) -> Option<&Node> {
        if let Self::Node(object) = self { Some(object) } else { None }
    }

    fn cidr(&self) -> Option<ServiceCidr> {
        if let Self::ServiceCidr(object) = self { Some(object.clone()) } else { None }
    }
}

fn objects(text: &str) -> Result<Vec<Object>, String> {
    text.split("---\n").filter(|document| !document.trim().is_empty()).map(Object::parse).collect()
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| format!("{error}\n{text}"))
}
