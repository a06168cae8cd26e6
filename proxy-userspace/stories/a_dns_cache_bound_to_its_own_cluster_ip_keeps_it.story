A ClusterIP that this node owns is left to who listens there; the Service's other addresses are served.

== this node
addresses: [192.0.2.1, 10.96.0.10]

== list
kind: Service
metadata: {name: dns}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 53, protocol: UDP, nodePort: 30053}]
  type: NodePort
---
kind: EndpointSlice
metadata: {name: dns-1, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}

== expect
UDP 0.0.0.0:30053 NodePort random -> 10.244.1.5:53 cluster,serving,here

== expect node
ADDRESS 10.96.0.10 own
ADDRESS 192.0.2.1 own,node-port
UDP-TIMEOUT 30s 120s

== this node
addresses: [192.0.2.1]

== expect
UDP 0.0.0.0:30053 NodePort random -> 10.244.1.5:53 cluster,serving,here
UDP 10.96.0.10:53 ClusterIP random -> 10.244.1.5:53 cluster,serving,here

== expect node
ADDRESS 10.96.0.10 cluster-ip
ADDRESS 192.0.2.1 own,node-port
UDP-TIMEOUT 30s 120s
