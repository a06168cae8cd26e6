//! `sluice check`: what this kernel offers, what is attached, what fell back and why, how full the tables are.
//!
//! In: probes and pins. Out: [`Finding`]s, and exit code 1 when one is a problem. Features are probed, not looked up in
//! a list of versions: distributions backport.

mod devices;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aya::programs::{ProgramType, loaded_programs};
use aya::sys::{BpfHelper, is_helper_supported, is_program_supported};
use proxy_common::abi::{Config, Version};
use proxy_common::reason::Reason;
use proxy_common::tables::{Capacity, name};
use serde::Serialize;

use super::{Output, PinDir, print, table};
use crate::attach::cgroup::Cgroup;
use crate::attach::object::{HOOKS, has_fast_path, has_set_retval};
use crate::attach::pins::Folder;
use crate::attach::rights::{Capability, NEEDED, SYS_PTRACE};
use crate::lock::{self, Holder, Role};
use crate::maps::kernel::option;
use crate::maps::pinned::{Pinned, layouts, read};
use crate::maps::reasons::Reasons;
use crate::maps::{Snapshot, footprint};
use crate::plan::{Pressure, growth};
use crate::sys::bpf::{Grace, Kind, LinkInfo, Pin, batches_work, link_info};
use crate::sys::net;
use crate::{args, config};

/// Show what this kernel offers, what is attached, what fell back and why.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub pins: PinDir,

    /// The cgroup that should be attached to (default: the root of the cgroup2 tree).
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// The network namespace that is this node (default: that of the running agent, else this process's own).
    #[arg(long, value_name = "FILE")]
    pub netns: Option<PathBuf>,

    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    /// Works, differently or with a limit.
    Note,
    /// Works, but soon may not.
    Warning,
    /// Does not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub area: &'static str,
    pub item: String,
    pub status: Status,
    pub detail: String,
}

impl Finding {
    fn new(area: &'static str, item: impl Into<String>, status: Status, detail: impl Into<String>) -> Self {
        Self { area, item: item.into(), status, detail: detail.into() }
    }

    /// `Ok`, or what is lost without the feature.
    fn feature(item: &str, works: bool, lost: Status, without: &str) -> Self {
        let (status, detail) = if works { (Status::Ok, "available") } else { (lost, without) };
        Self::new("kernel", item, status, detail)
    }
}

pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let findings = findings(&args.pins.pin_dir, args.cgroup_root.as_deref(), args.netns.as_deref());
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Table => show(&findings),
    }
    let failed = findings.iter().any(|finding| finding.status == Status::Problem);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Everything that can be said about this node.
pub fn findings(pin_dir: &Path, cgroup_root: Option<&Path>, netns: Option<&Path>) -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut all = kernel(&status);
    all.extend(rights(&status));
    let cgroup = Cgroup::find(cgroup_root);
    all.push(match &cgroup {
        Ok(cgroup) => Finding::new("place", "cgroup2", Status::Ok, describe(cgroup)),
        Err(error) => Finding::new("place", "cgroup2", Status::Problem, error.to_string()),
    });
    let folder = Folder::at(pin_dir);
    all.push(match folder.check_filesystem() {
        Ok(()) => Finding::new("place", "pin folder", Status::Ok, pin_dir.display().to_string()),
        Err(error) => Finding::new("place", "pin folder", Status::Problem, error.to_string()),
    });
    all.extend(Role::ALL.map(|role| process(role, pin_dir)));
    let agent = command_of_agent(pin_dir);
    let limit = agent.as_ref().and_then(|run| config::limit(&run.kernel).ok());
    all.extend(devices::findings(&folder.links(), agent.as_ref(), netns));
    all.extend(pinned(&folder, cgroup.ok().as_ref(), limit.as_ref()));
    all
}

fn describe(cgroup: &Cgroup) -> String {
    let what = if cgroup.is_root() { "the root of the tree: every process" } else { "only the processes below it" };
    format!("{} ({what})", cgroup.path.display())
}

/// `status` is that of this process.
fn kernel(status: &str) -> Vec<Finding> {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let mut all =
        vec![Finding::new("kernel", "release", Status::Ok, release.unwrap_or_else(|errno| errno.to_string()))];
    if NEEDED.iter().all(|needed| needed.is_in(status)) {
        all.extend(asked());
    } else {
        // It would refuse them all, and look like an old one.
        let why = "unknown: the kernel is asked by giving it some, which takes the rights below";
        all.push(Finding::new("kernel", "programs and tables", Status::Note, why));
    }
    all.push(Finding::feature(
        "namespace cookie",
        net::netns_cookie(None).is_ok_and(|cookie| cookie.is_some()),
        Status::Note,
        "the node is the initial network namespace, whatever the agent runs in: needs kernel 5.14",
    ));
    all.push(grace());
    all
}

