The table is named; when a Service goes, the waiting one takes its place.

== capacity
services: 2

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here

== apply
kind: Service
metadata: {name: late}
spec:
  clusterIP: 10.96.0.11
  ports: [{port: 80}]
---
kind: EndpointSlice
metadata: {name: late-1, labels: {kubernetes.io/service-name: late}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.2.5], nodeName: node-2}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here

== expect full
default/late: table SERVICE is full (1 entries)

== delete
Service default/web

== expect
TCP 10.96.0.11:80 ClusterIP random -> 10.244.2.5:8080 cluster,serving

== expect full
