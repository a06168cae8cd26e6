Pods are told from others in the families that have a range.

== list

== this node
clusterCidrs: [10.244.0.0/16]

== expect node
ADDRESS 192.0.2.1 own,node-port
DETECTOR IPv4
UDP-TIMEOUT 30s 120s

== this node
clusterCidrs: ["fd00:10:244::/56", 10.244.0.0/16]

== expect node
ADDRESS 192.0.2.1 own,node-port
DETECTOR IPv4
DETECTOR IPv6
UDP-TIMEOUT 30s 120s
