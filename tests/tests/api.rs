//! Services of a real API server: slices made by its own controllers, names from a real CoreDNS, and restarts of
//! everything under counted load (issue section 5.3).

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use proxy_common::addr::Addr;
use proxy_tests::agent::Agent;
use proxy_tests::apiserver::{self, ControlPlane, node_object, pod_object, pod_status};
use proxy_tests::edge::counters;
use proxy_tests::kube_proxy::{KubeProxy, Mode};
use proxy_tests::node::{Node, Place, Pod};
use proxy_tests::probe::{Client, Kind, Load, Server, Traffic};
use proxy_tests::process::probe_binary;
use proxy_tests::stage::at;
use proxy_tests::world::World;
use serde_json::{Value, json};

/// Where every backend listens.
const PORT: u16 = 8080;
/// Controllers and watches back off for up to half a minute when the API server was away.
const PATIENCE: Duration = Duration::from_mins(1);
/// The usual address of the cluster's DNS, and the API server as pods see it.
const DNS: &str = "10.96.0.10:53";
const API_SERVICE: &str = "https://10.96.0.1:443";

/// Waits for a condition that controllers bring about in their own time.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "it never came about: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A control plane and one node that it knows.
fn cluster(world: &World) -> (ControlPlane, Node) {
    let node = world.node("one").unwrap();
    let plane = ControlPlane::start(world).unwrap();
    plane.apply(&node_object(&node)).unwrap();
    (plane, node)
}

fn service(name: &str, selector: Option<&str>) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [
                { "name": "main", "port": 80, "targetPort": PORT, "protocol": "TCP" },
                { "name": "datagrams", "port": 80, "targetPort": PORT, "protocol": "UDP" },
            ],
        },
    });
    if let Some(app) = selector {
        service["spec"]["selector"] = json!({ "app": app });
    }
    service
}

/// A pod that answers with its name, known to the API server.
fn backend(plane: &ControlPlane, node: &Node, name: &str, app: &str) -> (Pod, Server) {
    let pod = node.pod(name).unwrap();
    let server = Server::start(&pod.place, name, &at(&pod, PORT)).unwrap();
    plane.apply(&pod_object(&pod, app, PORT)).unwrap();
    (pod, server)
}

/// The addresses that the API server gave a Service, on port 80.
fn cluster_ips(plane: &ControlPlane, service: &Value) -> Vec<SocketAddr> {
    let stored = plane.get(service).unwrap();
    let addresses: Vec<IpAddr> = serde_json::from_value(stored["spec"]["clusterIPs"].clone()).unwrap();
    addresses.into_iter().map(|address| SocketAddr::new(address, 80)).collect()
}

