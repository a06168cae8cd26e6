//! The only file that knows every stage: wake on changes, converge, back off, clean up when idle.
//!
//! One thread. While it writes tables it does not read changes; they queue and are taken together afterwards, so a flood
//! of changes makes larger batches, not a longer queue.

mod intake;
mod left_out;
mod past;
mod retry;
mod signals;
mod source;
mod tell;
mod tidiness;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use proxy_common::abi::TcpTimeouts;
use proxy_common::reason::Reason;
use proxy_common::tables::{Capacity, name};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Receiver};
use tokio::sync::watch::{self, Receiver as Latest};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::attach::devices::DeviceHooks;
use crate::attach::devices::follow::{self, Hooks};
use crate::attach::pins::Folder;
use crate::attach::{AttachError, Datapath, Options};
use crate::config::Config;
use crate::converge::{Converger, Report};
use crate::desired::{Packets, ThisNode};
use crate::devices::Scope;
use crate::model::Model;
use crate::netdev::Host;
use crate::news::News;
use crate::plan::{Alarm, Dialled, Ledger, first, growth};
use crate::timeouts::Timeouts;
use crate::watch::{Events, Warning};
use crate::{flows, log, ports, sys};
use intake::Intake;
use left_out::LeftOut;
use past::Past;
use retry::Retry;
use signals::Signals;
use source::Prepared;
use tell::{tell, tell_pressure};
use tidiness::Untidy;

/// Changes that may wait while tables are written; then the sources wait too. An object is many times as large as what is
/// kept of it, and what is kept would come to lie between those that wait.
const QUEUE: usize = 64;
/// Who cannot load the programs should learn it soon, whatever the server does.
const SIZES_WITHIN: Duration = Duration::from_secs(3);

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
        let events = source.events(&config.node_name);
        if let Some(who) = config.unserved() {
            warn!("nothing here serves {who}");
        }
        let past = Past::begin(config)?;
        let hooks = device_hooks(config);
        let host = follow::start(config.kernel.netns.as_deref(), config.devices.clone(), hooks.clone()).await?;
        let devices = config.devices.wants_any().then_some(hooks);
        let ports_before = ports::in_use(&Folder::at(&config.kernel.pin_dir).current());
        let kernel = Options { devices, ..config.kernel.clone() };
        // What is pinned is taken over while lists are read; new tables are made when it is known for how much.
        let mut intake = Intake::new(config);
        let mut model = Model::default();
        // Nothing is planned before all is known: who changes meanwhile need not be remembered.
        model.mark_everything();
        let starting = async { Ok(source.start(config, &sender).await) };
        let (tell, sizes) = watch::channel(None);
        let ready = async { tokio::try_join!(open(&kernel, sizes), starting) };
        let listed = |model: &Model| _ = tell.send(Some(first::sizes(model, &kernel.limit)));
        let (datapath, started) = intake.take_until(ready, &mut model, &mut news, listed).await?;
        // With tables taken over there is something to serve until the server comes back; without, nobody is helped.
        started.or_else(|error| if datapath.is_live() { Ok(()) } else { Err(error) })?;
        drop(sender);
        // Not sooner: who cannot start leaves the node as it was.
        let dialled = if config.devices.wants_any() {
            ports::keep(config.kernel.netns.as_deref(), config.source_ports, ports_before)?;
            Some(flows::start(Folder::at(&config.kernel.pin_dir)).context("start to look after flows")?)
        } else {
            None
        };
        let this = this_node(&settings(config), &host.borrow(), &past);
        let left_out = LeftOut::begin(&datapath, &config.kernel.unsteered)?;
        let converger = Converger::knowing(model, datapath, this);
        let followed = Followed { host, past, left_out, dialled };
        Agent::new(config, converger, followed, intake, events).follow(news).await
    };
    tokio::select! {
        result = serving => result.map(|()| 0),
        code = signals.next() => Ok(code),
    }
}

/// Opens the datapath. What serves already can wait until the kernel has again what it lacks.
async fn open(options: &Options, sizes: Latest<Option<Capacity>>) -> Result<Datapath> {
    let mut retry = Retry::default();
    loop {
        let (options, sizes, runtime) = (options.clone(), sizes.clone(), Handle::current());
        let opening = move || {
            let sizes = || runtime.block_on(sizes_in_time(sizes)).unwrap_or_else(|| growth::smallest(&options.limit));
            Datapath::open_sized(&options, sizes)
        };
        let opened = spawn_blocking(opening).await.context("load the kernel programs")?;
        let another = opened.as_ref().is_err_and(AttachError::takes_another_process) && !sys::has_begun_again();
        let error = match opened {
            Err(error) if another || matches!(error, AttachError::NotNow(_)) => error,
            opened => return opened.map_err(last_words),
        };
        let wait = retry.failed();
        error!("{error}; the next try is in {} s", wait.as_secs());
        sleep(wait).await;
        if another {
            return Err(sys::begin_again()).context("begin again");
        }
    }
}

