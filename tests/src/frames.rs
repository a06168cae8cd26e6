//! Frames put on a wire as they are, and those that come by: for packets that no socket sends.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use proxy_common::packet::cases::build::Build;
use proxy_common::packet::ip::Ip;

use crate::netns::Netns;
use crate::sys;

/// Where frames of [`Build`] are sent to, and where they come from.
const ADDRESSEE: &str = "02:00:00:00:00:01";
const SENDER: &str = "02:00:00:00:00:02";

/// Whether this packet in an Ethernet frame has `source` as its source.
pub fn is_from(frame: &[u8], source: IpAddr) -> bool {
    match source {
        IpAddr::V4(ip) => frame.get(26..30) == Some(&ip.octets()[..]),
        IpAddr::V6(ip) => frame.get(22..38) == Some(&ip.octets()[..]),
    }
}

/// One end of a wire.
pub struct Wire(OwnedFd);

impl Wire {
    /// The device `device` of `netns`, for frames to the device `peer` of another one.
    pub fn between(netns: &Netns, device: &str, (other, peer): (&Netns, &str)) -> Result<Self> {
        other.ip(&[format!("link set {peer} address {ADDRESSEE}")])?;
        netns.ip(&[format!("link set {device} address {SENDER}")])?;
        Self::of(netns, device)
    }

    /// The device `device` of `netns`.
    pub fn of(netns: &Netns, device: &str) -> Result<Self> {
        let open = || sys::packet_socket(device).with_context(|| format!("a packet socket on {device}"));
        netns.inside(open).map(Self)
    }

    pub fn send<A: Ip>(&self, packet: &Build) -> Result<()> {
        self.send_bytes(&packet.bytes::<A>().0)
    }

    pub fn send_bytes(&self, frame: &[u8]) -> Result<()> {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).map(drop).context("put a frame on the wire")
    }

    /// The largest frame, in bytes, of those that came by and were not asked for: as many as the kernel keeps.
    pub fn largest(&self) -> Result<usize> {
        let mut largest = 0;
        loop {
            match recv(self.0.as_raw_fd(), &mut [], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                Ok(length) => largest = largest.max(length),
                Err(Errno::EAGAIN) => return Ok(largest),
                Err(error) => return Err(error).context("read from the wire"),
            }
        }
    }

    /// The next frame in either direction that `wanted` wants.
    pub fn until(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let end = Instant::now() + patience;
        let mut frame = vec![0; 1 << 16];
        loop {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(length) if wanted(&frame[..length]) => return Ok(frame[..length].to_vec()),
                Ok(_) => {}
                Err(Errno::EAGAIN) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        bail!("no such frame came by");
                    }
                    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                    poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout)?;
                }
                Err(error) => return Err(error).context("read from the wire"),
            }
        }
    }
}
