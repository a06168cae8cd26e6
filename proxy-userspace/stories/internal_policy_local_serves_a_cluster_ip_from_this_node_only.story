With endpoints elsewhere only, clients here are unreachable, not refused: the Service does have endpoints.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  internalTrafficPolicy: Local
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}
- {addresses: [10.244.2.5], nodeName: node-2}

== expect
TCP 10.96.0.10:80 ClusterIP random,internal=local -> 10.244.1.5:8080 local,serving,here
TCP 10.96.0.10:80 ClusterIP random,internal=local -> 10.244.2.5:8080 serving

== apply
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.2.5], nodeName: node-2}

== expect
TCP 10.96.0.10:80 ClusterIP random,internal=local -> 10.244.2.5:8080 serving
TCP 10.96.0.10:80 ClusterIP random,internal=local -> unreachable

== apply
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:

== expect
TCP 10.96.0.10:80 ClusterIP random,internal=local -> refused
