ipMode VIP and no mode are the same; Proxy wants the detour by the load balancer. Host names are not for us.

== list
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
  type: LoadBalancer
status:
  loadBalancer: {ingress: [{ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: VIP}, {ip: 203.0.113.3, ipMode: Proxy}, {hostname: lb.example}]}
---
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.1.5], nodeName: node-1}

== expect
TCP 10.96.0.10:80 ClusterIP random -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.1:80 LoadBalancer random -> 10.244.1.5:8080 cluster,serving,here
TCP 203.0.113.2:80 LoadBalancer random -> 10.244.1.5:8080 cluster,serving,here
