//! A name server that knows one name: just enough of DNS (RFC 1035) for a resolver to be content.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Bytes before the question.
const HEADER: usize = 12;
/// Type and class behind the name of a question.
const TYPE_AND_CLASS: usize = 4;
const TYPE_A: [u8; 2] = [0, 1];
/// A response, recursion desired and available.
const FLAGS: [u8; 2] = [0x81, 0x80];

/// Says that every name is at `answer`, over UDP at `address` in `netns`, for as long as this process lives.
pub fn start(netns: &Netns, address: SocketAddr, answer: Ipv4Addr) -> Result<()> {
    let socket = netns.inside(|| UdpSocket::bind(address).with_context(|| format!("listen at {address}")))?;
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut question) {
            if let Some(reply) = reply(&question[..length], answer) {
                // A client that is gone needs no answer.
                let _ = socket.send_to(&reply, client);
            }
        }
    });
    Ok(())
}

/// An address to who asks for one, nothing to other types of the same name.
fn reply(message: &[u8], answer: Ipv4Addr) -> Option<Vec<u8>> {
    let name = message.get(HEADER..)?.iter().position(|byte| *byte == 0)? + 1;
    let question = message.get(HEADER..HEADER + name + TYPE_AND_CLASS)?;
    let has_address = question[name..].starts_with(&TYPE_A);
    let mut reply = [&message[..2], &FLAGS, &[0, 1, 0, u8::from(has_address), 0, 0, 0, 0], question].concat();
    if has_address {
        // The name of the question again, type A, class IN, 60 seconds, 4 bytes.
        reply.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(answer.octets());
    }
    Some(reply)
}
