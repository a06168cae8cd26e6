//! The kernel programs without an agent: tables filled by hand, programs attached to the cgroup of the test.
//!
//! ```text
//! #[test] -> alone: the same test once more, as a process in a cgroup and a network namespace of its own
//!              -> Hooks::attach -> Hooks::serve(service(..)) -> the test dials with ordinary sockets
//! ```

use std::env;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, Program};
use aya::{Ebpf, EbpfLoader, Pod};
use nix::errno::Errno;
use proxy_common::abi::{
    AbsentBit, Affinity, AffinityKey, Backend, BackendStats, Bucket, Cidr, Config, Frontend, FrontendKey, Range,
    SLOTS_PER_PAIR, SlotPair, SocketFlow, SourceData, Version, Word,
};
use proxy_common::addr::{Addr, Be16, Family};
use proxy_common::index;
use proxy_common::reason::Reason;
use proxy_common::tables::{ABSENT_WORDS, name};
use proxy_userspace::attach::object::has_set_retval;
use proxy_userspace::sys::net;

use crate::netns::Netns;
use crate::node::Place;
use crate::probe::Outcome;
use crate::world::World;

/// Set in the process that runs the body of a test or benchmark: its cgroup.
const INSIDE: &str = "SLUICE_TEST_CGROUP";

/// Runs `body` in a process, a cgroup and a network namespace of its own, with `addresses` on its loopback device.
/// `test` is the name of the calling test.
pub fn alone(test: &str, addresses: &[&str], body: impl FnOnce(&Path)) {
    match env::var_os(INSIDE) {
        Some(cgroup) => body(Path::new(&cgroup)),
        None => again_in(test, &Netns::new, addresses).expect("the test runs in a process of its own"),
    }
}

/// As [`alone`], but in the network namespace of whoever runs the tests: nothing may be changed there, and no packet sent.
pub fn alone_in_this_namespace(test: &str, body: impl FnOnce(&Path)) {
    match env::var_os(INSIDE) {
        Some(cgroup) => body(Path::new(&cgroup)),
        None => again_in(test, &Netns::of_this_thread, &[]).expect("the test runs in a process of its own"),
    }
}

/// As [`alone`], for a whole program: it is started once more with its arguments, and `body` runs in there.
pub fn program_alone(body: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if let Some(cgroup) = env::var_os(INSIDE) {
        return body(Path::new(&cgroup));
    }
    let world = World::new()?;
    let status = inside(&world, Netns::new()?, &[])?
        .args(env::args_os().skip(1))
        .status()
        .context("start this program once more")?;
    ensure!(status.success(), "the program failed inside: {status}");
    Ok(())
}

/// This program, to be started in `netns` and in a cgroup of its own in `world`.
fn inside(world: &World, netns: Netns, addresses: &[&str]) -> Result<Command> {
    let place = Place::new(netns, world.cgroup().join("hooks"))?;
    if !addresses.is_empty() {
        // An IPv6 address is tentative for a moment otherwise, also at loopback.
        let at_once = |address: &str| if address.contains(':') { " nodad" } else { "" };
        let line = |address: &&str| format!("addr add {address} dev lo{}", at_once(address));
        let lines: Vec<String> = addresses.iter().map(line).collect();
        place.netns.ip(&lines)?;
    }
    let mut command = place.command(env::current_exe()?)?;
    command.env(INSIDE, &place.cgroup);
    Ok(command)
}

fn again_in(test: &str, netns: &dyn Fn() -> Result<Netns>, addresses: &[&str]) -> Result<()> {
    let world = World::new()?;
    let mut command = inside(&world, netns()?, addresses)?;
    command.args([test, "--exact", "--nocapture", "--include-ignored"]);
    let output = command.output().context("start the test once more")?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}{stderr}");
    ensure!(output.status.success(), "{test} failed inside: {}", output.status);
    ensure!(stdout.contains("1 passed"), "{test} is not the name of the calling test");
    Ok(())
}

/// The object that `cargo xtask build-ebpf` makes, or the one named by `SLUICE_BPF_OBJECT`.
pub fn object() -> Result<Vec<u8>> {
    built("SLUICE_BPF_OBJECT", "sluice.bpf.o", "cargo xtask build-ebpf")
}

