//! The socket hooks with ordinary sockets, tables filled by hand (issue sections 3.1 to 3.5 and 3.9).
//!
//! Backends are sockets on the loopback device, which answer with the address they listen on. VIPs have no route and no
//! owner: whatever reaches a backend was translated. Known limits are tests too; `docs/limits.md` explains them.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, accept4, bind, connect, getpeername,
    sendto, setsockopt, socket, sockopt,
};
use proxy_common::abi::{Backend, Cidr, Config, Frontend, Version, address};
use proxy_common::addr::Addr;
use proxy_common::reason::Reason;
use proxy_common::tables::FLOWS_MORE;
use proxy_tests::hooks::{Caller, Hooks, Service, alone, alone_in_this_namespace, service, told};
use proxy_tests::netns::is_initial;
use proxy_tests::process::built;
use proxy_tests::{disconnect, mptcp_socket};

const BACKENDS: &[&str] = &["10.1.0.1/32", "10.1.0.2/32", "10.1.0.3/32", "fd01::1/128", "fd01::2/128"];

/// Runs the body of the test function it stands in, apart from everything else.
macro_rules! alone {
    (|$cgroup:ident| $body:block) => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here).trim_end_matches("::here");
        alone(name.rsplit("::").next().expect("a name"), BACKENDS, |$cgroup| $body);
    }};
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Accepts connections for good; each is told the address it reached.
fn tcp_server(on: &str) -> SocketAddr {
    let listener = TcpListener::bind((on, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that is gone already does not want to know.
            let _ = stream.unwrap().write_all(addr.to_string().as_bytes());
        }
    });
    addr
}

/// Answers datagrams for good, each with the address it reached.
fn udp_server(on: &str) -> SocketAddr {
    let socket = UdpSocket::bind((on, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    thread::spawn(move || {
        loop {
            let (_, from) = socket.recv_from(&mut [0; 64]).unwrap();
            socket.send_to(addr.to_string().as_bytes(), from).unwrap();
        }
    });
    addr
}

/// Who answers on a connection.
fn answer(mut stream: TcpStream) -> SocketAddr {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    at(&text)
}

fn dial(vip: &str) -> SocketAddr {
    answer(TcpStream::connect(vip).unwrap())
}

/// An unconnected socket of the family of `vip`.
fn udp_for(vip: &str) -> UdpSocket {
    UdpSocket::bind(if at(vip).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap()
}

/// Sends to `vip`: who answers, and where the answer seems to come from.
fn ask(socket: &UdpSocket, vip: &str) -> (SocketAddr, SocketAddr) {
    socket.send_to(b"?", vip).unwrap();
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (at(std::str::from_utf8(&buffer[..length]).unwrap()), from)
}

fn raw(family: AddressFamily, kind: SockType, protocol: Option<SockProtocol>) -> OwnedFd {
    socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).unwrap()
}

fn tcp_socket() -> OwnedFd {
    raw(AddressFamily::Inet, SockType::Stream, None)
}

fn dial_with(socket: &impl AsRawFd, to: &str) -> nix::Result<()> {
    connect(socket.as_raw_fd(), &SockaddrStorage::from(at(to)))
}

fn peer(socket: &impl AsRawFd) -> SocketAddr {
    socket_addr(getpeername(socket.as_raw_fd()).unwrap())
}

fn socket_addr(addr: SockaddrStorage) -> SocketAddr {
    match (addr.as_sockaddr_in(), addr.as_sockaddr_in6()) {
        (Some(v4), _) => (v4.ip(), v4.port()).into(),
        (_, Some(v6)) => (v6.ip(), v6.port()).into(),
        _ => panic!("neither IPv4 nor IPv6: {addr:?}"),
    }
}

/// VIPs of the same service: IPv4, the same IPv4-mapped, IPv6; each with the loopback address of its backend.
const FAMILIES: [(&str, &str); 3] =
    [("172.30.0.1:80", "10.1.0.1"), ("[::ffff:172.30.0.1]:80", "10.1.0.1"), ("[fd30::1]:80", "fd01::1")];

#[test]
fn a_tcp_connection_reaches_a_backend_and_its_peer_is_what_was_dialled() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        for (vip, on) in [FAMILIES[0], FAMILIES[2]] {
            hooks.serve(&service(&format!("tcp {vip}")).backend(tcp_server(on))).unwrap();
        }
        for (vip, on) in FAMILIES {
            let stream = TcpStream::connect(vip).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), at(vip));
            assert_eq!(answer(stream).ip(), on.parse::<IpAddr>().unwrap(), "{vip}");
        }
        assert_eq!(hooks.count(Reason::Translated), 3);
    });
}

#[test]
fn a_connected_udp_socket_reaches_a_backend_and_its_peer_is_what_was_dialled() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        for (vip, on) in [FAMILIES[0], FAMILIES[2]] {
            hooks.serve(&service(&format!("udp {vip}")).backend(udp_server(on))).unwrap();
        }
        for (vip, on) in FAMILIES {
            let socket = udp_for(vip);
            socket.connect(vip).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), at(vip));
            socket.send(b"?").unwrap();
            let mut buffer = [0; 64];
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from, at(vip));
            let by = at(std::str::from_utf8(&buffer[..length]).unwrap());
            assert_eq!(by.ip(), on.parse::<IpAddr>().unwrap());
        }
    });
}