/// Who answers at `to`, asked often enough to meet everybody.
fn answering(client: &Client, to: SocketAddr) -> BTreeSet<String> {
    (0..24).filter_map(|_| client.dial(Kind::Tcp, to).ok()).map(|answer| answer.by).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn pods_come_and_go_and_the_service_follows_in_both_families() {
    let world = World::new().unwrap();
    let (plane, node) = cluster(&world);
    let client = Client::start(&node.pod("client").unwrap().place).unwrap();
    let web = service("web", Some("web"));
    plane.apply(&web).unwrap();
    let (first, _first) = backend(&plane, &node, "first", "web");
    let (_, _second) = backend(&plane, &node, "second", "web");
    let _agent = Agent::follow(&node, &plane.kubeconfig().unwrap()).unwrap();

    let addresses = cluster_ips(&plane, &web);
    assert_eq!(addresses.len(), 2, "one address per family: {addresses:?}");
    for to in &addresses {
        until("both pods answer", || answering(&client, *to) == names(&["first", "second"]));
    }

    let object = pod_object(&first, "web", PORT);
    plane.patch_status(&object, &pod_status(&first, false)).unwrap();
    for to in &addresses {
        until("a pod that is not ready gets no connections", || answering(&client, *to) == names(&["second"]));
    }

    plane.delete(&object).unwrap();
    let (_, _third) = backend(&plane, &node, "third", "web");
    for to in &addresses {
        until("the new pod answers", || answering(&client, *to) == names(&["second", "third"]));
    }

    plane.delete(&web).unwrap();
    for to in &addresses {
        until("nobody answers for a Service that is gone", || client.dial(Kind::Tcp, *to).is_err());
    }
}

/// What was told about `ip` of a Service.
fn event_about(plane: &ControlPlane, service: &Value, ip: IpAddr) -> Option<Value> {
    event(plane, service, &Addr::from(ip).octets().map(|octet| format!("{octet:02x}")).concat())
}

/// What was told about an object, under this key.
fn event(plane: &ControlPlane, object: &Value, key: &str) -> Option<Value> {
    let metadata = plane.get(object).unwrap()["metadata"].clone();
    let [name, uid] = ["name", "uid"].map(|field| metadata[field].as_str().unwrap().to_owned());
    let metadata = json!({ "name": format!("{name}.{uid}.{key}"), "namespace": "default" });
    plane.get(&json!({ "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": metadata })).ok()
}

/// An API server takes none of these as an endpoint or an externalIP, but what a load balancer says it does not look at.
#[test]
fn an_address_that_nobody_may_name_is_not_served_and_told_in_an_event() {
    const METADATA: &str = "169.254.169.254";
    let world = World::new().unwrap();
    let (plane, node) = cluster(&world);
    let host = node.host().unwrap();
    node.netns.ip(&[format!("addr add {METADATA}/32 dev lo")]).unwrap();
    let to = SocketAddr::new(METADATA.parse().unwrap(), 80);
    let _server = Server::start(&host, "metadata", &[to]).unwrap();
    let (_, _evil) = backend(&plane, &node, "evil", "evil");
    let mut evil = service("evil", Some("evil"));
    evil["spec"]["type"] = json!("LoadBalancer");
    evil["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": METADATA }, { "ip": "203.0.113.80" }] } });
    plane.apply(&evil).unwrap();
    let _agent = Agent::follow(&node, &plane.kubeconfig().unwrap()).unwrap();
    let client = Client::start(&host).unwrap();
    let other = "203.0.113.80:80".parse().unwrap();
    until("the other address is served", || answering(&client, other) == names(&["evil"]));
    assert_eq!(client.dial(Kind::Tcp, to).unwrap().by, "metadata");
    until("it is told", || event(&plane, &evil, "refused").is_some());
    let event = event(&plane, &evil, "refused").unwrap();
    assert_eq!([&event["reason"], &event["regarding"]["name"]], ["RefusedAddress", "evil"]);
    assert!(
        event["note"].as_str().unwrap().contains(&format!("served at {METADATA}: loopback, link-local")),
        "{event}"
    );
    assert_eq!(counters(&node).unwrap()["address_refused"], 1);
}

#[test]
fn an_external_ip_that_is_somebody_elses_is_told_in_an_event_once_and_counted() {
    let world = World::new().unwrap();
    let (plane, node) = cluster(&world);
    let kubeconfig = plane.kubeconfig().unwrap();
    let mut web = service("web", None);
    web["spec"]["externalIPs"] = json!([node.v4, "203.0.113.5"]);
    plane.apply(&web).unwrap();
    let about = web.clone();
    let event_about = |ip: IpAddr| event_about(&plane, &about, ip);
    let told = || counters(&node).unwrap()["external_ip_claimed"];

    let mut agent = Agent::follow(&node, &kubeconfig).unwrap();
    until("the claim is told", || event_about(node.v4.into()).is_some());
    let event = event_about(node.v4.into()).unwrap();
    let note =
        format!("externalIPs {} is an address of a node: --external-ip-policy=Restricted would refuse it", node.v4);
    let said = ["type", "reason", "note", "reportingController", "reportingInstance"].map(|field| event[field].clone());
    assert_eq!(said, ["Warning", "ClaimedExternalIP", &note, "sluice", "one"]);
    let uid = &plane.get(&web).unwrap()["metadata"]["uid"];
    let about = json!({ "apiVersion": "v1", "kind": "Service", "namespace": "default", "name": "web", "uid": uid });
    assert_eq!(event["regarding"], about);
    assert_eq!(told(), 1, "the other address is nobody's");

    web["spec"]["externalIPs"] = json!([node.v4, node.v6]);
    plane.apply(&web).unwrap();
    until("another claim is told", || event_about(node.v6.into()).is_some());
    assert_eq!(told(), 2, "not the first one again");

    agent.end_with(Signal::SIGKILL).unwrap();
    let _agent = Agent::follow(&node, &kubeconfig).unwrap();
    until("the next agent finds both", || told() == 4);
    // Its Events are there: what it tells about a third one comes after them.
    web["spec"]["externalIPs"] = json!([node.v4, node.v6, "10.96.0.1"]);
    plane.apply(&web).unwrap();
    until("a third claim is told", || event_about("10.96.0.1".parse().unwrap()).is_some());
    assert_eq!(event_about(node.v4.into()).unwrap(), event, "it is as it was");
}