/// The object with the test programs, or the one named by `SLUICE_BPF_TEST_OBJECT`.
pub fn test_object() -> Result<Vec<u8>> {
    built("SLUICE_BPF_TEST_OBJECT", "sluice-test.bpf.o", "cargo xtask build-ebpf --test-programs")
}

/// The object of another version.
pub fn other_object() -> Result<Vec<u8>> {
    built("SLUICE_BPF_OTHER_OBJECT", "sluice-other.bpf.o", "cargo xtask build-ebpf --test-programs")
}

fn built(variable: &str, file: &str, maker: &str) -> Result<Vec<u8>> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf").join(file);
    let path = env::var_os(variable).map_or_else(built, PathBuf::from);
    std::fs::read(&path).with_context(|| format!("read {}: run `{maker}`", path.display()))
}

/// Who the processes of a test are for the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Processes of the node itself.
    Host,
    /// Processes of a pod.
    Pod,
}

/// The programs, attached, and their tables.
pub struct Hooks {
    ebpf: Ebpf,
    services: u32,
    frontends: u32,
    backends: u32,
    slots: u32,
    /// INDEX as it is.
    index: Vec<Bucket>,
}

/// Frontends and addresses that the tables of a test hold.
const FRONTENDS: u32 = 256;

/// Seconds that UDP flows live without and with replies; what the kernel takes by default.
pub const UDP_TIMEOUTS: (u32, u32) = (30, 120);

impl Hooks {
    /// Attaches the programs to `cgroup` with room for `sockets` sockets, a power of two.
    pub fn attach_with(cgroup: &Path, caller: Caller, sockets: u32) -> Result<Self> {
        let node = match caller {
            Caller::Host => own_netns_cookie(cgroup)?,
            Caller::Pod => u64::MAX,
        };
        Self::load(cgroup, node, has_set_retval(), sockets)
    }

    /// As the agent attaches them where the kernel lacks `SO_NETNS_COOKIE` (before 5.14) and `bpf_set_retval` (5.18): no
    /// namespace is named, and errors cannot be chosen.
    pub fn attach_as_before_5_14(cgroup: &Path) -> Self {
        Self::load(cgroup, 0, false, 1024).expect("the programs load")
    }

    fn load(cgroup: &Path, node: u64, has_set_retval: bool, sockets: u32) -> Result<Self> {
        Self::load_some(cgroup, node, has_set_retval, sockets, |_| true)
    }

    /// Only those programs that are `wanted` by their names: the verifier takes its time for each.
    fn load_some(
        cgroup: &Path,
        node: u64,
        has_set_retval: bool,
        sockets: u32,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        // Nobody's here, and by far the largest.
        for table in name::OF_FLOWS {
            loader.map_max_entries(table, 1);
        }
        let index = vec![[0; index::WORDS]; index::buckets(FRONTENDS) as usize];
        let ebpf = loader
            .override_global("NODE_NETNS_COOKIE", &node, true)
            .override_global("HAS_SET_RETVAL", &u8::from(has_set_retval), true)
            .override_global("SOCKETS_MASK", &(sockets - 1), true)
            .override_global("INDEX_BUCKETS", &(index.len() as u32), true)
            .map_max_entries(name::INDEX, index.len() as u32)
            .map_max_entries(name::SOCKETS, sockets)
            .load(&object()?)?;
        let mut hooks = Self { ebpf, services: 1, frontends: 1, backends: 1, slots: 1, index };
        hooks.attach_programs(cgroup, wanted)?;
        hooks.configure(|_| {})?;
        Ok(hooks)
    }

    /// Attaches the programs to `cgroup`; processes are the node's own.
    pub fn attach(cgroup: &Path) -> Self {
        Self::attach_with(cgroup, Caller::Host, 1024).expect("the programs load")
    }

    /// As [`Self::attach`], for processes of a pod.
    pub fn attach_to_pod(cgroup: &Path) -> Self {
        Self::attach_with(cgroup, Caller::Pod, 1024).expect("the programs load")
    }

