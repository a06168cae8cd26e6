Deleted and made again under another name with the same ClusterIP: the last state counts.

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

== delete
Service default/web

== apply
kind: Service
metadata: {name: site}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
---
kind: EndpointSlice
metadata: {name: site-1, labels: {kubernetes.io/service-name: site}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.2.5], nodeName: node-2}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 cluster,serving
