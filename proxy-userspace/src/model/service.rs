//! Service: what clients dial, and the policies behind it (specification A2, B1).

use std::cmp::Ordering;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arcstr::ArcStr;
use ipnet::IpNet;
use proxy_common::abi::{Frontend, FrontendKey};
use proxy_common::addr::{Addr, Be16, Family};
use smallvec::SmallVec;

use super::address::{family_of, parse_cidr, parse_ip, parse_port, unfit_for_endpoint, unfit_for_frontend};
use super::moment::{Moment, parse_moment};
use super::names::{Names, ObjectName, ServicePortName};
use super::objects::{self, ServiceSpec};
use super::problem::Problems;
use super::protocol;

/// With this label, whatever its value, a Service belongs to another proxy.
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// What the API fills in when ClientIP affinity comes without a timeout.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
const LONGEST_AFFINITY: i32 = 86_400;

pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A Service that has a ClusterIP. Headless ones, ExternalNames and those of another proxy never become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: ObjectName,
    pub created: Option<Moment>,
    /// The ClusterIP of each family; a family without one is not served at all.
    pub cluster_ip_v4: Option<Ipv4Addr>,
    pub cluster_ip_v6: Option<Ipv6Addr>,
    /// Most Services have one.
    pub ports: SmallVec<[Port; 1]>,
    /// `None` when there is nothing in it: most Services are dialled from inside only.
    pub outside: Option<Box<Outside>>,
    /// internalTrafficPolicy is Local.
    pub internal_local: bool,
    /// externalTrafficPolicy is Local, and the type makes it count.
    pub external_local: bool,
    /// 0 for none.
    pub affinity_seconds: u32,
}

/// How a Service is dialled from outside of the cluster, node ports aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    pub external_ips: Box<[IpAddr]>,
    pub load_balancer_ips: Box<[IpAddr]>,
    pub source_ranges: Box<[IpNet]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Empty for an unnamed port.
    pub name: ArcStr,
    /// IANA number.
    pub proto: u8,
    pub port: u16,
    /// 0 for none.
    pub node_port: u16,
}