    fn attach_programs(&mut self, cgroup: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let folder = File::open(cgroup)?;
        let of_devices = |program: &Program| matches!(program, Program::SchedClassifier(_));
        let programs = self.ebpf.programs_mut().filter(|(name, program)| wanted(name) && !of_devices(program));
        for (name, program) in programs {
            attach(program, &folder).with_context(|| format!("program {name}"))?;
        }
        Ok(())
    }

    /// Changes CONFIG, starting from no ServiceCIDRs, no detector and [`UDP_TIMEOUTS`].
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        let (udp_timeout, udp_stream_timeout) = UDP_TIMEOUTS;
        let mut config = Config { udp_timeout, udp_stream_timeout, ..Config::default() };
        change(&mut config);
        self.set(name::CONFIG, 0, config)
    }

    /// Writes a service: backends, slots, version, the switch, frontends; says which ids it got.
    pub fn serve(&mut self, service: &Service) -> Result<Served> {
        let served = Served { service: self.services, backends: self.write_backends(service, self.services)? };
        self.services += 1;
        self.switch(service, &served)?;
        for (key, kind) in &service.frontends {
            self.publish(Frontend { key: *key, service: served.service, kind: *kind })?;
        }
        for range in &service.source_ranges {
            self.allow(served.service, range)?;
        }
        Ok(served)
    }

    /// Replaces the endpoints of a service by new backends.
    pub fn replace(&mut self, service: &Service, served: &Served) -> Result<Served> {
        let served = Served { service: served.service, backends: self.write_backends(service, served.service)? };
        self.switch(service, &served)?;
        Ok(served)
    }

    fn write_backends(&mut self, service: &Service, owner: u32) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for backend in &service.backends {
            let id = self.backends;
            self.backends += 1;
            self.set(name::BACKENDS, id, Backend { service: owner, ..*backend })?;
            ids.push(id);
        }
        Ok(ids)
    }

    fn switch(&mut self, service: &Service, served: &Served) -> Result<()> {
        let number = self.slots;
        let version = Version {
            cluster: self.range(service, served, Backend::IN_CLUSTER_SET)?,
            local: self.range(service, served, Backend::IN_LOCAL_SET)?,
            affinity_seconds: service.affinity_seconds,
            flags: service.flags,
            service: served.service,
            scheduler: Version::SCHEDULER_RANDOM,
        };
        self.slots += 1;
        if let Some(word) = version.as_word() {
            return self.set(name::SERVICE, served.service, word);
        }
        self.set(name::VERSION, number, version)?;
        self.set(name::SERVICE, served.service, Word::Version(number).word())
    }

    fn range(&mut self, service: &Service, served: &Served, set: u16) -> Result<Range> {
        let start = self.slots;
        for (id, backend) in served.backends.iter().zip(&service.backends) {
            if backend.flags & set != 0 {
                self.set_slot(self.slots, *id)?;
                self.slots += 1;
            }
        }
        Ok(Range { start, len: self.slots - start })
    }

    fn set_slot(&mut self, index: u32, backend: u32) -> Result<()> {
        let mut pair: SlotPair = self.get(name::SLOTS, index / SLOTS_PER_PAIR)?;
        pair[(index % SLOTS_PER_PAIR) as usize] = backend;
        self.set(name::SLOTS, index / SLOTS_PER_PAIR, pair)
    }

    fn publish(&mut self, frontend: Frontend) -> Result<()> {
        let id = self.frontends;
        self.set(name::FRONTEND, id, frontend)?;
        self.frontends += 1;
        let word = index::Word::leading_to(id, &frontend).word();
        ensure!(index::distribute([word], |_| Some(frontend.key), &mut self.index), "INDEX is full");
        for number in index::Hash::of(&frontend.key).buckets(self.index.len() as u32) {
            self.set(name::INDEX, number, self.index[number as usize])?;
        }
        Ok(())
    }

    fn allow(&mut self, service: u32, range: &Cidr) -> Result<()> {
        let data = SourceData { service: service.to_be_bytes(), addr: range.addr };
        let map = self.ebpf.map_mut(name::SOURCES).context("no SOURCES")?;
        let mut trie: LpmTrie<_, SourceData, u32> = LpmTrie::try_from(map)?;
        Ok(trie.insert(&Key::new(32 + range.prefix_len, data), 1, 0)?)
    }

    /// Says what an address is: flags of `proxy_common::abi::address`.
    pub fn address(&mut self, addr: &str, flags: u32) -> Result<()> {
        let key = FrontendKey::of_address(Addr::from(addr.parse::<IpAddr>()?));
        self.publish(Frontend { key, service: flags, kind: Frontend::KIND_ADDRESS })
    }

    /// Says of every address but those of `addrs` that no table has it.
    pub fn all_absent_but(&mut self, addrs: &[&str]) -> Result<()> {
        for word in 0..ABSENT_WORDS {
            self.set(name::ABSENT, word, u64::MAX)?;
        }
        for addr in addrs {
            let bit = AbsentBit::of(&Addr::from(addr.parse::<IpAddr>()?));
            let word: u64 = self.get(name::ABSENT, bit.word)?;
            self.set(name::ABSENT, bit.word, word & !bit.mask)?;
        }
        Ok(())
    }

    /// Changes a backend in place.
    pub fn change_backend(&mut self, id: u32, change: impl FnOnce(&mut Backend)) -> Result<()> {
        let mut backend: Backend = self.get(name::BACKENDS, id)?;
        change(&mut backend);
        self.set(name::BACKENDS, id, backend)
    }

    pub fn stats(&self, backend: u32) -> Result<BackendStats> {
        self.get(name::STATS, backend)
    }

    /// How often hooks ended with `reason`.
    pub fn count(&self, reason: Reason) -> u64 {
        let map = self.ebpf.map(name::REASONS).expect("a table of the object");
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(map).expect("its type");
        map.get(&(reason as u32), 0).expect("in bounds").iter().sum()
    }

    /// The slots of SOCKETS that are taken.
    pub fn sockets(&self) -> Vec<SocketFlow> {
        let map: Array<&MapData, SocketFlow> =
            Array::try_from(self.ebpf.map(name::SOCKETS).expect("a table of the object")).expect("its type");
        map.iter().map(|flow| flow.expect("readable")).filter(|flow| flow.cookie != 0).collect()
    }

    /// The namespaces that AFFINITY remembers.
    fn remembered_namespaces(&self) -> Result<Vec<u64>> {
        let map = self.ebpf.map(name::AFFINITY).context("no AFFINITY")?;
        let map: HashMap<_, AffinityKey, Affinity> = HashMap::try_from(map)?;
        map.keys().map(|key| Ok(key?.client.bits() as u64)).collect()
    }

    fn set<V: Pod>(&mut self, table: &str, index: u32, value: V) -> Result<()> {
        let map = self.ebpf.map_mut(table).with_context(|| format!("no table {table}"))?;
        let mut array: Array<_, V> = Array::try_from(map)?;
        array.set(index, value, 0).with_context(|| format!("write {table}[{index}]"))
    }

    fn get<V: Pod>(&self, table: &str, index: u32) -> Result<V> {
        let map = self.ebpf.map(table).with_context(|| format!("no table {table}"))?;
        let array: Array<_, V> = Array::try_from(map)?;
        array.get(&index, 0).with_context(|| format!("read {table}[{index}]"))
    }
}

