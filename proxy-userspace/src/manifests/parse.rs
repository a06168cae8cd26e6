//! The text of one manifest file to objects.
//!
//! In: YAML or JSON, any number of documents. Out: the [`Objects`] in it, or the first thing that is wrong with file, line
//! and way out. A file is taken whole or not at all.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::{Options, Spanned};
use tracing::warn;

use super::fields;
use crate::model::objects::{EndpointSlice, Metadata, Node, OtherNode, Service, ServiceCidr, ServicePort, ServiceSpec};

/// What a file (or all of them together) says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Objects {
    pub(super) services: Vec<Service>,
    pub(super) slices: Vec<EndpointSlice>,
    pub(super) nodes: Vec<Node>,
    /// Told from this node's own when everything is there.
    pub(super) other_nodes: Vec<OtherNode>,
    pub(super) service_cidrs: Vec<ServiceCidr>,
}

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", position(.path, *.line))]
pub struct FileError {
    pub path: PathBuf,
    /// 0 when it is about the file as a whole.
    pub line: u64,
    pub reason: String,
}

fn position(path: &Path, line: u64) -> String {
    if line == 0 { path.display().to_string() } else { format!("{}:{line}", path.display()) }
}

/// A line (from 1) and what is wrong there.
type Wrong = (u64, String);

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Objects, FileError> {
    let at = |(line, reason)| FileError { path: path.to_owned(), line, reason };
    let text = std::str::from_utf8(bytes).map_err(|error| at(not_utf8(bytes, error.valid_up_to())))?;
    let mut objects = Objects::default();
    for document in documents(text.trim_start_matches('\u{feff}')) {
        document.read_into(&mut objects, path).map_err(at)?;
    }
    Ok(objects)
}

fn not_utf8(bytes: &[u8], valid: usize) -> Wrong {
    let line = bytes[..valid].split(|byte| *byte == b'\n').count() as u64;
    (line, "not UTF-8; save the file in that encoding".to_owned())
}

/// One YAML document and how many lines of the file are before it.
struct Document<'a> {
    text: &'a str,
    before: u64,
}

/// Cuts at lines that begin with `---`, which YAML reserves for that.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let (mut start, mut before, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker {
            found.push(Document { text: &text[start..offset], before });
            (start, before) = (offset, number as u64);
        }
        offset += line.len();
    }
    found.push(Document { text: &text[start..], before });
    found
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    kind: Option<String>,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Spanned<serde_json::Value>>,
}

