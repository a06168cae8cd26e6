Both families have their own frontends and endpoints; endpoints of the other family never mix in.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  clusterIPs: [10.96.0.10, "fd00:10:96::a"]
  ipFamilies: [IPv4, IPv6]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}
---
kind: EndpointSlice
metadata: {name: web-2, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{port: 8080}]
endpoints:
- {addresses: ["fd00:10:244::5"]}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
TCP [fd00:10:96::a]:80 ClusterIP random -> [fd00:10:244::5]:8080 cluster,serving

== delete
EndpointSlice default/web-2

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
TCP [fd00:10:96::a]:80 ClusterIP random -> refused