/// The cookie of this thread's network namespace. A kernel that does not say it (before 5.14) tells its programs, and they
/// note it with the affinity of a client.
fn own_netns_cookie(cgroup: &Path) -> Result<u64> {
    if let Some(cookie) = net::netns_cookie(None)? {
        return Ok(cookie);
    }
    let mut hooks = Hooks::load_some(cgroup, 0, false, 1, |program| program == "connect4")?;
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    hooks.serve(&service("tcp 172.31.255.254:1").backend(nobody).affinity(1))?;
    ensure!(TcpStream::connect("172.31.255.254:1").is_err(), "somebody listens on {nobody}");
    hooks.remembered_namespaces()?.pop().context("the client of a Service with affinity is not remembered")
}

/// The error that a refused dial gets: kernels before 5.18 have one for all.
pub fn told(errno: Errno) -> Errno {
    if has_set_retval() { errno } else { Errno::EPERM }
}

/// How a client tells that the programs refuse with `errno`.
pub fn refused<T>(errno: Errno) -> Outcome<T> {
    Err(format!("{:?}", told(errno)))
}

fn attach(program: &mut Program, cgroup: &File) -> Result<()> {
    // A link is beside others whatever the mode; the kernel takes no flags with it.
    let mode = CgroupAttachMode::Single;
    if let Ok(program) = <&mut CgroupSockAddr>::try_from(&mut *program) {
        program.load()?;
        program.attach(cgroup, mode)?;
    } else {
        let program: &mut CgroupSock = program.try_into()?;
        program.load()?;
        program.attach(cgroup, mode)?;
    }
    Ok(())
}

