//! What goes wrong outside of the program: every message says what it is about and what to do.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proxy_tests::agent::{AT_SOCKETS, Agent};
use proxy_tests::manifest::{Folder, Proto, endpoints, service};
use proxy_tests::node::Node;
use proxy_tests::probe::Kind;
use proxy_tests::process::sluice_binary;
use proxy_tests::stage::{PORT, Stage, TARGET, VIP4, VIP6, dialled, eventually, on, web, web_endpoints};
use proxy_tests::world::{PINS, World};

/// Runs `sluice` to its end: exit code and what it said.
fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn node(world: &World) -> (Node, Folder) {
    (world.node("one").unwrap(), Folder::new().unwrap())
}

/// `sluice run` on the node with an empty folder of manifests, and these arguments instead of the usual ones.
fn sluice_run(node: &Node, manifests: &Folder, arguments: &[&str]) -> Command {
    let mut command = node.host().unwrap().command(sluice_binary().unwrap()).unwrap();
    command.args(["run", "--hostname-override=one", "--manifests"]).arg(manifests.path()).args(arguments);
    command
}

/// It ends with code 1 and an error that holds `parts`.
fn fails_with(command: &mut Command, parts: &[&str]) {
    let (code, said) = run(command);
    assert_eq!(code, Some(1), "{said}");
    for part in parts {
        assert!(said.contains(part), "expected {part:?} in:\n{said}");
    }
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_code_two_and_the_flag() {
    for (arguments, part) in [
        (
            &["--cluster-cidr=10.0.0.0/33"][..],
            "--cluster-cidr: 10.0.0.0/33 is not a CIDR: the prefix must be a number from 0 to 32",
        ),
        (&["--bind-address=here"], "--bind-address: here is not an IP address"),
        (&["--nodeport-addresses=primary,10.0.0.0/8"], "--nodeport-addresses: can't use both 'primary' and CIDRs"),
        (&["--proxy-mode=userspace"], "--proxy-mode: \"userspace\" is not one of iptables, nftables, ipvs, ebpf"),
        (&["--pin-dir=sluice"], "--pin-dir: sluice is not an absolute path"),
        (&["--no-such-flag"], "unexpected argument '--no-such-flag'"),
    ] {
        let (code, said) = run(Command::new(sluice_binary().unwrap()).arg("run").args(arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

#[test]
fn without_root_or_capabilities_it_says_what_is_missing_and_makes_nothing() {
    let world = World::new().unwrap();
    let (node, manifests) = node(&world);
    // Where nobody may read the build folder, a copy serves; and everybody may write to this BPF filesystem.
    let copy = Path::new("/run/sluice-copy");
    fs::copy(sluice_binary().unwrap(), copy).unwrap();
    fs::set_permissions(PINS, fs::Permissions::from_mode(0o777)).unwrap();
    for (drop, message) in [
        (&["--reuid=65534", "--clear-groups"][..], "lacks CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN: run it as root"),
        (&["--bounding-set=-bpf,-perfmon,-net_admin,-sys_admin"], "lacks CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN"),
        (&["--bounding-set=-bpf,-sys_admin"], "lacks CAP_BPF:"),
        (&["--bounding-set=-perfmon,-sys_admin"], "lacks CAP_PERFMON:"),
        (&["--bounding-set=-net_admin"], "lacks CAP_NET_ADMIN:"),
    ] {
        let mut command = node.host().unwrap().command("setpriv").unwrap();
        command.args(drop).arg(copy).args(["run", "--hostname-override=one", "--manifests"]).arg(manifests.path());
        command.arg("--pin-dir").arg(node.pin_dir()).arg("--cgroup-root").arg(&node.cgroup);
        fails_with(&mut command, &[message]);
    }
    assert!(!node.pin_dir().exists(), "who may not write tables leaves no folder behind");
}

/// How long an API server is waited for that gives no sign of life.
const SERVER_PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn what_is_missing_is_said_at_once_also_where_no_api_server_answers() {
    let world = World::new().unwrap();
    let (node, _) = node(&world);
    let mut command = node.host().unwrap().command("setpriv").unwrap();
    command.arg("--bounding-set=-bpf,-perfmon,-net_admin,-sys_admin").arg(sluice_binary().unwrap());
    // Nobody listens there.
    command.args(["run", "--hostname-override=one", "--master=http://192.0.2.1:8001"]);
    command.arg("--pin-dir").arg(node.pin_dir()).arg("--cgroup-root").arg(&node.cgroup);
    let start = Instant::now();
    fails_with(&mut command, &["lacks CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN"]);
    assert!(start.elapsed() < SERVER_PATIENCE, "said after {:?}", start.elapsed());
}

#[test]
fn the_namespace_of_the_node_may_be_a_file_and_must_be_a_namespace() {
    let stage = Stage::new().unwrap();
    fs::write("/run/no-namespace", "").unwrap();
    let cgroup = stage.node.cgroup.display().to_string();
    for (netns, message) in [("/run/missing", "No such file or directory"), ("/run/no-namespace", "Invalid argument")] {
        let arguments = ["--pin-dir=/sys/fs/bpf/other", "--cgroup-root", &cgroup, "--netns", netns];
        fails_with(&mut sluice_run(&stage.node, &stage.manifests, &arguments), &["--netns", netns, message]);
    }
    // A node port on "the node's own address" is on that of the named namespace.
    let service = service("web").cluster_ips(&[VIP4, VIP6]).node_port(Proto::Tcp, PORT, 30_081);
    let endpoints = endpoints("web").port(Proto::Tcp, PORT, TARGET).pod(&stage.a.pod);
    let _agent = stage.serve_with(&[&service, &endpoints], &["--netns", &stage.node.netns.path()]).unwrap();
    for address in on(&stage.node, 30_081) {
        assert_eq!(stage.host_client().unwrap().dial(Kind::Tcp, address).unwrap().by, "a");
    }
}

#[test]
fn a_cgroup_root_that_is_none_is_refused_by_name() {
    let world = World::new().unwrap();
    let (node, manifests) = node(&world);
    let run = |root: &str| sluice_run(&node, &manifests, &["--pin-dir=/sys/fs/bpf/one", "--cgroup-root", root]);
    fails_with(&mut run("/proc"), &["--cgroup-root /proc is not a cgroup2 folder", "findmnt -t cgroup2"]);
    fails_with(&mut run("/nowhere"), &["/nowhere", "No such file or directory"]);
}

#[test]
fn without_cgroup2_it_names_the_mount() {
    let world = World::new().unwrap();
    let (node, manifests) = node(&world);
    let mut command = sluice_run(&node, &manifests, &["--pin-dir=/sys/fs/bpf/one"]);
    // In the mount namespace of this world alone.
    let hierarchy = world.cgroup().parent().unwrap();
    umount2(hierarchy, MntFlags::MNT_DETACH).unwrap();
    fails_with(&mut command, &["no cgroup2 filesystem is mounted", "mount -t cgroup2"]);
}

#[test]
fn in_a_private_cgroup_namespace_it_names_the_mount_to_add() {
    let world = World::new().unwrap();
    let (node, manifests) = node(&world);
    let script = format!(
        "umount -l {} && mkdir /run/cgroup2 && mount -t cgroup2 none /run/cgroup2 && exec {} run --manifests {} --pin-dir /sys/fs/bpf/one",
        world.cgroup().parent().unwrap().display(),
        sluice_binary().unwrap().display(),
        manifests.path().display()
    );
    let mut command = node.host().unwrap().command("unshare").unwrap();
    command.args(["--cgroup", "--mount", "sh", "-c", &script]);
    fails_with(
        &mut command,
        &["/run/cgroup2 is the root of a private cgroup namespace", "/sys/fs/cgroup", "--cgroup-root"],
    );
}

#[test]
fn a_pin_folder_that_cannot_be_used_is_refused_by_name() {
    let world = World::new().unwrap();
    let (node, manifests) = node(&world);
    let cgroup = node.cgroup.display().to_string();
    let run = |folder: &str| sluice_run(&node, &manifests, &["--cgroup-root", &cgroup, "--pin-dir", folder]);
    fails_with(
        &mut run("/run/pins"),
        &["pin folder /run/pins is not on a BPF filesystem", "mount -t bpf bpf /sys/fs/bpf"],
    );
    fails_with(&mut run("/sys/fs/bpf"), &["pin folder /sys/fs/bpf is the BPF filesystem itself"]);
    fs::create_dir_all("/sys/fs/bpf/theirs/programs").unwrap();
    fails_with(&mut run("/sys/fs/bpf/theirs"), &["pin folder /sys/fs/bpf/theirs holds \"programs\"", "--pin-dir"]);
    assert!(Path::new("/sys/fs/bpf/theirs/programs").exists(), "what is not ours stays");
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, "/sys/fs/bpf", None::<&str>, read_only, None::<&str>).unwrap();
    fails_with(&mut run("/sys/fs/bpf/one"), &["is read-only", "mount -o remount,rw /sys/fs/bpf"]);
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_refused_by_name() {
    let world = World::new().unwrap();
    let (node, _) = node(&world);
    fs::write("/run/broken", "clusters: [\n").unwrap();
    fs::write("/run/empty", "apiVersion: v1\nkind: Config\n").unwrap();
    for path in ["/run/missing", "/run/broken", "/run/empty"] {
        let mut command = node.host().unwrap().command(sluice_binary().unwrap()).unwrap();
        command.args(["run", "--kubeconfig", path, "--pin-dir=/sys/fs/bpf/one", "--cgroup-root"]).arg(&node.cgroup);
        fails_with(&mut command, &[path]);
    }
}

/// File contents that a start refuses, and where and why.
const BROKEN: &[(&str, &str)] = &[
    ("kind: Service\nspec:\n  ports:\n  - port: http\n", "manifest.yaml:4: invalid i32, in `- port: http`"),
    ("\n# x\nmetadata: {}\n", "manifest.yaml:3: the object has no kind; write apiVersion and kind"),
    (
        "kind: Service\nmetadata: {name: web}\n",
        "manifest.yaml:1: Service default/web has no address: only an API server allocates",
    ),
    (
        "kind: EndpointSlice\nmetadata: {name: web-1}\n",
        "manifest.yaml:1: EndpointSlice default/web-1 belongs to no Service; write the label kubernetes.io/service-name: NAME",
    ),
    ("kind: Service\nkind: Node\n", "manifest.yaml:2: duplicate mapping key: kind"),
];

#[test]
fn a_file_that_is_broken_at_the_start_is_an_error_with_its_line() {
    let world = World::new().unwrap();
    let (node, manifests) = node(&world);
    for (text, message) in BROKEN {
        manifests.write_text("manifest", text).unwrap();
        let mut agent = Agent::start_in_vain(&node, manifests.path(), &[]).unwrap();
        agent.logged(message).unwrap();
        assert_eq!(agent.wait().unwrap().code(), Some(1), "{text}");
    }
    let mut agent = Agent::start_in_vain(&node, Path::new("/run/nowhere"), &[]).unwrap();
    agent.logged("/run/nowhere: cannot be read: No such file or directory").unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(1));
}

/// Contents that break a file which was good: what is reported while the last good state keeps serving.
fn turned_bad() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let bomb: String = ('b'..='z').map(bomb_line).collect();
    vec![
        (
            "not UTF-8",
            b"kind: Node\nmetadata: {name: caf\xe9}\n".to_vec(),
            "manifest.yaml:2: not UTF-8; save the file in that encoding",
        ),
        ("alias bomb", format!("a: &a [x, x, x]\n{bomb}kind: *z\n").into_bytes(), "manifest.yaml:"),
        ("deep nesting", format!("kind: {}", "[".repeat(10_000)).into_bytes(), "manifest.yaml:1: "),
        ("too large", vec![b'#'; 10 * 1024 * 1024 + 1], "manifest.yaml: larger than 10 MiB; split it"),
        ("too many endpoints", large_slice(1_001), "manifest.yaml:1: EndpointSlice default/large has 1001 endpoints"),
    ]
}

/// `b: &b [*a, *a, …]`: each line ten times the one before.
fn bomb_line(letter: char) -> String {
    let before = char::from(letter as u8 - 1);
    format!("{letter}: &{letter} [{}]\n", vec![format!("*{before}"); 10].join(", "))
}

fn large_slice(endpoints: usize) -> Vec<u8> {
    let mut text = String::from(
        "kind: EndpointSlice\nmetadata: {name: large, labels: {kubernetes.io/service-name: web}}\n\
         addressType: IPv4\nports:\n- {name: tcp-80, port: 80}\nendpoints:\n",
    );
    text.extend((0..endpoints).map(|at| format!("- addresses: [10.9.{}.{}]\n", at / 250, at % 250 + 1)));
    text.into_bytes()
}

#[test]
fn a_file_that_turns_bad_is_reported_and_its_last_good_state_keeps_serving() {
    let stage = Stage::new().unwrap();
    let agent = stage.serve(&[&web(), &stage.both()]).unwrap();
    let client = stage.pod_client().unwrap();
    for (what, content, message) in turned_bad() {
        // At once: a file that is emptied and written anew is good for a while, and without objects.
        stage.manifests.write_text("manifest", content).unwrap();
        agent.logged(message).unwrap();
        assert!(client.dial(Kind::Tcp, dialled(VIP4)).is_ok(), "{what}");
    }
    fs::remove_dir_all(stage.manifests.path()).unwrap();
    agent.logged("cannot be read: No such file or directory").unwrap();
    assert!(client.dial(Kind::Tcp, dialled(VIP4)).is_ok(), "the folder vanished");
}

/// Objects that an API server would not have accepted, and what is said about them.
const PAST_VALIDATION: &[(&str, &str)] = &[
    (
        "kind: Service\nmetadata: {name: bad}\nspec: {clusterIP: 10.96.0.300, clusterIPs: [10.96.0.300], ports: [{port: 80}]}\n",
        "Service default/bad: clusterIPs[0] \"10.96.0.300\" is no IP address and is not served; correct it in the Service",
    ),
    (
        "kind: Service\nmetadata: {name: bad}\nspec: {clusterIP: 10.96.0.77, clusterIPs: [10.96.0.77], ports: [{port: 99999}]}\n",
        "Service default/bad: ports[0].port 99999 is not served; use 1 to 65535",
    ),
    (
        "kind: Service\nmetadata: {name: zz}\nspec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: x, port: 80}]}\n",
        "Service default/zz: 10.96.0.10:80/TCP is served for Service default/web",
    ),
    (
        "kind: EndpointSlice\nmetadata: {name: bad, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
         ports: [{name: tcp-80, port: 80}]\nendpoints: [{addresses: [not-an-address]}]\n",
        "is no IP address and is not used; correct or remove it",
    ),
    (
        "kind: EndpointSlice\nmetadata: {name: bad, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
         ports: [{name: tcp-80, port: 8080}]\nendpoints: [{addresses: [fd00::1]}]\n",
        "EndpointSlice default/bad: endpoints[0] \"fd00::1\" is not of the slice's addressType and is not used; correct or remove it",
    ),
    (
        "kind: EndpointSlice\nmetadata: {name: bad, labels: {kubernetes.io/service-name: web}}\naddressType: Carrier-Pigeon\n",
        "EndpointSlice default/bad: addressType \"Carrier-Pigeon\" is not used; a proxy serves IPv4 and IPv6",
    ),
    (
        "kind: Service\nmetadata: {name: bad}\nspec: {clusterIP: None, prots: []}\n",
        "bad.yaml:1: Service bad: field spec.prots is unknown and has no effect; correct or remove it",
    ),
    (
        "kind: Deployment\nmetadata: {name: bad}\n",
        "kind Deployment is none of Service, EndpointSlice, Node, ServiceCIDR; skipped",
    ),
];

#[test]
fn one_bad_object_costs_only_itself_and_is_named() {
    for (text, message) in PAST_VALIDATION {
        let stage = Stage::new().unwrap();
        stage.manifests.write_text("bad", text).unwrap();
        let agent = stage.serve(&[&web(), &stage.both()]).unwrap();
        agent.logged(message).unwrap();
        assert!(stage.pod_client().unwrap().dial(Kind::Tcp, dialled(VIP4)).is_ok(), "{text}");
    }
}

#[test]
fn a_loop_of_symlinks_is_named_and_the_files_around_it_are_followed() {
    let stage = Stage::new().unwrap();
    let folder = stage.manifests.path();
    symlink(folder, folder.join("again")).unwrap();
    let agent = stage.serve(&[&web(), &web_endpoints().pod(&stage.a.pod)]).unwrap();
    agent.logged(&format!("again: a symlink that leads back to {}; skipped", folder.display())).unwrap();
    let client = stage.pod_client().unwrap();
    assert_eq!(client.dial(Kind::Tcp, dialled(VIP4)).unwrap().by, "a");
    stage.manifests.write("manifest", &[&web(), &web_endpoints().pod(&stage.b.pod)]).unwrap();
    eventually("a change is followed", || client.dial(Kind::Tcp, dialled(VIP4)).is_ok_and(|answer| answer.by == "b"));
    assert_eq!(agent.log().matches("a symlink that leads back").count(), 1, "it is told once");
}

#[test]
fn a_thousand_endpoints_in_one_slice_are_served() {
    let stage = Stage::new().unwrap();
    stage.manifests.write_text("large", str::from_utf8(&large_slice(1_000)).unwrap()).unwrap();
    let _agent = stage.serve(&[&web()]).unwrap();
    let listed = proxy_tests::agent::list(&stage.node).unwrap().to_string();
    assert!(listed.contains("10.9.0.1:") && listed.contains("10.9.3.250:"));
}

#[test]
fn a_full_table_is_named_and_costs_only_what_did_not_fit() {
    let stage = Stage::new().unwrap();
    stage.manifests.write_text("zz-large", str::from_utf8(&large_slice(1_000)).unwrap()).unwrap();
    let service =
        "kind: Service\nmetadata: {name: large}\nspec: {clusterIP: 10.96.0.20, ports: [{name: tcp-80, port: 80}]}\n";
    let slices = String::from_utf8(large_slice(1_000)).unwrap().replace("service-name: web", "service-name: large");
    stage.manifests.write_text("zz-large", format!("{service}---\n{slices}")).unwrap();
    stage.manifests.write("manifest", &[&web(), &stage.both()]).unwrap();
    let agent =
        Agent::start_with(&stage.node, &stage.manifests, &[&AT_SOCKETS[..], &["--max-backends=64"]].concat()).unwrap();
    agent.logged("table BACKENDS is full").and_then(|_| agent.logged("service=\"large\"")).unwrap();
    assert!(stage.pod_client().unwrap().dial(Kind::Tcp, dialled(VIP4)).is_ok());
}