#[test]
fn an_answer_to_a_datagram_comes_from_what_was_dialled() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        for (vip, on) in [FAMILIES[0], FAMILIES[2]] {
            hooks.serve(&service(&format!("udp {vip}")).backend(udp_server(on))).unwrap();
        }
        for (vip, on) in FAMILIES {
            let (by, from) = ask(&udp_for(vip), vip);
            assert_eq!((by.ip(), from), (on.parse().unwrap(), at(vip)));
        }
    });
}

#[test]
fn a_datagram_from_a_stranger_keeps_its_source() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks.serve(&service("udp 172.30.0.1:53").backend(udp_server("10.1.0.1"))).unwrap();
        let socket = UdpSocket::bind("10.1.0.2:0").unwrap();
        ask(&socket, "172.30.0.1:53");
        let stranger = UdpSocket::bind("10.1.0.3:0").unwrap();
        stranger.send_to(b"!", socket.local_addr().unwrap()).unwrap();
        assert_eq!(socket.recv_from(&mut [0; 8]).unwrap().1, stranger.local_addr().unwrap());
    });
}

/// A service over UDP with a backend on each of three addresses.
fn three_udp_backends(vip: &str) -> Service {
    ["10.1.0.1", "10.1.0.2", "10.1.0.3"].iter().fold(service(vip), |service, on| service.backend(udp_server(on)))
}

/// Backends that answer `count` questions from one socket.
fn answers(socket: &UdpSocket, vip: &str, count: usize) -> HashSet<SocketAddr> {
    (0..count).map(|_| ask(socket, vip).0).collect()
}

#[test]
fn a_thousand_datagrams_of_one_socket_reach_one_backend() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks.serve(&three_udp_backends("udp 172.30.0.1:53")).unwrap();
        assert_eq!(answers(&udp_for("0.0.0.0:0"), "172.30.0.1:53", 1000).len(), 1);
        assert_eq!((hooks.count(Reason::Translated), hooks.count(Reason::FollowedFlow)), (1, 999));
    });
}

#[test]
fn different_sockets_reach_every_backend() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks.serve(&three_udp_backends("udp 172.30.0.1:53")).unwrap();
        // A backend is missed with a probability of (2/3)^100.
        let by: HashSet<_> = (0..100).map(|_| ask(&udp_for("0.0.0.0:0"), "172.30.0.1:53").0).collect();
        assert_eq!(by.len(), 3);
    });
}

#[test]
fn a_flow_stays_while_its_backend_serves_and_moves_when_it_does_not() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let wanted = three_udp_backends("udp 172.30.0.1:53");
        let old = hooks.serve(&wanted).unwrap();
        let socket = udp_for("0.0.0.0:0");
        let (first, _) = ask(&socket, "172.30.0.1:53");
        let new = hooks.replace(&three_udp_backends("udp 172.30.0.1:53"), &old).unwrap();
        for id in &old.backends {
            hooks.change_backend(*id, |backend| backend.flags = Backend::SERVING | Backend::TERMINATING).unwrap();
        }
        assert_eq!(answers(&socket, "172.30.0.1:53", 50), HashSet::from([first]));
        for id in &old.backends {
            hooks.change_backend(*id, |backend| (backend.flags, backend.generation) = (0, 0)).unwrap();
        }
        let moved = answers(&socket, "172.30.0.1:53", 50);
        assert_eq!(moved.len(), 1);
        assert!(!moved.contains(&first));
        assert_eq!(
            hooks.stats(new.backends[0]).unwrap().total
                + hooks.stats(new.backends[1]).unwrap().total
                + hooks.stats(new.backends[2]).unwrap().total,
            1
        );
    });
}

#[test]
fn a_flow_that_is_older_than_the_udp_timeouts_is_a_new_one() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks.serve(&three_udp_backends("udp 172.30.0.1:53")).unwrap();
        let socket = udp_for("0.0.0.0:0");
        hooks.configure(|config| config.udp_stream_timeout = 0).unwrap();
        assert_eq!(answers(&socket, "172.30.0.1:53", 100).len(), 3);
        // Without replies the other timeout counts.
        let silent = udp_for("0.0.0.0:0");
        for _ in 0..10 {
            silent.send_to(b"?", "172.30.0.1:53").unwrap();
        }
        assert_eq!(hooks.count(Reason::FollowedFlow), 9);
    });
}

/// Serves VIP number `number`, each with a backend of its own.
fn numbered(hooks: &mut Hooks, number: usize) -> (String, SocketAddr) {
    let (vip, backend) = (format!("172.30.1.{number}:53"), udp_server("10.1.0.1"));
    hooks.serve(&service(&format!("udp {vip}")).backend(backend)).unwrap();
    (vip, backend)
}

#[test]
fn a_socket_with_many_vips_gets_every_answer_from_the_right_one() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let vips: Vec<_> = (1..=1 + FLOWS_MORE).map(|number| numbered(&mut hooks, number)).collect();
        let socket = udp_for("0.0.0.0:0");
        for _ in 0..3 {
            for (vip, backend) in &vips {
                assert_eq!(ask(&socket, vip), (*backend, at(vip)));
            }
        }
        // All questions first, then all answers.
        for (vip, _) in &vips {
            socket.send_to(b"?", vip).unwrap();
        }
        let from: HashSet<_> = vips.iter().map(|_| socket.recv_from(&mut [0; 64]).unwrap().1).collect();
        assert_eq!(from, vips.iter().map(|(vip, _)| at(vip)).collect());
        assert_eq!(hooks.count(Reason::Translated), vips.len() as u64);
        assert_eq!(hooks.count(Reason::SocketFlowEvicted), 0);
    });
}

