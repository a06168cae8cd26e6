Ids are found again by their frontends; not one write, addresses and sources included.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  type: LoadBalancer
  loadBalancerSourceRanges: [198.51.100.0/24]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
---
kind: Service
metadata: {name: api}
spec:
  clusterIP: 10.96.0.11
  ports: [{port: 80, nodePort: 30080}]
  type: NodePort
  externalTrafficPolicy: Local
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}
- {addresses: [10.244.2.5], nodeName: node-2}
---
kind: EndpointSlice
metadata: {name: api-1, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.2.5], nodeName: node-2}
---
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: a}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16]}

== expect
TCP 0.0.0.0:30080 NodePort random,external=local -> 10.244.1.5:8080 local,serving,here,terminating
TCP 0.0.0.0:30080 NodePort random,external=local -> 10.244.2.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random,sources -> 10.244.1.5:8080 cluster,serving,here
TCP 10.96.0.10:80 ClusterIP random,sources -> 10.244.2.5:8080 cluster,serving
TCP 10.96.0.11:80 ClusterIP random,external=local -> 10.244.1.5:8080 local,serving,here,terminating
TCP 10.96.0.11:80 ClusterIP random,external=local -> 10.244.2.5:8080 cluster,serving
TCP 203.0.113.1:80 LoadBalancer random,sources -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.1:80 LoadBalancer random,sources -> 10.244.2.5:8080 cluster,serving
TCP 203.0.113.1:80 LoadBalancer random,sources allows 198.51.100.0/24

== restart

== expect no writes

== expect
TCP 0.0.0.0:30080 NodePort random,external=local -> 10.244.1.5:8080 local,serving,here,terminating
TCP 0.0.0.0:30080 NodePort random,external=local -> 10.244.2.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random,sources -> 10.244.1.5:8080 cluster,serving,here
TCP 10.96.0.10:80 ClusterIP random,sources -> 10.244.2.5:8080 cluster,serving
TCP 10.96.0.11:80 ClusterIP random,external=local -> 10.244.1.5:8080 local,serving,here,terminating
TCP 10.96.0.11:80 ClusterIP random,external=local -> 10.244.2.5:8080 cluster,serving
TCP 203.0.113.1:80 LoadBalancer random,sources -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.1:80 LoadBalancer random,sources -> 10.244.2.5:8080 cluster,serving
TCP 203.0.113.1:80 LoadBalancer random,sources allows 198.51.100.0/24
