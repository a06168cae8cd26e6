//! The room for unsafe of this crate: what neither std nor nix offers as a safe call.

#![expect(unsafe_code, reason = "raw system calls and code between fork and exec")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

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
