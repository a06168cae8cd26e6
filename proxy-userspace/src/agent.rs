//! The only file that knows every stage: wake on changes, converge, back off, clean up when idle.
//!
//! One thread. While it writes tables it does not read changes; they queue and are taken together afterwards, so a flood
//! of changes makes larger batches, not a longer queue.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use kube::Client;
use proxy_common::tables::name;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::watch::Receiver as Latest;
use tokio::time::sleep_until;
use tracing::{debug, error, info, warn};

use crate::attach::Datapath;
use crate::config::{Config, Source};
use crate::converge::{Converger, Report};
use crate::desired::{Detector, ThisNode};
use crate::maps::kernel::option;
use crate::model::{Change, Event, Model};
use crate::netdev::{self, Host};
use crate::news::News;
use crate::plan::{Alarm, Ledger, Pressure};
use crate::{log, manifests, sys, watch};

/// Changes that may wait while tables are written; then the sources wait too.
const QUEUE: usize = 4096;
/// An API server that gives no sign of life for so long, with nothing to serve, is a mistake in the settings.
const SERVER_PATIENCE: Duration = Duration::from_secs(20);
/// Specification F4: without its Node object the node is served all the same after this long.
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// Specification F4: podCIDRs are allocated after the Node is made.
const POD_CIDR_PATIENCE: Duration = Duration::from_mins(5);
/// After this long without a change, ids that went out of use are given back.
const IDLE: Duration = Duration::from_millis(200);
/// Where changes never pause, they are given back this long after they went out of use.
const LONGEST_UNTIDY: Duration = Duration::from_millis(500);
/// Every try loads all programs; until one succeeds only what is new is not served.
const GROWTH_RETRY: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Runs until a signal ends it, and gives the exit code that the signal asks for. What was put into the kernel stays and
/// keeps serving.
pub fn run(config: &Config) -> Result<u8> {
    log::start(config.verbosity);
    sys::keep_memory_small();
    sys::end_by_fault_signals().context("give the signals of memory faults their default effect")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(config))
}

async fn serve(config: &Config) -> Result<u8> {
    let mut signals = Signals::new()?;
    let serving = async {
        let (sender, mut news) = mpsc::channel(QUEUE);
        // Sources first: what is wrong with their settings needs no privileges to be seen.
        let source = Prepared::new(config, &sender).await?;
        let host = netdev::follow(config.kernel.netns.as_deref()).await?;
        // Kernel programs take their time to load; lists are read meanwhile.
        let options = config.kernel.clone();
        let opening = tokio::task::spawn_blocking(move || Datapath::open(&options));
        let mut intake = Intake::new(config);
        let mut model = Model::default();
        let ready = async { tokio::join!(opening, source.start(config, &sender)) };
        let (opened, started) = intake.take_until(ready, &mut model, &mut news).await;
        let datapath = opened.context("load the kernel programs")??;
        // With tables taken over there is something to serve until the server comes back; without, nobody is helped.
        started.or_else(|error| if datapath.is_live() { Ok(()) } else { Err(error) })?;
        drop(sender);
        let this = this_node(&settings(config), &host.borrow());
        let converger = Converger::knowing(model, datapath, this);
        Agent::new(config, converger, host, intake).follow(news).await
    };
    tokio::select! {
        result = serving => result.map(|()| 0),
        code = signals.next() => Ok(code),
    }
}

/// Both end the agent as they would without a handler, also where they otherwise could not (as process 1 of a container).
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> u8 {
        let (name, code) = tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 143),
            _ = self.interrupt.recv() => ("SIGINT", 130),
        };
        info!("ended by {name}; Services keep being served");
        code
    }
}

/// A source whose settings were found right.
enum Prepared {
    Cluster { client: Client, server: String },
    Files,
}

impl Prepared {
    async fn new(config: &Config, news: &Sender<News>) -> Result<Self> {
        match &config.source {
            Source::Cluster(access) => {
                let (client, server) = watch::connect(access).await?;
                Ok(Self::Cluster { client, server })
            }
            Source::Manifests(paths) => {
                manifests::start(paths, &config.node_name, news).await?;
                Ok(Self::Files)
            }
        }
    }