/// What only a kernel that takes programs and tables can say.
fn asked() -> Vec<Finding> {
    let hooks = ProgramType::CgroupSockAddr;
    let helper = |helper| is_helper_supported(hooks, helper).unwrap_or(false);
    vec![
        Finding::feature(
            "socket hooks",
            is_program_supported(hooks).unwrap_or(false),
            Status::Problem,
            "the kernel refuses socket programs: it lacks CONFIG_CGROUP_BPF",
        ),
        Finding::feature(
            "release hook",
            is_program_supported(ProgramType::CgroupSock).unwrap_or(false),
            Status::Problem,
            "state of closed sockets cannot be freed: needs kernel 5.9",
        ),
        Finding::feature(
            "socket storage",
            helper(BpfHelper::BPF_FUNC_sk_storage_get),
            Status::Problem,
            "sockets with several frontends cannot be remembered: needs kernel 5.8",
        ),
        Finding::feature(
            "refusal errno (bpf_set_retval)",
            has_set_retval(),
            Status::Note,
            "every refusal is EPERM instead of ECONNREFUSED or EHOSTUNREACH: needs kernel 5.18",
        ),
        Finding::feature(
            "fast path (bpf_check_mtu)",
            has_fast_path(),
            Status::Note,
            "packets go through the stack, with --fast-path too: needs kernel 5.12",
        ),
        Finding::feature(
            "batched table access",
            batches_work(),
            Status::Note,
            "large changes and starts take longer: every entry is a call of its own",
        ),
    ]
}

fn grace() -> Finding {
    match Grace::find() {
        Ok(Grace::Membarrier) => Finding::new("kernel", "grace period", Status::Ok, "membarrier"),
        Ok(Grace::OuterMap { .. }) => Finding::new(
            "kernel",
            "grace period",
            Status::Note,
            "by changing a map of maps: membarrier is not available (one CPU, nohz_full or a seccomp filter)",
        ),
        Err(error) => Finding::new("kernel", "grace period", Status::Problem, format!("no way to wait: {error}")),
    }
}

/// What this process may do, from the text of `/proc/self/status`.
fn rights(status: &str) -> Vec<Finding> {
    let finding = |capability: Capability| {
        let name = capability.name;
        if capability.is_in(status) {
            Finding::new("rights", name, Status::Ok, "granted")
        } else {
            Finding::new("rights", name, Status::Problem, format!("missing: run as root, or grant {name}"))
        }
    };
    NEEDED.map(finding).into()
}

fn process(role: Role, pin_dir: &Path) -> Finding {
    let (item, without) = match role {
        Role::Agent => ("agent", "not running: what is pinned keeps serving, changes of the cluster are not followed"),
        Role::Reap => {
            ("reaper", "not running: connected UDP sockets stay with a backend that stopped serving (`sluice reap`)")
        }
    };
    match lock::holder(role, pin_dir) {
        Ok(Holder::Process(pid)) => running(role, item, &pid),
        Ok(Holder::Nobody) => Finding::new("process", item, Status::Note, without),
        Err(error) => Finding::new("process", item, Status::Note, format!("unknown: {error}")),
    }
}

fn running(role: Role, item: &str, pid: &str) -> Finding {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let detail = format!("runs as process {pid}");
    if role == Role::Agent || SYS_PTRACE.is_in(&status) {
        return Finding::new("process", item, Status::Ok, detail);
    }
    let lost =
        "sockets are closed instead of moved, those without a slot in SOCKETS stay, slots of lost sockets stay taken";
    Finding::new("process", item, Status::Note, format!("{detail} without CAP_SYS_PTRACE: {lost}"))
}

/// What the running agent was told on its command line.
fn command_of_agent(pin_dir: &Path) -> Option<args::Run> {
    let Ok(Holder::Process(pid)) = lock::holder(Role::Agent, pin_dir) else { return None };
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = words.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    match args::parse(words.map(|word| OsStr::from_bytes(word).to_owned())).ok()?.command {
        args::Command::Run(run) => Some(*run),
        _ => None,
    }
}

/// Everything about what is pinned.
fn pinned(folder: &Folder, cgroup: Option<&Cgroup>, limit: Option<&Capacity>) -> Vec<Finding> {
    let current = folder.current();
    if let Err(error) = fs::metadata(&current) {
        return vec![Finding::new("tables", "pins", Status::Problem, format!("{}: {error}", current.display()))];
    }
    let mut all = attachments(&folder.links(), cgroup);
    let tables = Pinned::open(&current).map_err(|error| error.to_string());
    match tables.and_then(|maps| maps.read().map(|snapshot| (maps, snapshot)).map_err(|error| error.to_string())) {
        Ok((maps, snapshot)) => {
            all.extend(fills(&maps, &snapshot, limit));
            all.push(memory(&maps.capacity(), &snapshot));
            all.extend(limits(&snapshot));
        }
        Err(error) => all.push(Finding::new("tables", "pins", Status::Problem, error)),
    }
    all.extend(reasons(&current));
    all
}