#[test]
fn what_another_node_has_is_refused_as_an_external_ip_where_they_are_restricted_until_that_node_is_gone() {
    let world = World::new().unwrap();
    let (plane, node) = cluster(&world);
    let other = world.node("two").unwrap();
    let mut object = node_object(&other);
    object["spec"] = json!({ "podCIDR": "10.77.2.0/24", "podCIDRs": ["10.77.2.0/24", "fd00:77:2::/64"] });
    plane.apply(&object).unwrap();
    let client = Client::start(&node.pod("client").unwrap().place).unwrap();
    let (_, _evil) = backend(&plane, &node, "evil", "evil");
    let at_other = [IpAddr::from(other.v4), other.v6.into()];
    let to = at_other.map(|ip| SocketAddr::new(ip, 80));
    let _server = Server::start(&other.host().unwrap(), "two", &to).unwrap();
    let pods: [IpAddr; 2] = ["10.77.2.9", "fd00:77:2::9"].map(|ip| ip.parse().unwrap());
    let mut evil = service("evil", Some("evil"));
    evil["spec"]["externalIPs"] = json!([at_other, pods].concat());
    plane.apply(&evil).unwrap();
    let answer = |to: SocketAddr| client.dial(Kind::Tcp, to).map(|answer| answer.by);
    let start = |more: &[&str]| {
        let agent = Agent::start_following(&node, &plane.kubeconfig().unwrap(), more).unwrap();
        agent.logged("programmed ").unwrap();
        agent
    };
    let told = |ip: &IpAddr| event_about(&plane, &evil, *ip);

    let mut agent = start(&[]);
    for to in to {
        until("the Service takes what is the other node's", || answer(to) == Ok("evil".to_owned()));
    }
    assert_eq!(told(&at_other[0]), None, "nothing is known of the other node");
    agent.end_with(Signal::SIGTERM).unwrap();

    let _agent = start(&["--external-ip-policy=Restricted"]);
    // Before its first write: no other answer is ever heard.
    assert_eq!(to.map(answer), [Ok("two".to_owned()), Ok("two".to_owned())]);
    until("each claim is told", || [at_other, pods].concat().iter().all(|ip| told(ip).is_some()));
    let note = |ip: &IpAddr| told(ip).unwrap()["note"].as_str().unwrap().to_owned();
    let refused = "it is not served (--external-ip-policy=Restricted); use an address of its own";
    for ip in &at_other {
        assert_eq!(note(ip), format!("externalIPs {ip} is an address of a node: {refused}"));
    }
    for ip in &pods {
        assert_eq!(note(ip), format!("externalIPs {ip} is in a range of pods: {refused}"));
    }
    assert_eq!(counters(&node).unwrap()["external_ip_claimed"], 4);

    plane.delete(&object).unwrap();
    for to in to {
        until("it is nobody's any more", || answer(to) == Ok("evil".to_owned()));
    }
}

#[test]
fn kube_proxy_serves_the_same_services_beside_us() {
    let world = World::new().unwrap();
    let (plane, one) = cluster(&world);
    let web = service("web", Some("web"));
    plane.apply(&web).unwrap();
    let (_, _server) = backend(&plane, &one, "web-0", "web");
    let to = cluster_ips(&plane, &web)[0];
    for (name, mode) in [("nft", Mode::Nftables), ("legacy", Mode::IptablesLegacy), ("nfipt", Mode::IptablesNft)] {
        let node = world.node(name).unwrap();
        plane.apply(&node_object(&node)).unwrap();
        let mut proxy = KubeProxy::start(&node, mode, &plane.kubeconfig().unwrap()).unwrap();
        proxy.wait_until_programmed(PATIENCE).unwrap();
        let client = Client::start(&node.host().unwrap()).unwrap();
        until(&format!("{mode:?} serves the pod"), || answering(&client, to) == names(&["web-0"]));
    }
}

#[test]
fn services_without_a_selector_follow_their_own_endpoints_and_slices() {
    let world = World::new().unwrap();
    let (plane, node) = cluster(&world);
    let client = Client::start(&node.pod("client").unwrap().place).unwrap();
    let (first, _first) = backend(&plane, &node, "first", "none");
    let (second, _second) = backend(&plane, &node, "second", "none");
    let (mirrored, own) = (service("mirrored", None), service("own", None));
    plane.apply(&mirrored).unwrap();
    plane.apply(&own).unwrap();
    plane
        .apply(&json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": { "name": "mirrored", "namespace": "default" },
            "subsets": [{ "addresses": [{ "ip": first.v4 }], "ports": [{ "name": "main", "port": PORT }] }],
        }))
        .unwrap();
    plane
        .apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
            "metadata": { "name": "own-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "own" } },
            "ports": [{ "name": "main", "port": PORT, "protocol": "TCP" }],
            "endpoints": [{ "addresses": [second.v6], "conditions": { "ready": true } }],
        }))
        .unwrap();
    let _agent = Agent::follow(&node, &plane.kubeconfig().unwrap()).unwrap();

    let to = cluster_ips(&plane, &mirrored)[0];
    until("mirrored Endpoints answer", || answering(&client, to) == names(&["first"]));
    let to = cluster_ips(&plane, &own)[1];
    until("own slices answer", || answering(&client, to) == names(&["second"]));
}