#[test]
fn a_socket_with_too_many_vips_forgets_the_oldest_and_counts_it() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let vips: Vec<_> = (1..=4 + FLOWS_MORE).map(|number| numbered(&mut hooks, number)).collect();
        let socket = udp_for("0.0.0.0:0");
        for (vip, backend) in &vips {
            assert_eq!(ask(&socket, vip), (*backend, at(vip)));
        }
        assert_eq!(hooks.count(Reason::SocketFlowEvicted), 3);
        let (newest, backend) = &vips[vips.len() - 1];
        assert_eq!(ask(&socket, newest), (*backend, at(newest)));
        assert_eq!(hooks.count(Reason::FollowedFlow), 1);
    });
}

#[test]
fn two_vips_of_one_backend_on_one_socket_answer_as_the_one_used_last() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let backend = udp_server("10.1.0.1");
        for vip in ["udp 172.30.0.1:53", "udp 172.30.0.2:53"] {
            hooks.serve(&service(vip).backend(backend)).unwrap();
        }
        let socket = udp_for("0.0.0.0:0");
        for vip in ["172.30.0.1:53", "172.30.0.2:53", "172.30.0.1:53"] {
            assert_eq!(ask(&socket, vip), (backend, at(vip)));
        }
        // Both at once: the datagrams cannot be told apart.
        for vip in ["172.30.0.1:53", "172.30.0.2:53"] {
            socket.send_to(b"?", vip).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(socket.recv_from(&mut [0; 64]).unwrap().1, at("172.30.0.2:53"));
        }
    });
}

#[test]
fn sockets_whose_slot_is_taken_work_the_same() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach_with(cgroup, Caller::Host, 1).unwrap();
        hooks.serve(&three_udp_backends("udp 172.30.0.1:53")).unwrap();
        hooks.serve(&service("tcp 172.30.0.1:80").backend(tcp_server("10.1.0.1"))).unwrap();
        let sockets: Vec<_> = (0..8).map(|_| udp_for("0.0.0.0:0")).collect();
        for socket in &sockets {
            let (by, from) = ask(socket, "172.30.0.1:53");
            assert_eq!(from, at("172.30.0.1:53"));
            assert_eq!(answers(socket, "172.30.0.1:53", 20), HashSet::from([by]));
            let stream = TcpStream::connect("172.30.0.1:80").unwrap();
            assert_eq!(stream.peer_addr().unwrap(), at("172.30.0.1:80"));
        }
        assert_eq!(hooks.sockets().len(), 1);
        drop(sockets);
        assert_eq!(hooks.sockets().len(), 0);
    });
}

#[test]
fn open_and_total_follow_connections() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let backend = hooks.serve(&service("tcp 172.30.0.1:80").backend(tcp_server("10.1.0.1"))).unwrap().backends[0];
        let streams: Vec<_> = (0..5).map(|_| TcpStream::connect("172.30.0.1:80").unwrap()).collect();
        let stats = hooks.stats(backend).unwrap();
        assert_eq!((stats.open, stats.total, hooks.sockets().len()), (5, 5, 5));
        drop(streams);
        let stats = hooks.stats(backend).unwrap();
        assert_eq!((stats.open, stats.total, hooks.sockets().len()), (0, 5, 0));
    });
}

#[test]
fn a_close_after_the_backend_id_was_given_away_counts_for_nobody() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let backend = hooks.serve(&service("tcp 172.30.0.1:80").backend(tcp_server("10.1.0.1"))).unwrap().backends[0];
        let stream = TcpStream::connect("172.30.0.1:80").unwrap();
        hooks.change_backend(backend, |backend| backend.generation += 1).unwrap();
        drop(stream);
        assert_eq!(hooks.stats(backend).unwrap().open, 1);
    });
}

#[test]
fn affinity_keeps_a_namespace_on_one_backend_until_that_leaves_the_set() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let three = || {
            let on = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
            on.iter().fold(service("tcp 172.30.0.1:80"), |service, on| service.backend(tcp_server(on))).affinity(100)
        };
        let served = hooks.serve(&three()).unwrap();
        let by: HashSet<_> = (0..50).map(|_| dial("172.30.0.1:80")).collect();
        assert_eq!(by.len(), 1);
        for id in served.backends {
            hooks.change_backend(id, |backend| backend.generation += 1).unwrap();
        }
        let now: HashSet<_> = (0..50).map(|_| dial("172.30.0.1:80")).collect();
        assert_eq!(now.len(), 1);
    });
}

/// What each way to dial says: TCP connect, UDP connect, UDP sendto.
fn errors(addr: &str) -> [Errno; 3] {
    [
        TcpStream::connect(addr).unwrap_err(),
        udp_for(addr).connect(addr).unwrap_err(),
        udp_for(addr).send_to(b"?", addr).unwrap_err(),
    ]
    .map(|error| error.raw_os_error().map(Errno::from_raw).unwrap())
}

