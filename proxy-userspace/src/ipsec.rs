//! Whether the node has IPsec policies, or refuses what none of them lets pass. What they encrypt or refuse has to pass its
//! stack, so nothing goes past that while there are any.
//!
//! In: the node's network namespace. Out: whether there are any now, and when that changes. Refuses to know whom they are about.

use std::convert::Infallible;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use netlink_packet_core::{NLM_F_ACK, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable};
use netlink_sys::protocols::NETLINK_XFRM;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::sync::watch::{self, Receiver, Sender};
use tracing::warn;

use crate::sys::net::inside;
use crate::sys::netlink::exchange;

/// `linux/xfrm.h`: the group that is told of policies.
const XFRMGRP_POLICY: u32 = 8;
const XFRM_MSG_GETSPDINFO: u16 = 0x25;
const XFRMA_SPD_INFO: u16 = 1;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
/// In, forwarded, out: a byte each.
const DIRECTIONS: usize = 3;
const XFRM_USERPOLICY_BLOCK: u8 = 1;

/// Looks now and follows for as long as the receiver lives; `None` where the kernel has no IPsec.
pub fn follow(netns: Option<&Path>) -> Result<Option<Receiver<bool>>> {
    let runtime = tokio::runtime::Handle::current();
    let open = || {
        let _guard = runtime.enter();
        let mut news = TokioSocket::new(NETLINK_XFRM)?;
        news.socket_mut().bind(&SocketAddr::new(0, XFRMGRP_POLICY))?;
        Ok(news)
    };
    let news = match inside(netns, open)? {
        Err(error) if has_none(&error) => return Ok(None),
        opened => opened.context("open a netlink socket for IPsec policies")?,
    };
    let netns = netns.map(Path::to_owned);
    let (sender, receiver) = watch::channel(has_policies(netns.as_deref()));
    tokio::spawn(async move { keep_up(news, &sender, || has_policies(netns.as_deref())).await });
    Ok(Some(receiver))
}

/// A kernel without IPsec, or without a way to ask.
fn has_none(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPROTONOSUPPORT)
}

/// News only ring: lost ones (ENOBUFS) do too.
async fn keep_up(news: TokioSocket, known: &Sender<bool>, look: impl Fn() -> bool) {
    loop {
        let heard = tokio::select! {
            heard = news.recv_from_full() => heard,
            () = known.closed() => return,
        };
        if let Err(error) = heard
            && error.raw_os_error() != Some(libc::ENOBUFS)
        {
            return warn!("IPsec policies of this node: {error}");
        }
        let now = look();
        known.send_if_modified(|known| std::mem::replace(known, now) != now);
    }
}

/// Also where the kernel does not say.
fn has_policies(netns: Option<&Path>) -> bool {
    let ask = || Ok(count()? > 0 || refuses_by_default()?);
    let asked = inside(netns, ask).map_err(anyhow::Error::from).and_then(|answer: io::Result<bool>| Ok(answer?));
    asked.unwrap_or_else(|error| {
        warn!("IPsec policies of this node cannot be counted, so there may be some: {error}");
        true
    })
}

fn count() -> io::Result<u32> {
    // Flags, of which there are none.
    const FLAGS: usize = size_of::<u32>();
    let answer = ask(XFRM_MSG_GETSPDINFO, FLAGS)?;
    let counts = info(answer.get(FLAGS..).unwrap_or_default());
    Ok(counts.map_or(0, |counts| counts.iter().sum()))
}

/// Whether something is refused that no policy lets pass (kernel 5.15 and newer).
fn refuses_by_default() -> io::Result<bool> {
    match ask(XFRM_MSG_GETDEFAULT, DIRECTIONS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        answer => Ok(answer?.iter().take(DIRECTIONS).any(|action| *action == XFRM_USERPOLICY_BLOCK)),
    }
}

/// What the kernel answers to a question of this kind with so many zero bytes.
fn ask(kind: u16, zeros: usize) -> io::Result<Vec<u8>> {
    let mut answer = None;
    let question = Message { kind, body: vec![0; zeros] };
    exchange(NETLINK_XFRM, question, NLM_F_ACK, |message: Message| answer = Some(message.body))?;
    answer.ok_or_else(|| io::Error::other("the kernel did not say"))
}

/// A question or its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    kind: u16,
    body: Vec<u8>,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

impl From<Message> for NetlinkPayload<Message> {
    fn from(message: Message) -> Self {
        Self::InnerMessage(message)
    }
}

/// How many policies there are, in, out and forwarded, from the attributes of an answer.
fn info(mut attributes: &[u8]) -> Option<[u32; 3]> {
    const HEADER: usize = 4;
    while let Some((&[a, b, c, d], rest)) = attributes.split_first_chunk() {
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        if kind == XFRMA_SPD_INFO {
            let (words, _) = rest.as_chunks();
            let counts = words.first_chunk::<3>()?;
            return Some(counts.map(u32::from_ne_bytes));
        }
        attributes = attributes.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_counted_behind_whatever_else_the_kernel_says() {
        let attribute = |kind: u16, words: &[u32]| {
            let head = [(4 + 4 * words.len()) as u16, kind].map(u16::to_ne_bytes).concat();
            [head, words.iter().flat_map(|word| word.to_ne_bytes()).collect()].concat()
        };
        let counted = attribute(XFRMA_SPD_INFO, &[1, 2, 3, 9, 9, 9]);
        for (what, bytes, found) in [
            ("alone", counted.clone(), Some([1, 2, 3])),
            ("behind another", [attribute(2, &[7, 7]), counted].concat(), Some([1, 2, 3])),
            ("not at all", attribute(2, &[7, 7]), None),
            ("cut off", attribute(XFRMA_SPD_INFO, &[1, 2]), None),
            ("of no length", vec![0; 8], None),
        ] {
            assert_eq!(info(&bytes), found, "{what}");
        }
    }
}
