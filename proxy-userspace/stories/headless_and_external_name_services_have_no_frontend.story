Neither has anything to dial. A Service that becomes headless goes.

== list
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  ports: [{port: 80}]
---
kind: Service
metadata: {name: alias}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  type: ExternalName
---
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

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here

== apply
kind: Service
metadata: {name: web}
spec:
  clusterIP: None
  ports: [{port: 80}]

== expect