#[test]
fn refusals_are_told_at_once_by_their_errno() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        for (i, proto) in ["tcp", "udp"].into_iter().enumerate() {
            for ip in ["172.30.0", "fd30::"] {
                let vip = |last: usize| match ip {
                    "fd30::" => format!("{proto} [fd30::{last}]:80"),
                    _ => format!("{proto} {ip}.{last}:80"),
                };
                hooks.serve(&service(&vip(1)).without_any()).unwrap();
                hooks.serve(&service(&vip(2)).flags(Version::INTERNAL_LOCAL)).unwrap();
                let on = if ip == "fd30::" { "fd01::1" } else { "10.1.0.1" };
                hooks.serve(&service(&vip(3)).backend((on.parse::<IpAddr>().unwrap(), i as u16).into())).unwrap();
            }
        }
        for vip in ["172.30.0.3", "fd30::3"] {
            hooks.address(vip, address::CLUSTER_IP).unwrap();
        }
        hooks.configure(service_cidrs).unwrap();
        for (sentence, v4, v6, errno) in [
            ("no endpoints anywhere", "172.30.0.1:80", "[fd30::1]:80", Errno::ECONNREFUSED),
            ("no endpoint here, policy Local", "172.30.0.2:80", "[fd30::2]:80", Errno::EHOSTUNREACH),
            ("an undefined port", "172.30.0.3:81", "[fd30::3]:81", Errno::ECONNREFUSED),
            ("an address no Service has", "172.30.0.4:80", "[fd30::4]:80", Errno::EHOSTUNREACH),
        ] {
            assert_eq!(errors(v4), [told(errno); 3], "{sentence}");
            assert_eq!(errors(v6), [told(errno); 3], "{sentence}");
            assert_eq!(errors(&v6.replace("[fd30::", "[::ffff:172.30.0.")), [told(errno); 3], "{sentence}, mapped");
        }
        assert_eq!(hooks.count(Reason::NoEndpoints), 9);
        assert_eq!(hooks.count(Reason::NoLocalEndpoints), 9);
        assert_eq!(hooks.count(Reason::UndefinedPort), 9);
        assert_eq!(hooks.count(Reason::UnallocatedAddress), 9);
        assert_eq!(hooks.sockets(), []);
    });
}

fn service_cidrs(config: &mut Config) {
    config.service_cidrs[0] = Cidr { addr: Addr::v4([172, 30, 0, 0]), prefix_len: 96 + 16 };
    config.service_cidrs[1] = Cidr { addr: "fd30::".parse::<IpAddr>().unwrap().into(), prefix_len: 64 };
    config.service_cidr_count = 2;
}

#[test]
fn what_is_not_ours_is_left_alone() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks.configure(service_cidrs).unwrap();
        let (tcp, udp) = (tcp_server("10.1.0.1"), udp_server("10.1.0.1"));
        assert_eq!(dial(&tcp.to_string()), tcp);
        assert_eq!(ask(&udp_for("0.0.0.0:0"), &udp.to_string()), (udp, udp));
        assert_eq!((hooks.count(Reason::Translated), hooks.sockets().len()), (0, 0));
    });
}

#[test]
fn an_address_that_is_absent_costs_no_look_up_and_is_still_refused_where_services_are() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let (direct, backend) = (tcp_server("10.1.0.2"), tcp_server("10.1.0.1"));
        hooks.serve(&service(&format!("tcp {direct}")).backend(backend)).unwrap();
        assert_eq!(dial(&direct.to_string()), backend, "a fresh table says: look");
        hooks.all_absent_but(&["10.1.0.1", "fd30::3"]).unwrap();
        assert_eq!(dial(&direct.to_string()), direct, "the entry was not looked up");

        hooks.configure(service_cidrs).unwrap();
        hooks.address("fd30::3", address::CLUSTER_IP).unwrap();
        assert_eq!(errors("172.30.0.4:80"), [told(Errno::EHOSTUNREACH); 3], "an address no Service has");
        assert_eq!(errors("[fd30::4]:80"), [told(Errno::EHOSTUNREACH); 3]);
        assert_eq!(errors("[fd30::3]:81"), [told(Errno::ECONNREFUSED); 3], "an undefined port");
        hooks.all_absent_but(&["10.1.0.2"]).unwrap();
        assert_eq!(dial(&direct.to_string()), backend);
    });
}

#[test]
fn sockets_of_other_protocols_keep_the_address_they_dial() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks.serve(&service("udp 10.1.0.2:53").backend(at("10.1.0.1:53"))).unwrap();
        hooks.serve(&service("udp [fd01::2]:53").backend(at("[fd01::1]:53"))).unwrap();
        let raw_icmp = raw(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp));
        dial_with(&raw_icmp, "10.1.0.2:53").unwrap();
        assert_eq!(peer(&raw_icmp).ip(), at("10.1.0.2:53").ip());
        let raw_icmpv6 = raw(AddressFamily::Inet6, SockType::Raw, Some(SockProtocol::IcmpV6));
        dial_with(&raw_icmpv6, "[fd01::2]:53").unwrap();
        assert_eq!(peer(&raw_icmpv6).ip(), at("[fd01::2]:53").ip());
        assert_eq!(hooks.count(Reason::Translated), 0);
    });
}

