//! Three nodes with an agent each, and a client outside of the cluster with a router in between: what becomes of traffic while
//! agents are killed, devices come and go and endpoints change (issue 5, line 10).
//!
//! ```text
//!                    ,- node one ---- pods a, ...
//! client --- router -+- node two ---- pods b, d, ...
//!                    `- node three -- pods c, e, ...
//! ```
//!
//! Everybody is behind one Service. `a`, `b` and `c` serve all the time; `d` and `e` come and go.

use std::net::SocketAddr;

use nix::sys::signal::Signal;
use proxy_tests::agent::{Agent, SMALL_TABLES};
use proxy_tests::edge::{self, devices};
use proxy_tests::manifest::{Endpoints, Folder};
use proxy_tests::node::{Node, Place, Pods};
use proxy_tests::probe::{Load, Report, Traffic};
use proxy_tests::stage::{Backend, NODE_PORT, VIP4, VIP6, dialled, eventually, on, web_endpoints, web_on_node_port};
use proxy_tests::topology::{FIREWALL, Shape, join};
use proxy_tests::world::World;

/// Answers that everybody waits for on each side of an event.
const ANSWERS: u64 = 20;

/// A node and its agent.
struct Member {
    agent: Agent,
    stays: Backend,
    node: Node,
}

struct Scene {
    members: Vec<Member>,
    client: Place,
    manifests: Folder,
    /// Last, so that it goes last.
    world: World,
}

impl Scene {
    fn new(shape: Shape) -> Self {
        let world = World::new().unwrap();
        let pods = if shape == Shape::Routed { Pods::Routed } else { Pods::Bridged };
        let nodes = ["one", "two", "three"].map(|name| world.node_with(name, pods).unwrap());
        join(shape, &world, &nodes.each_ref()).unwrap();
        let client = world.away(1500).unwrap();
        client.netns.nft(COUNTERS).unwrap();
        let manifests = Folder::new().unwrap();
        let members = nodes.into_iter().zip(["a", "b", "c"]).map(|(node, name)| {
            node.netns.sysctl(&[("ipv4/conf/all/rp_filter", "1")]).unwrap();
            node.netns.nft(FIREWALL).unwrap();
            (Backend::start(&node, name).unwrap(), node)
        });
        let members: Vec<_> = members.collect();
        let all = members.iter().fold(web_endpoints(), |slices, (stays, _)| slices.pod(&stays.pod));
        write(&manifests, &all);
        // Datagrams of a new socket each take a port for half a minute, and connections that were closed for two.
        // In tables for 4,096 flows an answer that is late on a busy machine would find its flow forgotten.
        let (tables, flows) = SMALL_TABLES.split_at(SMALL_TABLES.len() - 1);
        assert!(flows[0].starts_with("--max-flows="));
        let arguments = [tables, &edge::PODS, &["--source-ports=10000-29999", "-v2"]].concat();
        let members = members.into_iter().map(|(stays, node)| {
            let agent = Agent::start_with(&node, &manifests, &arguments).unwrap();
            Member { agent, stays, node }
        });
        Self { members: members.collect(), client, manifests, world }
    }

    /// From now on these serve besides those that stay. Returns once every agent has said so in its tables.
    fn serve_too(&self, more: &[&Backend]) {
        let known: Vec<_> = self.members.iter().map(|member| member.agent.log_length()).collect();
        let stay = self.members.iter().map(|member| &member.stays);
        let all = stay.chain(more.iter().copied()).fold(web_endpoints(), |slices, serves| slices.pod(&serves.pod));
        write(&self.manifests, &all);
        for (member, known) in self.members.iter().zip(known) {
            member.agent.programs_after(known).unwrap();
        }
    }

    /// By every node, each way in both families: from outside what lasts and what is short, and what lasts from a pod, which no
    /// socket hook sees on the first node.
    fn crowd(&self) -> Crowd {
        let unseen =
            Place::new(self.members[0].stays.pod.place.netns.clone(), self.world.cgroup().join("unseen")).unwrap();
        let mut crowd = Crowd(Vec::new());
        for (number, Member { node, stays, .. }) in self.members.iter().enumerate() {
            let mut families = on(node, NODE_PORT);
            families.rotate_left(number % 2);
            let [one, other] = families;
            for (traffic, to) in
                [(Traffic::Stream, one), (Traffic::Datagrams, other), (Traffic::Tcp, other), (Traffic::Udp, one)]
            {
                crowd.add(&self.client, traffic, to);
            }
            let pod = if number == 0 { &unseen } else { &stays.pod.place };
            crowd.add(pod, Traffic::Stream, dialled(VIP4));
            crowd.add(pod, Traffic::Datagrams, dialled(VIP6));
        }
        crowd
    }

    /// What each node has counted.
    fn reasons(&self) -> Vec<Vec<(String, u64)>> {
        let counted =
            |member: &Member| edge::counters(&member.node).unwrap().into_iter().filter(|(_, count)| *count > 0);
        self.members.iter().map(|member| counted(member).collect()).collect()
    }