fn attachments(links: &Path, cgroup: Option<&Cgroup>) -> Vec<Finding> {
    let names: BTreeMap<u32, String> = loaded_programs()
        .filter_map(Result::ok)
        .map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    HOOKS.map(|hook| attachment(&links.join(hook), hook, cgroup, &names)).into()
}

fn attachment(path: &Path, hook: &str, cgroup: Option<&Cgroup>, names: &BTreeMap<u32, String>) -> Finding {
    let finding = |status, detail: String| Finding::new("hook", hook, status, detail);
    let info = match Pin::open(path) {
        Ok(pin) if pin.kind == Kind::Link => link_info(pin.fd.as_fd()),
        Ok(_) => return finding(Status::Problem, format!("{} is not a link: restart the agent", path.display())),
        Err(error) => return finding(Status::Problem, format!("not attached ({}): restart the agent", error.source)),
    };
    match info {
        Ok(LinkInfo { cgroup_id: 0, .. }) => {
            finding(Status::Problem, "its cgroup was removed: restart the agent".to_owned())
        }
        Ok(info) => {
            let program = names.get(&info.program_id).map_or(String::new(), |name| format!(" ({name})"));
            let elsewhere = cgroup.is_some_and(|cgroup| cgroup.id != info.cgroup_id);
            let (status, place) = if elsewhere { (Status::Problem, "another cgroup") } else { (Status::Ok, "cgroup") };
            finding(status, format!("program {}{program} on {place} {}", info.program_id, info.cgroup_id))
        }
        Err(error) => finding(Status::Problem, error.to_string()),
    }
}

/// How full each table is, how large and how large it may become. `limit` is known while an agent runs.
fn fills(maps: &Pinned, snapshot: &Snapshot, limit: Option<&Capacity>) -> Vec<Finding> {
    let now = maps.capacity();
    let sockets = read(name::SOCKETS, &maps.sockets).unwrap_or_default();
    let open = sockets.iter().filter(|(_, flow)| flow.cookie != 0).count();
    let clients = read(name::AFFINITY, &maps.affinity).unwrap_or_default().len();
    let used_slots = snapshot.slots.iter().filter(|backend| **backend != 0).count();
    let fill = |table, used: usize, entries: fn(&Capacity) -> u32| {
        fill(Pressure { table, used: used as u32, capacity: entries(&now) }, entries, limit)
    };
    vec![
        fill(name::FRONTEND, snapshot.published().count(), |of| of.frontends),
        fill(name::SERVICE, snapshot.service.len(), |of| of.services),
        fill(name::VERSION, snapshot.version.len(), |of| of.versions),
        fill(name::SLOTS, used_slots, |of| of.slots),
        fill(name::BACKENDS, snapshot.backends.len(), |of| of.backends),
        fill(name::SOURCES, snapshot.sources.len(), |of| of.sources),
        fill(name::AFFINITY, clients, |of| of.affinity),
        fill(name::SOCKETS, open, |of| of.sockets),
    ]
}

/// `now` is how much is taken of what the table has today; `entries` picks it from `limit`.
fn fill(now: Pressure, entries: fn(&Capacity) -> u32, limit: Option<&Capacity>) -> Finding {
    let Pressure { table, used, capacity } = now;
    let limit = limit.map(|limit| entries(limit).max(capacity));
    let growth = match limit {
        _ if !growth::grows(entries) => "made once".to_owned(),
        Some(limit) => format!("may grow to {limit}"),
        None => "grows when needed".to_owned(),
    };
    let percent = u64::from(used) * 100 / u64::from(capacity).max(1);
    let detail = format!("{used} of {capacity} ({percent} %), {growth}");
    // What grows in time is full where it may not grow any more.
    let at_last = if growth::grows_before_it_is_full(entries) { limit } else { Some(capacity) };
    if !at_last.is_some_and(|capacity| Pressure { capacity, ..now }.is_high()) {
        return Finding::new("tables", table, Status::Ok, detail);
    }
    let way_out = option(table).map_or_else(String::new, |option| format!(": raise {option}"));
    Finding::new("tables", table, Status::Warning, detail + &way_out)
}

/// What the tables take of the node's memory; only hashes and tries grow with what they hold.
fn memory(capacity: &Capacity, snapshot: &Snapshot) -> Finding {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let used = |table| match table {
        name::SOURCES => snapshot.sources.len() as u64,
        _ => 0,
    };
    let bytes: u64 = layouts().map(|layout| footprint::bytes(layout, capacity, used(layout.name), cpus)).sum();
    Finding::new("tables", "memory", Status::Ok, format!("{} KiB in all tables, as calculated", bytes / 1024))
}