#[test]
fn a_refused_connect_leaves_the_socket_free_to_try_again() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let served = hooks.serve(&service("tcp 172.30.0.1:80").without_any()).unwrap();
        let socket = tcp_socket();
        assert_eq!(dial_with(&socket, "172.30.0.1:80"), Err(told(Errno::ECONNREFUSED)));
        assert_eq!(dial_with(&socket, "172.30.0.1:80"), Err(told(Errno::ECONNREFUSED)));
        let backend = tcp_server("10.1.0.1");
        hooks.replace(&service("tcp 172.30.0.1:80").backend(backend), &served).unwrap();
        dial_with(&socket, "172.30.0.1:80").unwrap();
        assert_eq!(peer(&socket), at("172.30.0.1:80"));
        assert_eq!(answer(socket.into()), backend);
    });
}

#[test]
fn a_connect_that_the_backend_refuses_may_be_tried_again_on_the_same_socket() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let served = hooks.serve(&service("tcp 172.30.0.1:80").backend(at("10.1.0.1:9"))).unwrap();
        let socket = tcp_socket();
        assert_eq!(dial_with(&socket, "172.30.0.1:80"), Err(Errno::ECONNREFUSED));
        let (dead, alive) = (served.backends[0], tcp_server("10.1.0.2"));
        let served = hooks.replace(&service("tcp 172.30.0.1:80").backend(alive), &served).unwrap();
        dial_with(&socket, "172.30.0.1:80").unwrap();
        assert_eq!(peer(&socket), at("172.30.0.1:80"));
        assert_eq!((hooks.stats(dead).unwrap().open, hooks.stats(served.backends[0]).unwrap().open), (0, 1));
    });
}

#[test]
fn a_non_blocking_connect_is_refused_at_once_too() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks.serve(&service("tcp 172.30.0.1:80").without_any()).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        assert_eq!(dial_with(&socket, "172.30.0.1:80"), Err(told(Errno::ECONNREFUSED)));
    });
}

#[test]
fn a_socket_that_turns_to_another_peer_names_that_peer() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let backend = udp_server("10.1.0.1");
        hooks.serve(&service("udp 172.30.0.1:53").backend(backend)).unwrap();
        let socket = udp_for("0.0.0.0:0");
        socket.connect("172.30.0.1:53").unwrap();
        // The very backend, dialled directly: the VIP is history.
        for dissolve in [false, true] {
            if dissolve {
                socket.connect("172.30.0.1:53").unwrap();
                disconnect(socket.as_fd()).unwrap();
            }
            socket.connect(backend).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), backend);
            assert_eq!(hooks.sockets(), []);
            socket.send(b"?").unwrap();
            assert_eq!(socket.recv_from(&mut [0; 64]).unwrap().1, backend);
        }
    });
}

#[test]
fn a_tcp_socket_that_is_dissolved_may_dial_another_vip() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let backends = [tcp_server("10.1.0.1"), tcp_server("10.1.0.2")];
        hooks.serve(&service("tcp 172.30.0.1:80").backend(backends[0])).unwrap();
        hooks.serve(&service("tcp 172.30.0.2:80").backend(backends[1])).unwrap();
        let socket = tcp_socket();
        dial_with(&socket, "172.30.0.1:80").unwrap();
        disconnect(socket.as_fd()).unwrap();
        dial_with(&socket, "172.30.0.2:80").unwrap();
        assert_eq!(peer(&socket), at("172.30.0.2:80"));
        assert_eq!(hooks.sockets().len(), 1);
        assert_eq!(answer(socket.into()), backends[1]);
    });
}

#[test]
fn a_connected_udp_socket_that_also_sends_elsewhere_keeps_its_peer() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let (one, two) = (numbered(&mut hooks, 1).0, numbered(&mut hooks, 2).0);
        let socket = udp_for("0.0.0.0:0");
        socket.connect(&one).unwrap();
        for to in [&two, &one] {
            socket.send_to(b"?", to).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), at(&one));
        }
    });
}

#[test]
fn a_duplicate_and_a_child_share_the_socket_and_the_last_one_frees_its_slot() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks.serve(&service("tcp 172.30.0.1:80").backend(tcp_server("10.1.0.1"))).unwrap();
        let stream = TcpStream::connect("172.30.0.1:80").unwrap();
        let duplicate = stream.try_clone().unwrap();
        let inherited = nix::unistd::dup(stream.as_fd()).unwrap();
        let mut child = Command::new("cat").stdin(inherited).stdout(std::process::Stdio::piped()).spawn().unwrap();
        drop(stream);
        assert_eq!(duplicate.peer_addr().unwrap(), at("172.30.0.1:80"));
        assert_eq!(hooks.sockets().len(), 1);
        drop(duplicate);
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        assert_eq!(at(&text).ip(), at("10.1.0.1:0").ip());
        assert_eq!(hooks.sockets(), []);
    });
}

#[test]
fn an_accepted_connection_names_its_client() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let listener = TcpListener::bind("10.1.0.1:0").unwrap();
        hooks.serve(&service("tcp 172.30.0.1:80").backend(listener.local_addr().unwrap())).unwrap();
        let client = TcpStream::connect("172.30.0.1:80").unwrap();
        let (accepted, from) = listener.accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        assert_eq!(accepted.peer_addr().unwrap(), from);
    });
}

