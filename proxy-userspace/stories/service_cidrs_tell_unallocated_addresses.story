They and the addresses in use tell an undefined port from an address that nobody has.

== list
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, "fd00:10:96::/112"]}
---
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]

== expect node
ADDRESS 10.96.0.10 cluster-ip
ADDRESS 192.0.2.1 own,node-port
SERVICE-CIDR 10.96.0.0/16
SERVICE-CIDR fd00:10:96::/112
UDP-TIMEOUT 30s 120s

== apply
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.97.0.0/16, 10.96.128.0/17]}

== expect node
ADDRESS 10.96.0.10 cluster-ip
ADDRESS 192.0.2.1 own,node-port
SERVICE-CIDR 10.96.0.0/15
SERVICE-CIDR fd00:10:96::/112
UDP-TIMEOUT 30s 120s

== delete
ServiceCIDR kubernetes
Service default/web

== expect node
ADDRESS 192.0.2.1 own,node-port
SERVICE-CIDR 10.96.128.0/17
SERVICE-CIDR 10.97.0.0/16
UDP-TIMEOUT 30s 120s
