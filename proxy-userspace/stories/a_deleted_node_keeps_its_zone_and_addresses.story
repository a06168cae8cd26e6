kube-proxy does not let go of its Node either: what was known of it stays until it comes back with something else.

== list
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  ports: [{port: 80, nodePort: 30080}]
---
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: a}}
status: {addresses: [{type: InternalIP, address: 192.0.2.7}]}
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], hints: {forZones: [{name: a}]}}
- {addresses: [10.244.2.5], hints: {forZones: [{name: b}]}}

== this node
addresses: [192.0.2.1, 192.0.2.7]

== expect
TCP 0.0.0.0:30080 NodePort random -> 10.244.1.5:8080 cluster,serving
TCP 0.0.0.0:30080 NodePort random -> 10.244.2.5:8080 serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 serving

== expect node
ADDRESS 10.96.0.10 cluster-ip
ADDRESS 192.0.2.1 own
ADDRESS 192.0.2.7 own,node-port
UDP-TIMEOUT 30s 120s

== delete
Node node-1

== expect no writes

== expect
TCP 0.0.0.0:30080 NodePort random -> 10.244.1.5:8080 cluster,serving
TCP 0.0.0.0:30080 NodePort random -> 10.244.2.5:8080 serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 serving

== expect node
ADDRESS 10.96.0.10 cluster-ip
ADDRESS 192.0.2.1 own
ADDRESS 192.0.2.7 own,node-port
UDP-TIMEOUT 30s 120s
