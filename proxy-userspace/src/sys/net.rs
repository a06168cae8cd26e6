//! Sockets and network namespaces: cookies, and work inside another namespace.
#![expect(unsafe_code, reason = "socket options that libc and nix do not wrap")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::CallError;

const SO_NETNS_COOKIE: libc::c_int = 71;
/// `linux/sockios.h`.
const SIOCGSKNS: libc::Ioctl = 0x894C;

/// The cookie of the namespace at `path` (a file like `/run/netns/NAME`), or of our own. `None` below kernel 5.14.
pub fn netns_cookie(path: Option<&Path>) -> Result<Option<u64>, CallError> {
    let Some(path) = path else {
        return own_cookie().map_err(|error| CallError::new("read cookie of", "our network namespace", error));
    };
    let fail = |error| CallError::new("read cookie of network namespace", path.display(), error);
    let file = File::open(path).map_err(fail)?;
    in_namespace(&file, own_cookie).map_err(fail)?.map_err(fail)
}

/// Runs `work` in the namespace at `path`, or here.
pub fn inside<T: Send>(path: Option<&Path>, work: impl FnOnce() -> T + Send) -> Result<T, CallError> {
    let Some(path) = path else { return Ok(work()) };
    let namespace = File::open(path).and_then(|file| in_namespace(&file, work));
    namespace.map_err(|error| CallError::new("enter network namespace", path.display(), error))
}

/// Runs `work` on a thread of its own inside the network namespace `namespace`; ours stays as it is.
pub fn in_namespace<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| work()));
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(io::Error::from)
    })
}

fn own_cookie() -> io::Result<Option<u64>> {
    // Any socket belongs to a namespace; this kind needs no device to be up.
    namespace_cookie(UnixDatagram::unbound()?.as_fd())
}

fn namespace_cookie(socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    match u64_option(socket, SO_NETNS_COOKIE) {
        Ok(cookie) => Ok(Some(cookie)),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn u64_option(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    let target = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the kernel writes at most `size` bytes to `value`.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, target, &raw mut size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// The socket's cookie, unique for the life of the machine.
pub fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    u64_option(socket, libc::SO_COOKIE)
}

/// The network namespace of a socket, whoever has it open.
pub fn namespace_of(socket: BorrowedFd<'_>) -> io::Result<File> {
    // SAFETY: no addresses.
    let namespace = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    descriptor_of(namespace.into()).map(File::from)
}

/// A copy of descriptor `descriptor` of process `pid`, as if it had been sent to us (`pidfd_getfd`(2), kernel 5.6). Needs
/// the right to trace that process.
pub fn copy_descriptor(pid: u32, descriptor: u32) -> io::Result<OwnedFd> {
    // SAFETY: no addresses.
    let process = descriptor_of(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: no addresses.
    descriptor_of(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) })
}

fn descriptor_of(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(result as libc::c_int) })
}