    /// Starts to follow as soon as the server gives a sign of life, at last without; the error says that none came.
    async fn start(self, config: &Config, news: &Sender<News>) -> Result<()> {
        let Self::Cluster { client, server } = self else { return Ok(()) };
        info!("node {}, API server {server}", config.node_name);
        let answered = watch::reachable(&client, SERVER_PATIENCE).await;
        watch::start(&client, &config.node_name, news);
        answered.map_err(|reason| {
            anyhow!(
                "no answer from the API server {server} in {} s, and there is no earlier state to serve: {reason}; \
                 give its real address (not a ClusterIP) with --master URL",
                SERVER_PATIENCE.as_secs()
            )
        })
    }
}

/// Where news become knowledge.
struct Intake {
    patience: Patience,
    /// When the first of the news was heard that are not in the tables yet.
    heard: Option<Instant>,
}

impl Intake {
    fn new(config: &Config) -> Self {
        Self { patience: Patience::new(config), heard: None }
    }

    /// Takes in what comes until `ready` is.
    async fn take_until<T>(
        &mut self,
        ready: impl Future<Output = T>,
        model: &mut Model,
        news: &mut Receiver<News>,
    ) -> T {
        let mut ready = pin!(ready);
        loop {
            tokio::select! {
                done = &mut ready => return done,
                Some(news) = news.recv() => self.take(model, news),
            }
        }
    }

    fn take(&mut self, model: &mut Model, News { change, heard }: News) {
        self.patience.see(&change);
        self.heard.get_or_insert(heard);
        for problem in model.apply(change) {
            warn!("{problem}");
        }
    }
}

struct Agent {
    converger: Converger<Datapath>,
    host: Latest<Host>,
    settings: ThisNode,
    intake: Intake,
    failures: u32,
    retry_at: Option<Instant>,
    /// When to try again to make tables larger.
    grow_at: Option<Instant>,
    /// Since when there is something to give back.
    untidy_since: Option<Instant>,
    alarm: Alarm,
    /// Everything was up to date once.
    converged: bool,
}

impl Agent {
    fn new(config: &Config, converger: Converger<Datapath>, host: Latest<Host>, intake: Intake) -> Self {
        Self {
            converger,
            host,
            settings: settings(config),
            intake,
            failures: 0,
            retry_at: None,
            grow_at: None,
            untidy_since: None,
            alarm: Alarm::default(),
            converged: false,
        }
    }

    async fn follow(&mut self, mut news: Receiver<News>) -> Result<()> {
        let mut batch = Vec::new();
        self.work_if_synced(false);
        loop {
            let mut idle = false;
            let tidy_at = self.tidy_at();
            tokio::select! {
                count = news.recv_many(&mut batch, QUEUE) => if count == 0 { bail!("every source of changes ended") },
                changed = self.host.changed() => {
                    changed.context("the addresses of this node are no longer followed")?;
                    let host = self.host.borrow_and_update().clone();
                    self.converger.set_node(this_node(&self.settings, &host));
                }
                () = until(self.retry_at) => {}
                () = until(self.grow_at) => {}
                () = until(self.intake.patience.deadline()) => self.intake.patience.run_out(&self.settings)?,
                () = until(tidy_at) => {
                    idle = true;
                    self.untidy_since = None;
                }
            }
            for news in batch.drain(..) {
                self.intake.take(self.converger.model_mut(), news);
            }
            self.work_if_synced(idle);
        }
    }

    fn work_if_synced(&mut self, idle: bool) {
        if self.converger.model().synced() {
            self.intake.patience.start();
            self.work(idle);
        }
    }

    /// When to give back what went out of use, unless there is something to do before.
    fn tidy_at(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let since = self.converger.is_untidy().then(|| self.untidy_since.unwrap_or(now));
        self.untidy_since = since;
        since.map(|since| (now + IDLE).min(since + LONGEST_UNTIDY))
    }

