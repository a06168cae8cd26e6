//! Which fields the API knows, so that a typo in a file does not pass for a wish.
//!
//! In: the kind and the content of a manifest. Out: what is in it that no API server would know. The model reads only a
//! part of each object; most of what stands here is known and of no use to us.

use std::collections::BTreeSet;

use serde_json::Value;

/// What every object has. `*` stands for whatever is below.
const COMMON: &str = "apiVersion kind metadata.name metadata.generateName metadata.namespace metadata.selfLink metadata.uid \
    metadata.resourceVersion metadata.generation metadata.creationTimestamp metadata.deletionTimestamp \
    metadata.deletionGracePeriodSeconds metadata.labels.* metadata.annotations.* metadata.ownerReferences.* \
    metadata.finalizers metadata.managedFields.*";

const SERVICE: &str = "spec.type spec.clusterIP spec.clusterIPs spec.ipFamilies spec.ipFamilyPolicy spec.ports.name \
    spec.ports.protocol spec.ports.port spec.ports.targetPort spec.ports.nodePort spec.ports.appProtocol spec.selector.* \
    spec.externalIPs spec.loadBalancerIP spec.loadBalancerClass spec.loadBalancerSourceRanges \
    spec.allocateLoadBalancerNodePorts spec.sessionAffinity spec.sessionAffinityConfig.clientIP.timeoutSeconds \
    spec.internalTrafficPolicy spec.externalTrafficPolicy spec.trafficDistribution spec.healthCheckNodePort \
    spec.publishNotReadyAddresses spec.externalName status.loadBalancer.ingress.ip status.loadBalancer.ingress.ipMode \
    status.loadBalancer.ingress.hostname status.loadBalancer.ingress.ports.* status.conditions.*";

const ENDPOINT_SLICE: &str = "addressType endpoints.addresses endpoints.conditions.ready endpoints.conditions.serving \
    endpoints.conditions.terminating endpoints.hostname endpoints.nodeName endpoints.zone endpoints.targetRef.* \
    endpoints.deprecatedTopology.* endpoints.hints.forZones.name endpoints.hints.forNodes.name ports.name ports.protocol \
    ports.port ports.appProtocol";

/// A Node is mostly its kubelet's; what people write into files is the specification and the addresses.
const NODE: &str = "spec.podCIDR spec.podCIDRs spec.taints.* spec.providerID spec.unschedulable spec.configSource.* \
    spec.externalID status.addresses.type status.addresses.address status.allocatable.* status.capacity.* status.conditions.* \
    status.config.* status.daemonEndpoints.* status.declaredFeatures status.features.* status.images.* status.nodeInfo.* \
    status.phase status.runtimeHandlers.* status.volumesAttached.* status.volumesInUse";

const SERVICE_CIDR: &str = "spec.cidrs status.conditions.*";

/// The paths in `object` that an object of this kind does not have, each with what to do about it. Positions in lists are
/// left out: a mistake made a thousand times is told once.
pub(super) fn unknown(kind: &str, object: &Value) -> Vec<String> {
    let fields = match kind {
        "Service" => SERVICE,
        "EndpointSlice" => ENDPOINT_SLICE,
        "Node" => NODE,
        "ServiceCIDR" => SERVICE_CIDR,
        _ => return Vec::new(),
    };
    let known: Vec<&str> = COMMON.split_whitespace().chain(fields.split_whitespace()).collect();
    let mut unknown = BTreeSet::new();
    look(&known, "", object, &mut unknown);
    unknown.iter().map(|path| explain(&known, path)).collect()
}

/// `path` is where `value` stands, with a dot behind it.
fn look(known: &[&str], path: &str, value: &Value, unknown: &mut BTreeSet<String>) {
    match value {
        Value::Array(elements) => elements.iter().for_each(|element| look(known, path, element, unknown)),
        Value::Object(fields) if !known.contains(&format!("{path}*").as_str()) => {
            for (name, value) in fields {
                let field = format!("{path}{name}");
                let below = format!("{field}.");
                if known.iter().any(|known| *known == field || known.starts_with(&below)) {
                    look(known, &below, value, unknown);
                } else {
                    unknown.insert(field);
                }
            }
        }
        _ => {}
    }
}

fn explain(known: &[&str], path: &str) -> String {
    let depth = path.split('.').count();
    let same_level = known.iter().filter_map(|known| prefix(known, depth));
    match same_level.into_iter().find(|known| known.eq_ignore_ascii_case(path)) {
        Some(meant) => format!("field {path} is unknown and has no effect; write {meant}"),
        None => format!("field {path} is unknown and has no effect; correct or remove it"),
    }
}

/// The first `depth` names of a path that has as many.
fn prefix(path: &str, depth: usize) -> Option<&str> {
    let end = path.match_indices('.').nth(depth - 1).map_or(path.len(), |(at, _)| at);
    (path.split('.').count() >= depth).then(|| &path[..end])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_typo_is_named_with_its_path_and_what_was_probably_meant() {
        let service = json!({
            "kind": "Service", "metadata": {"name": "web", "lables": {"a": "b"}},
            "spec": {"clusterip": "10.0.0.1", "prots": [{}], "ports": [{"port": 80, "nodeport": 1}, {"port": 81, "nodeport": 2}]},
        });
        assert_eq!(
            unknown("Service", &service),
            [
                "field metadata.lables is unknown and has no effect; correct or remove it",
                "field spec.clusterip is unknown and has no effect; write spec.clusterIP",
                "field spec.ports.nodeport is unknown and has no effect; write spec.ports.nodePort",
                "field spec.prots is unknown and has no effect; correct or remove it",
            ]
        );
    }

    #[test]
    fn what_the_api_knows_and_we_do_not_use_is_no_mistake() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web", "namespace": "shop", "labels": {"app.kubernetes.io/name": "web"}, "annotations": {"a": "b"},
                "uid": "1", "resourceVersion": "2", "creationTimestamp": null, "finalizers": ["a/b"],
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
                "ownerReferences": [{"kind": "Deployment", "name": "web"}],
            },
            "spec": {
                "selector": {"app": "web"}, "type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"],
                "ipFamilyPolicy": "SingleStack", "trafficDistribution": "PreferClose", "publishNotReadyAddresses": true,
                "ports": [{"port": 80, "targetPort": "http", "appProtocol": "http"}],
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
            },
            "status": {"loadBalancer": {"ingress": [{"hostname": "a.example", "ports": [{"port": 80}]}]}},
        });
        let slice = json!({
            "addressType": "IPv4", "ports": [{"appProtocol": "h2c"}],
            "endpoints": [{"zone": "a", "hostname": "web-0", "targetRef": {"kind": "Pod"}, "hints": {"forZones": [{"name": "a"}]}}],
        });
        let node = json!({
            "spec": {"podCIDR": "10.1.0.0/24", "taints": [{"key": "a", "effect": "NoSchedule"}]},
            "status": {"nodeInfo": {"osImage": "x"}, "addresses": [{"type": "Hostname", "address": "a"}]},
        });
        let cidr = json!({"spec": {"cidrs": ["10.0.0.0/16"]}, "status": {"conditions": [{"type": "Ready"}]}});
        for (kind, object) in [("Service", service), ("EndpointSlice", slice), ("Node", node), ("ServiceCIDR", cidr)] {
            assert_eq!(unknown(kind, &object), [""; 0], "{kind}");
        }
    }
}
