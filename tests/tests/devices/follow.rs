//! Devices come, go and come back: programs are there soon, and nothing of who left stays.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use proxy_common::abi::{Device, near};
use proxy_common::addr::Addr;
use proxy_tests::stage::eventually;
use proxy_userspace::attach::devices::Way;

use crate::stage::{Stage, run, since, ways};

/// How soon a change must be known.
const SOON: Duration = Duration::from_millis(250);

#[test]
fn a_device_that_comes_is_followed_and_one_that_goes_is_forgotten() {
    for &way in ways() {
        let stage = Stage::new();
        stage.uplink();
        let agent = stage.agent(way);
        let up = stage.index("uplink");
        assert!(stage.stands_at(up), "what is there at the start is served before the agent goes on ({way:?})");
        stage.veth("pod1");
        let pod = stage.index("pod1");
        eventually("the pod's device is served", || stage.stands_at(pod) && stage.is_known(pod));
        run("ip link del pod1");
        let gone = || !stage.is_known(pod) && !stage.pins().iter().any(|pin| pin.starts_with(&format!("{pod}-")));
        eventually("nothing of the pod's device is left", gone);
        assert!(agent.hooks.lock().unwrap().failed().is_empty());
    }
}

#[test]
fn a_device_that_comes_back_under_its_old_number_is_served_again() {
    for &way in ways() {
        let stage = Stage::new();
        let agent = stage.agent(way);
        stage.veth("pod1");
        let pod = stage.index("pod1");
        eventually("the device is served", || stage.stands_at(pod));
        let again = format!(
            "link del pod1\nlink add pod1 index {pod} up type veth peer name p-pod1 netns {}",
            stage.outside.path()
        );
        stage.node.ip(&again.lines().collect::<Vec<_>>()).unwrap();
        eventually("its successor is served", || stage.stands_at(pod));
        agent.end();
    }
}

#[test]
fn of_two_devices_with_one_place_the_first_has_it_until_it_goes() {
    let (first, second) = (5000, 5000 + near::PLACES);
    let stage = Stage::new();
    let agent = stage.agent(Way::of_this_kernel());
    for device in [first, second] {
        let peer = format!("type veth peer name p-{device} netns {}", stage.outside.path());
        stage.node.ip(&[format!("link add pod{device} index {device} up {peer}")]).unwrap();
        eventually("the device is served", || stage.stands_at(device) && stage.is_known(device));
        assert_eq!(stage.near(device), first, "both are known, and the first has the place");
    }
    run(&format!("ip link del pod{first}"));
    eventually("the place is free", || stage.near(first) == 0);
    assert!(!stage.is_known(first) && stage.is_known(second));
    agent.hooks.lock().unwrap().audit();
    assert_eq!(stage.near(second), second, "whoever is looked at next has it");
}

#[test]
fn five_hundred_veths_a_minute_are_each_known_within_a_quarter_of_a_second() {
    let stage = Stage::new();
    let crowd: Vec<String> = (0..200)
        .map(|number| {
            format!("link add old{number} up type veth peer name p-old{number} netns {}", stage.outside.path())
        })
        .collect();
    stage.node.ip(&crowd).unwrap();
    let _agent = stage.agent(Way::of_this_kernel());
    let pace = Duration::from_mins(1) / 500;
    let (mut took, mut due) = (Vec::new(), Instant::now());
    for number in 0..100 {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due += pace;
        let name = format!("new{number}");
        stage.veth(&name);
        let added = SystemTime::now();
        let device = stage.index(&name);
        eventually("a new device is served", || stage.stands_at(device));
        took.push(since(added, stage.pinned_at(device)));
        if number >= 10 {
            let name = format!("new{}", number - 10);
            let device = stage.index(&name);
            stage.node.ip(&[format!("link del {name}")]).unwrap();
            let removed = SystemTime::now();
            eventually("a device is forgotten", || !stage.is_known(device));
            took.push(since(removed, stage.unpinned_at()));
        }
    }
    // One in twenty may wait longer for a processor, or for the lock of all devices of this machine.
    took.sort_unstable();
    assert!(took[took.len() * 19 / 20] <= SOON, "{took:?}");
}

#[test]
fn a_device_that_becomes_something_else_is_known_as_that_within_a_quarter_of_a_second() {
    let stage = Stage::new();
    stage.uplink();
    stage.veth("left");
    stage.veth("right");
    stage.node.ip(&["link add br0 up type bridge mcast_snooping 0", "route add default dev left"]).unwrap();
    let _agent = stage.agent(Way::of_this_kernel());
    let [up, left, right] = ["uplink", "left", "right"].map(|name| stage.index(name));
    let is = |device, flag| stage.told(device).flags & flag != 0;
    let source = || stage.told(up).source_v4;
    let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
    let (first, second) = (addr("10.0.0.1"), addr("10.0.0.77"));
    let changes: [(&str, &dyn Fn() -> bool); 6] = [
        ("link set uplink master br0", &|| is(up, Device::HAS_VLANS)),
        ("link set uplink nomaster", &|| !is(up, Device::HAS_VLANS)),
        ("route replace default dev right", &|| is(left, Device::FACES_POD) && !is(right, Device::FACES_POD)),
        ("route replace default dev left", &|| !is(left, Device::FACES_POD) && is(right, Device::FACES_POD)),
        ("addr del 10.0.0.1/24 dev uplink\naddr add 10.0.0.77/24 dev uplink", &|| source() == second),
        ("addr del 10.0.0.77/24 dev uplink\naddr add 10.0.0.1/24 dev uplink", &|| source() == first),
    ];
    let mut took = Vec::new();
    for (change, is_known) in (0..10).flat_map(|_| &changes) {
        assert!(!is_known(), "{change}: not yet");
        stage.node.ip(&change.lines().collect::<Vec<_>>()).unwrap();
        let changed = Instant::now();
        eventually(change, is_known);
        took.push(changed.elapsed());
        assert!([up, left, right].iter().all(|device| stage.stands_at(*device)), "{change}: all are served on");
    }
    // As above.
    took.sort_unstable();
    assert!(took[took.len() * 19 / 20] <= SOON, "{took:?}");
}