/// The ids that a service got.
#[derive(Clone, Debug)]
pub struct Served {
    pub service: u32,
    /// In the order of [`Service::backend`].
    pub backends: Vec<u32>,
}

/// One service port, as tables hold it.
#[derive(Clone, Debug, Default)]
pub struct Service {
    frontends: Vec<(FrontendKey, u32)>,
    backends: Vec<Backend>,
    source_ranges: Vec<Cidr>,
    affinity_seconds: u32,
    flags: u32,
}

/// Frontends are `proto address:port`, such as `tcp 172.30.0.1:80`.
pub fn frontend(text: &str) -> FrontendKey {
    let (proto, addr) = text.split_once(' ').expect("a protocol and an address");
    let addr: SocketAddr = addr.parse().expect("an address with a port");
    let proto = match proto {
        "tcp" => proxy_common::socket::TCP,
        "udp" => proxy_common::socket::UDP,
        other => panic!("protocol {other}"),
    };
    FrontendKey { addr: addr.ip().into(), port: Be16::new(addr.port()), proto, pad: 0 }
}

/// A service with the ClusterIP `text`.
pub fn service(text: &str) -> Service {
    Service { flags: Version::HAS_ANY, ..Service::default() }.frontend(text, Frontend::KIND_CLUSTER_IP)
}

impl Service {
    #[must_use]
    pub fn frontend(mut self, text: &str, kind: u32) -> Self {
        self.frontends.push((frontend(text), kind));
        self
    }

    /// A node port of both families.
    #[must_use]
    pub fn node_port(self, proto: &str, port: u16) -> Self {
        let kind = Frontend::KIND_NODE_PORT;
        let mut service = self.frontend(&format!("{proto} [::]:{port}"), kind);
        let (v6, _) = service.frontends[service.frontends.len() - 1];
        service.frontends.push((FrontendKey { addr: Addr::unspecified(Family::V4), ..v6 }, kind));
        service
    }

    /// An endpoint of the cluster set.
    #[must_use]
    pub fn backend(self, addr: SocketAddr) -> Self {
        self.backend_in(addr, Backend::IN_CLUSTER_SET)
    }

    #[must_use]
    pub fn backend_in(mut self, addr: SocketAddr, sets: u16) -> Self {
        self.backends.push(Backend {
            addr: addr.ip().into(),
            port: Be16::new(addr.port()),
            flags: sets | Backend::SERVING,
            service: 0,
            generation: 1,
            zone: 0,
        });
        self
    }

    #[must_use]
    pub fn affinity(mut self, seconds: u32) -> Self {
        self.affinity_seconds = seconds;
        self
    }

    /// More flags of `Version`.
    #[must_use]
    pub fn flags(mut self, flags: u32) -> Self {
        self.flags |= flags;
        self
    }

    /// No endpoint is usable anywhere.
    #[must_use]
    pub fn without_any(mut self) -> Self {
        self.flags &= !Version::HAS_ANY;
        self
    }

    /// Restricts load-balancer addresses to an IPv4 range.
    #[must_use]
    pub fn source_range(mut self, addr: [u8; 4], prefix_len: u32) -> Self {
        self.source_ranges.push(Cidr { addr: Addr::v4(addr), prefix_len: 96 + prefix_len });
        self.flags(Version::SOURCE_RANGES)
    }
}

/// The program `ip` in the namespace of the test, for what has to change while it runs.
pub fn ip(arguments: &str) -> Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status().context("start ip")?;
    ensure!(status.success(), "ip {arguments}: {status}");
    Ok(())
}
