//! The socket hooks with ordinary sockets, tables filled by hand (issue sections 3.1 to 3.5 and 3.9).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, SocketAddr};

use proxy_tests::hooks::{Hooks, alone, service};

const BACKENDS: &[&str] = &["10.1.0.1/32", "10.1.0.2/32", "10.1.0.3/32", "fd01::1/128", "fd01::2/128"];

#[test]
fn a_tcp_connection_to_a_cluster_ip_reaches_a_backend() {
    alone("a_tcp_connection_to_a_cluster_ip_reaches_a_backend", BACKENDS, |cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let listener = TcpListener::bind("10.1.0.1:0").unwrap();
        hooks.serve(&service("tcp 172.30.0.1:80").backend(listener.local_addr().unwrap())).unwrap();
        let mut client = TcpStream::connect("172.30.0.1:80").unwrap();
        assert_eq!(client.peer_addr().unwrap(), "172.30.0.1:80".parse::<SocketAddr>().unwrap());
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"hello").unwrap();
        drop(server);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    });
}
