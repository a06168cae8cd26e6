//! What is measured: a kind of packet through a program.

/// Packets in a row, where all are of one flow.
const HOT: u32 = 5_000;
/// New flows in a row: 200 rounds are 100,000 flows.
pub(crate) const NEW: u32 = 500;

/// One kind of packet through one program.
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    /// What the case of the packet is about.
    pub(crate) packet: &'static str,
    pub(crate) flows: Flows,
    pub(crate) becomes: Becomes,
    pub(crate) on: Which,
}

/// The node that the program is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Roomy,
    /// There is no room left for a flow that begins.
    Full,
    /// With `--fast-path`.
    Fast,
}

/// Whose packets they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flows {
    One,
    /// Each established flow has one packet in a batch.
    Each,
    /// Clients that nobody has seen yet.
    New,
}

/// What the program is to make of each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Becomes {
    /// It is as it came.
    Same,
    Translated,
    /// Translated, after a flow was made for it.
    Begun,
}

pub(crate) const EMPTY: &str = "an empty program";
pub(crate) const LOOK_UP: &str = "one look-up";
pub(crate) const LOOK_FLOW: &str = "one look-up of a flow";
pub(crate) const INSERT_ROOM: &str = "two insertions";
pub(crate) const INSERT_FULL: &str = "two insertions, two others go";
pub(crate) const REQUEST: &str = "request of a flow";
pub(crate) const REPLY: &str = "reply of a flow";
pub(crate) const REQUEST_LEAVES: &str = "request of a flow, leaves with the node's address";
pub(crate) const REPLY_ENTERS: &str = "reply of such a flow, enters";
pub(crate) const NEW_ROOM: &str = "new flow";
pub(crate) const NEW_FULL: &str = "new flow, another one goes";
pub(crate) const AGAIN: &str = "request of a flow, once more";

const INSERT: &str = "cost_packet_insert";
const INGRESS: &str = "tc_ingress";
const EGRESS: &str = "tc_egress";

pub(crate) const LANES: [Lane; 18] = [
    lane(EMPTY, "cost_packet_nothing", "a request", Flows::One, Becomes::Same),
    lane(LOOK_UP, "cost_packet_lookup", "a request", Flows::One, Becomes::Same),
    lane("one look-up, any of many", "cost_packet_lookup", "a request", Flows::Each, Becomes::Same),
    lane(LOOK_FLOW, "cost_packet_flow", "a request", Flows::One, Becomes::Same),
    lane(INSERT_ROOM, INSERT, "a new flow", Flows::New, Becomes::Same),
    Lane { on: Which::Full, ..lane(INSERT_FULL, INSERT, "a new flow", Flows::New, Becomes::Same) },
    lane("not ours, comes in", INGRESS, "nobody's", Flows::One, Becomes::Same),
    Lane { on: Which::Fast, ..lane("not ours, comes in, --fast-path", INGRESS, "nobody's", Flows::One, Becomes::Same) },
    lane("not ours, goes out", EGRESS, "nobody's answer", Flows::One, Becomes::Same),
    lane(REQUEST, INGRESS, "a request", Flows::One, Becomes::Translated),
    lane(REPLY, EGRESS, "a reply", Flows::One, Becomes::Translated),
    lane(REQUEST_LEAVES, EGRESS, "a request that leaves", Flows::One, Becomes::Translated),
    lane(REPLY_ENTERS, INGRESS, "a reply that enters", Flows::One, Becomes::Translated),
    lane("request of any of many flows", INGRESS, "a request", Flows::Each, Becomes::Translated),
    lane("reply of any of many flows", EGRESS, "a reply", Flows::Each, Becomes::Translated),
    lane(NEW_ROOM, INGRESS, "a new flow", Flows::New, Becomes::Begun),
    Lane { on: Which::Full, ..lane(NEW_FULL, INGRESS, "a new flow", Flows::New, Becomes::Begun) },
    lane(AGAIN, INGRESS, "a request", Flows::One, Becomes::Translated),
];

/// How flows are established.
pub(crate) const CONNECT: [Lane; 3] = [
    lane("SYN", INGRESS, "a new flow", Flows::Each, Becomes::Begun),
    lane("its answer", EGRESS, "an answer", Flows::Each, Becomes::Translated),
    lane("the end of a handshake", INGRESS, "a handshake", Flows::Each, Becomes::Translated),
];

const fn lane(name: &'static str, program: &'static str, packet: &'static str, flows: Flows, becomes: Becomes) -> Lane {
    Lane { name, program, packet, flows, becomes, on: Which::Roomy }
}

impl Lane {
    /// Packets in a row, with so many established flows.
    pub(crate) const fn batch(&self, flows: u32) -> u32 {
        match self.flows {
            Flows::One => HOT,
            Flows::Each => flows,
            Flows::New => NEW,
        }
    }
}