impl Service {
    /// The families that are served.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        FAMILIES.into_iter().filter(|family| self.cluster_ip(*family).is_some())
    }

    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (v4, v6) = (self.cluster_ip_v4.map(IpAddr::from), self.cluster_ip_v6.map(IpAddr::from));
        v4.into_iter().chain(v6)
    }

    /// Addresses from outside of the cluster: externalIPs and load balancers'.
    pub fn outside_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.external_ips().iter().chain(self.load_balancer_ips()).copied()
    }

    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.cluster_ip_v4.map(IpAddr::from),
            Family::V6 => self.cluster_ip_v6.map(IpAddr::from),
        }
    }

    pub fn external_ips(&self) -> &[IpAddr] {
        self.outside.as_deref().map_or(&[], |outside| &outside.external_ips)
    }

    pub fn load_balancer_ips(&self) -> &[IpAddr] {
        self.outside.as_deref().map_or(&[], |outside| &outside.load_balancer_ips)
    }

    pub fn source_ranges(&self) -> &[IpNet] {
        self.outside.as_deref().map_or(&[], |outside| &outside.source_ranges)
    }

    /// Every service port there is: each port in each family.
    pub fn service_ports(&self) -> impl Iterator<Item = (&Port, Family)> {
        self.families().flat_map(|family| self.ports.iter().map(move |port| (port, family)))
    }

    pub fn port_name(&self, port: &Port, family: Family) -> ServicePortName {
        ServicePortName { service: self.name.clone(), port: port.name.clone(), proto: port.proto, family }
    }

    /// What clients may dial to reach `port`, with the frontend kind; each key once, the strictest kind first.
    pub fn frontends(&self, port: &Port, family: Family) -> Vec<(FrontendKey, u32)> {
        let of_family = |ip: &&IpAddr| family_of(**ip) == family;
        let at = |kind: u32| move |ip: &IpAddr| (port.key(Addr::from(*ip), port.port), kind);
        let mut frontends: Vec<_> = self.cluster_ip(family).iter().map(at(Frontend::KIND_CLUSTER_IP)).collect();
        frontends.extend(self.load_balancer_ips().iter().filter(of_family).map(at(Frontend::KIND_LOAD_BALANCER)));
        frontends.extend(self.external_ips().iter().filter(of_family).map(at(Frontend::KIND_EXTERNAL_IP)));
        if port.node_port != 0 {
            frontends.push((port.key(Addr::unspecified(family), port.node_port), Frontend::KIND_NODE_PORT));
        }
        frontends.sort_by_key(|(key, _)| *key); // stable: of equal keys the first one pushed stays
        frontends.dedup_by_key(|(key, _)| *key);
        frontends
    }

    /// Whether `key` is among the [`Self::frontends`] of one of its ports.
    pub fn claims(&self, key: &FrontendKey) -> bool {
        self.service_ports().any(|(port, family)| {
            port.proto == key.proto && self.frontends(port, family).iter().any(|(other, _)| other == key)
        })
    }

    /// Whether it claims `key` by nothing but its externalIPs, which whoever writes Services may choose.
    pub fn only_wrote(&self, key: &FrontendKey) -> bool {
        let ip = IpAddr::from(key.addr);
        self.external_ips().contains(&ip)
            && !self.load_balancer_ips().contains(&ip)
            && self.cluster_ips().all(|other| other != ip)
    }

    /// Reachable from outside the cluster by something other than its ClusterIP (specification B3).
    pub fn externally_accessible(&self, port: &Port, family: Family) -> bool {
        let any_of_family = |ips: &[IpAddr]| ips.iter().any(|ip| family_of(*ip) == family);
        port.node_port != 0 || any_of_family(self.load_balancer_ips()) || any_of_family(self.external_ips())
    }

    /// Who comes first when two Services claim one address: the older, then the one whose name sorts first.
    pub fn rank(&self, other: &Self) -> Ordering {
        self.age().cmp(&other.age()).then_with(|| self.name.cmp(&other.name))
    }

    /// Sorts older Services first and those without a date last.
    fn age(&self) -> (bool, Option<Moment>) {
        (self.created.is_none(), self.created)
    }
}

impl Port {
    fn key(&self, addr: Addr, port: u16) -> FrontendKey {
        FrontendKey { addr, port: Be16::new(port), proto: self.proto, pad: 0 }
    }
}

/// `None` when the Service is none of our business.
pub(super) fn convert(
    name: &ObjectName,
    object: &objects::Service,
    names: &mut Names,
    problems: &mut Problems,
) -> Option<Service> {
    let spec = &object.spec;
    if !is_for_us(object, problems) {
        return None;
    }
    let (cluster_ip_v4, cluster_ip_v6) = cluster_ips(spec, problems);
    let external_ips = external_ips(spec, problems);
    Some(Service {
        name: name.clone(),
        created: created(object, problems),
        ports: ports(spec, names, problems),
        outside: outside(object, external_ips, problems),
        internal_local: is_local("internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), problems),
        external_local: external_local(spec, problems),
        affinity_seconds: affinity_seconds(spec, problems),
        cluster_ip_v4,
        cluster_ip_v6,
    })
}

fn outside(object: &objects::Service, external_ips: Box<[IpAddr]>, problems: &mut Problems) -> Option<Box<Outside>> {
    let load_balancer_ips = load_balancer_ips(object, problems);
    let outside = Outside { external_ips, load_balancer_ips, source_ranges: source_ranges(&object.spec, problems) };
    (outside != Outside::default()).then(|| outside.into())
}

fn created(object: &objects::Service, problems: &mut Problems) -> Option<Moment> {
    let text = object.metadata.creation_timestamp.as_deref()?;
    let created = parse_moment(text);
    if created.is_none() {
        problems.push(format!(
            "metadata.creationTimestamp {text:?} counts as none; write it like 2026-01-31T12:00:00Z, or leave it out"
        ));
    }
    created
}

fn is_for_us(object: &objects::Service, problems: &mut Problems) -> bool {
    let spec = &object.spec;
    if object.metadata.labels.contains_key(OTHER_PROXY_LABEL) || spec.kind.as_deref() == Some("ExternalName") {
        return false;
    }
    match first_cluster_ip(spec) {
        Some("None") => false,
        Some(_) => true,
        None => {
            problems.push(
                "has no spec.clusterIP and is not served; an API server allocates one, in a file write one \
                 (or None for a headless Service)",
            );
            false
        }
    }
}

fn first_cluster_ip(spec: &ServiceSpec) -> Option<&str> {
    let primary = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    primary.or_else(|| spec.cluster_ips.first().map(String::as_str).filter(|ip| !ip.is_empty()))
}

/// One ClusterIP per family. `ipFamilies` says which is which; without it (old API servers, files) each speaks for itself.
fn cluster_ips(spec: &ServiceSpec, problems: &mut Problems) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (mut v4, mut v6) = (None, None);
    for (at, text) in cluster_ip_texts(spec).into_iter().enumerate() {
        let Some(ip) = frontend_ip(&format!("clusterIPs[{at}]"), text, problems) else { continue };
        if !family_agrees(spec.ip_families.get(at), ip) {
            let declared = &spec.ip_families[at];
            problems.push(format!("clusterIPs[{at}] {text:?} is left out: ipFamilies[{at}] says {declared}"));
            continue;
        }
        match ip {
            IpAddr::V4(ip) if v4.is_none() => v4 = Some(ip),
            IpAddr::V6(ip) if v6.is_none() => v6 = Some(ip),
            _ => {
                problems.push(format!("clusterIPs[{at}] {text:?} is left out: a Service has one ClusterIP per family"));
            }
        }
    }
    (v4, v6)
}