/// Documented limits that touch what this node serves.
fn limits(snapshot: &Snapshot) -> Vec<Finding> {
    let at_devices = snapshot.config.is_some_and(|config| config.flags & Config::PODS_AT_DEVICES != 0);
    let restricted = snapshot.version.iter().filter(|(_, version)| version.flags & Version::SOURCE_RANGES != 0);
    match restricted.count() {
        0 => Vec::new(),
        _ if at_devices => Vec::new(),
        count => vec![Finding::new(
            "limit",
            "loadBalancerSourceRanges",
            Status::Note,
            format!(
                "{count} service ports have source ranges: host processes are checked, pods are refused there without programs at their devices"
            ),
        )],
    }
}

fn reasons(folder: &Path) -> Vec<Finding> {
    match Reasons::open(folder) {
        Ok(reasons) => Reason::ALL.iter().map(|reason| counter(*reason, reasons.of(*reason))).collect(),
        Err(error) => vec![Finding::new("counter", name::REASONS, Status::Problem, error.to_string())],
    }
}

/// A full table and a contradiction are nobody's intent.
fn counter(reason: Reason, count: u64) -> Finding {
    let worrying = matches!(reason, Reason::TablesChanging | Reason::SocketTableFull) && count > 0;
    let status = if worrying { Status::Warning } else { Status::Ok };
    Finding::new("counter", reason.name(), status, count.to_string())
}

fn show(findings: &[Finding]) {
    let mut table = table(&["AREA", "ITEM", "STATUS", "DETAIL"]);
    for finding in findings {
        let status = format!("{:?}", finding.status).to_lowercase();
        table.add_row([finding.area, &finding.item, &status, &finding.detail]);
    }
    print(&table);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_a_problem_that_names_it() {
        let statuses = |text: &str| rights(text).iter().map(|finding| finding.status).collect::<Vec<_>>();
        assert_eq!(statuses("CapEff:\t000001ffffffffff\n"), [Status::Ok; 3]);
        assert_eq!(statuses("CapEff:\t0000000000000000\n"), [Status::Problem; 3]);
        assert_eq!(statuses("CapEff:\t000000c000001000\n"), [Status::Ok; 3]);
        assert_eq!(statuses("CapEff:\t0000008000001000\n"), [Status::Ok, Status::Problem, Status::Ok]);
        // CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON.
        assert_eq!(statuses("CapEff:\t0000000000200000\n"), [Status::Ok, Status::Ok, Status::Problem]);
        assert!(rights("CapEff:\t0\n")[0].detail.contains("grant CAP_BPF"));
    }

    #[test]
    fn who_may_not_ask_a_kernel_is_told_so_and_not_that_it_is_old() {
        let [_, asked, ..] = &kernel("CapEff:\t0\n")[..] else { panic!("release and what the kernel has") };
        assert_eq!((asked.item.as_str(), asked.status), ("programs and tables", Status::Note));
        assert!(asked.detail.starts_with("unknown: "), "{}", asked.detail);
    }

    #[test]
    fn a_table_at_80_percent_of_what_it_may_become_is_a_warning_that_names_the_option() {
        let limit = Capacity { backends: 200, ..Capacity::LIMIT };
        let said = |table, used, entries, limit| {
            let finding = fill(Pressure { table, used, capacity: 100 }, entries, limit);
            (finding.status, finding.detail)
        };
        let (ok, high) = (Status::Ok, Status::Warning);
        let sockets = |used| said(name::SOCKETS, used, |of| of.sockets, Some(&limit));
        assert_eq!(sockets(79), (ok, "79 of 100 (79 %), made once".to_owned()));
        assert_eq!(sockets(80), (high, "80 of 100 (80 %), made once: raise --max-sockets".to_owned()));
        let backends = |used, limit| said(name::BACKENDS, used, |of| of.backends, limit);
        assert_eq!(backends(100, None), (ok, "100 of 100 (100 %), grows when needed".to_owned()));
        assert_eq!(backends(100, Some(&limit)), (ok, "100 of 100 (100 %), may grow to 200".to_owned()));
        let near = Capacity { backends: 110, ..limit };
        let said_near = "100 of 100 (100 %), may grow to 110: raise --max-backends";
        assert_eq!(backends(100, Some(&near)), (high, said_near.to_owned()));
        let clients = said(name::AFFINITY, 80, |of| of.affinity, None);
        assert_eq!(clients, (high, "80 of 100 (80 %), grows when needed: raise --max-affinity".to_owned()));
    }
}
