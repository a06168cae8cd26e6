//! Keeps one program of ours at each hook of the devices that were chosen.
//!
//! ```text
//! want       the choice of now -> what is new is attached, what is no longer chosen is detached
//! serve_by   other programs (a start, larger tables) -> each takes the place of the one before, in one step
//! audit      whatever somebody else has removed is attached again
//! ```
//!
//! All three come down to the same question for one hook: does it stand as it should? What stands is asked of the kernel
//! each time, so that a new agent takes over what it finds. Pins are in `<pin-dir>/links/devices`:
//!
//! ```text
//! 12-ingress, 12-egress   of device 12: the TCX link, or the program of the filter
//! 12-ingress-innermost    the link was attached in that order
//! 12-clsact               `clsact` was put there by us
//! 1-accepts               and so was a setting of the loopback device
//! ```
//!
//! The last three are notes: symbolic links, which keep no program alive.
//!
//! In: [`Choice`]s, [`Programs`]. Out: attachments, and the tables DEVICES and NEAR. The calling thread is in the node's network
//! namespace.

mod clsact;
pub mod follow;
mod loopback;
mod tcx;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use proxy_common::abi::{Device, NearDevice, near};
use proxy_common::addr::{Addr, Family};
use tracing::{debug, info, warn};

use crate::devices::{Choice, Format, Role};
use crate::sys::bpf::{Kind, Map, Pin, program_id};
use crate::sys::passes;

/// Below the folder of the links: an older agent removes there what it does not know.
pub const FOLDER: &str = "devices";

/// Where packets come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Where devices of this role have programs. What enters by the loopback device has left by it.
    pub fn of(role: Role) -> &'static [Self] {
        match role {
            Role::Network | Role::Pod => &Self::BOTH,
            Role::Itself => &[Self::Egress],
            Role::LeftAlone => &[],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Where we stand among the programs of others at the same hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Next to the device: others see packets as the stack does, with client and backend.
    #[default]
    Outermost,
    /// Next to the stack: others see packets as they are outside.
    Innermost,
}

impl Order {
    fn is_first(self, hook: Hook) -> bool {
        (self == Self::Outermost) == (hook == Hook::Ingress)
    }
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Tcx,
    Clsact,
}

impl Way {
    /// The better one that this kernel has.
    pub fn of_this_kernel() -> Self {
        if tcx::works() { Self::Tcx } else { Self::Clsact }
    }
}

/// The loaded programs, and the tables that tell them about the device they run at.
#[derive(Debug)]
pub struct Programs {
    pub ingress: OwnedFd,
    pub egress: OwnedFd,
    pub devices: Devices,
}

/// What programs know of devices: all of them in a hash, and what every packet asks of them in an array, where they are found
/// sooner, of those that have a place there.
#[derive(Debug)]
pub struct Devices {
    pub all: Map<u32, Device>,
    /// Of these programs alone, so it knows of no device yet when they are loaded.
    pub near: Map<u32, NearDevice>,
}

impl Devices {
    /// Writes what differs.
    fn set(&self, index: u32, device: Device) -> io::Result<()> {
        if self.all.get(&index)? != Some(device) {
            self.all.set(&index, &device)?;
        }
        let (place, wanted) = (near::place(index), near::of(index, &device));
        match self.near.get(&place)? {
            Some(there) if there != wanted && (there == 0 || near::is_of(there, index)) => {
                self.near.set(&place, &wanted)
            }
            _ => Ok(()),
        }
    }

    fn remove(&self, index: u32) -> io::Result<()> {
        let place = near::place(index);
        if self.near.get(&place)?.is_some_and(|there| near::is_of(there, index)) {
            self.near.set(&place, &0)?;
        }
        self.all.remove(&index)
    }
}

impl Programs {
    pub fn both(&self) -> [BorrowedFd<'_>; 2] {
        Hook::BOTH.map(|hook| self.at(hook))
    }

    fn at(&self, hook: Hook) -> BorrowedFd<'_> {
        match hook {
            Hook::Ingress => self.ingress.as_fd(),
            Hook::Egress => self.egress.as_fd(),
        }
    }
}

/// One hook of one device.
#[derive(Debug)]
struct Site {
    device: u32,
    hook: Hook,
    pin: PathBuf,
}

impl Site {
    fn new(folder: &Path, device: u32, hook: Hook) -> Self {
        Self { device, hook, pin: folder.join(pin_name(device, hook)) }
    }

    fn made_clsact(&self) -> PathBuf {
        self.pin.with_file_name(format!("{}-clsact", self.device))
    }

    /// The order in which the link there was attached.
    fn order(&self) -> Order {
        if is_noted(&self.innermost()) { Order::Innermost } else { Order::Outermost }
    }