    /// Datagrams that the client outside has sent to Services, answers it was given, and connections that others reset.
    fn counted(&self) -> [u64; 3] {
        let counters = self.client.netns.counters().unwrap();
        ["questions", "answers", "resets"].map(|name| counters[name])
    }
}

const COUNTERS: &str = "table inet counted {
    counter questions { }
    counter answers { }
    counter resets { }
    chain input {
        type filter hook input priority 0
        udp sport 30080 counter name answers
        tcp sport 30080 tcp flags & rst != 0 counter name resets
    }
    chain output {
        type filter hook output priority 0
        udp dport 30080 counter name questions
    }
}";

fn write(manifests: &Folder, slices: &Endpoints) {
    manifests.write("manifest", &[&web_on_node_port(), slices]).unwrap();
}

/// Everybody who dials.
struct Crowd(Vec<(Traffic, SocketAddr, Load)>);

impl Crowd {
    fn add(&mut self, place: &Place, traffic: Traffic, to: SocketAddr) {
        self.0.push((traffic, to, Load::start(place, traffic, to).unwrap()));
    }

    /// Everybody gets more answers.
    fn goes_on(&mut self) {
        let goals: Vec<_> = self.0.iter_mut().map(|(.., load)| load.report().unwrap().answered + ANSWERS).collect();
        for ((.., load), goal) in self.0.iter_mut().zip(goals) {
            load.until(|report| report.answered >= goal).unwrap();
        }
    }

    /// Whoever dials anew by a node gets to `name` some time.
    fn reaches(&mut self, name: &str) {
        for (.., load) in self.0.iter_mut().filter(|(traffic, ..)| !lasts(*traffic)) {
            load.until(|report| report.by.contains_key(name)).unwrap();
        }
    }

    /// How many datagrams of clients outside were answered. Each question was, and those that last by the same backend.
    fn was_served(self, shape: Shape, scene: &Scene) -> u64 {
        let mut datagrams = 0;
        for (traffic, to, load) in self.0 {
            let Report { answered, failed, by, errors } = load.stop().unwrap();
            let what = format!("{shape:?}: {traffic:?} to {to}: {errors:?}, {answered} answers");
            assert_eq!(failed, 0, "{what}; nodes counted {:#?}", scene.reasons());
            assert!(!lasts(traffic) || by.len() == 1, "{shape:?}: {traffic:?} to {to} was answered by {by:?}");
            let is_counted = traffic != Traffic::Tcp && traffic != Traffic::Stream && to.port() == NODE_PORT;
            datagrams += if is_counted { answered } else { 0 };
        }
        datagrams
    }
}

fn lasts(traffic: Traffic) -> bool {
    matches!(traffic, Traffic::Stream | Traffic::Datagrams)
}

fn loses_nothing(shape: Shape) {
    let mut scene = Scene::new(shape);
    let mut crowd = scene.crowd();
    crowd.goes_on();

    for number in 0..scene.members.len() {
        scene.members[number].agent.end_with(Signal::SIGKILL).unwrap();
        crowd.goes_on();
        let agent = scene.members[number].agent.restart().unwrap();
        scene.members[number].agent = agent;
        crowd.goes_on();
    }

    for Member { node, .. } in &scene.members {
        let served = || devices(node).iter().filter(|line| line.contains("ingress program")).count();
        let before = served();
        let come: Vec<_> = ["x", "y", "z"].into_iter().map(|name| node.pod(name).unwrap()).collect();
        eventually("devices that came are served", || served() == before + come.len());
        crowd.goes_on();
        for pod in &come {
            node.remove(pod).unwrap();
        }
        eventually("devices that went are forgotten", || served() == before);
    }
    crowd.goes_on();

    for (number, name) in [(1, "d"), (2, "e")] {
        let comes = Backend::start(&scene.members[number].node, name).unwrap();
        scene.serve_too(&[&comes]);
        crowd.reaches(name);
        scene.serve_too(&[]);
        // Questions that it was asked before are answered then.
        crowd.goes_on();
        scene.members[number].node.remove(&comes.pod).unwrap();
        crowd.goes_on();
    }

    let answered = crowd.was_served(shape, &scene);
    let [questions, answers, resets] = scene.counted();
    assert_eq!((questions, answers, resets), (answered, answered, 0), "{shape:?}: datagrams sent and answered, resets");
    println!("{shape:?}: {answered} datagrams, each answered");
}

#[test]
fn nothing_is_lost_over_bridges_and_routes() {
    loses_nothing(Shape::Bridged);
}

#[test]
fn nothing_is_lost_over_routed_veths() {
    loses_nothing(Shape::Routed);
}

#[test]
fn nothing_is_lost_over_vxlan_with_rules_that_masquerade() {
    loses_nothing(Shape::Overlay);
}
