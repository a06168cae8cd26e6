Outside clients get local endpoints, this node and its pods the cluster's: the version carries both.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
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

== expect
TCP 0.0.0.0:30080 NodePort random,external=local -> 10.244.1.5:8080 cluster,local,serving,here
TCP 0.0.0.0:30080 NodePort random,external=local -> 10.244.2.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random,external=local -> 10.244.1.5:8080 cluster,local,serving,here
TCP 10.96.0.10:80 ClusterIP random,external=local -> 10.244.2.5:8080 cluster,serving

== apply
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.2.5], nodeName: node-2}

== expect
TCP 0.0.0.0:30080 NodePort random,external=local -> 10.244.2.5:8080 cluster,serving
TCP 0.0.0.0:30080 NodePort random,external=local -> unreachable
TCP 10.96.0.10:80 ClusterIP random,external=local -> 10.244.2.5:8080 cluster,serving