/// What the lists will need, unless they take long: then tables grow when they are complete.
async fn sizes_in_time(mut sizes: Latest<Option<Capacity>>) -> Option<Capacity> {
    timeout(SIZES_WITHIN, sizes.wait_for(Option::is_some)).await.ok()?.ok().and_then(|sizes| *sizes)
}

/// What to do is said by those errors that are about settings and rights; of the others the kernel knows the cause.
fn last_words(error: AttachError) -> anyhow::Error {
    if error.is_of_a_call() {
        anyhow!("{error}; what serves goes on and nothing is half done: start it again once the cause is gone")
    } else {
        error.into()
    }
}

/// What is followed of the node itself.
struct Followed {
    host: Latest<Host>,
    past: Past,
    left_out: LeftOut,
    /// What flows of packets dial, if there are any.
    dialled: Option<Latest<Dialled>>,
}

struct Agent {
    converger: Converger<Datapath>,
    node: Followed,
    settings: ThisNode,
    intake: Intake,
    events: Option<Events>,
    converging: Retry,
    /// Making tables larger. Every try loads all programs; until one succeeds only what is new is not served.
    growing: Retry,
    /// Programs for devices.
    devices: Retry,
    untidy: Untidy,
    alarm: Alarm,
    /// Everything was up to date once.
    converged: bool,
}

impl Agent {
    fn new(
        config: &Config,
        converger: Converger<Datapath>,
        node: Followed,
        intake: Intake,
        events: Option<Events>,
    ) -> Self {
        Self {
            converger,
            node,
            settings: settings(config),
            intake,
            events,
            converging: Retry::default(),
            growing: Retry::default(),
            devices: Retry::default(),
            untidy: Untidy::default(),
            alarm: Alarm::default(),
            converged: false,
        }
    }

    async fn follow(&mut self, mut news: Receiver<News>) -> Result<()> {
        self.work_if_synced(false);
        loop {
            // A list makes a batch of megabytes: room that is not kept.
            let mut batch = Vec::new();
            let mut idle = false;
            let tidy_at = self.untidy.tidy_at(self.converger.is_untidy(), Instant::now());
            tokio::select! {
                count = news.recv_many(&mut batch, QUEUE) => if count == 0 { bail!("every source of changes ended") },
                changed = self.node.host.changed() => {
                    changed.context("the addresses of this node are no longer followed")?;
                    self.look_at_node();
                }
                changed = self.node.past.changed() => {
                    changed?;
                    self.look_at_node();
                }
                cgroups = self.node.left_out.changed() => self.leave_out(&cgroups?),
                dialled = next(&mut self.node.dialled) => self.heed_flows(&dialled?),
                () = until(self.converging.at()) => self.converging.begin(),
                () = until(self.growing.at()) => {
                    self.growing.begin();
                    self.converger.try_to_grow();
                }
                () = until(self.devices.at()) => self.serve_devices(),
                () = until(self.intake.patience.deadline()) => self.intake.patience.run_out(&self.settings)?,
                () = until(tidy_at) => {
                    idle = true;
                    self.untidy = Untidy::default();
                }
            }
            for news in batch {
                self.intake.take(self.converger.model_mut(), news);
            }
            self.work_if_synced(idle);
        }
    }

    fn look_at_node(&mut self) {
        let host = self.node.host.borrow_and_update().clone();
        self.converger.set_node(this_node(&self.settings, &host, &self.node.past));
    }

    /// The next change tries again.
    fn leave_out(&self, cgroups: &BTreeSet<u64>) {
        if let Err(error) = self.converger.store().leave_out(cgroups) {
            error!("not everybody whom --socket-lb-exclude names is left out: {error}");
        }
    }

    /// The next look tries again.
    fn heed_flows(&mut self, dialled: &Dialled) {
        if let Err(error) = self.converger.heed_flows(dialled) {
            error!("packets are looked at that are of no Service any more: {error}");
        }
    }

    fn work_if_synced(&mut self, idle: bool) {
        if self.converger.model().synced() {
            self.intake.patience.start();
            self.work(idle);
        }
    }

    fn work(&mut self, idle: bool) {
        if !self.intake.patience.is_over() || self.converging.is_early() {
            return;
        }
        match if idle { self.tidy() } else { self.converge() } {
            Ok(()) => self.converging = Retry::default(),
            Err(error) => {
                let wait = self.converging.failed().as_secs();
                error!("tables are not up to date, the next try in {wait} s starts from what they hold: {error}");
            }
        }
    }

