Any value counts, also the empty one; without the label it is ours again.

== list
kind: Service
metadata: {name: web, labels: {service.kubernetes.io/service-proxy-name: ""}}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}

== expect

== apply
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here

== apply
kind: Service
metadata: {name: web, labels: {service.kubernetes.io/service-proxy-name: mesh}}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]

== expect