    fn note_order(&self, order: Order) -> io::Result<()> {
        match order {
            Order::Innermost => note(&self.innermost()),
            Order::Outermost if is_noted(&self.innermost()) => fs::remove_file(self.innermost()),
            Order::Outermost => Ok(()),
        }
    }

    fn innermost(&self) -> PathBuf {
        self.pin.with_file_name(format!("{}-innermost", pin_name(self.device, self.hook)))
    }
}

/// What it took to have a program in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Stood,
    Swapped,
    Attached,
}

/// The programs of now.
#[derive(Debug)]
struct Serving {
    programs: Programs,
    /// At ingress and at egress.
    ids: [u32; 2],
    way: Way,
}

impl Serving {
    /// Whether nothing is to be done for a device. One question to the kernel for each hook: twice a second this is asked of
    /// every device of a node. `false` also where it takes more to know.
    fn stands_at(&self, choice: &Choice, pins: &BTreeSet<String>) -> bool {
        let is_by_link = self.way == Way::Tcx && matches!(choice.role(), Role::Network | Role::Pod);
        let stands = |hook: &Hook| {
            pins.contains(&pin_name(choice.index, *hook)) && tcx::runs(choice.index, *hook, self.ids[*hook as usize])
        };
        is_by_link
            && Hook::of(choice.role()).iter().all(stands)
            && self.programs.devices.set(choice.index, entry(choice)).is_ok()
    }
}

/// By interface index.
type Wanted = BTreeMap<u32, Choice>;

/// The programs at the devices of one node.
#[derive(Debug)]
pub struct DeviceHooks {
    folder: PathBuf,
    /// What was asked for.
    way: Option<Way>,
    order: Order,
    serving: Option<Serving>,
    /// `None`: nobody has said yet.
    wanted: Option<Wanted>,
    /// What could not be attached, and was told.
    failed: BTreeMap<u32, String>,
}

impl DeviceHooks {
    /// `links` is the folder of the links. Without a way it is the better one that the kernel has.
    pub fn new(links: &Path, way: Option<Way>, order: Order) -> Self {
        let folder = links.join(FOLDER);
        Self { folder, way, order, serving: None, wanted: None, failed: BTreeMap::new() }
    }

    /// Attaches these programs wherever one is wanted. Those that stood there until now are replaced at once.
    pub fn serve_by(&mut self, programs: Programs) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let ids = [program_id(programs.at(Hook::Ingress))?, program_id(programs.at(Hook::Egress))?];
        self.serving = Some(Serving { programs, ids, way: self.way.unwrap_or_else(Way::of_this_kernel) });
        self.audit();
        Ok(())
    }

    /// The devices that are wanted from now on. Only what differs from before is looked at.
    pub fn want(&mut self, choices: &[Choice]) {
        let chosen = choices.iter().filter(|choice| choice.role() != Role::LeftAlone);
        let now: Wanted = chosen.map(|choice| (choice.index, choice.clone())).collect();
        let before = self.wanted.take().unwrap_or_default();
        for device in before.keys().filter(|device| !now.contains_key(device)) {
            self.take_away(*device);
        }
        for choice in now.values().filter(|choice| before.get(&choice.index) != Some(choice)) {
            self.put(choice);
        }
        self.wanted = Some(now);
    }

    /// Looks at everything that should stand, and takes away what no longer should. Does nothing before anything was
    /// wanted: what stands may serve.
    pub fn audit(&mut self) {
        let Some(wanted) = self.wanted.take() else { return };
        let pins = pins(&self.folder);
        for choice in wanted.values() {
            let is_served = |serving: &Serving| serving.stands_at(choice, &pins);
            if self.failed.contains_key(&choice.index) || !self.serving.as_ref().is_some_and(is_served) {
                self.put(choice);
            }
        }
        for device in devices_of(&pins).into_iter().filter(|device| !wanted.contains_key(device)) {
            self.take_away(device);
        }
        self.wanted = Some(wanted);
    }

    /// Devices that lack a program, each with the reason.
    pub fn failed(&self) -> &BTreeMap<u32, String> {
        &self.failed
    }

    fn put(&mut self, choice: &Choice) {
        let Some(Serving { programs, way, .. }) = &self.serving else { return };
        match put(&self.folder, programs, *way, self.order, choice) {
            Ok(()) => drop(self.failed.remove(&choice.index)),
            // It is gone, and soon will be from the choice.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => {
                let told = self.failed.insert(choice.index, error.to_string());
                if told.is_none_or(|told| told != error.to_string()) {
                    warn!(device = choice.name, "packets of this device are not translated, trying again: {error}");
                }
            }
        }
    }

    fn take_away(&mut self, device: u32) {
        self.failed.remove(&device);
        if let Err(error) = take_away(&self.folder, device) {
            warn!("device {device} keeps a program that is not wanted there: {error}");
        }
        let entry = self.serving.as_ref().map_or(Ok(()), |serving| serving.programs.devices.remove(device));
        if let Err(error) = entry {
            warn!("device {device} stays in DEVICES: {error}");
        }
        debug!(device, "detached");
    }
}

