//! The embedded kernel object: loaded once per start, with its tables taken from or pinned into a folder.
//!
//! In: the folder of the tables, capacities, the node's namespace cookie. Out: loaded programs. Refuses to know where
//! they are attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::path::Path;

use aya::maps::MapError;
use aya::programs::{CgroupAttachMode, Program, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfError, EbpfLoader, Pod};
use proxy_common::abi::{Bucket, SocketFlow};
use proxy_common::index;
use proxy_common::policy::Steered;
use proxy_common::tables::{Capacity, name};

use super::devices::{Devices, Programs, Way};
use crate::maps::footprint;
use crate::maps::kernel::option;
use crate::maps::pinned::{Entries, layouts};
use crate::sys::bpf::Map;
use crate::sys::{CallError, failed_call, passes};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice.bpf.o"));

/// What to load instead, where tests want another version's programs.
#[cfg(feature = "test-support")]
pub static INSTEAD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();

fn embedded() -> &'static [u8] {
    #[cfg(feature = "test-support")]
    if let Some(other) = INSTEAD.get() {
        return other;
    }
    OBJECT
}

/// Every program for the cgroup: the names of its hooks, of the pinned links and in `bpftool`.
pub const HOOKS: [&str; 9] = [
    "connect4",
    "connect6",
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sendmsg4",
    "sendmsg6",
    "sock_release",
];

/// Programs at devices: for what comes in, and for what goes out.
pub const DEVICE_HOOKS: [&str; 2] = ["tc_ingress", "tc_egress"];

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("this build has no kernel programs: run `cargo xtask build-ebpf` and build again")]
    Missing,
    #[error("loading the kernel programs: {}{}", chain(.0), advice(.0))]
    Load(#[source] EbpfError),
    /// `option` is what bounds the table.
    #[error(
        "making table {table} with {entries} entries ({} KiB when full): {source}{}{}", .bytes / 1024, advice(.source),
        .option.map_or_else(String::new, |option| format!("; {option} bounds it"))
    )]
    Make {
        table: &'static str,
        entries: u32,
        bytes: u64,
        option: Option<&'static str>,
        #[source]
        source: io::Error,
    },
    #[error("the kernel refused program {program}: {}", chain(.source))]
    Program {
        program: String,
        #[source]
        source: aya::programs::ProgramError,
    },
    #[error("program {0} is not of the kind that is attached where it should go")]
    Kind(String),
    /// aya asks once in a process.
    #[error("the kernel did not say what programs may have, which this process does not ask again")]
    Unsaid,
    #[error("asking the kernel what hooks may do: {}", chain(.0))]
    Probe(#[source] aya::programs::ProgramError),
    #[error(transparent)]
    Table(#[from] CallError),
}

impl ObjectError {
    /// Whether a program for devices was refused, and nothing else.
    fn is_of_device(&self) -> bool {
        matches!(self, Self::Program { program, .. } if DEVICE_HOOKS.contains(&program.as_str()))
    }
}

/// What the programs know for as long as they are loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Constants {
    /// Of the network namespace that is the node; `None` where kernels do not tell (before 5.14): the initial one.
    pub netns_cookie: Option<u64>,
    pub steered: Steered,
    /// Whether some cgroups are left out, and UNSTEERED must be asked.
    pub has_unsteered: bool,
    /// Whether flows may go past the stack, where [`has_fast_path`].
    pub fast_path: bool,
    /// Whether programs of another version may know flows that these do not: see [`super::succession`].
    pub succeeds: bool,
}

/// The loaded programs.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
    /// Whether they ask programs of another version.
    pub succeeds: bool,
}

/// One loaded program, with the name it has in the object, in `bpftool` and as a pinned link.
#[derive(Debug)]
pub struct LoadedProgram<'a> {
    pub name: &'a str,
    program: &'a mut Program,
}

