//! The stage of the demo: its folder on disk, its node and pods, and its manifests.

use std::env;
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use proxy_tests::node::{Node, Pod};
use proxy_tests::probe::Client;
use proxy_tests::stage::{PORT, TARGET, on};
use proxy_tests::world::World;

/// The ClusterIPs of the Service of the demo, and its port at every node.
const CLUSTER_IPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
const NODE_PORT: u16 = 30080;

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: colours, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: ['10.96.0.10', 'fd00:10:96::10']
  ipFamilies: [IPv4, IPv6]
  ports:
  - {name: tcp, protocol: TCP, port: 80, nodePort: 30080}
  - {name: udp, protocol: UDP, port: 80, nodePort: 30080}
";

/// The folder of the manifests, a real one so that a spectator can look at it. Removed at the end and on Ctrl-C.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("sluice-demo-{}", process::id()));
        remove_when_interrupted(path.clone())?;
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes the Service.
    pub(crate) fn publish_service(&self) -> Result<PathBuf> {
        self.replace("service.yaml", SERVICE)
    }

    /// Writes which pods are behind the Service.
    pub(crate) fn publish_backends(&self, pods: &[&Pod]) -> Result<PathBuf> {
        self.replace("backends.yaml", &backends(pods))
    }

    /// A rename replaces the whole file at once; the draft's name does not end in `.yaml`.
    fn replace(&self, name: &str, text: &str) -> Result<PathBuf> {
        let (draft, file) = (self.0.join(format!("{name}.draft")), self.0.join(name));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &file))
            .with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Somebody who dials the Service.
pub(crate) struct Dialler {
    pub(crate) who: &'static str,
    pub(crate) client: Client,
    /// Where it is dialled, IPv4 and IPv6.
    pub(crate) at: [SocketAddr; 2],
}

/// A pod of the node, which is served at its sockets, and a machine that is none of the cluster's, whose packets are translated
/// where they enter the node.
pub(crate) fn diallers(world: &World, node: &Node) -> Result<[Dialler; 2]> {
    let cluster_ips = CLUSTER_IPS.map(|ip| SocketAddr::new(ip.parse().expect("a constant"), PORT));
    Ok([
        Dialler { who: "the client pod", client: Client::start(&node.pod("client")?.place)?, at: cluster_ips },
        Dialler { who: "outside", client: Client::start(&world.outside()?)?, at: on(node, NODE_PORT) },
    ])
}

fn backends(pods: &[&Pod]) -> String {
    let v4: Vec<IpAddr> = pods.iter().map(|pod| pod.v4.into()).collect();
    let v6: Vec<IpAddr> = pods.iter().map(|pod| pod.v6.into()).collect();
    format!("{}---\n{}", slice("IPv4", &v4), slice("IPv6", &v6))
}

fn slice(family: &str, addresses: &[IpAddr]) -> String {
    let mut text = format!(
        "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: colours-{}, namespace: default, labels: {{kubernetes.io/service-name: colours}}}}
addressType: {family}
ports:
- {{name: tcp, protocol: TCP, port: {TARGET}}}
- {{name: udp, protocol: UDP, port: {TARGET}}}
endpoints:
",
        family.to_lowercase()
    );
    for address in addresses {
        writeln!(text, "- {{addresses: ['{address}'], nodeName: node}}").expect("a String takes everything");
    }
    text
}

/// Blocks SIGINT and SIGTERM in every thread; one thread waits for them.
fn remove_when_interrupted(folder: PathBuf) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    thread::spawn(move || {
        let signal = signals.wait();
        remove(&folder);
        println!("\nInterrupted; everything is removed.");
        // As a shell reports an end by signal. The namespaces and the cgroup end with the process.
        process::exit(128 + signal.map_or(0, |signal| signal as i32));
    });
    Ok(())
}

fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        eprintln!("{} stays behind: {error}", folder.display());
    }
}
