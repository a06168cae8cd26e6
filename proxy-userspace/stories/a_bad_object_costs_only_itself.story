Bad addresses and ports are told and left out; their neighbours are served.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
---
kind: Service
metadata: {name: bad}
spec:
  clusterIP: 10.96.0.999
  ports: [{port: 80}]
---
kind: Service
metadata: {name: worse}
spec:
  clusterIP: 10.96.0.12
  ports: [{port: 0}, {name: ok, port: 81}]
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}
- {addresses: [127.0.0.1]}
- {addresses: [nonsense]}
- {addresses: []}
---
kind: EndpointSlice
metadata: {name: worse-1, labels: {kubernetes.io/service-name: worse}}
addressType: IPv4
ports: [{name: ok, port: 99999}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
TCP 10.96.0.12:81 ClusterIP random -> refused

== expect problems
Service default/bad: clusterIPs[0] "10.96.0.999" is no IP address and is not served; correct it in the Service
Service default/worse: ports[0].port 0 is not served; use 1 to 65535
EndpointSlice default/web-1: endpoints[1] "127.0.0.1" is a loopback address and is not used; correct or remove it
EndpointSlice default/web-1: endpoints[2] "nonsense" is no IP address and is not used; correct or remove it
EndpointSlice default/web-1: endpoints[3] has no address and is not used; give it one
EndpointSlice default/worse-1: ports[0].port 99999 is not used; use 1 to 65535
