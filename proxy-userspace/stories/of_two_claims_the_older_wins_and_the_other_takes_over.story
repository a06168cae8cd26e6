Whoever comes first in time of arrival does not matter. When the older one goes, the younger takes its address over.

== list
kind: Service
metadata: {name: younger, creationTimestamp: "2026-02-01T00:00:00Z"}
spec:
  clusterIP: 10.96.0.11
  ports: [{port: 80}]
  externalIPs: [203.0.113.9]
---
kind: EndpointSlice
metadata: {name: o, labels: {kubernetes.io/service-name: older}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.1]}
---
kind: EndpointSlice
metadata: {name: y, labels: {kubernetes.io/service-name: younger}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.2.2]}

== expect
TCP 10.96.0.11:80 ClusterIP random -> 10.244.2.2:8080 cluster,serving
TCP 203.0.113.9:80 ExternalIP random -> 10.244.2.2:8080 cluster,serving

== apply
kind: Service
metadata: {name: older, creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  externalIPs: [203.0.113.9]

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.1:8080 cluster,serving
TCP 10.96.0.11:80 ClusterIP random -> 10.244.2.2:8080 cluster,serving
TCP 203.0.113.9:80 ExternalIP random -> 10.244.1.1:8080 cluster,serving

== expect problems
Service default/younger: 203.0.113.9:80/TCP is served for the older Service default/older; remove it from one of the two

== delete
Service default/older

== expect
TCP 10.96.0.11:80 ClusterIP random -> 10.244.2.2:8080 cluster,serving
TCP 203.0.113.9:80 ExternalIP random -> 10.244.2.2:8080 cluster,serving