#[test]
fn agent_and_api_server_are_restarted_and_killed_without_a_failed_connection() {
    let world = World::new().unwrap();
    let (mut plane, node) = cluster(&world);
    let client = node.pod("client").unwrap();
    let web = service("web", Some("web"));
    plane.apply(&web).unwrap();
    let (_, _first) = backend(&plane, &node, "first", "web");
    let mut agent = Agent::follow(&node, &plane.kubeconfig().unwrap()).unwrap();
    let to = cluster_ips(&plane, &web)[0];
    let dial = Client::start(&client.place).unwrap();
    until("the Service answers", || dial.dial(Kind::Tcp, to).is_ok());

    let start = |traffic| Load::start(&client.place, traffic, to).unwrap();
    let mut load = start(Traffic::Tcp);
    let datagrams = [Traffic::Udp, Traffic::Datagrams].map(start);
    let mut servers = Vec::new();
    for (signal, name) in [(Signal::SIGTERM, "after-stop"), (Signal::SIGKILL, "after-kill")] {
        agent.end_with(signal).unwrap();
        load.after(100).unwrap();
        servers.push(backend(&plane, &node, name, "web"));
        agent = agent.start_another().unwrap();
        until("the new agent catches up", || load.report().unwrap().by.contains_key(name));
    }
    for (signal, name) in [(Signal::SIGTERM, "api-stopped"), (Signal::SIGKILL, "api-killed")] {
        plane.stop_apiserver(signal).unwrap();
        load.after(100).unwrap();
        plane.start_apiserver().unwrap();
        servers.push(backend(&plane, &node, name, "web"));
        until("the agent follows the new API server", || load.report().unwrap().by.contains_key(name));
    }

    plane.stop_apiserver(Signal::SIGKILL).unwrap();
    agent.end_with(Signal::SIGKILL).unwrap();
    let _agent = agent.start_another().unwrap();
    load.after(500).unwrap();
    for load in [load].into_iter().chain(datagrams) {
        let report = load.stop().unwrap();
        assert_eq!(report.failed, 0, "{report:?}");
    }
}

/// A real CoreDNS in a pod, behind the ClusterIP that resolvers are told. It reaches the API server through Sluice too.
struct CoreDns {
    pod: Pod,
    process: Child,
}

impl CoreDns {
    fn start(plane: &ControlPlane, node: &Node) -> Self {
        let pod = node.pod("coredns").unwrap();
        let kubeconfig = apiserver::kubeconfig_for(API_SERVICE).unwrap();
        let zones = "cluster.local in-addr.arpa ip6.arpa";
        let plugin =
            format!("kubernetes {zones} {{\n kubeconfig {} tests\n pods verified\n ttl 0\n }}", kubeconfig.display());
        fs::write("/run/Corefile", format!(".:53 {{\n errors\n {plugin}\n}}\n")).unwrap();
        plane.apply(&dns_service()).unwrap();
        let mut object = pod_object(&pod, "coredns", 53);
        object["metadata"]["namespace"] = json!("kube-system");
        plane.apply(&object).unwrap();
        let program = apiserver::program("SLUICE_COREDNS").unwrap();
        let process = apiserver::start_logged(&pod.place, &program, &["-conf".into(), "/run/Corefile".into()]).unwrap();
        Self { pod, process }
    }
}

impl Drop for CoreDns {
    fn drop(&mut self) {
        // It ends with the world at the latest.
        let _ = self.process.kill();
        let _ = self.process.wait();
        eprintln!("coredns at {}:\n{}", self.pod.v4, apiserver::log_end("coredns"));
    }
}

fn dns_service() -> Value {
    let port = |protocol: &str| json!({ "name": format!("dns-{protocol}"), "port": 53, "targetPort": 53, "protocol": protocol.to_uppercase() });
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "kube-dns", "namespace": "kube-system" },
        "spec": { "clusterIP": "10.96.0.10", "selector": { "app": "coredns" }, "ports": [port("udp"), port("tcp")] },
    })
}