impl Document<'_> {
    fn read_into(&self, objects: &mut Objects, path: &Path) -> Result<(), Wrong> {
        let Some(head) = self.decode::<Head>()? else { return Ok(()) };
        let Some(kind) = head.kind else {
            return Err((self.first_line(), "the object has no kind; write apiVersion and kind".to_owned()));
        };
        match kind.as_str() {
            "Service" => self.object(path, &kind, &mut objects.services),
            "EndpointSlice" => self.object(path, &kind, &mut objects.slices),
            "Node" => self.object(path, &kind, &mut objects.nodes),
            "ServiceCIDR" => self.object(path, &kind, &mut objects.service_cidrs),
            "List" | "ServiceList" | "EndpointSliceList" | "NodeList" | "ServiceCIDRList" => {
                self.list(&kind, objects, path)
            }
            _ => {
                skip(path, self.first_line(), &kind);
                Ok(())
            }
        }
    }

    fn object<T: DeserializeOwned + Manifest>(&self, path: &Path, kind: &str, into: &mut Vec<T>) -> Result<(), Wrong> {
        if let Some(object) = self.decode::<T>()? {
            if let Some(content) = self.decode()? {
                warn_of_unknown_fields(path, self.first_line(), kind, &content);
            }
            into.push(object.complete().map_err(|reason| (self.first_line(), reason))?);
        }
        Ok(())
    }

    fn list(&self, list: &str, objects: &mut Objects, path: &Path) -> Result<(), Wrong> {
        // `kubectl get -o json` repeats the kind in every item, an API server's own lists do not.
        let implied = list.strip_suffix("List").filter(|kind| !kind.is_empty());
        for item in self.decode::<List>()?.map(|list| list.items).unwrap_or_default() {
            let line = item.referenced.line() + self.before;
            let kind = item.value.get("kind").and_then(|kind| kind.as_str()).or(implied).unwrap_or_default().to_owned();
            warn_of_unknown_fields(path, line, &kind, &item.value);
            match kind.as_str() {
                "Service" => push(item.value, &mut objects.services),
                "EndpointSlice" => push(item.value, &mut objects.slices),
                "Node" => push(item.value, &mut objects.nodes),
                "ServiceCIDR" => push(item.value, &mut objects.service_cidrs),
                "" => Err("the item has no kind; write apiVersion and kind".to_owned()),
                _ => {
                    skip(path, line, &kind);
                    Ok(())
                }
            }
            .map_err(|reason| (line, reason))?;
        }
        Ok(())
    }

    /// `None` for an empty document.
    fn decode<T: DeserializeOwned>(&self) -> Result<Option<T>, Wrong> {
        serde_saphyr::from_str_with_options(self.text, options()).map_err(|error| self.explain(&error))
    }

    fn explain(&self, error: &serde_saphyr::Error) -> Wrong {
        let message = error.to_string();
        // The position goes in front, and counts from the start of the file; advice to programmers helps nobody here.
        let reason = message.split(" at line ").next().unwrap_or(&message);
        let reason = reason.split(", set ").next().unwrap_or(reason).to_owned();
        let Some(line) = error.location().map(|location| location.line()).filter(|line| *line > 0) else {
            return (self.first_line(), reason);
        };
        let source = self.text.lines().nth(line as usize - 1).unwrap_or_default().trim();
        let source: String = source.chars().take(60).collect();
        (line + self.before, format!("{reason}, in `{source}`"))
    }

    /// Where the content starts.
    fn first_line(&self) -> u64 {
        let content = |line: &str| !line.trim().is_empty() && !line.starts_with("---") && !line.starts_with('#');
        self.before + self.text.lines().position(content).unwrap_or(0) as u64 + 1
    }
}

fn push<T: DeserializeOwned + Manifest>(value: serde_json::Value, into: &mut Vec<T>) -> Result<(), String> {
    let object = T::deserialize(value).map_err(|error| error.to_string())?;
    into.push(object.complete()?);
    Ok(())
}

fn warn_of_unknown_fields(path: &Path, line: u64, kind: &str, content: &serde_json::Value) {
    let name = content["metadata"]["name"].as_str().unwrap_or_default();
    for problem in fields::unknown(kind, content) {
        warn!("{}:{line}: {kind} {name}: {problem}", path.display());
    }
}

fn skip(path: &Path, line: u64, kind: &str) {
    warn!("{}:{line}: kind {kind} is none of Service, EndpointSlice, Node, ServiceCIDR; skipped", path.display());
}

/// A file of the size we accept may hold many nodes, but nesting and aliases that multiply are attacks or accidents.
fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_events: 8_000_000,
            max_nodes: 4_000_000,
            max_recorded_anchor_events: 100_000,
        },
    }
}

/// What an API server would have filled in or insisted on.
trait Manifest: Sized {
    fn complete(self) -> Result<Self, String>;
}

impl Manifest for Service {
    fn complete(mut self) -> Result<Self, String> {
        named(&self.metadata, "Service")?;
        self.fill_in_defaults();
        let kind = self.spec.kind.as_deref().unwrap_or("ClusterIP");
        let name = format!("Service {}/{}", self.metadata.namespace, self.metadata.name);
        let address = self.spec.cluster_ip.as_deref().or(self.spec.cluster_ips.first().map(String::as_str));
        if kind != "ExternalName" && address.is_none_or(str::is_empty) {
            return Err(format!(
                "{name} has no address: only an API server allocates clusterIP; write spec.clusterIP (None for a headless Service)"
            ));
        }
        if let Some(way_out) = self.spec.without_node_ports() {
            let unset = self.spec.ports.iter().find(|port| port.node_port.unwrap_or(0) == 0);
            if let Some(ServicePort { port, .. }) = unset {
                return Err(format!(
                    "{name} port {port} has no nodePort: only an API server allocates it; write nodePort, or {way_out}"
                ));
            }
        }
        if self.spec.cluster_ip.is_none() {
            self.spec.cluster_ip = self.spec.cluster_ips.first().cloned();
        }
        Ok(self)
    }
}

