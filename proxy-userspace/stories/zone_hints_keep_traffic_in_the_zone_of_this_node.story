Only while every ready endpoint has a hint and one names our zone. The zone is the Node's label and may change.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
---
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: a}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], hints: {forZones: [{name: a}]}}
- {addresses: [10.244.2.5], hints: {forZones: [{name: b}]}}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 serving

== apply
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: b}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 cluster,serving

== apply
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: c}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 cluster,serving

== apply
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], hints: {forZones: [{name: c}]}}
- {addresses: [10.244.2.5]}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 cluster,serving