/// Asks the cluster's DNS from a pod; an error is an empty answer, to be asked again.
fn resolve(place: &Place, transport: &str, record: &str, name: &str) -> Vec<String> {
    let mut command = place.command(probe_binary().unwrap()).unwrap();
    lines(command.args(["resolve", transport, DNS, record, name]))
}

/// What a program of the pod gets from its C library, with the resolv.conf that a kubelet would write.
fn resolve_as_programs_do(place: &Place, name: &str) -> BTreeSet<String> {
    let search = "default.svc.cluster.local svc.cluster.local cluster.local";
    fs::write("/run/resolv.conf", format!("nameserver 10.96.0.10\nsearch {search}\noptions ndots:5\n")).unwrap();
    let mut command = place.command("/usr/bin/unshare").unwrap();
    let script = "mount --bind /run/resolv.conf /etc/resolv.conf && exec getent ahosts \"$0\"";
    let answer = lines(command.args(["--mount", "sh", "-c", script, name]));
    answer.iter().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn lines(command: &mut Command) -> Vec<String> {
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The name under which an address is looked up backwards (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let digits = format!("{:032x}", address.to_bits());
            let backwards: String = digits.chars().rev().flat_map(|digit| [digit, '.']).collect();
            format!("{backwards}ip6.arpa")
        }
    }
}

#[test]
fn coredns_answers_pods_through_its_own_cluster_ip() {
    let world = World::new().unwrap();
    let (plane, node) = cluster(&world);
    let place = node.pod("client").unwrap().place;
    let (web, mut db) = (service("web", Some("web")), service("db", Some("db")));
    db["spec"]["clusterIP"] = json!("None");
    let elsewhere = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "elsewhere", "namespace": "default" },
        "spec": { "type": "ExternalName", "externalName": "service.example.org" },
    });
    for object in [&web, &db, &elsewhere] {
        plane.apply(object).unwrap();
    }
    let (_, _web) = backend(&plane, &node, "web-0", "web");
    let (zero, _zero) = backend(&plane, &node, "db-0", "db");
    let _agent = Agent::follow(&node, &plane.kubeconfig().unwrap()).unwrap();
    let _dns = CoreDns::start(&plane, &node);

    let addresses: Vec<IpAddr> = cluster_ips(&plane, &web).into_iter().map(|address| address.ip()).collect();
    let dashed = zero.v4.to_string().replace('.', "-");
    let [reverse_of_web, reverse_of_web_v6, reverse_of_pod] = [addresses[0], addresses[1], zero.v4.into()].map(reverse);
    let pod_name = format!("{dashed}.default.pod.cluster.local");
    let expected: [(&str, &str, String); 11] = [
        ("A", "web.default.svc.cluster.local", format!("A {}", addresses[0])),
        ("AAAA", "web.default.svc.cluster.local", format!("AAAA {}", addresses[1])),
        ("SRV", "_main._tcp.web.default.svc.cluster.local", "SRV 80 web.default.svc.cluster.local.".into()),
        ("PTR", &reverse_of_web, "PTR web.default.svc.cluster.local.".into()),
        ("PTR", &reverse_of_web_v6, "PTR web.default.svc.cluster.local.".into()),
        ("PTR", &reverse_of_pod, "PTR db-0.db.default.svc.cluster.local.".into()),
        ("A", "db.default.svc.cluster.local", format!("A {}", zero.v4)),
        ("AAAA", "db-0.db.default.svc.cluster.local", format!("AAAA {}", zero.v6)),
        ("SRV", "_main._tcp.db.default.svc.cluster.local", format!("SRV {PORT} db-0.db.default.svc.cluster.local.")),
        ("A", &pod_name, format!("A {}", zero.v4)),
        ("A", "elsewhere.default.svc.cluster.local", "CNAME service.example.org.".into()),
    ];
    for (record, name, answer) in &expected {
        for transport in ["udp", "tcp"] {
            let mut last = Vec::new();
            until(&format!("{record} {name} over {transport} is {answer}"), || {
                last = resolve(&place, transport, record, name);
                last.contains(answer)
            });
        }
    }
    until("short names work", || {
        addresses.iter().all(|ip| resolve_as_programs_do(&place, "web").contains(&ip.to_string()))
    });

    let (one, _one) = backend(&plane, &node, "db-1", "db");
    plane.delete(&pod_object(&zero, "db", PORT)).unwrap();
    until("records follow the pods", || {
        resolve(&place, "udp", "A", "db.default.svc.cluster.local") == [format!("A {}", one.v4)]
    });
}