    fn work(&mut self, idle: bool) {
        if !self.intake.patience.is_over() || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        if self.grow_at.is_some_and(|at| Instant::now() >= at) {
            self.grow_at = None;
            self.converger.try_to_grow();
        }
        let result = if idle { self.tidy() } else { self.converge() };
        self.retry_at = result.err().map(|error| {
            self.failures += 1;
            let wait = (FIRST_RETRY * 2_u32.saturating_pow(self.failures - 1)).min(LONGEST_RETRY);
            error!(
                "tables are not up to date, the next try in {} s starts from what they hold: {error:#}",
                wait.as_secs()
            );
            Instant::now() + wait
        });
        if self.retry_at.is_none() {
            self.failures = 0;
        }
    }

    fn converge(&mut self) -> Result<()> {
        let started = Instant::now();
        let report = self.converger.converge()?;
        self.converger.store_mut().go_live()?;
        tell(&report);
        self.tell_pressure();
        if report.cramped.is_some() {
            self.grow_at = Some(Instant::now() + GROWTH_RETRY);
        }
        let heard = self.intake.heard.take().unwrap_or(started);
        // Also when there was nothing to write: this is how others see that the agent is ready.
        if !std::mem::replace(&mut self.converged, true) {
            let milliseconds = started.elapsed().as_millis();
            info!("programmed {} in {milliseconds} ms ({} writes)", self.totals(), report.writes);
            sys::give_memory_back();
        } else if report.writes > 0 {
            debug!(
                "programmed a change {} us after it was heard ({} writes)",
                heard.elapsed().as_micros(),
                report.writes
            );
        }
        Ok(())
    }

    fn tell_pressure(&mut self) {
        let tables = self.converger.ledger().into_iter().flat_map(Ledger::pressure);
        for Pressure { table, used, capacity } in self.alarm.news(tables) {
            let way_out = way_out(table);
            warn!("table {table} is nearly full: {used} entries of {capacity} that it may grow to; {way_out}");
        }
    }

    fn totals(&self) -> String {
        let tables = || self.converger.ledger().into_iter().flat_map(Ledger::pressure);
        let used = |table| tables().find(|of| of.table == table).map_or(0, |of| of.used);
        format!("{} service ports, {} endpoints", used(name::SERVICE), used(name::BACKENDS))
    }

    fn tidy(&mut self) -> Result<()> {
        let report = self.converger.tidy()?;
        debug!("gave back what went out of use ({} writes)", report.writes);
        Ok(())
    }
}

/// What an operator must know about one round.
fn tell(report: &Report) {
    for damage in &report.damage {
        warn!("table {}, {}: {}; it is written anew", damage.table, damage.entry, damage.fault);
    }
    if let Some(error) = &report.cramped {
        error!("the tables cannot grow, the next try is in {} s: {error:#}", GROWTH_RETRY.as_secs());
    }
    for (port, full) in &report.full {
        error!(
            namespace = &*port.namespace,
            service = &*port.service,
            port = &*port.port,
            "not served as it should be: {full}; {}",
            if report.cramped.is_some() { "the table cannot grow now".to_owned() } else { way_out(full.table) }
        );
    }
    if let Some(full) = &report.addresses_full {
        error!("some ClusterIPs or own addresses are not known to the tables: {full}");
    }
}

fn way_out(table: &str) -> String {
    match option(table) {
        Some(option) => format!("delete Services, or start again with a larger {option}"),
        None => "delete Services; no option makes it larger".to_owned(),
    }
}

/// Never when there is nothing to wait for.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// What the command line says about this node; addresses come from the kernel.
fn settings(config: &Config) -> ThisNode {
    let (udp_timeout, udp_stream_timeout) = netdev::udp_timeouts(config.kernel.netns.as_deref());
    ThisNode {
        name: config.node_name.as_str().into(),
        bind_address: config.bind_address,
        node_port_addresses: config.node_ports.clone(),
        detector: config.detector.clone(),
        loopback_node_ports: config.loopback_node_ports,
        udp_timeout,
        udp_stream_timeout,
        ..ThisNode::default()
    }
}

fn this_node(settings: &ThisNode, host: &Host) -> ThisNode {
    ThisNode {
        own_addresses: host.own_addresses.clone(),
        fallback_addresses: host.default_route_addresses.clone(),
        ..settings.clone()
    }
}

