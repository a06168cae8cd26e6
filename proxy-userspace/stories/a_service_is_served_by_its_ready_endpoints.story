A ClusterIP leads to the ready endpoints, each once; the port is the slice's. One that is not ready but serving takes no
new flows and keeps those it has. Nobody is left: refused.

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
- {addresses: [10.244.1.5], nodeName: node-1}
- {addresses: [10.244.2.5], nodeName: node-2}
- {addresses: [10.244.3.5], conditions: {ready: false}}
- {addresses: [10.244.4.5], conditions: {ready: false, serving: false}}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:8080 cluster,serving
TCP 10.96.0.10:80 ClusterIP random -> 10.244.3.5:8080 serving

== expect no writes

== delete
EndpointSlice default/web-1

== expect
TCP 10.96.0.10:80 ClusterIP random -> refused
