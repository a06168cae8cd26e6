//! The harness itself: namespaces reach each other, and nothing is left behind.

use std::path::PathBuf;

use proxy_tests::probe::{Client, Kind, Load, Server, Traffic};
use proxy_tests::stage::at;
use proxy_tests::world::World;

#[test]
fn pods_of_two_nodes_and_the_outside_reach_each_other() {
    let world = World::new().unwrap();
    let (one, two) = (world.node("one").unwrap(), world.node("two").unwrap());
    let (near, far) = (one.pod("near").unwrap(), two.pod("far").unwrap());
    let server = at(&far, 8080);
    let _server = Server::start(&far.place, "far", &server).unwrap();

    for place in [near.place.clone(), one.host().unwrap(), world.outside().unwrap()] {
        let client = Client::start(&place).unwrap();
        for to in server {
            for kind in [Kind::Tcp, Kind::Udp] {
                let answer = client.dial(kind, to).unwrap();
                assert_eq!((answer.by.as_str(), answer.from), ("far", Some(to)), "{kind:?} {to}");
            }
        }
    }
    let answer = Client::start(&near.place).unwrap().dial(Kind::Tcp, server[0]).unwrap();
    assert_eq!(answer.seen_as.ip(), near.v4);
}

#[test]
fn a_load_counts_answers() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let (client, server) = (node.pod("client").unwrap(), node.pod("server").unwrap());
    let to = at(&server, 8080);
    let _server = Server::start(&server.place, "server", &to).unwrap();
    for traffic in [Traffic::Tcp, Traffic::Udp, Traffic::Datagrams] {
        let mut load = Load::start(&client.place, traffic, to[1]).unwrap();
        load.after(20).unwrap();
        let report = load.stop().unwrap();
        assert_eq!((report.failed, report.by["server"]), (0, report.answered), "{traffic:?}");
    }
}

#[test]
fn a_load_counts_failures_by_their_name() {
    let world = World::new().unwrap();
    let node = world.node("one").unwrap();
    let (client, server) = (node.pod("client").unwrap(), node.pod("server").unwrap());
    let to = at(&server, 8080);
    let mut load = Load::start(&client.place, Traffic::Tcp, to[0]).unwrap();
    load.until(|report| report.failed >= 5).unwrap();
    let report = load.stop().unwrap();
    assert_eq!((report.answered, report.errors["ECONNREFUSED"]), (0, report.failed));
}

#[test]
fn nothing_is_left_behind_after_a_panic() {
    let cgroup = std::thread::spawn(|| {
        let world = World::new().unwrap();
        let node = world.node("one").unwrap();
        let pod = node.pod("pod").unwrap();
        let _server = Server::start(&pod.place, "pod", &at(&pod, 80)).unwrap();
        std::panic::panic_any(world.cgroup().to_owned());
    });
    let cgroup = *cgroup.join().unwrap_err().downcast::<PathBuf>().unwrap();
    assert!(!cgroup.exists(), "{}", cgroup.display());
}
