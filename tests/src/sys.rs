//! The room for unsafe of this crate: what neither std nor nix offers as a safe call.

#![expect(unsafe_code, reason = "raw system calls and code between fork and exec")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use proxy_userspace::maps::pinned::Layout;
use proxy_userspace::sys::bpf::{map_type, within_memory};

/// Lets `command` start inside a network namespace and a cgroup, and end when the thread that starts it ends.
pub(crate) fn start_inside(command: &mut Command, netns: File, cgroup_procs: File) {
    let enter = move || {
        nix::unistd::write(&cgroup_procs, b"0")?;
        nix::sched::setns(netns.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)?;
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made; nothing allocates or takes a lock.
    unsafe { command.pre_exec(enter) };
}

/// Lets `command` start in a network namespace, in the cgroup of its parent.
pub(crate) fn start_in_netns(command: &mut Command, netns: File) {
    let enter = move || Ok(nix::sched::setns(netns.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)?);
    // SAFETY: between fork and exec one system call is made; nothing allocates or takes a lock.
    unsafe { command.pre_exec(enter) };
}

/// Lets `command` start in a session of its own, out of reach of Ctrl-C.
pub(crate) fn start_in_own_session(command: &mut Command) {
    let leave = || nix::unistd::setsid().map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec one system call is made; nothing allocates or takes a lock.
    unsafe { command.pre_exec(leave) };
}

/// A socket for whole frames of every protocol on the device with this name, in the network namespace of this thread.
pub(crate) fn packet_socket(device: &str) -> io::Result<OwnedFd> {
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, every_protocol.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave this descriptor to us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every_protocol;
    address.sll_ifindex = nix::net::if_::if_nametoindex(device)?.cast_signed();
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address outlives the call and its true size is passed.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option of a socket that is one number: level, name and value.
pub fn set_option(socket: BorrowedFd<'_>, (level, name, value): (i32, i32, i32)) -> io::Result<()> {
    let length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the value outlives the call and its true size is passed.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `connect` with `AF_UNSPEC`: dissolves the association of a socket.
pub fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all-zero is a valid sockaddr, and AF_UNSPEC is zero.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address outlives the call and its true size is passed.
    let result =
        unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, size_of_val(&nowhere) as libc::socklen_t) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A stream socket that speaks Multipath TCP; `domain` is `AF_INET` or `AF_INET6`.
pub fn mptcp_socket(domain: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_MPTCP) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether this kernel was built with Multipath TCP.
pub fn has_mptcp() -> bool {
    mptcp_socket(libc::AF_INET).map_or_else(|error| error.raw_os_error() != Some(libc::EPROTONOSUPPORT), |_| true)
}

/// Makes a device without link headers (`tun`) in the network namespace of this thread. Each read of it is a packet that goes
/// out, each write one that comes in.
pub fn tun(name: &str) -> io::Result<File> {
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is too long for a device")));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request outlives the call.
    match unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw const request) } {
        0 => Ok(device),
        _ => Err(io::Error::last_os_error()),
    }
}

const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const BTF_LOAD: libc::c_int = 18;

/// A hash of plain keys and values.
pub fn hash(key_size: u32, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    bpf(MAP_CREATE, &[1, key_size, value_size, entries, 0])
}

/// A hash with a value for each CPU.
pub fn hash_of_each_cpu(key_size: u32, value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    bpf(MAP_CREATE, &[5, key_size, value_size, entries, 0])
}

/// An array of plain values.
pub fn array(value_size: u32, entries: u32) -> io::Result<OwnedFd> {
    bpf(MAP_CREATE, &[2, 4, value_size, entries, 0])
}

/// An array of one counter.
pub fn counter() -> io::Result<OwnedFd> {
    array(8, 1)
}

/// A packet program that counts into `counter` and leaves every packet to whoever comes next (`TCX_NEXT`,
/// `TC_ACT_UNSPEC`).
pub fn counting_classifier(counter: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let instruction = |opcode: u8, target: u8, source: u8, offset: i16, immediate: i32| {
        let registers = u64::from(source << 4 | target);
        u64::from(opcode)
            | registers << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(immediate.cast_unsigned()) << 32
    };
    let (result, first, second, frame) = (0, 1, 2, 10);
    let program = [
        instruction(0x62, frame, 0, -4, 0),     // key = 0
        instruction(0xbf, second, frame, 0, 0), // second = &key
        instruction(0x07, second, 0, 0, -4),
        instruction(0x18, first, 1, 0, counter.as_raw_fd()), // first = the map, in two words
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, 1),      // result = bpf_map_lookup_elem(first, second)
        instruction(0x15, result, 0, 2, 0), // if result != 0:
        instruction(0xb7, first, 0, 0, 1),
        instruction(0xdb, result, first, 0, 0), //   *result += 1
        instruction(0xb7, result, 0, 0, -1),
        instruction(0x95, 0, 0, 0, 0), // return -1
    ];
    let sched_cls = 3;
    let (code, licence) = (program.as_ptr() as u64, c"Dual MIT/GPL".as_ptr() as u64);
    let halves = |address: u64| [address as u32, (address >> 32) as u32];
    let attributes = [[sched_cls, program.len() as u32], halves(code), halves(licence)].concat();
    bpf(PROG_LOAD, &attributes)
}