/// How long the first write waits for what does not strictly need to be there (specification F4): without the own Node,
/// node ports and topology would be wrong for a moment; without ServiceCIDRs, tables would change twice.
#[derive(Debug, Default)]
struct Patience {
    /// When everything else was there.
    started: Option<Instant>,
    /// Files say everything at once; a server may be asked too early.
    waits: bool,
    needs_pod_cidrs: bool,
    has_addresses: bool,
    has_pod_cidrs: bool,
    has_service_cidrs: bool,
    exhausted: bool,
}

impl Patience {
    fn new(config: &Config) -> Self {
        let waits = matches!(config.source, Source::Cluster(_));
        Self { waits, needs_pod_cidrs: waits && config.detector == Detector::NodeCidr, ..Self::default() }
    }

    fn start(&mut self) {
        self.started.get_or_insert_with(Instant::now);
    }

    fn see(&mut self, change: &Change) {
        match change {
            Change::Node(Event::Apply(node)) => {
                self.has_addresses |= !node.status.addresses.is_empty();
                self.has_pod_cidrs |= !node.spec.pod_cidrs.is_empty();
            }
            Change::ServiceCidr(Event::End | Event::Reset(_)) => self.has_service_cidrs = true,
            _ => {}
        }
    }

    fn is_over(&self) -> bool {
        let complete = self.has_addresses && self.has_service_cidrs;
        !self.waits || ((complete || self.exhausted) && (self.has_pod_cidrs || !self.needs_pod_cidrs))
    }

    fn deadline(&self) -> Option<Instant> {
        let patience = if self.exhausted { POD_CIDR_PATIENCE } else { NODE_PATIENCE };
        self.started.filter(|_| !self.is_over()).map(|started| started + patience)
    }

    /// The deadline has passed. Only missing podCIDRs are fatal: every local pod would be taken for a stranger.
    fn run_out(&mut self, this: &ThisNode) -> Result<()> {
        let name = &this.name;
        if self.exhausted {
            let minutes = POD_CIDR_PATIENCE.as_secs() / 60;
            bail!(
                "--detect-local-mode=NodeCIDR: node {name} got no podCIDRs in {minutes} min; is a controller to allocate them?"
            );
        }
        self.exhausted = true;
        if !self.has_addresses {
            error!("{}", unknown_node(name));
        }
        Ok(())
    }
}

fn unknown_node(name: &str) -> String {
    format!(
        "node {name} does not exist or has no address after {} s; going on with this host's own. \
         --hostname-override must name the Node object",
        NODE_PATIENCE.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::build::node;

    fn patient(needs_pod_cidrs: bool) -> Patience {
        let mut patience = Patience { waits: true, needs_pod_cidrs, ..Patience::default() };
        patience.start();
        patience
    }

    #[test]
    fn the_first_write_waits_for_the_own_node_and_the_service_cidrs() {
        let mut patience = patient(false);
        patience.see(&node("node-1").apply());
        patience.see(&Change::ServiceCidr(Event::End));
        assert!(!patience.is_over(), "a Node without an address says nothing yet");
        patience.see(&node("node-1").internal_ip("192.0.2.1").apply());
        assert!(patience.is_over());
        assert_eq!(patience.deadline(), None);
    }

    #[test]
    fn it_does_not_wait_for_ever_unless_pods_could_not_be_told_apart() {
        let this = ThisNode::default();
        let mut patience = patient(false);
        patience.run_out(&this).unwrap();
        assert!(patience.is_over());

        let mut strict = patient(true);
        strict.run_out(&this).unwrap();
        assert!(!strict.is_over());
        assert!(strict.run_out(&this).unwrap_err().to_string().contains("got no podCIDRs in 5 min"));
    }

    #[test]
    fn an_unknown_node_is_waited_for_half_a_minute_and_then_named_with_the_way_out() {
        let patience = patient(false);
        assert_eq!(patience.deadline(), Some(patience.started.unwrap() + Duration::from_secs(30)));
        let message = unknown_node("node-7");
        assert!(message.starts_with("node node-7 does not exist or has no address after 30 s"), "{message}");
        assert!(message.ends_with("--hostname-override must name the Node object"), "{message}");
    }

    #[test]
    fn files_are_not_waited_for() {
        assert!(Patience::default().is_over());
    }
}