/// A counter of this network namespace.
fn netstat(name: &str) -> String {
    let counters = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let lines: Vec<Vec<&str>> = counters.lines().map(|line| line.split(' ').collect()).collect();
    let column = lines[0].iter().position(|head| *head == name).unwrap();
    lines[1][column].to_owned()
}

#[test]
fn tcp_fast_open_reaches_a_backend() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        // Clients, servers, and those listeners too that did not ask for it.
        fs::write("/proc/sys/net/ipv4/tcp_fastopen", "0x403").unwrap();
        // Nobody accepts: closing without having read what came with the SYN would be a reset.
        let listener = TcpListener::bind(("10.1.0.1", 0)).unwrap();
        hooks.serve(&service("tcp 172.30.0.1:80").backend(listener.local_addr().unwrap())).unwrap();
        for _ in 0..2 {
            let socket = tcp_socket();
            let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
            let to = SockaddrStorage::from(at("172.30.0.1:80"));
            sendto(socket.as_raw_fd(), b"?", &to, flags).unwrap();
            // With a cookie from the first dial, the second one returns before there is a peer.
            poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(10_000_u16)).unwrap();
            assert_eq!(peer(&socket), at("172.30.0.1:80"));
        }
        assert_eq!(hooks.count(Reason::Translated), 2);
        assert_eq!(netstat("TCPFastOpenPassive"), "1", "data that came with the SYN of the second");
        hooks.serve(&service("tcp 172.30.0.2:80").without_any()).unwrap();
        let to = SockaddrStorage::from(at("172.30.0.2:80"));
        let refused = sendto(tcp_socket().as_raw_fd(), b"?", &to, MsgFlags::from_bits_retain(libc::MSG_FASTOPEN));
        assert_eq!(refused, Err(told(Errno::ECONNREFUSED)));
    });
}

#[test]
fn multipath_tcp_reaches_a_backend_but_names_it_as_peer() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let backend = tcp_server("10.1.0.1");
        hooks.serve(&service("tcp 172.30.0.1:80").backend(backend)).unwrap();
        let socket = match mptcp_socket(libc::AF_INET) {
            Ok(socket) => socket,
            // Nobody can have such a socket on a kernel that was built without.
            Err(error) => return assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT)),
        };
        dial_with(&socket, "172.30.0.1:80").unwrap();
        // The hook saw the subflow, whose cookie is another one: a documented limit.
        assert_eq!(peer(&socket), backend);
        assert_eq!(answer(socket.into()), backend);
    });
}

#[test]
fn one_bound_tcp_port_cannot_reach_one_backend_through_two_vips_at_once() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let backend = tcp_server("10.1.0.1");
        for vip in ["tcp 172.30.0.1:80", "tcp 172.30.0.2:80"] {
            hooks.serve(&service(vip).backend(backend)).unwrap();
        }
        let bound = |port| {
            let socket = tcp_socket();
            setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
            bind(socket.as_raw_fd(), &SockaddrStorage::from(at(&format!("10.1.0.3:{port}")))).unwrap();
            socket
        };
        let (one, two) = (bound(4000), bound(4000));
        dial_with(&one, "172.30.0.1:80").unwrap();
        // To the kernel it is the same connection once more: a documented limit.
        assert_eq!(dial_with(&two, "172.30.0.2:80"), Err(Errno::EADDRNOTAVAIL));
        // The socket is as free as before.
        let other = tcp_server("10.1.0.2");
        hooks.serve(&service("tcp 172.30.0.3:80").backend(other)).unwrap();
        dial_with(&two, "172.30.0.3:80").unwrap();
        assert_eq!(peer(&two), at("172.30.0.3:80"));
    });
}

#[test]
fn a_node_port_is_served_on_the_addresses_that_say_so() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let backend = tcp_server("10.1.0.1");
        hooks.serve(&service("tcp 172.30.0.1:80").node_port("tcp", 30080).backend(backend)).unwrap();
        hooks.address("10.1.0.2", address::OWN | address::NODE_PORT).unwrap();
        hooks.address("10.1.0.3", address::OWN).unwrap();
        hooks.address("127.0.0.1", address::OWN | address::LOOPBACK | address::NODE_PORT).unwrap();
        let stream = TcpStream::connect("10.1.0.2:30080").unwrap();
        assert_eq!(stream.peer_addr().unwrap(), at("10.1.0.2:30080"));
        assert_eq!(answer(stream), backend);
        assert_eq!(dial("127.0.0.1:30080"), backend);
        assert_eq!(TcpStream::connect("10.1.0.3:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(hooks.count(Reason::Translated), 2);
    });
}

#[test]
fn who_dials_no_address_in_particular_gets_no_node_port() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks.serve(&service("tcp 172.30.0.1:80").node_port("tcp", 30080).backend(tcp_server("10.1.0.1"))).unwrap();
        for any in ["0.0.0.0:30080", "[::ffff:0.0.0.0]:30080", "[::]:30080"] {
            assert_eq!(TcpStream::connect(any).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{any}");
        }
        let listener = tcp_server("127.0.0.1");
        assert_eq!(dial(&format!("0.0.0.0:{}", listener.port())), listener);
        assert_eq!(hooks.count(Reason::Translated), 0);
    });
}