    fn converge(&mut self) -> Result<()> {
        let started = Instant::now();
        let report = self.converger.converge()?;
        self.converger.store_mut().go_live()?;
        if !self.devices.is_early() {
            self.serve_devices();
        }
        self.heed_growth(&report);
        tell(&report, self.converger.is_cramped());
        self.warn(&report);
        tell_pressure(&mut self.alarm, self.converger.ledger());
        let heard = self.intake.heard.take();
        // Also when there was nothing to write: this is how others see that the agent is ready.
        if !std::mem::replace(&mut self.converged, true) {
            let milliseconds = started.elapsed().as_millis();
            info!("programmed {} in {milliseconds} ms ({} writes)", self.totals(), report.writes);
        } else if report.writes > 0 {
            let (since, writes) = (|moment: Instant| moment.elapsed().as_micros(), report.writes);
            if let Some(heard) = heard {
                debug!("programmed a change {} us after it was heard ({writes} writes)", since(heard));
            } else {
                debug!("programmed a change of this node in {} us ({writes} writes)", since(started));
            }
        }
        if report.whole {
            sys::give_memory_back();
        }
        Ok(())
    }

    /// Beside the log: to who looks at the object, and to who counts.
    fn warn(&self, Report { claims, refused, .. }: &Report) {
        let addresses = refused.iter().map(|of| of.ips.len()).sum::<usize>();
        for (reason, times) in [(Reason::ExternalIpClaimed, claims.len()), (Reason::AddressRefused, addresses)] {
            if times > 0 {
                self.converger.store().count(reason, times as u64);
            }
        }
        if let Some(events) = &self.events {
            claims.iter().map(Warning::from).chain(refused.iter().map(Warning::from)).for_each(|of| events.tell(of));
        }
    }

    /// A growth that failed is told, and tried again later each time.
    fn heed_growth(&mut self, report: &Report) {
        if let Some(error) = &report.cramped {
            let wait = self.growing.failed().as_secs();
            error!("the tables cannot grow, the next try is in {wait} s: {error}");
        } else if !self.converger.is_cramped() {
            self.growing = Retry::default();
        }
    }

    /// Sockets are served whatever becomes of devices.
    fn serve_devices(&mut self) {
        self.devices.begin();
        match self.converger.store_mut().serve_devices() {
            Ok(()) => self.devices = Retry::default(),
            Err(error) => {
                let wait = self.devices.failed().as_secs();
                error!("only sockets are served: no programs for devices, the next try is in {wait} s: {error}");
            }
        }
    }

    fn totals(&self) -> String {
        let tables = || self.converger.ledger().into_iter().flat_map(Ledger::pressure);
        let used = |table| tables().find(|of| of.table == table).map_or(0, |of| of.used);
        format!("{} service ports, {} endpoints", used(name::SERVICE), used(name::BACKENDS))
    }

    fn tidy(&mut self) -> Result<()> {
        let report = self.converger.tidy()?;
        self.heed_growth(&report);
        debug!("gave back what went out of use ({} writes)", report.writes);
        if report.whole {
            sys::give_memory_back();
        }
        Ok(())
    }
}

/// What comes next; never where nothing does.
async fn next<T: Clone>(latest: &mut Option<Latest<T>>) -> Result<T> {
    let Some(latest) = latest else { return std::future::pending().await };
    latest.changed().await.context("flows are no longer looked at")?;
    Ok(latest.borrow_and_update().clone())
}

/// Never when there is nothing to wait for.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn device_hooks(config: &Config) -> Hooks {
    let links = Folder::at(&config.kernel.pin_dir).links();
    Arc::new(Mutex::new(DeviceHooks::new(&links, config.device_way, config.device_order)))
}

/// What the command line says about this node; addresses come from the kernel.
fn settings(config: &Config) -> ThisNode {
    let timeouts = Timeouts::of_node(config.kernel.netns.as_deref(), &config.timeouts);
    ThisNode {
        name: config.node_name.as_str().into(),
        bind_address: config.bind_address,
        node_port_addresses: config.node_ports.clone(),
        detector: config.detector.clone(),
        loopback_node_ports: config.loopback_node_ports,
        external_ips: config.external_ips,
        udp_timeout: timeouts.udp,
        udp_stream_timeout: timeouts.udp_stream,
        packets: config.devices.wants_any().then(|| packets(config, timeouts.tcp)),
        ..ThisNode::default()
    }
}

fn packets(config: &Config, tcp: TcpTimeouts) -> Packets {
    Packets {
        pods: config.devices.pods != Scope::None,
        masquerade_all: config.masquerade_all,
        answer_echo: config.answer_echo,
        fast_path: config.kernel.fast_path,
        tcp,
        ports: config.source_ports,
        seed: sys::number_of_this_boot(),
    }
}

fn this_node(settings: &ThisNode, host: &Host, past: &Past) -> ThisNode {
    let packets = settings.packets.as_ref();
    ThisNode {
        packets: packets.map(|packets| Packets { fast_path: packets.fast_path && past.is_free(), ..packets.clone() }),
        own_addresses: host.own_addresses.clone(),
        fallback_addresses: host.default_route_addresses.clone(),
        ..settings.clone()
    }
}
