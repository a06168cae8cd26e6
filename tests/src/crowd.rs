//! Clients of the Service `web` while something happens to who serves them. It panics where somebody is not served.

use crate::probe::{Load, Traffic};
use crate::stage::{Stage, VIP4, VIP6, dialled};

/// How many answers a load collects on each side of an event.
pub const ANSWERS: u64 = 100;

/// Clients that dial all the time, one for each way.
#[derive(Debug)]
pub struct Crowd(pub Vec<(Traffic, Load)>);

impl Crowd {
    pub fn start(stage: &Stage) -> Self {
        let start = |traffic, vip| (traffic, Load::start(&stage.pod.place, traffic, dialled(vip)).unwrap());
        Self(vec![start(Traffic::Tcp, VIP4), start(Traffic::Udp, VIP6), start(Traffic::Datagrams, VIP4)])
    }

    /// Everybody gets more answers.
    pub fn goes_on(&mut self) {
        for (_, load) in &mut self.0 {
            load.after(ANSWERS).unwrap();
        }
    }

    /// Nobody ever got anything but an answer.
    pub fn was_never_refused(self) {
        for (traffic, load) in self.0 {
            let report = load.stop().unwrap();
            assert_eq!(report.failed, 0, "{traffic:?}: {report:?}");
        }
    }
}
