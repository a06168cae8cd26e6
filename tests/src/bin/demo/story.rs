//! What the demo shows, step by step, and the sentences around it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use proxy_tests::agent::{Agent, sluice};
use proxy_tests::node::{Node, Pod};
use proxy_tests::probe::Kind;
use proxy_tests::process::sluice_binary;
use proxy_tests::stage::Backend;
use proxy_tests::world::World;

use crate::scene::{Dialler, Scratch, diallers};

/// Connections per line of the tables.
const DIALS: u32 = 24;

pub(crate) fn tell(scratch: &Scratch) -> Result<()> {
    let world = World::new()?;
    let node = world.node("node")?;
    let diallers = diallers(&world, &node)?;
    let [red, green, blue] = ["red", "green", "blue"].map(|name| Backend::start(&node, name));
    let (red, green, blue) = (red?, green?, blue?);
    introduce(&[&red.pod, &green.pod, &blue.pod]);

    step(
        "A Service has an address that no machine owns, and a port at every node. Without a proxy nobody answers there:",
    );
    show_silence(&diallers);

    step("The Service and the pods behind it are described in YAML files, as in a cluster:");
    scratch.publish_service()?;
    show_file(&scratch.publish_backends(&[&red.pod, &green.pod])?)?;

    step("Start the agent. It loads eBPF programs into the kernel and fills their tables from the folder:");
    let mut agent = start(&node, scratch.path())?;
    show_answers(&diallers)?;

    step("A pod that somebody outside dials sees who it is, not the node:");
    let [_, outside] = &diallers;
    show_clients(outside)?;

    step("Add blue to the file; the agent follows within milliseconds:");
    scratch.publish_backends(&[&red.pod, &green.pod, &blue.pod])?;
    wait_until_it(&diallers, Answers::Include("blue"))?;
    show_answers(&diallers)?;

    step("Take red out; no new connection goes there:");
    scratch.publish_backends(&[&green.pod, &blue.pod])?;
    wait_until_it(&diallers, Answers::Exclude("red"))?;
    show_answers(&diallers)?;

    step("Kill the agent with SIGKILL. The kernel goes on by itself:");
    let status = agent.end_with(Signal::SIGKILL)?;
    println!("  agent: {status}");
    show_answers(&diallers)?;

    step("What the kernel holds, read without the agent:");
    show_list(&node)?;

    step("Remove it all: `sluice cleanup`, then the namespaces and the folder.");
    clean(&node)
}

fn introduce(pods: &[&Pod]) {
    println!("Sluice demo: a Kubernetes node in miniature, made of network namespaces on this machine.");
    println!("Nothing outside of them is touched. Pods that answer with their name:");
    for pod in pods {
        println!("  {:<6} {}, {}", pod.name, pod.v4, pod.v6);
    }
}

fn step(sentence: &str) {
    println!("\n* {sentence}");
}

fn show_file(path: &Path) -> Result<()> {
    println!("  {}", path.display());
    for line in fs::read_to_string(path)?.lines() {
        println!("    {line}");
    }
    Ok(())
}

fn start(node: &Node, folder: &Path) -> Result<Agent> {
    let started = Instant::now();
    let agent = Agent::start_as_user(node, folder)?;
    println!("  {} run {}", sluice_binary()?.display(), agent.arguments().join(" "));
    println!("  serving after {} ms", started.elapsed().as_millis());
    Ok(agent)
}

impl Dialler {
    /// What it can dial: both protocols, both families.
    fn ways(&self) -> impl Iterator<Item = (Kind, SocketAddr)> {
        [Kind::Tcp, Kind::Udp].into_iter().flat_map(|kind| self.at.map(|address| (kind, address)))
    }

    /// Whose answers it gets who dials there.
    fn spread(&self, kind: Kind, address: SocketAddr) -> Result<BTreeMap<String, u32>> {
        let spread = self.client.spread(kind, address, DIALS).map_err(anyhow::Error::msg);
        spread.with_context(|| format!("dial {address} over {} from {}", name(kind), self.who))
    }
}

fn show_silence(diallers: &[Dialler]) {
    for dialler in diallers {
        for (kind, address) in dialler.ways().filter(|(kind, _)| *kind == Kind::Tcp) {
            let outcome = dialler.client.dial(kind, address);
            let outcome = outcome.map_or_else(|error| error, |answer| format!("{} answers", answer.by));
            println!("  {} {address:<19} {outcome}", name(kind));
        }
    }
}

fn show_answers(diallers: &[Dialler]) -> Result<()> {
    for dialler in diallers {
        println!("  {DIALS} connections each from {}, answered by:", dialler.who);
        for (kind, address) in dialler.ways() {
            let spread = dialler.spread(kind, address)?;
            println!("  {} {address:<19} {}", name(kind), shown(&spread));
        }
    }
    Ok(())
}

fn show_clients(dialler: &Dialler) -> Result<()> {
    for (kind, address) in dialler.ways() {
        let answer = dialler.client.dial(kind, address).map_err(anyhow::Error::msg)?;
        println!("  {} {address:<19} {:<5} sees {}", name(kind), answer.by, answer.seen_as);
    }
    Ok(())
}

fn shown(spread: &BTreeMap<String, u32>) -> String {
    spread.iter().map(|(name, count)| format!("{name} {count:<3}")).collect::<Vec<_>>().join(" ")
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Tcp | Kind::Mptcp => "TCP",
        Kind::Udp => "UDP",
    }
}

/// What is waited for before the next table is shown.
#[derive(Clone, Copy)]
enum Answers {
    Include(&'static str),
    Exclude(&'static str),
}

fn wait_until_it(diallers: &[Dialler], wanted: Answers) -> Result<()> {
    let start = Instant::now();
    while !everywhere(diallers, wanted)? {
        ensure!(start.elapsed() < Duration::from_secs(10), "the agent did not follow the file within 10 s");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn everywhere(diallers: &[Dialler], wanted: Answers) -> Result<bool> {
    for dialler in diallers {
        for (kind, address) in dialler.ways() {
            let spread = dialler.spread(kind, address)?;
            let is_so = match wanted {
                Answers::Include(name) => spread.contains_key(name),
                Answers::Exclude(name) => !spread.contains_key(name),
            };
            if !is_so {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn show_list(node: &Node) -> Result<()> {
    let pin_dir = node.pin_dir().display().to_string();
    println!("  sluice list --pin-dir {pin_dir}");
    show_output(node, &["list", "--pin-dir", &pin_dir])
}

fn clean(node: &Node) -> Result<()> {
    let pin_dir = node.pin_dir().display().to_string();
    show_output(node, &["cleanup", "--pin-dir", &pin_dir])
}

fn show_output(node: &Node, arguments: &[&str]) -> Result<()> {
    let output = sluice(node, arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "sluice {}: {errors}", arguments.join(" "));
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        println!("  {line}");
    }
    Ok(())
}
