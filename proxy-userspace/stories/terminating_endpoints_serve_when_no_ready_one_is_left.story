As long as one is ready, terminating ones only keep their flows. They stop for good when they no longer serve.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.2.5], nodeName: node-2}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 serving,here,terminating
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 cluster,serving

== apply
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1, conditions: {ready: false, serving: true, terminating: true}}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here,terminating

== apply
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1, conditions: {ready: false, serving: false, terminating: true}}

== expect
TCP 10.96.0.10:80 ClusterIP random -> refused
