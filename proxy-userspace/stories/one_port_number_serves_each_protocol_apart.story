TCP, UDP and SCTP of one number are three frontends.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: t, port: 53}, {name: u, port: 53, protocol: UDP}, {name: s, port: 53, protocol: SCTP}]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: t, port: 53}, {name: u, port: 5353, protocol: UDP}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}

== expect
SCTP 10.96.0.10:53 ClusterIP random -> refused
TCP 10.96.0.10:53 ClusterIP random -> 10.244.1.5:53 cluster,serving,here
UDP 10.96.0.10:53 ClusterIP random -> 10.244.1.5:5353 cluster,serving,here
