An endpoint that is hinted for this node wins over all in its zone.

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
- {addresses: [10.244.1.5], hints: {forZones: [{name: a}], forNodes: [{name: node-1}]}}
- {addresses: [10.244.2.5], hints: {forZones: [{name: a}], forNodes: [{name: node-2}]}}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 serving
