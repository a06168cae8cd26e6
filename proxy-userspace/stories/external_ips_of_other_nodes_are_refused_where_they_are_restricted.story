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
TCP 0.0.0.0:30443 NodePort random -> refused
TCP 10.96.0.66:443 ClusterIP random -> refused
TCP 203.0.113.9:443 ExternalIP random -> refused
TCP [2001:db8:9::9]:443 ExternalIP random -> refused
TCP [::]:30443 NodePort random -> refused
TCP [fd00:10:96::66]:443 ClusterIP random -> refused

== expect problems
Service shop/evil: externalIPs 10.244.2.7 is in a range of pods: it is not served (--external-ip-policy=Restricted); use an address of its own
Service shop/evil: externalIPs 192.0.2.2 is an address of a node: it is not served (--external-ip-policy=Restricted); use an address of its own
Service shop/evil: externalIPs 2001:db8::2 is an address of a node: it is not served (--external-ip-policy=Restricted); use an address of its own
Service shop/evil: externalIPs fd00:244:2::7 is in a range of pods: it is not served (--external-ip-policy=Restricted); use an address of its own

== expect node
ADDRESS 10.96.0.66 cluster-ip
ADDRESS 192.0.2.1 own,node-port
ADDRESS fd00:10:96::66 cluster-ip
UDP-TIMEOUT 30s 120s

== apply
kind: Node
metadata: {name: node-2}
status: {addresses: [{type: InternalIP, address: 192.0.2.22}]}

== expect
TCP 0.0.0.0:30443 NodePort random -> refused
TCP 10.244.2.7:443 ExternalIP random -> refused
TCP 10.96.0.66:443 ClusterIP random -> refused
TCP 192.0.2.2:443 ExternalIP random -> refused
TCP 203.0.113.9:443 ExternalIP random -> refused
TCP [2001:db8:9::9]:443 ExternalIP random -> refused
TCP [2001:db8::2]:443 ExternalIP random -> refused
TCP [::]:30443 NodePort random -> refused
TCP [fd00:10:96::66]:443 ClusterIP random -> refused
TCP [fd00:244:2::7]:443 ExternalIP random -> refused

== expect problems

== apply
kind: Node
metadata: {name: node-2}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}, {type: ExternalIP, address: "2001:db8::2"}]}

== expect
TCP 0.0.0.0:30443 NodePort random -> refused
TCP 10.244.2.7:443 ExternalIP random -> refused
TCP 10.96.0.66:443 ClusterIP random -> refused
TCP 203.0.113.9:443 ExternalIP random -> refused
TCP [2001:db8:9::9]:443 ExternalIP random -> refused
TCP [::]:30443 NodePort random -> refused
TCP [fd00:10:96::66]:443 ClusterIP random -> refused
TCP [fd00:244:2::7]:443 ExternalIP random -> refused

== expect problems
Service shop/evil: externalIPs 192.0.2.2 is an address of a node: it is not served (--external-ip-policy=Restricted); use an address of its own
Service shop/evil: externalIPs 2001:db8::2 is an address of a node: it is not served (--external-ip-policy=Restricted); use an address of its own

== delete
Node node-2

== expect
TCP 0.0.0.0:30443 NodePort random -> refused
TCP 10.244.2.7:443 ExternalIP random -> refused
TCP 10.96.0.66:443 ClusterIP random -> refused
TCP 192.0.2.2:443 ExternalIP random -> refused
TCP 203.0.113.9:443 ExternalIP random -> refused
TCP [2001:db8:9::9]:443 ExternalIP random -> refused
TCP [2001:db8::2]:443 ExternalIP random -> refused
TCP [::]:30443 NodePort random -> refused
TCP [fd00:10:96::66]:443 ClusterIP random -> refused
TCP [fd00:244:2::7]:443 ExternalIP random -> refused

== expect problems
