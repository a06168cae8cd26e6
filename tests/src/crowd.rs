//! Clients of the Service `web` while something happens to who serves them. It panics where somebody is not served.

use std::net::SocketAddr;

use crate::node::Place;
use crate::probe::{Load, Traffic};
use crate::stage::{Stage, VIP4, VIP6, dialled};

/// How many answers a load collects on each side of an event.
pub const ANSWERS: u64 = 100;

/// Clients that dial all the time, one for each way.
#[derive(Debug)]
pub struct Crowd(pub Vec<(Traffic, SocketAddr, Load)>);

impl Crowd {
    pub fn start(stage: &Stage) -> Self {
        let ways = [(Traffic::Tcp, VIP4), (Traffic::Udp, VIP6), (Traffic::Datagrams, VIP4)];
        Self::at(&stage.pod.place, ways.map(|(traffic, vip)| (traffic, dialled(vip))))
    }

    /// Clients at `place`, one for each of these.
    pub fn at(place: &Place, ways: impl IntoIterator<Item = (Traffic, SocketAddr)>) -> Self {
        let start = |(traffic, to)| (traffic, to, Load::start(place, traffic, to).unwrap());
        Self(ways.into_iter().map(start).collect())
    }

    /// Everybody gets more answers.
    pub fn goes_on(&mut self) {
        for (.., load) in &mut self.0 {
            load.after(ANSWERS).unwrap();
        }
    }

    /// Nobody ever got anything but an answer.
    pub fn was_never_refused(self) {
        for (traffic, to, load) in self.0 {
            let report = load.stop().unwrap();
            assert_eq!(report.failed, 0, "{traffic:?} to {to}: {report:?}");
        }
    }
}
