What another node has is refused like what this node has, for as long as its Node is there; nothing else of it counts here.

== this node
externalIpPolicy: Restricted

== list
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: here}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
kind: Node
metadata: {name: node-2, labels: {topology.kubernetes.io/zone: there}}
spec: {podCIDRs: [10.244.2.0/24, "fd00:244:2::/64"]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}, {type: InternalIP, address: "2001:db8::2"}]}
---
kind: Service
metadata: {name: evil, namespace: shop}
spec:
  clusterIP: 10.96.0.66
  clusterIPs: [10.96.0.66, "fd00:10:96::66"]
  ports: [{port: 443, nodePort: 30443}]
  externalIPs: [192.0.2.2, "2001:db8::2", 10.244.2.7, "fd00:244:2::7", 203.0.113.9, "2001:db8:9::9"]

== expect
== expect problems
== expect node

== apply
kind: Node
metadata: {name: node-2}
status: {addresses: [{type: InternalIP, address: 192.0.2.22}]}

== expect
== expect problems

== apply
kind: Node
metadata: {name: node-2}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}, {type: ExternalIP, address: "2001:db8::2"}]}

== expect
== expect problems

== delete
Node node-2

== expect
== expect problems
