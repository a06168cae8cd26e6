//! How long flows outlive their last packet: as flags ask, else as conntrack of this node has it, else as it has by default.

use std::fs;
use std::path::Path;

use proxy_common::abi::TcpTimeouts;

use crate::sys::net::inside;

/// In seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp: TcpTimeouts,
    /// Of a question, with or without its answer.
    pub udp: u32,
    /// Of what went on after an answer.
    pub udp_stream: u32,
}

/// What flags ask for, in seconds; 0 for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub tcp_established: u32,
    pub tcp_close_wait: u32,
    pub udp: u32,
    pub udp_stream: u32,
}

impl Timeouts {
    /// Those of the node whose network namespace is `netns`.
    pub fn of_node(netns: Option<&Path>, asked: &Asked) -> Self {
        // Where the namespace cannot be entered, who follows its devices has said so.
        inside(netns, || Self::new(asked, of_conntrack)).unwrap_or_else(|_| Self::new(asked, of_conntrack))
    }

    /// `told` is what conntrack says of a timeout.
    fn new(asked: &Asked, told: impl Fn(&str) -> Option<u32>) -> Self {
        let default = TcpTimeouts::default();
        let of = |asked, name, default| match asked {
            0 => told(name).unwrap_or(default),
            seconds => seconds,
        };
        let tcp = TcpTimeouts {
            syn_sent: of(0, "tcp_timeout_syn_sent", default.syn_sent),
            syn_recv: of(0, "tcp_timeout_syn_recv", default.syn_recv),
            established: of(asked.tcp_established, "tcp_timeout_established", default.established),
            fin_wait: of(0, "tcp_timeout_fin_wait", default.fin_wait),
            close_wait: of(asked.tcp_close_wait, "tcp_timeout_close_wait", default.close_wait),
            last_ack: of(0, "tcp_timeout_last_ack", default.last_ack),
            time_wait: of(0, "tcp_timeout_time_wait", default.time_wait),
            close: of(0, "tcp_timeout_close", default.close),
        };
        Self { tcp, udp: of(asked.udp, "udp_timeout", 30), udp_stream: of(asked.udp_stream, "udp_timeout_stream", 120) }
    }
}

/// As the calling thread's network namespace has it; `None` without conntrack.
fn of_conntrack(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_comes_before_conntrack_and_that_before_defaults() {
        let asked = Asked { tcp_established: 600, udp_stream: 45, ..Asked::default() };
        let told = |name: &str| match name {
            "tcp_timeout_established" => Some(432_000),
            "tcp_timeout_time_wait" => Some(60),
            "udp_timeout" => Some(10),
            _ => None,
        };
        let Timeouts { tcp, udp, udp_stream } = Timeouts::new(&asked, told);
        assert_eq!(tcp, TcpTimeouts { established: 600, time_wait: 60, ..TcpTimeouts::default() });
        assert_eq!((udp, udp_stream), (10, 45));
    }
}
