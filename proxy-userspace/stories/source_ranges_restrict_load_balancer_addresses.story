Only ranges of the family count. One that holds the node lets hosts dial with the address itself as source. A /0 lifts
the restriction.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  type: LoadBalancer
  loadBalancerSourceRanges: [198.51.100.0/24, "2001:db8::/32"]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}

== expect
TCP 10.96.0.10:80 ClusterIP random,sources -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.1:80 LoadBalancer random,sources -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.1:80 LoadBalancer random,sources allows 198.51.100.0/24

== apply
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  type: LoadBalancer
  loadBalancerSourceRanges: [198.51.100.0/25, " 192.0.2.0/24 "]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}

== expect
TCP 10.96.0.10:80 ClusterIP random,sources,node-allowed -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.1:80 LoadBalancer random,sources,node-allowed -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.1:80 LoadBalancer random,sources,node-allowed allows 192.0.2.0/24
TCP 203.0.113.1:80 LoadBalancer random,sources,node-allowed allows 198.51.100.0/25
TCP 203.0.113.1:80 LoadBalancer random,sources,node-allowed allows 203.0.113.1/32

== apply
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  type: LoadBalancer
  loadBalancerSourceRanges: [0.0.0.0/0]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.1:80 LoadBalancer random -> 10.244.1.5:8080 cluster,serving,here

== apply
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  type: LoadBalancer
  loadBalancerSourceRanges: ["2001:db8::/32"]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.1:80 LoadBalancer random -> 10.244.1.5:8080 cluster,serving,here
