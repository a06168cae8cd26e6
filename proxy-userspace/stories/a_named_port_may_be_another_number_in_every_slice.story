Slices are joined by port name; the number is each slice's own. A port without a name is joined to nothing.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}
---
kind: EndpointSlice
metadata: {name: web-2, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9090}, {name: dns, port: 5353, protocol: UDP}]
endpoints:
- {addresses: [10.244.2.5], nodeName: node-2}
---
kind: EndpointSlice
metadata: {name: web-3, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: other, port: 1}]
endpoints:
- {addresses: [10.244.2.5], nodeName: node-2}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
TCP 10.96.0.10:80 ClusterIP random -> 10.244.2.5:9090 cluster,serving
UDP 10.96.0.10:53 ClusterIP random -> 10.244.2.5:5353 cluster,serving
