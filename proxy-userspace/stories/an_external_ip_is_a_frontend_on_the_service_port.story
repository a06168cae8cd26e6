Bad addresses among them cost only themselves and are told.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  externalIPs: [203.0.113.9, not-an-address, "2001:db8::9"]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.9:80 ExternalIP random -> 10.244.1.5:8080 cluster,serving,here

== expect problems
Service default/web: externalIPs[1] "not-an-address" is no IP address and is not served; correct it in the Service

== apply
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