impl Object {
    /// Loads the programs over the tables pinned in `folder`, making and pinning those that are not there. Those for devices
    /// are loaded where they are wanted; that they are refused is said by [`Self::device_programs`].
    pub fn load(
        folder: &Path,
        capacity: &Capacity,
        constants: &Constants,
        for_devices: bool,
    ) -> Result<Self, ObjectError> {
        if embedded().is_empty() {
            return Err(ObjectError::Missing);
        }
        if !is_told_of_kernel() {
            return Err(ObjectError::Unsaid);
        }
        let has_set_retval = u8::from(probe_set_retval().map_err(ObjectError::Probe)?);
        let (cookie, steered) = (constants.netns_cookie.unwrap_or(0), constants.steered as u8);
        let has_unsteered = u8::from(constants.has_unsteered);
        // A fifth more for the verifier of older kernels to walk, which is more than it should be.
        let drops_redirects = u8::from(for_devices && Way::of_this_kernel() == Way::Tcx);
        let succeeds = for_devices && constants.succeeds;
        let fast_path = u8::from(for_devices && constants.fast_path && has_fast_path());
        let capacity = Capacity { sockets: socket_slots(folder, capacity)?, ..*capacity };
        let (sockets_mask, buckets) = (capacity.sockets - 1, index_buckets(folder, &capacity)?);
        let has_predecessors = u8::from(succeeds);
        let mut loader = EbpfLoader::new();
        loader.override_global("NODE_NETNS_COOKIE", &cookie, true);
        loader.override_global("STEERED", &steered, true);
        loader.override_global("HAS_UNSTEERED", &has_unsteered, true);
        loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
        loader.override_global("DROPS_REDIRECTS", &drops_redirects, true);
        loader.override_global("HAS_FAST_PATH", &fast_path, true);
        loader.override_global("HAS_PREDECESSORS", &has_predecessors, true);
        loader.override_global("SOCKETS_MASK", &sockets_mask, true);
        loader.override_global("INDEX_BUCKETS", &buckets, true);
        loader.override_global("FLOWS", &capacity.flows, true);
        for layout in layouts() {
            loader.map_pin_path(layout.name, folder.join(layout.name));
            if let Entries::Chosen(entries) = layout.entries {
                loader.map_max_entries(layout.name, entries(&capacity));
            }
        }
        // Who comes after us goes on with it, should we die. And the kernel empties a table of programs that nobody holds.
        if succeeds {
            for table in name::OF_SUCCESSION {
                loader.map_pin_path(table, folder.join(table));
            }
        }
        let ebpf = loader.load(embedded()).map_err(|error| refusal(error, &capacity))?;
        let mut object = Self { ebpf, succeeds };
        #[cfg(feature = "debug")]
        super::debug::follow(&mut object.ebpf);
        let refusals = object.load_programs(|program| for_devices || !is_for_devices(program));
        let is_refused = |refusal: &ObjectError| refusal.is_of_device() && !failed_call(refusal).is_some_and(passes);
        if constants.succeeds && refusals.iter().any(is_refused) {
            // Before 6.0 kernels for ARM take no program that both calls functions and goes on to others.
            return Self::load(folder, &capacity, &Constants { succeeds: false, ..*constants }, for_devices);
        }
        // Sockets can be served without those for devices.
        refusals.into_iter().find(|refusal| !refusal.is_of_device()).map_or(Ok(object), Err)
    }

    /// All at once: the verifier takes seconds of one CPU for the larger programs. The answer is what went wrong.
    fn load_programs(&mut self, which: impl Fn(&Program) -> bool) -> Vec<ObjectError> {
        std::thread::scope(|scope| {
            let programs = self.ebpf.programs_mut().filter(|(_, program)| which(program));
            let loading: Vec<_> = programs.map(|(name, program)| scope.spawn(move || load(name, program))).collect();
            let ended = loading.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            ended.filter_map(Result::err).collect()
        })
    }