/// Makes an array whose type says that its values begin with a `bpf_spin_lock`: the verifier lets no program touch those
/// bytes, whatever the sizes are.
pub fn array_with_lock(value_size: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let types = load_btf(&btf_of_values_with_lock(value_size))?;
    let array = 2;
    let (no_inner_map_numa_name_or_device, types) = ([0; 7], types.as_raw_fd().cast_unsigned());
    let mut attributes = vec![array, 4, value_size, entries, flags];
    attributes.extend(no_inner_map_numa_name_or_device);
    let (int, value) = (1, 3);
    bpf(MAP_CREATE, &[attributes, vec![types, int, value]].concat())
}

/// Makes a map like `layout` that belongs to a program which nobody has: the kernel, from 6.18 on, lets no other use it.
pub fn map_for_no_program(layout: &Layout, entries: u32) -> io::Result<OwnedFd> {
    // Of no use to any type but SK_STORAGE, which is not made without.
    let types = load_btf(&btf_of_values_with_lock(layout.value_size))?;
    let (int, value) = if layout.map_type == map_type::SK_STORAGE { (1, 3) } else { (0, 0) };
    let types_fd = if int == 0 { 0 } else { types.as_raw_fd().cast_unsigned() };
    let hash_of_nothing = [0_u8; 32];
    let hash = hash_of_nothing.as_ptr() as u64;
    let (no_inner_map_numa_name_or_device, no_more_types_extra_or_token) = ([0; 7], [0; 5]);
    let mut attributes = vec![layout.map_type, layout.key_size, layout.value_size, entries, layout.flags];
    attributes.extend(no_inner_map_numa_name_or_device);
    attributes.extend([types_fd, int, value]);
    attributes.extend(no_more_types_extra_or_token);
    attributes.extend([hash as u32, (hash >> 32) as u32, size_of_val(&hash_of_nothing) as u32, 0]);
    bpf(MAP_CREATE, &attributes)
}

fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let address = btf.as_ptr() as u64;
    // On little-endian machines.
    bpf(BTF_LOAD, &[address as u32, (address >> 32) as u32, 0, 0, btf.len() as u32])
}

/// Calls bpf(2) for a new descriptor; `attributes` are the words of `union bpf_attr`.
fn bpf(command: libc::c_int, attributes: &[u32]) -> io::Result<OwnedFd> {
    within_memory(|| {
        // SAFETY: the words are live and their size is given; the one address that callers put into them is live too.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
    })
}

/// Type 1: `int`; 2: `struct bpf_spin_lock { int val; }`; 3: `struct value { struct bpf_spin_lock lock; … }`, as
/// `Documentation/bpf/btf.rst` describes their form.
fn btf_of_values_with_lock(value_size: u32) -> Vec<u8> {
    let names = b"\0int\0bpf_spin_lock\0val\0value\0lock\0";
    let name = |text: &str| {
        let with_ends = format!("\0{text}\0");
        let at = names.windows(with_ends.len()).position(|part| part == with_ends.as_bytes());
        at.expect("one of the names") as u32 + 1
    };
    let (int, a_struct) = (1 << 24, 4 << 24);
    let (signed_32_bits, one_member) = (1 << 24 | 32, 1);
    let member = |text, type_id| [name(text), type_id, 0];
    let types = [
        &[name("int"), int, 4, signed_32_bits][..],
        &[name("bpf_spin_lock"), a_struct | one_member, 4],
        &member("val", 1),
        &[name("value"), a_struct | one_member, value_size],
        &member("lock", 2),
    ]
    .concat();
    let (magic_and_version, header) = (0x0001_eb9f, 24);
    let type_bytes = 4 * types.len() as u32;
    let mut words = vec![magic_and_version, header, 0, type_bytes, type_bytes, names.len() as u32];
    words.extend(types);
    words.into_iter().flat_map(u32::to_ne_bytes).chain(*names).collect()
}