fn cluster_ip_texts(spec: &ServiceSpec) -> Vec<&str> {
    if spec.cluster_ips.is_empty() {
        return first_cluster_ip(spec).into_iter().collect();
    }
    spec.cluster_ips.iter().map(String::as_str).collect()
}

fn family_agrees(declared: Option<&String>, ip: IpAddr) -> bool {
    declared.is_none_or(|family| family == if ip.is_ipv4() { "IPv4" } else { "IPv6" })
}

fn frontend_ip(field: &str, text: &str, problems: &mut Problems) -> Option<IpAddr> {
    let Some(ip) = parse_ip(text) else {
        problems.push(format!("{field} {text:?} is no IP address and is not served; correct it in the Service"));
        return None;
    };
    if let Some(what) = unfit_for_frontend(ip) {
        problems.refuse(ip, format!("{field} {text:?} is {what} and is not served; use an address of its own"));
        return None;
    }
    Some(ip)
}

fn external_ips(spec: &ServiceSpec, problems: &mut Problems) -> Box<[IpAddr]> {
    let mut ips = Vec::new();
    for (at, text) in spec.external_ips.iter().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        ips.extend(outside_ip(&format!("externalIPs[{at}]"), text.trim(), problems));
    }
    sorted(ips)
}

/// Clients on other links are to dial it.
fn outside_ip(field: &str, text: &str, problems: &mut Problems) -> Option<IpAddr> {
    let ip = frontend_ip(field, text, problems)?;
    let Some(what) = unfit_for_endpoint(ip) else { return Some(ip) };
    problems.refuse(ip, format!("{field} {text:?} is {what} and is not served; use another one"));
    None
}

