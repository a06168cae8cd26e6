//! One proxy on one node with one made-up cluster: everything that is measured about it.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::Agent;
use proxy_tests::apiserver::node_object;
use proxy_tests::cluster::{self, SLICE, Size};
use proxy_tests::node::Node;
use proxy_tests::world::World;
use serde_json::json;

use crate::feed::{Feed, Source};
use crate::probe::{Probe, Visit};
use crate::subject::{Memory, Subject, Who};

const ROLLING: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 52);
/// Long enough for allocators and retired ids to settle.
const SETTLED: Duration = Duration::from_secs(2);

/// The start of a proxy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cold {
    /// Seconds from the start of the process to the last write.
    pub(crate) from_start: f64,
    /// From the last byte of the lists; only a replayed API server tells when that was.
    pub(crate) from_list: Option<f64>,
    pub(crate) cpu: f64,
    pub(crate) memory: Memory,
}

/// What the agent says about one change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// From its bytes to the last write.
    pub(crate) seconds: f64,
    pub(crate) writes: u32,
}

/// A steady stream of changes.
#[derive(Clone, Debug)]
pub(crate) struct Churn {
    /// Of one CPU.
    pub(crate) share: f64,
    pub(crate) heard: Vec<Heard>,
    /// How long the change after the last one took, seen from outside.
    pub(crate) backlog: f64,
}

pub(crate) struct Trial {
    pub(crate) subject: Subject,
    pub(crate) size: Size,
    pub(crate) node: Node,
    feed: Feed,
    probe: Probe,
    patience: Duration,
    world: World,
}

impl Trial {
    pub(crate) fn start(who: Who, source: Source, size: Size, patience: Duration) -> Result<(Self, Cold)> {
        let world = World::new()?;
        let node = world.node("one")?;
        let probe = Probe::new(&node, patience)?;
        let feed = Feed::start(source, &world)?;
        feed.apply(&node_object(&node))?;
        if source == Source::Replayed {
            feed.apply(&cluster::service_cidr())?;
        }
        probe.publish(&feed)?;
        size.objects().try_for_each(|object| feed.apply(&object).map(drop))?;
        let kubeconfig = feed.kubeconfig()?;
        let start = Instant::now();
        let mut subject = who.start(&node, &kubeconfig)?;
        let programmed = subject.programmed_at(patience)?;
        let cpu = subject.cpu()?;
        thread::sleep(SETTLED);
        let cold = Cold {
            from_start: (programmed - start).as_secs_f64(),
            from_list: feed.listed().map(|listed| (programmed - listed).as_secs_f64()),
            cpu,
            memory: subject.memory()?,
        };
        Ok((Self { subject, size, node, feed, probe, patience, world }, cold))
    }

    /// Seconds from the bytes of a change until the other pod answers, seen from outside.
    pub(crate) fn flips(&self, count: usize) -> Result<Vec<f64>> {
        self.on_the_node(|probe, feed| probe.flips(feed, count))
    }

    /// Seconds from the bytes of a new Service until it answers.
    pub(crate) fn births(&self, count: usize) -> Result<Vec<f64>> {
        self.on_the_node(|probe, feed| probe.births(feed, count))
    }

    /// Changes one slice after the other, `per_second`.
    pub(crate) fn churn(&self, per_second: u32, lasting: Duration) -> Result<Churn> {
        let from = self.log_length();
        let (cpu, start) = (self.subject.cpu()?, Instant::now());
        let mut changes = 0;
        while start.elapsed() < lasting {
            self.change_one(changes)?;
            changes += 1;
            let next = Duration::from_secs(1) * changes / per_second;
            thread::sleep(next.saturating_sub(start.elapsed()));
        }
        let share = (self.subject.cpu()? - cpu) / start.elapsed().as_secs_f64();
        let heard = self.heard(from);
        Ok(Churn { share, heard, backlog: self.flips(1)?[0] })
    }

    /// Swaps one endpoint of one of the Services for a spare address, or back.
    fn change_one(&self, number: u32) -> Result<()> {
        let service = number.wrapping_mul(7919) % self.size.services;
        let mut slice = self.size.slice(service, 0);
        if (number / self.size.services).is_multiple_of(2) {
            slice["endpoints"][0]["addresses"] = json!([self.size.endpoint(service, self.size.endpoints)]);
        }
        self.feed.apply(&slice).map(drop)
    }

    /// Replaces every endpoint of a large Service, `at_once` in each change; what the agent says about each.
    pub(crate) fn roll(&self, endpoints: u32, at_once: u32) -> Result<Vec<Heard>> {
        let first = u32::from(Ipv4Addr::new(10, 200, 0, 1));
        let address = |at: u32, replaced: bool| Ipv4Addr::from(first + at + if replaced { endpoints } else { 0 });
        let slice = |number: u32, replaced: u32| {
            let addresses: Vec<_> = (0..SLICE).map(|at| address(number * SLICE + at, at < replaced)).collect();
            cluster::slice("rolling", number, &addresses)
        };
        let slices = endpoints / SLICE;
        let before = self.log_length();
        (0..slices).try_for_each(|number| self.feed.apply(&slice(number, 0)).map(drop))?;
        self.feed.apply(&cluster::service("rolling", ROLLING))?;
        self.wait_for_changes(before, 1)?;
        thread::sleep(SETTLED);
        let from = self.log_length();
        let mut done = 0;
        for number in 0..slices {
            for replaced in (at_once..=SLICE).step_by(at_once as usize) {
                self.feed.apply(&slice(number, replaced))?;
                done += 1;
                self.wait_for_changes(from, done)?;
            }
        }
        Ok(self.heard(from))
    }

    /// The share of one CPU that is taken when nothing happens.
    pub(crate) fn idle(&self, lasting: Duration) -> Result<f64> {
        let before = self.subject.cpu()?;
        thread::sleep(lasting);
        Ok((self.subject.cpu()? - before) / lasting.as_secs_f64())
    }

    pub(crate) fn log_length(&self) -> usize {
        self.subject.agent().map_or(0, Agent::log_length)
    }

    /// What the agent said about changes since its log was `from` lines long.
    pub(crate) fn heard(&self, from: usize) -> Vec<Heard> {
        self.subject.agent().map_or_else(Vec::new, |agent| agent.lines_from(from, Heard::read))
    }

    fn wait_for_changes(&self, from: usize, count: usize) -> Result<()> {
        let start = Instant::now();
        while self.heard(from).len() < count {
            ensure!(start.elapsed() < self.patience, "the agent programmed no change in {:?}", self.patience);
            thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    /// Measures as a process of the node: in its network namespace and in its cgroup.
    fn on_the_node<T: Send>(&self, measure: impl FnOnce(&Probe, &Feed) -> Result<T> + Send) -> Result<T> {
        let root = self.world.cgroup().parent().context("cgroups are mounted somewhere")?;
        let _visit = Visit::to(&self.node, root)?;
        let (probe, feed) = (&self.probe, &self.feed);
        self.node.netns.inside(|| measure(probe, feed))
    }
}

impl Heard {
    /// `… programmed a change 312 us after it was heard (5 writes)`
    fn read(line: &str) -> Option<Self> {
        let (_, said) = line.split_once("programmed a change ")?;
        let (microseconds, rest) = said.split_once(" us after it was heard (")?;
        let writes = rest.split_once(" writes")?.0.parse().ok()?;
        Some(Self { seconds: microseconds.parse::<f64>().ok()? / 1e6, writes })
    }
}
