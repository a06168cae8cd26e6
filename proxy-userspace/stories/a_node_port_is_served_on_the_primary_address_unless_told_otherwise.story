The frontend of a node port has no address; ADDRS says on which addresses it is served.

== this node
addresses: [192.0.2.1, 198.51.100.1, 127.0.0.1]

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80, nodePort: 30080}]
  type: NodePort
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}

== expect
TCP 0.0.0.0:30080 NodePort random -> 10.244.1.5:8080 cluster,serving,here
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here

== expect node
ADDRESS 10.96.0.10 cluster-ip
ADDRESS 127.0.0.1 own,loopback
ADDRESS 192.0.2.1 own,node-port
ADDRESS 198.51.100.1 own
UDP-TIMEOUT 30s 120s

== this node
nodePortAddresses: [all]

== expect node
ADDRESS 10.96.0.10 cluster-ip
ADDRESS 127.0.0.1 own,loopback
ADDRESS 192.0.2.1 own,node-port
ADDRESS 198.51.100.1 own,node-port
UDP-TIMEOUT 30s 120s

== this node
nodePortAddresses: [198.51.100.0/24]

== expect node
ADDRESS 10.96.0.10 cluster-ip
ADDRESS 127.0.0.1 own,loopback
ADDRESS 192.0.2.1 own
ADDRESS 198.51.100.1 own,node-port
UDP-TIMEOUT 30s 120s

== apply
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
