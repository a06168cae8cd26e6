Traffic to nodes, the API server, pods and other Services is not for a Service to take (CVE-2020-8554).

== this node
clusterCidrs: [10.244.0.0/16]

== list
kind: Node
metadata: {name: node-1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16]}
---
kind: Service
metadata: {name: kubernetes, namespace: default}
spec: {clusterIP: 10.96.0.1, ports: [{port: 443}]}
---
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{port: 6443}]
endpoints:
- {addresses: [192.0.2.100]}
---
kind: Service
metadata: {name: evil, namespace: shop, creationTimestamp: 2020-01-01T00:00:00Z}
spec:
  clusterIP: 10.96.0.66
  ports: [{port: 443}]
  externalIPs: [192.0.2.1, 192.0.2.100, 10.244.7.7, 10.96.0.1, 10.96.3.3, 203.0.113.80, 203.0.113.9]
---
kind: Service
metadata: {name: lb, namespace: shop, creationTimestamp: 2021-01-01T00:00:00Z}
spec: {clusterIP: 10.96.0.20, ports: [{port: 443}], type: LoadBalancer}
status: {loadBalancer: {ingress: [{ip: 203.0.113.80}]}}

== expect
TCP 10.244.7.7:443 ExternalIP random -> refused
TCP 10.96.0.1:443 ClusterIP random -> 192.0.2.100:6443 cluster,serving
TCP 10.96.0.20:443 ClusterIP random -> refused
TCP 10.96.0.66:443 ClusterIP random -> refused
TCP 10.96.3.3:443 ExternalIP random -> refused
TCP 192.0.2.100:443 ExternalIP random -> refused
TCP 192.0.2.1:443 ExternalIP random -> refused
TCP 203.0.113.80:443 LoadBalancer random -> refused
TCP 203.0.113.9:443 ExternalIP random -> refused

== expect problems
Service shop/evil: 10.96.0.1:443/TCP is served for Service default/kubernetes, to which it was given; remove it from one of the two
Service shop/evil: 203.0.113.80:443/TCP is served for Service shop/lb, to which it was given; remove it from one of the two
Service shop/evil: externalIPs 10.96.0.1 is a ClusterIP: --external-ip-policy=Restricted would refuse it
Service shop/evil: externalIPs 10.96.3.3 is in a range of ClusterIPs: --external-ip-policy=Restricted would refuse it
Service shop/evil: externalIPs 10.244.7.7 is in a range of pods: --external-ip-policy=Restricted would refuse it
Service shop/evil: externalIPs 192.0.2.1 is an address of a node: --external-ip-policy=Restricted would refuse it
Service shop/evil: externalIPs 192.0.2.100 is an address of the API server: --external-ip-policy=Restricted would refuse it
Service shop/evil: externalIPs 203.0.113.80 is a load-balancer address of another Service: --external-ip-policy=Restricted would refuse it

== this node
externalIpPolicy: Restricted

== expect
TCP 10.96.0.1:443 ClusterIP random -> 192.0.2.100:6443 cluster,serving
TCP 10.96.0.20:443 ClusterIP random -> refused
TCP 10.96.0.66:443 ClusterIP random -> refused
TCP 203.0.113.80:443 LoadBalancer random -> refused
TCP 203.0.113.9:443 ExternalIP random -> refused

== expect problems
Service shop/evil: externalIPs 10.96.0.1 is a ClusterIP: it is not served (--external-ip-policy=Restricted); use an address of its own
Service shop/evil: externalIPs 10.96.3.3 is in a range of ClusterIPs: it is not served (--external-ip-policy=Restricted); use an address of its own
Service shop/evil: externalIPs 10.244.7.7 is in a range of pods: it is not served (--external-ip-policy=Restricted); use an address of its own
Service shop/evil: externalIPs 192.0.2.1 is an address of a node: it is not served (--external-ip-policy=Restricted); use an address of its own
Service shop/evil: externalIPs 192.0.2.100 is an address of the API server: it is not served (--external-ip-policy=Restricted); use an address of its own
Service shop/evil: externalIPs 203.0.113.80 is a load-balancer address of another Service: it is not served (--external-ip-policy=Restricted); use an address of its own

== apply
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/24]}

== expect
TCP 10.96.0.1:443 ClusterIP random -> 192.0.2.100:6443 cluster,serving
TCP 10.96.0.20:443 ClusterIP random -> refused
TCP 10.96.0.66:443 ClusterIP random -> refused
TCP 10.96.3.3:443 ExternalIP random -> refused
TCP 203.0.113.80:443 LoadBalancer random -> refused
TCP 203.0.113.9:443 ExternalIP random -> refused

== expect problems

== apply
kind: EndpointSlice
metadata: {name: kubernetes, namespace: default, labels: {kubernetes.io/service-name: kubernetes}}
addressType: IPv4
ports: [{port: 6443}]
endpoints:
- {addresses: [192.0.2.101]}

== expect
TCP 10.96.0.1:443 ClusterIP random -> 192.0.2.101:6443 cluster,serving
TCP 10.96.0.20:443 ClusterIP random -> refused
TCP 10.96.0.66:443 ClusterIP random -> refused
TCP 10.96.3.3:443 ExternalIP random -> refused
TCP 192.0.2.100:443 ExternalIP random -> refused
TCP 203.0.113.80:443 LoadBalancer random -> refused
TCP 203.0.113.9:443 ExternalIP random -> refused

== expect problems

== delete
Service shop/lb

== expect
TCP 10.96.0.1:443 ClusterIP random -> 192.0.2.101:6443 cluster,serving
TCP 10.96.0.66:443 ClusterIP random -> refused
TCP 10.96.3.3:443 ExternalIP random -> refused
TCP 192.0.2.100:443 ExternalIP random -> refused
TCP 203.0.113.80:443 ExternalIP random -> refused
TCP 203.0.113.9:443 ExternalIP random -> refused

== expect problems