    /// Those for the cgroup, in the order of their names: what a start does is the same each time.
    pub fn programs(&mut self) -> Vec<LoadedProgram<'_>> {
        let programs = self.ebpf.programs_mut().filter(|(_, program)| !is_for_devices(program));
        let programs = programs.map(|(name, program)| LoadedProgram { name, program });
        let mut programs: Vec<_> = programs.collect();
        programs.sort_unstable_by_key(|program| program.name);
        programs
    }

    /// Those for devices, with the table that tells them where they are, which is pinned in `folder`. What is not loaded is
    /// loaded now.
    pub fn device_programs(&mut self, folder: &Path) -> Result<Programs, ObjectError> {
        let refusals = self.load_programs(|program| is_for_devices(program) && program.fd().is_err());
        refusals.into_iter().next().map_or(Ok(()), Err)?;
        let [ingress, egress] = DEVICE_HOOKS.map(|name| self.classifier(name));
        let devices = Devices { all: Map::open(&folder.join(name::DEVICES))?, near: self.own(name::NEAR)? };
        Ok(Programs { ingress: ingress?, egress: egress?, devices })
    }

    /// A table of these programs alone.
    pub fn own<V: Pod>(&self, table: &str) -> Result<Map<u32, V>, CallError> {
        let own = match self.ebpf.map(table) {
            Some(aya::maps::Map::Array(own) | aya::maps::Map::ProgramArray(own)) => {
                own.fd().as_fd().try_clone_to_owned().and_then(Map::new)
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        own.map_err(|error| CallError::new("open map", table, error))
    }

    fn classifier(&self, name: &str) -> Result<OwnedFd, ObjectError> {
        let Some(Program::SchedClassifier(hook)) = self.ebpf.program(name) else {
            return Err(ObjectError::Kind(name.to_owned()));
        };
        let fd = hook.fd().map_err(|source| ObjectError::Program { program: name.to_owned(), source })?;
        let owned = fd.as_fd().try_clone_to_owned();
        Ok(owned.map_err(|error| CallError::new("duplicate program", name, error))?)
    }

    pub fn program_names(&self) -> Vec<String> {
        self.ebpf.programs().map(|(name, _)| name.to_owned()).collect()
    }
}

/// What could not be made of `capacity`, when it was a table.
fn refusal(error: EbpfError, capacity: &Capacity) -> ObjectError {
    let table = match &error {
        EbpfError::MapError(MapError::CreateError { name, .. }) => layouts().find(|layout| layout.name == name),
        _ => None,
    };
    match (table, error) {
        (Some(layout), EbpfError::MapError(MapError::CreateError { io_error, .. })) => {
            let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
            let entries = layout.entries.of(capacity);
            let bytes = footprint::bytes(layout, capacity, entries.into(), cpus);
            ObjectError::Make { table: layout.name, entries, bytes, option: option(layout.name), source: io_error }
        }
        (_, error) => ObjectError::Load(error),
    }
}

fn is_for_devices(program: &Program) -> bool {
    matches!(program, Program::SchedClassifier(_))
}

fn load(name: &str, program: &mut Program) -> Result<(), ObjectError> {
    let result = match program {
        Program::CgroupSockAddr(hook) => hook.load(),
        Program::CgroupSock(hook) => hook.load(),
        Program::SchedClassifier(hook) => hook.load(),
        _ => return Err(ObjectError::Kind(name.to_owned())),
    };
    result.map_err(|source| ObjectError::Program { program: name.to_owned(), source })
}

impl LoadedProgram<'_> {
    /// The loaded program's descriptor.
    pub fn fd(&self) -> Result<BorrowedFd<'_>, aya::programs::ProgramError> {
        self.program.fd().map(AsFd::as_fd)
    }

    /// Attaches beside whatever others have attached and pins the link at `pin`.
    pub fn attach(&mut self, cgroup: impl AsFd, pin: &Path) -> Result<(), String> {
        use aya::programs::links::FdLink;
        // No flags: a link always allows others beside it, and the kernel refuses to be told so.
        let mode = CgroupAttachMode::Single;
        let link: FdLink = match &mut *self.program {
            Program::CgroupSockAddr(hook) => {
                let id = hook.attach(cgroup, mode).map_err(|error| chain(&error))?;
                hook.take_link(id).map_err(|error| chain(&error))?.try_into()
            }
            Program::CgroupSock(hook) => {
                let id = hook.attach(cgroup, mode).map_err(|error| chain(&error))?;
                hook.take_link(id).map_err(|error| chain(&error))?.try_into()
            }
            _ => return Err("not a program for cgroups".to_owned()),
        }
        .map_err(|error| chain(&error))?;
        link.pin(pin).map(drop).map_err(|error| chain(&error))
    }
}

