//! Who has a socket open, and where processes live, from `/proc`.
//!
//! Processes come and go while this looks; what vanishes is left out.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::diag::Found;
use crate::attach::rights::SYS_PTRACE;
use crate::sys::net::{copy_descriptor, namespace_of, socket_cookie};

/// Network namespaces by inode.
#[derive(Debug, Default)]
pub(super) struct Namespaces(HashMap<u64, Namespace>);

/// A network namespace and the processes that live there.
#[derive(Debug)]
pub(super) struct Namespace {
    pub file: File,
    pub pids: Vec<u32>,
}

impl Namespaces {
    /// Every namespace that has a name: of processes, our own, and those that container runtimes name in `/run/netns`.
    /// The first kind needs the right to trace, the others do not.
    pub(super) fn find() -> Self {
        let mut found = Self::default();
        found.add(Path::new("/proc/self/ns/net"), None);
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            found.add(&entry.path(), None);
        }
        for pid in numbers(Path::new("/proc")) {
            found.add(Path::new(&format!("/proc/{pid}/ns/net")), Some(pid));
        }
        found
    }

    /// The other namespaces that one of `pids` still has a socket of, though nobody lives there. A socket with an inode in
    /// `known` belongs to one of ours. Costs a look at every descriptor.
    pub(super) fn held_by_sockets(&self, pids: &[u32], known: &HashSet<u32>) -> io::Result<Vec<File>> {
        let mut found = HashMap::new();
        for pid in pids {
            for (descriptor, _) in sockets(*pid).filter(|(_, inode)| !known.contains(inode)) {
                match copy_descriptor(*pid, descriptor).and_then(|socket| namespace_of(socket.as_fd())) {
                    Ok(file) => drop(found.insert(file.metadata()?.ino(), file)),
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
                    // It was closed, or its process ended.
                    Err(_) => {}
                }
            }
        }
        Ok(found.into_iter().filter(|(inode, _)| !self.0.contains_key(inode)).map(|(_, file)| file).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Namespace> {
        self.0.values()
    }

    fn add(&mut self, path: &Path, pid: Option<u32>) {
        let Ok(inode) = fs::metadata(path).map(|metadata| metadata.ino()) else { return };
        if let Some(namespace) = self.0.get_mut(&inode) {
            namespace.pids.extend(pid);
        } else if let Ok(file) = File::open(path) {
            self.0.insert(inode, Namespace { file, pids: pid.into_iter().collect() });
        }
    }
}

/// Whether we may look into processes of others that are visible.
///
/// Not asked of process 1: in a PID namespace that is often ourselves, whom everybody may look into.
pub(super) fn may_look_into_processes() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| SYS_PTRACE.is_in(&status))
}

/// Whether we may look into this process. One that has ended hides nothing.
pub(super) fn may_look_into(pid: u32) -> bool {
    let looked = fs::metadata(format!("/proc/{pid}/ns/net"));
    looked.is_ok() || looked.is_err_and(|error| error.kind() != io::ErrorKind::PermissionDenied)
}

/// Where each of some sockets is open: process and descriptor.
#[derive(Debug)]
pub(super) struct Owners(HashMap<u32, (u32, u32)>);

impl Owners {
    /// Looks for the sockets with these inodes among the descriptors of `pids`.
    pub(super) fn find(pids: &[u32], mut inodes: HashSet<u32>) -> Self {
        let mut owners = HashMap::new();
        for pid in pids {
            for (descriptor, inode) in sockets(*pid) {
                if inodes.remove(&inode) {
                    owners.insert(inode, (*pid, descriptor));
                }
            }
            if inodes.is_empty() {
                break;
            }
        }
        Self(owners)
    }

    /// A copy of the owner's descriptor: the same socket.
    pub(super) fn borrow(&self, found: &Found) -> io::Result<OwnedFd> {
        let (pid, descriptor) = self.0.get(&found.inode).ok_or_else(|| io::Error::other("no process has it open"))?;
        let socket = copy_descriptor(*pid, *descriptor)?;
        // The descriptor may have been closed and its number given to another socket.
        let same = socket_cookie(socket.as_fd())? == found.cookie;
        same.then_some(socket).ok_or_else(|| io::Error::other("its owner has just closed it"))
    }
}

/// The sockets among the descriptors of a process: descriptor and inode.
fn sockets(pid: u32) -> impl Iterator<Item = (u32, u32)> {
    let folder = format!("/proc/{pid}/fd");
    numbers(Path::new(&folder)).filter_map(move |descriptor| {
        let target = fs::read_link(format!("{folder}/{descriptor}")).ok()?;
        Some((descriptor, socket_inode(target.to_str()?)?))
    })
}

/// `socket:[12345]`.
fn socket_inode(target: &str) -> Option<u32> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The entries of a folder whose names are numbers.
fn numbers(folder: &Path) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::diag;
    use super::*;

    #[test]
    fn only_sockets_have_an_inode_to_look_for() {
        assert_eq!(socket_inode("socket:[81234]"), Some(81234));
        for other in ["pipe:[81234]", "/dev/null", "socket:[x]", "socket:81234"] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }

    #[test]
    fn an_open_socket_is_found_with_its_owner() {
        let peer = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.connect(peer.local_addr().unwrap()).unwrap();
        let cookie = socket_cookie(socket.as_fd()).unwrap();
        let mut found = diag::connected_udp().unwrap().into_iter().find(|found| found.cookie == cookie).unwrap();
        let owners = Owners::find(&[std::process::id()], HashSet::from([found.inode]));
        let copy = std::net::UdpSocket::from(owners.borrow(&found).unwrap());
        assert_eq!(copy.local_addr().unwrap(), socket.local_addr().unwrap());
        found.cookie += 1;
        assert!(owners.borrow(&found).is_err(), "the number stands for another socket");
    }
}