#[test]
fn a_pod_has_a_loopback_device_of_its_own() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach_to_pod(cgroup);
        let backend = tcp_server("10.1.0.1");
        hooks.serve(&service("tcp 172.30.0.1:80").node_port("tcp", 30080).backend(backend)).unwrap();
        hooks.address("127.0.0.1", address::OWN | address::LOOPBACK | address::NODE_PORT).unwrap();
        hooks.address("10.1.0.2", address::OWN | address::NODE_PORT).unwrap();
        assert_eq!(TcpStream::connect("127.0.0.1:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(dial("10.1.0.2:30080"), backend);
        assert_eq!(hooks.count(Reason::Translated), 1);
    });
}

#[test]
fn a_cluster_ip_that_the_node_owns_is_left_to_its_listener() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        hooks
            .configure(|config| {
                config.service_cidrs[0] = Cidr { addr: Addr::v4([10, 1, 0, 0]), prefix_len: 96 + 16 };
                config.service_cidr_count = 1;
            })
            .unwrap();
        hooks.address("10.1.0.1", address::OWN | address::CLUSTER_IP).unwrap();
        let cache = tcp_server("10.1.0.1");
        assert_eq!(dial(&cache.to_string()), cache);
    });
}

/// A service with one backend of each set and every kind of external frontend.
fn local_and_cluster(proto: &str, flags: u32) -> (Service, [SocketAddr; 2]) {
    let backends = [tcp_server("10.1.0.1"), tcp_server("10.1.0.2")];
    let service = service(&format!("{proto} 172.30.0.1:80"))
        .frontend(&format!("{proto} 172.30.0.2:80"), Frontend::KIND_EXTERNAL_IP)
        .frontend(&format!("{proto} 172.30.0.3:80"), Frontend::KIND_LOAD_BALANCER)
        .backend_in(backends[0], Backend::IN_LOCAL_SET)
        .backend_in(backends[1], Backend::IN_CLUSTER_SET)
        .flags(flags);
    (service, backends)
}

fn assert_sets(caller: Caller, flags: u32, detector: u32, cluster_ip: usize, external: usize, cgroup: &Path) {
    let mut hooks = Hooks::attach_with(cgroup, caller, 1024).unwrap();
    hooks.configure(|config| config.flags = detector).unwrap();
    let (service, backends) = local_and_cluster("tcp", flags);
    hooks.serve(&service).unwrap();
    assert_eq!(dial("172.30.0.1:80"), backends[cluster_ip], "ClusterIP for {caller:?}");
    for vip in ["172.30.0.2:80", "172.30.0.3:80"] {
        assert_eq!(dial(vip), backends[external], "{vip} for {caller:?}, detector {detector}");
    }
}

#[test]
fn policies_choose_the_set_by_frontend_and_client() {
    const LOCAL: usize = 0;
    const CLUSTER: usize = 1;
    alone!(|cgroup| {
        let both = Version::INTERNAL_LOCAL | Version::EXTERNAL_LOCAL;
        assert_sets(Caller::Host, 0, 0, CLUSTER, CLUSTER, cgroup);
        assert_sets(Caller::Host, both, 0, LOCAL, CLUSTER, cgroup);
        assert_sets(Caller::Pod, both, 0, LOCAL, LOCAL, cgroup);
        assert_sets(Caller::Pod, both, Config::DETECTOR_V4, LOCAL, CLUSTER, cgroup);
        assert_sets(Caller::Pod, both, Config::DETECTOR_V6, LOCAL, LOCAL, cgroup);
    });
}

/// A load-balancer address that only 10.1.0.2 may dial, and perhaps the node.
fn restricted(proto: &str, backend: SocketAddr, flags: u32) -> Service {
    service(&format!("{proto} 172.30.0.1:80"))
        .frontend(&format!("{proto} 172.30.0.3:80"), Frontend::KIND_LOAD_BALANCER)
        .backend(backend)
        .source_range([10, 1, 0, 2], 32)
        .flags(flags)
}

fn dial_from(source: &str, vip: &str) -> nix::Result<()> {
    let socket = tcp_socket();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at(&format!("{source}:0")))).unwrap();
    dial_with(&socket, vip)
}

#[test]
fn source_ranges_are_decided_for_the_host_by_the_address_a_socket_is_bound_to() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let served = hooks.serve(&restricted("tcp", tcp_server("10.1.0.1"), 0)).unwrap();
        assert_eq!(dial_from("10.1.0.2", "172.30.0.3:80"), Ok(()));
        assert_eq!(dial_from("10.1.0.3", "172.30.0.3:80"), Err(told(Errno::EHOSTUNREACH)));
        assert_eq!(dial_from("0.0.0.0", "172.30.0.3:80"), Err(told(Errno::EHOSTUNREACH)));
        assert_eq!(dial_from("10.1.0.3", "172.30.0.1:80"), Ok(()), "the ClusterIP is not restricted");
        hooks.replace(&restricted("tcp", tcp_server("10.1.0.1"), Version::SOURCE_NODE_ALLOWED), &served).unwrap();
        assert_eq!(dial_from("0.0.0.0", "172.30.0.3:80"), Ok(()));
        assert_eq!(hooks.count(Reason::SourceNotAllowed), 2);
    });
}