fn put(folder: &Path, programs: &Programs, way: Way, order: Order, choice: &Choice) -> io::Result<()> {
    // A program leaves packets of devices that it does not know alone.
    programs.devices.set(choice.index, entry(choice))?;
    for hook in Hook::of(choice.role()).iter().copied() {
        let (site, program) = (Site::new(folder, choice.index, hook), programs.at(hook));
        let done = match way {
            Way::Tcx => tcx::ensure(&site, program, order)?,
            Way::Clsact => clsact::ensure(&site, program, order)?,
        };
        match done {
            Done::Stood => {}
            Done::Swapped => debug!(device = choice.name, hook = hook.name(), "swapped in place"),
            Done::Attached => info!(device = choice.name, hook = hook.name(), reason = %choice.reason, "attached"),
        }
    }
    match choice.role() {
        Role::Itself => loopback::accept_own(&accepts(folder, choice.index)),
        _ => Ok(()),
    }
}

fn accepts(folder: &Path, device: u32) -> PathBuf {
    folder.join(format!("{device}-accepts"))
}

/// Detaches what is ours at a device, whether it still exists or not.
fn take_away(folder: &Path, device: u32) -> io::Result<()> {
    for hook in Hook::BOTH {
        let site = Site::new(folder, device, hook);
        tcx::remove(&site)?;
        clsact::remove(&site)?;
    }
    loopback::as_before(&accepts(folder, device))?;
    for name in pins(folder).into_iter().filter(|name| device_of(name) == Some(device)) {
        fs::remove_file(folder.join(name))?;
    }
    Ok(())
}

/// Detaches everything of ours: for `sluice cleanup`, inside of the node's network namespace.
pub fn remove_all(links: &Path) -> io::Result<()> {
    let folder = links.join(FOLDER);
    devices_of(&pins(&folder)).into_iter().try_for_each(|device| take_away(&folder, device))
}

/// What stands at one hook of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Nothing,
    /// The id of our program, and those of all there in the order in which they run.
    Tcx(u32, Vec<u32>),
    Clsact(u32),
}

/// Looks at a hook as `sluice check` does.
pub fn standing(links: &Path, device: u32, hook: Hook) -> io::Result<Standing> {
    let site = Site::new(&links.join(FOLDER), device, hook);
    if let Some((own, all)) = tcx::look(&site)? {
        return Ok(Standing::Tcx(own, all));
    }
    Ok(clsact::look(&site)?.map_or(Standing::Nothing, Standing::Clsact))
}

fn entry(choice: &Choice) -> Device {
    let flag = |set, flag| if set { flag } else { 0 };
    Device {
        source_v4: choice.source_v4.map_or(Addr::unspecified(Family::V4), |ip| std::net::IpAddr::V4(ip).into()),
        source_v6: choice.source_v6.map_or(Addr::unspecified(Family::V6), |ip| std::net::IpAddr::V6(ip).into()),
        flags: flag(choice.local_pods, Device::LOCAL_PODS)
            | flag(choice.format == Format::Network, Device::NO_LINK_HEADER)
            | flag(choice.role() == Role::Pod, Device::FACES_POD)
            | flag(choice.has_vlans, Device::HAS_VLANS),
    }
}

/// A name for a pin that takes the place of `pin`; what a dead process left there goes.
fn fresh(pin: &Path) -> PathBuf {
    let mut name = pin.file_name().unwrap_or_default().to_owned();
    name.push("-new");
    let fresh = pin.with_file_name(name);
    let _ = fs::remove_file(&fresh);
    fresh
}

/// Notes something, once. The name says it all; what the link leads to is nothing.
fn note(path: &Path) -> io::Result<()> {
    if is_noted(path) { Ok(()) } else { symlink("noted", path) }
}

fn is_noted(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Whether what is pinned there stands for a filter.
fn is_of_filter(pin: &Path) -> io::Result<bool> {
    match Pin::open(pin) {
        Ok(pin) => Ok(pin.kind == Kind::Other),
        Err(error) if passes(&error.source) => Err(error.source),
        Err(_) => Ok(false),
    }
}

fn pin_name(device: u32, hook: Hook) -> String {
    format!("{device}-{}", hook.name())
}

fn pins(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn device_of(pin: &str) -> Option<u32> {
    pin.split_once('-')?.0.parse().ok()
}

fn devices_of(pins: &BTreeSet<String>) -> BTreeSet<u32> {
    pins.iter().filter_map(|pin| device_of(pin)).collect()
}