impl ServiceSpec {
    /// What to write in order not to need node ports; `None` when none are needed.
    fn without_node_ports(&self) -> Option<&'static str> {
        match self.kind.as_deref()? {
            "NodePort" => Some("type: ClusterIP"),
            "LoadBalancer" if self.allocate_load_balancer_node_ports != Some(false) => {
                Some("allocateLoadBalancerNodePorts: false")
            }
            _ => None,
        }
    }
}

impl Manifest for EndpointSlice {
    fn complete(mut self) -> Result<Self, String> {
        named(&self.metadata, "EndpointSlice")?;
        self.fill_in_defaults();
        if !self.metadata.labels.contains_key(SERVICE_NAME) {
            return Err(format!(
                "EndpointSlice {}/{} belongs to no Service; write the label {SERVICE_NAME}: NAME",
                self.metadata.namespace, self.metadata.name
            ));
        }
        if self.endpoints.len() > 1_000 {
            return Err(format!(
                "EndpointSlice {}/{} has {} endpoints, an API server accepts 1000; split it",
                self.metadata.namespace,
                self.metadata.name,
                self.endpoints.len()
            ));
        }
        Ok(self)
    }
}

impl Manifest for Node {
    fn complete(self) -> Result<Self, String> {
        named(&self.metadata, "Node").map(|()| self)
    }
}