#[test]
fn on_an_old_kernel_the_node_is_the_initial_namespace_and_every_refusal_is_eperm() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach_as_before_5_14(cgroup);
        hooks.configure(service_cidrs).unwrap();
        hooks.serve(&service("tcp 172.30.0.1:80").without_any()).unwrap();
        hooks.serve(&service("udp 172.30.0.1:53").without_any()).unwrap();
        assert_eq!(dial_from("10.1.0.2", "172.30.0.1:80"), Err(Errno::EPERM), "refused");
        assert_eq!(dial_from("10.1.0.2", "172.30.9.9:80"), Err(Errno::EPERM), "unreachable");
        let sent = UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"?", "172.30.0.1:53");
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!((hooks.count(Reason::NoEndpoints), hooks.count(Reason::UnallocatedAddress)), (2, 1));
        // The namespace of the test is not the initial one: a pod, which only packets could judge.
        hooks.serve(&restricted("tcp", tcp_server("10.1.0.1"), Version::SOURCE_NODE_ALLOWED)).unwrap();
        assert_eq!(dial_from("10.1.0.2", "172.30.0.3:80"), Err(Errno::EPERM));
        assert_eq!(hooks.count(Reason::SourceUnknown), 1);
    });
}

/// Dials addresses that are not for pods what they are for the node, through programs that were told no namespace. Sockets
/// are connected and nothing is sent; whether there is a route is nothing to the programs, which come before.
fn assert_no_named_namespace_is_the_initial_one(cgroup: &Path) {
    let mut hooks = Hooks::attach_as_before_5_14(cgroup);
    let (for_pods, for_the_node) = (at("127.0.0.1:9"), at("127.0.0.2:9"));
    let service = service("udp 172.30.0.1:53")
        .frontend("udp 172.30.0.2:53", Frontend::KIND_EXTERNAL_IP)
        .backend_in(for_pods, Backend::IN_LOCAL_SET)
        .backend_in(for_the_node, Backend::IN_CLUSTER_SET)
        .flags(Version::EXTERNAL_LOCAL);
    let local = hooks.serve(&service).unwrap();
    let ranges = hooks.serve(&restricted("udp", for_the_node, Version::SOURCE_NODE_ALLOWED)).unwrap();
    for vip in ["172.30.0.2:53", "172.30.0.3:80"] {
        let _ = UdpSocket::bind("0.0.0.0:0").unwrap().connect(vip);
    }

    let chosen = [local.backends[0], local.backends[1], ranges.backends[0]].map(|id| hooks.stats(id).unwrap().total);
    let host = is_initial();
    println!("this is {}", if host { "the initial namespace" } else { "another namespace" });
    assert_eq!(chosen, if host { [0, 1, 1] } else { [1, 0, 0] }, "for pods, for the node, for the node by its ranges");
    assert_eq!(hooks.count(Reason::SourceUnknown), u64::from(!host));
}

#[test]
fn where_no_namespace_is_named_the_initial_one_is_the_node() {
    alone_in_this_namespace("where_no_namespace_is_named_the_initial_one_is_the_node", |cgroup| {
        assert_no_named_namespace_is_the_initial_one(cgroup);
    });
}

#[test]
fn where_no_namespace_is_named_every_other_one_is_a_pod() {
    alone!(|cgroup| {
        assert!(!is_initial(), "it was made for this test");
        assert_no_named_namespace_is_the_initial_one(cgroup);
    });
}

#[test]
fn a_pod_is_refused_where_only_its_address_could_decide() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach_to_pod(cgroup);
        hooks.serve(&restricted("tcp", tcp_server("10.1.0.1"), Version::SOURCE_NODE_ALLOWED)).unwrap();
        assert_eq!(dial_from("10.1.0.2", "172.30.0.3:80"), Err(told(Errno::ECONNREFUSED)));
        assert_eq!(hooks.count(Reason::SourceUnknown), 1);
    });
}

#[test]
fn processes_in_nested_cgroups_are_served() {
    alone!(|cgroup| {
        let mut hooks = Hooks::attach(cgroup);
        let backend = tcp_server("10.1.0.1");
        hooks.serve(&service("tcp 172.30.0.1:80").backend(backend)).unwrap();
        let nested = cgroup.join("pod/container");
        fs::create_dir_all(&nested).unwrap();
        let script = format!("echo 0 > {}/cgroup.procs && exec cat < /dev/tcp/172.30.0.1/80", nested.display());
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(at(&String::from_utf8(output.stdout).unwrap()), backend);
    });
}

#[test]
fn the_verifier_walks_few_instructions() {
    // Parts of what kernels allow: it is the time an agent takes to start, on every node. Programs of devices have both
    // families in one.
    let output = Command::new(built("verifier").unwrap()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for line in said.lines() {
        let count: u32 = line.split(' ').nth(1).unwrap().parse().unwrap();
        let limit = if line.starts_with("tc_") { 100_000 } else { 50_000 };
        assert!(count < limit, "{said}");
    }
}

#[test]
fn a_socket_made_before_the_hooks_is_served_when_it_dials() {
    alone!(|cgroup| {
        let socket = tcp_socket();
        let listener = TcpListener::bind("10.1.0.1:0").unwrap();
        let mut hooks = Hooks::attach(cgroup);
        hooks.serve(&service("tcp 172.30.0.1:80").backend(listener.local_addr().unwrap())).unwrap();
        dial_with(&socket, "172.30.0.1:80").unwrap();
        accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).map(drop).unwrap();
        assert_eq!(peer(&socket), at("172.30.0.1:80"));
    });
}
