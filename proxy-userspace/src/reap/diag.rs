//! Sockets of the calling thread's network namespace by `sock_diag`(7): list and destroy.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::sys::netlink::exchange;

/// One connected UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub cookie: u64,
    pub inode: u32,
    /// Addresses as the kernel has them, untranslated.
    pub id: SocketId,
    family: u8,
}

/// The connected UDP sockets of both families.
pub(super) fn connected_udp() -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    list(IPPROTO_UDP, &StateFlags::ESTABLISHED, |header| {
        let (cookie, family) = (cookie(header.socket_id.cookie), header.family);
        found.push(Found { cookie, inode: header.inode, id: header.socket_id, family });
    })?;
    Ok(found)
}

/// A socket that may have a slot, by what never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub cookie: u64,
    pub inode: u32,
}

/// The TCP and UDP sockets that the kernel can find: all but those that are neither bound nor connected. Subflows of
/// Multipath TCP are TCP sockets.
pub(super) fn sockets() -> io::Result<Vec<Identity>> {
    // An unconnected UDP socket is "closed"; in the other two states nobody has the connection open.
    let states = StateFlags::all().difference(StateFlags::LISTEN | StateFlags::TIME_WAIT);
    let mut found = Vec::new();
    for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
        list(protocol, &states, |header| {
            found.push(Identity { cookie: cookie(header.socket_id.cookie), inode: header.inode });
        })?;
    }
    Ok(found)
}

/// Closes a socket; whoever has it open gets ECONNABORTED.
pub(super) fn destroy(socket: &Found) -> io::Result<()> {
    let request = request(socket.family, IPPROTO_UDP, StateFlags::ESTABLISHED, socket.id.clone());
    exchange(NETLINK_SOCK_DIAG, SockDiagDestroy::new(SockDiagMessage::InetRequest(request)), NLM_F_ACK, |_| {})
}

/// Hands the sockets of both families that are in one of `states` to `each`.
fn list(protocol: u8, states: &StateFlags, mut each: impl FnMut(InetResponseHeader)) -> io::Result<()> {
    for (family, any) in [(AF_INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED)), (AF_INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED))] {
        let all = SocketId { source_address: any, destination_address: any, ..SocketId::new_v4() };
        let request = SockDiagMessage::InetRequest(request(family, protocol, states.clone(), all));
        exchange(NETLINK_SOCK_DIAG, request, NLM_F_DUMP, |message| {
            if let SockDiagMessage::InetResponse(response) = message {
                each(response.header);
            }
        })?;
    }
    Ok(())
}

fn request(family: u8, protocol: u8, states: StateFlags, socket_id: SocketId) -> InetRequest {
    InetRequest { family, protocol, extensions: ExtensionFlags::empty(), states, socket_id }
}

/// The kernel stores it as two words, low one first.
fn cookie(bytes: [u8; 8]) -> u64 {
    let (low, high) = bytes.split_at(4);
    let word = |half: &[u8]| u64::from(u32::from_ne_bytes(half.try_into().expect("half of eight bytes")));
    word(high) << 32 | word(low)
}