impl Manifest for ServiceCidr {
    fn complete(self) -> Result<Self, String> {
        named(&self.metadata, "ServiceCIDR").map(|()| self)
    }
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";

fn named(metadata: &Metadata, kind: &str) -> Result<(), String> {
    if metadata.name.is_empty() { Err(format!("the {kind} has no name; write metadata.name")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Objects, String> {
        parse(Path::new("web.yaml"), text.as_bytes()).map_err(|error| error.to_string())
    }

    const SERVICE: &str =
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: 10.0.0.1\n  ports:\n  - port: 80\n";

    #[test]
    fn several_documents_of_several_kinds_in_one_file() {
        let text = format!(
            "# a comment\n---\n{SERVICE}---\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  labels: {{kubernetes.io/service-name: web}}\n\
             addressType: IPv4\nendpoints:\n- addresses: [10.1.0.1]\nports: [{{port: 80}}]\n---\n\n---\nkind: Node\nmetadata: {{name: a}}\n---\n\
             kind: ServiceCIDR\nmetadata: {{name: all}}\nspec: {{cidrs: [10.0.0.0/16]}}\n---\nkind: ConfigMap\ndata: {{a: b}}\n"
        );
        let objects = parsed(&text).unwrap();
        assert_eq!(objects.services[0].metadata.namespace, "default");
        assert_eq!(objects.slices[0].endpoints[0].addresses, ["10.1.0.1"]);
        assert_eq!(objects.slices[0].ports[0].name.as_deref(), Some(""));
        assert_eq!(objects.nodes[0].metadata.name, "a");
        assert_eq!(objects.service_cidrs[0].spec.cidrs, ["10.0.0.0/16"]);
    }

    #[test]
    fn json_and_lists_are_fine() {
        let text = r#"{"kind": "List", "items": [
            {"kind": "Service", "metadata": {"name": "a"}, "spec": {"clusterIP": "None"}},
            {"kind": "Pod", "metadata": {"name": "b"}}
        ]}"#;
        assert_eq!(parsed(text).unwrap().services.len(), 1);
        let text =
            r#"{"kind": "ServiceList", "items": [{"metadata": {"name": "a"}, "spec": {"clusterIPs": ["fd00::1"]}}]}"#;
        assert_eq!(parsed(text).unwrap().services[0].spec.cluster_ip.as_deref(), Some("fd00::1"));
    }

    #[test]
    fn a_load_balancer_may_do_without_node_ports() {
        let spec =
            "{type: LoadBalancer, allocateLoadBalancerNodePorts: false, clusterIP: 10.0.0.1, ports: [{port: 80}]}";
        assert_eq!(
            parsed(&format!("kind: Service\nmetadata: {{name: web}}\nspec: {spec}\n")).unwrap().services.len(),
            1
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_the_way_out() {
        let bomb = format!("a: &a [x, x, x]\n{}kind: *a\n", (b'b'..=b'z').map(bomb_line).collect::<String>());
        let deep = format!("kind: {}", "[".repeat(100));
        for (text, message) in [
            ("kind: Service\nspec:\n  ports:\n  - port: http\n", "web.yaml:4: invalid i32, in `- port: http`"),
            (
                "\n---\nkind: Node\nmetadata: {name: a}\n---\nkind: [\n",
                "web.yaml:6: expected string scalar, in `kind: [`",
            ),
            ("kind: Service\nkind: Node\n", "web.yaml:2: duplicate mapping key: kind, in `kind: Node`"),
            ("- a\n", "web.yaml:1: expected mapping start, in `- a`"),
            ("\n# x\nmetadata: {}\n", "web.yaml:3: the object has no kind; write apiVersion and kind"),
            ("kind: Service\nspec: {clusterIP: None}\n", "web.yaml:1: the Service has no name; write metadata.name"),
            (
                "kind: Service\nmetadata: {name: web}\n",
                "web.yaml:1: Service default/web has no address: only an API server allocates clusterIP; write spec.clusterIP \
                 (None for a headless Service)",
            ),
            (
                "kind: Service\nmetadata: {name: web}\nspec: {type: NodePort, clusterIP: 10.0.0.1, ports: [{port: 80}]}\n",
                "web.yaml:1: Service default/web port 80 has no nodePort: only an API server allocates it; write nodePort, or type: \
                 ClusterIP",
            ),
            (
                "kind: Service\nmetadata: {name: web}\nspec: {type: LoadBalancer, clusterIP: 10.0.0.1, ports: [{port: 80}]}\n",
                "web.yaml:1: Service default/web port 80 has no nodePort: only an API server allocates it; write nodePort, or \
                 allocateLoadBalancerNodePorts: false",
            ),
            (
                "---\nkind: EndpointSlice\nmetadata: {name: web-1}\n",
                "web.yaml:2: EndpointSlice default/web-1 belongs to no Service; write the label kubernetes.io/service-name: NAME",
            ),
            (
                "kind: List\nitems:\n- kind: Node\n  metadata: {name: a}\n- metadata: {}\n",
                "web.yaml:5: the item has no kind; write apiVersion and kind",
            ),
            (&bomb, ""),
            (&deep, ""),
        ] {
            let said = parsed(text).unwrap_err();
            if message.is_empty() {
                assert!(said.starts_with("web.yaml:"), "{said}");
            } else {
                assert_eq!(said, message);
            }
        }
    }

    /// `b: &b [*a, *a, ...]`: each line ten times the one before.
    fn bomb_line(letter: u8) -> String {
        let (this, before) = (char::from(letter), char::from(letter - 1));
        format!("{this}: &{this} [{}]\n", vec![format!("*{before}"); 10].join(", "))
    }

    #[test]
    fn another_encoding_is_named_with_its_line() {
        let error = parse(Path::new("web.yaml"), b"kind: Node\nmetadata: {name: caf\xe9}\n").unwrap_err();
        assert_eq!(error.to_string(), "web.yaml:2: not UTF-8; save the file in that encoding");
    }

    #[test]
    fn a_slice_may_have_a_thousand_endpoints_and_no_more() {
        let slice = |count: usize| {
            let endpoints = "- addresses: [10.1.0.1]\n".repeat(count);
            format!(
                "kind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: web}}}}\nendpoints:\n{endpoints}"
            )
        };
        assert_eq!(parsed(&slice(1_000)).unwrap().slices[0].endpoints.len(), 1_000);
        assert_eq!(
            parsed(&slice(1_001)).unwrap_err(),
            "web.yaml:1: EndpointSlice default/s has 1001 endpoints, an API server accepts 1000; split it"
        );
    }
}