/// Addresses of mode VIP; with mode Proxy traffic comes back through the node port (specification B1).
fn load_balancer_ips(object: &objects::Service, problems: &mut Problems) -> Box<[IpAddr]> {
    let mut ips = Vec::new();
    for (at, ingress) in object.status.load_balancer.ingress.iter().enumerate() {
        let Some(text) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        match ingress.ip_mode.as_deref() {
            None | Some("VIP" | "") => {
                ips.extend(outside_ip(&format!("status.loadBalancer.ingress[{at}].ip"), text, problems));
            }
            Some("Proxy") => {}
            Some(other) => problems.push(format!(
                "status.loadBalancer.ingress[{at}].ipMode {other:?} is unknown, {text} is not served; use VIP or Proxy"
            )),
        }
    }
    sorted(ips)
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Box<[T]> {
    values.sort();
    values.dedup();
    values.into()
}

fn source_ranges(spec: &ServiceSpec, problems: &mut Problems) -> Box<[IpNet]> {
    let mut ranges = Vec::new();
    for (at, text) in spec.load_balancer_source_ranges.iter().enumerate() {
        match parse_cidr(text.trim()) {
            Some(range) => ranges.push(range),
            None => problems.push(format!(
                "loadBalancerSourceRanges[{at}] {text:?} is no prefix and is left out; write it like 192.0.2.0/24"
            )),
        }
    }
    sorted(ranges)
}

fn ports(spec: &ServiceSpec, names: &mut Names, problems: &mut Problems) -> SmallVec<[Port; 1]> {
    let mut ports: SmallVec<[Port; 1]> = SmallVec::with_capacity(spec.ports.len());
    for (at, object) in spec.ports.iter().enumerate() {
        let Some(mut port) = port(at, object, names, problems) else { continue };
        if ports.iter().any(|other| other.proto == port.proto && (other.port == port.port || other.name == port.name)) {
            problems.push(format!("ports[{at}] repeats the number or name of an earlier port and is not served"));
            continue;
        }
        if port.node_port != 0
            && ports.iter().any(|other| other.proto == port.proto && other.node_port == port.node_port)
        {
            problems.push(format!("ports[{at}].nodePort {} repeats an earlier one and is not served", port.node_port));
            port.node_port = 0;
        }
        ports.push(port);
    }
    ports
}

fn port(at: usize, object: &objects::ServicePort, names: &mut Names, problems: &mut Problems) -> Option<Port> {
    let Some(proto) = protocol::number(object.protocol.as_deref()) else {
        let protocol = object.protocol.as_deref().unwrap_or_default();
        problems.push(format!("ports[{at}].protocol {protocol:?} is not served; use TCP, UDP or SCTP"));
        return None;
    };
    let Some(port) = parse_port(object.port) else {
        problems.push(format!("ports[{at}].port {} is not served; use 1 to 65535", object.port));
        return None;
    };
    let name = names.share(object.name.as_deref().unwrap_or_default());
    Some(Port { name, proto, port, node_port: node_port(at, object.node_port.unwrap_or_default(), problems) })
}

fn node_port(at: usize, number: i32, problems: &mut Problems) -> u16 {
    u16::try_from(number).unwrap_or_else(|_| {
        problems.push(format!("ports[{at}].nodePort {number} is not served; use 1 to 65535"));
        0
    })
}

fn is_local(field: &str, policy: Option<&str>, problems: &mut Problems) -> bool {
    match policy {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            problems.push(format!("{field} {other:?} is unknown and counts as Cluster; use Cluster or Local"));
            false
        }
    }
}

/// externalTrafficPolicy counts for types that can be reached from outside (specification B1).
fn external_local(spec: &ServiceSpec, problems: &mut Problems) -> bool {
    let reachable = match spec.kind.as_deref() {
        Some("NodePort" | "LoadBalancer") => true,
        _ => !spec.external_ips.is_empty(),
    };
    is_local("externalTrafficPolicy", spec.external_traffic_policy.as_deref(), problems) && reachable
}

fn affinity_seconds(spec: &ServiceSpec, problems: &mut Problems) -> u32 {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => 0,
        Some("ClientIP") => affinity_timeout(spec, problems),
        Some(other) => {
            problems.push(format!("sessionAffinity {other:?} is unknown and counts as None; use None or ClientIP"));
            0
        }
    }
}

fn affinity_timeout(spec: &ServiceSpec, problems: &mut Problems) -> u32 {
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    match config.and_then(|config| config.timeout_seconds) {
        None => DEFAULT_AFFINITY_SECONDS,
        Some(seconds @ 1..=LONGEST_AFFINITY) => seconds.unsigned_abs(),
        Some(other) => {
            problems.push(format!(
                "the affinity timeout of {other} s counts as {DEFAULT_AFFINITY_SECONDS} s; use 1 to {LONGEST_AFFINITY}"
            ));
            DEFAULT_AFFINITY_SECONDS
        }
    }
}