/// Slots of SOCKETS: as many as the pinned table has, else what was asked for as a power of two (a slot is a cookie under
/// a mask).
fn socket_slots(folder: &Path, capacity: &Capacity) -> Result<u32, CallError> {
    let pinned = Map::<u32, SocketFlow>::open(&folder.join(name::SOCKETS));
    Ok(pinned_entries(pinned)?.unwrap_or_else(|| capacity.sockets.next_power_of_two()))
}

/// How large a table is, if there is one.
fn pinned_entries<K: Pod, V: Pod>(pinned: Result<Map<K, V>, CallError>) -> Result<Option<u32>, CallError> {
    match pinned {
        Ok(map) => Ok(Some(map.max_entries())),
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How many buckets INDEX has, where it is pinned already.
fn index_buckets(folder: &Path, capacity: &Capacity) -> Result<u32, CallError> {
    let pinned = Map::<u32, Bucket>::open(&folder.join(name::INDEX));
    Ok(pinned_entries(pinned)?.unwrap_or_else(|| index::buckets(capacity.frontends)))
}

/// Whether aya knows what every kernel has that we run on: constants (5.2) and types (4.18). Where it does not, the question
/// itself was refused, and what it makes of the programs does not load.
fn is_told_of_kernel() -> bool {
    let features = aya::features();
    features.bpf_global_data() && features.btf().is_some()
}

/// Whether hooks can choose the errno of a refusal (5.18); below, every refusal is EPERM.
pub fn has_set_retval() -> bool {
    probe_set_retval().unwrap_or(false)
}

/// Whether packets can go past the stack: those that do not fit their way must be left to it, and kernels tell programs about
/// that (`bpf_fib_lookup`) since they have this helper (5.12).
pub fn has_fast_path() -> bool {
    is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_check_mtu).unwrap_or(false)
}

/// An error when the kernel gave no answer for want of something.
fn probe_set_retval() -> Result<bool, aya::programs::ProgramError> {
    match is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval) {
        Err(error) if failed_call(&error).is_some_and(passes) => Err(error),
        probed => Ok(probed.unwrap_or(false)),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// What to do about the commonest causes.
fn advice(error: &(dyn std::error::Error + 'static)) -> &'static str {
    match failed_call(error).and_then(io::Error::raw_os_error) {
        Some(libc::EPERM | libc::EACCES) => " (run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN)",
        Some(libc::ENOMEM) => " (not enough memory: give the node, or this container, more)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_for_which_there_is_no_memory_is_named_with_its_size_and_what_bounds_it() {
        let made = |name: &str| {
            let io_error = io::Error::from_raw_os_error(libc::ENOMEM);
            let error = EbpfError::MapError(MapError::CreateError { name: name.to_owned(), io_error });
            refusal(error, &Capacity { services: 11_001, ..Capacity::LIMIT }).to_string()
        };
        assert_eq!(
            made("SERVICE"),
            "making table SERVICE with 11001 entries (85 KiB when full): Cannot allocate memory (os error 12) \
             (not enough memory: give the node, or this container, more); --max-services bounds it"
        );
        assert!(made("ABSENT").ends_with("give the node, or this container, more)"), "no option bounds it");
        assert!(made(".rodata").starts_with("loading the kernel programs: "));
    }
}
