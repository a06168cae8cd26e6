//! A flow: its two keys, and what a packet of it becomes at each of the four points.
//!
//! The reply key names the client only where the port that the backend sees is the client's own. A port of our own range is
//! given to one flow per backend address and port, so it says enough; and then one key serves all three points behind the
//! first: only there the packet has the client's address, only in between it has this node's.

use crate::abi::{Flow, FlowKey, PacketSettings, PortRange};
use crate::addr::Family;
use crate::packet::ip::Ip;
use crate::packet::parse::Tuple;
use crate::packet::tcp::{self, seen};
use crate::socket::TCP;

/// Where a packet of a flow is met; the drawings in [`crate::packet`] have them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    RequestIn,
    RequestOut,
    ReplyIn,
    ReplyOut,
    /// Of a flow of the node itself, which has no other point on the way back.
    ReplyHome,
}

impl<A: Ip> Tuple<A> {
    /// What a request with this tuple is filed under.
    #[inline(always)]
    pub fn request_key(&self) -> FlowKey<A> {
        self.key(FlowKey::<A>::REQUEST, self.dst)
    }

    /// What a reply with this tuple is filed under, wherever it is met.
    #[inline(always)]
    pub fn reply_key(&self, ports: PortRange) -> FlowKey<A> {
        let peer = self.dst.only_if(!ports.contains(self.dst_port.get()));
        self.key(FlowKey::<A>::REPLY, peer)
    }

    #[inline(always)]
    fn key(&self, direction: u8, dst: A) -> FlowKey<A> {
        FlowKey { src: self.src, dst, ports: self.ports(), kind: FlowKey::<A>::kind(self.proto, direction) }
    }

    /// A number that every packet of the flow has in common and that nobody outside can aim at.
    #[inline(always)]
    pub fn hash(&self, seed: u32) -> u32 {
        let ports = u32::from(self.src_port.raw()) << 16 | u32::from(self.dst_port.raw());
        let mix_whole = |hash, word: u64| {
            let hash = mix(hash, word as u32);
            if A::FAMILY == Family::V4 { hash } else { mix(hash, (word >> 32) as u32) }
        };
        let addresses = self.dst.fold(self.src.fold(seed, mix_whole), mix_whole);
        let mixed = mix(mix(addresses, ports), u32::from(self.proto));
        mix(mixed ^ mixed >> 16, mixed)
    }
}

/// One word more of a hash (a round of murmur3).
#[inline(always)]
fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

/// What the words of a seal are multiplied by: odd numbers without a pattern, each the last one times the second.
const FIRST_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
const NEXT_FACTOR: u64 = 0xd134_2543_de82_ef95;

impl<A: Ip> Flow<A> {
    /// What the client sends.
    #[inline(always)]
    fn request(&self) -> Tuple<A> {
        Tuple {
            src: self.client,
            dst: self.frontend,
            src_port: self.client_port,
            dst_port: self.frontend_port,
            proto: self.proto,
        }
    }

    /// What the stack sees of a reply.
    #[inline(always)]
    fn reply(&self) -> Tuple<A> {
        Tuple {
            src: self.backend,
            dst: self.client,
            src_port: self.backend_port,
            dst_port: self.source_port,
            proto: self.proto,
        }
    }

    #[inline(always)]
    pub fn request_key(&self) -> FlowKey<A> {
        self.request().request_key()
    }

    #[inline(always)]
    pub fn reply_key(&self, ports: PortRange) -> FlowKey<A> {
        self.reply().reply_key(ports)
    }

    /// [`Tuple::hash`] of what the client sends.
    #[inline(always)]
    pub fn request_hash(&self, seed: u32) -> u32 {
        self.request().hash(seed)
    }

    /// The key of the other entry.
    #[inline(always)]
    pub fn partner_key(&self, key: &FlowKey<A>, ports: PortRange) -> FlowKey<A> {
        if key.direction() == FlowKey::<A>::REQUEST { self.reply_key(ports) } else { self.request_key() }
    }

    /// True when this is what `key` files: an LRU gives elements away while they are read.
    #[inline(always)]
    pub fn is_at(&self, key: &FlowKey<A>) -> bool {
        let tuple = if key.direction() == FlowKey::<A>::REQUEST { self.request() } else { self.reply() };
        key.src == tuple.src
            && (key.dst == tuple.dst || key.dst == A::ANY)
            && key.ports == tuple.ports()
            && key.kind == FlowKey::<A>::kind(tuple.proto, key.direction())
    }

    /// What a packet with `tuple` becomes at `point`; who asks has made sure that it is of this flow.
    #[inline(always)]
    pub fn translated(&self, point: Point, tuple: &Tuple<A>) -> Tuple<A> {
        match point {
            Point::RequestIn => {
                let src = if self.is_to_node() { self.source } else { tuple.src };
                Tuple { src, dst: self.backend, dst_port: self.backend_port, src_port: self.source_port, ..*tuple }
            }
            Point::RequestOut => Tuple { src: self.source, src_port: self.source_port, ..*tuple },
            Point::ReplyIn => {
                let dst_port = if self.is_foreign() { self.client_port } else { tuple.dst_port };
                Tuple { dst: self.client, dst_port, ..*tuple }
            }
            Point::ReplyOut => {
                Tuple { src: self.frontend, src_port: self.frontend_port, dst_port: self.client_port, ..*tuple }
            }
            Point::ReplyHome => self.request().reversed(),
        }
    }

    #[inline(always)]
    pub fn is_masqueraded(&self) -> bool {
        self.flags & Self::MASQUERADED != 0
    }

    /// Whether this node itself is the client.
    #[inline(always)]
    pub fn is_from_node(&self) -> bool {
        self.flags & Self::FROM_NODE != 0
    }

    /// Whether its packets go past the stack.
    #[inline(always)]
    pub fn is_past_stack(&self) -> bool {
        self.flags & Self::PAST_STACK != 0
    }

    /// Whether it only keeps its port from flows of ours.
    #[inline(always)]
    pub fn is_foreign(&self) -> bool {
        self.flags & Self::FOREIGN != 0
    }

    /// Whether packets of its client to no Service may have to be told from it ([`crate::abi::direct`]).
    #[inline(always)]
    pub fn is_like_direct(&self) -> bool {
        !self.is_masqueraded() && (self.proto != TCP || self.is_foreign())
    }

    /// Whether this node itself is client and backend.
    #[inline(always)]
    pub fn is_to_node(&self) -> bool {
        self.flags & Self::TO_NODE != 0
    }

    /// The same flow, as its other entry holds it.
    #[inline(always)]
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self { seen: self.seen_other, seen_other: self.seen, ..*self }
    }

    /// Becomes a copy of `other`, see [`Ip::set`].
    #[inline(always)]
    pub fn set(&mut self, other: &Self) {
        self.client.set(&other.client);
        self.frontend.set(&other.frontend);
        self.backend.set(&other.backend);
        self.source.set(&other.source);
        self.client_port = other.client_port;
        self.frontend_port = other.frontend_port;
        self.backend_port = other.backend_port;
        self.source_port = other.source_port;
        self.backend_id = other.backend_id;
        self.generation = other.generation;
        self.seal = other.seal;
        self.used = other.used;
        self.seen = other.seen;
        self.seen_other = other.seen_other;
        self.flags = other.flags;
        self.proto = other.proto;
        self.pad = 0;
    }

    #[inline(always)]
    pub fn mirror(&mut self) {
        core::mem::swap(&mut self.seen, &mut self.seen_other);
    }

    /// True when a request of `other` would be filed where those of this flow are.
    #[inline(always)]
    pub fn has_request_of(&self, other: &Self) -> bool {
        self.client == other.client
            && self.frontend == other.frontend
            && self.client_port == other.client_port
            && self.frontend_port == other.frontend_port
            && self.proto == other.proto
    }

    #[inline(always)]
    #[must_use]
    pub fn sealed(&self) -> Self {
        Self { seal: self.seal_of_fields(), ..*self }
    }

    /// False for what was read while it was being overwritten.
    #[inline(always)]
    pub fn is_sealed(&self) -> bool {
        self.seal == self.seal_of_fields()
    }

    /// Cheap, since every packet pays for it: fields of two flows must not pass for one, nobody chooses them to. Each word is
    /// multiplied by a number of its own, and no product waits for another.
    #[inline(always)]
    pub(super) fn seal_of_fields(&self) -> u32 {
        let with = |(sum, factor): (u64, u64), word: u64| {
            (sum.wrapping_add(factor.wrapping_mul(word)), factor.wrapping_mul(NEXT_FACTOR))
        };
        let [client, frontend, backend, source] =
            [self.client_port, self.frontend_port, self.backend_port, self.source_port]
                .map(|port| u64::from(port.raw()));
        let addresses =
            self.backend.fold(self.frontend.fold(self.client.fold((1 << 32, FIRST_FACTOR), with), with), with);
        let ports = with(addresses, client | frontend << 16 | backend << 32 | source << 48);
        let id = with(ports, u64::from(self.backend_id) | u64::from(self.generation) << 32);
        let (sum, _) = with(id, u64::from(self.flags) | u64::from(self.proto) << 8);
        (sum >> 32) as u32
    }

    /// What client and backend have shown, by the entry at `key`.
    #[inline(always)]
    fn seen_by(&self, key: &FlowKey<A>) -> (u8, u8) {
        if key.direction() == FlowKey::<A>::REQUEST {
            (self.seen, self.seen_other)
        } else {
            (self.seen_other, self.seen)
        }
    }

    #[inline(always)]
    pub fn tcp_state(&self, key: &FlowKey<A>) -> tcp::State {
        let (request, reply) = self.seen_by(key);
        tcp::state(request, reply)
    }

    /// Seconds that it outlives its last packet; `udp` are those of a question with or without its answer, and of those that
    /// went on. Conntrack too keeps no port for two minutes because of one question to a name server.
    #[inline(always)]
    fn timeout(&self, key: &FlowKey<A>, settings: &PacketSettings, udp: (u32, u32)) -> u32 {
        if self.proto == TCP {
            return self.tcp_state(key).timeout(&settings.tcp);
        }
        let (request, _) = self.seen_by(key);
        if request & seen::ACK == 0 { udp.0 } else { udp.1 }
    }

    /// False for a flow that conntrack would have forgotten by `now` (seconds).
    #[inline(always)]
    pub fn is_alive(&self, key: &FlowKey<A>, settings: &PacketSettings, udp: (u32, u32), now: u32) -> bool {
        now.saturating_sub(self.used) <= self.timeout(key, settings, udp)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::abi::TcpTimeouts;
    use crate::addr::{Addr, Be16};
    use crate::packet::ip::{V4, V6};
    use crate::socket::UDP;

    const PORTS: PortRange = PortRange { first: 61_000, count: 1000 };

    pub(in crate::packet) fn flow<A: Ip>(addr: impl Fn(u8) -> Addr, source_port: u16) -> Flow<A> {
        let a = |last| A::of(&addr(last));
        let flow = Flow {
            client: a(1),
            frontend: a(2),
            backend: a(3),
            source: a(4),
            client_port: Be16::new(4000),
            frontend_port: Be16::new(80),
            backend_port: Be16::new(8080),
            source_port: Be16::new(source_port),
            backend_id: 7,
            generation: 1,
            seal: 0,
            used: 0,
            seen: seen::SPOKE,
            seen_other: 0,
            flags: Flow::<A>::MASQUERADED,
            proto: TCP,
            pad: 0,
        };
        flow.sealed()
    }

    pub(in crate::packet) fn v4(last: u8) -> Addr {
        Addr::v4([10, 0, 0, last])
    }

    pub(in crate::packet) fn v6(last: u8) -> Addr {
        let mut octets = [0; 16];
        (octets[0], octets[15]) = (0xfd, last);
        Addr::new(octets)
    }

    #[test]
    fn four_points_lead_from_client_to_backend_and_back() {
        fn check<A: Ip>(flow: &Flow<A>) {
            let request = flow.request();
            let inside = flow.translated(Point::RequestIn, &request);
            let sent = flow.translated(Point::RequestOut, &inside);
            assert_eq!((sent.src, sent.dst), (flow.source, flow.backend));
            assert_eq!((sent.src_port, sent.dst_port), (flow.source_port, flow.backend_port));
            let back = flow.translated(Point::ReplyIn, &sent.reversed());
            assert_eq!(back, inside.reversed(), "what the stack sees of both directions is one connection");
            assert_eq!(flow.translated(Point::ReplyOut, &back), request.reversed());
        }
        check::<V4>(&flow(v4, 61_234));
        check::<V6>(&flow(v6, 61_234));
    }

    #[test]
    fn the_reply_key_is_the_same_wherever_a_reply_is_met() {
        let flow = flow::<V4>(v4, 61_234);
        let inside = flow.translated(Point::RequestIn, &flow.request());
        let sent = flow.translated(Point::RequestOut, &inside);
        let key = flow.reply_key(PORTS);
        assert_eq!(key.dst, V4::ANY);
        for (sentence, tuple) in [("where it enters", sent.reversed()), ("where it leaves", inside.reversed())] {
            assert_eq!(tuple.reply_key(PORTS), key, "{sentence}");
        }
        assert!(flow.is_at(&key) && flow.is_at(&flow.request_key()));
    }

    #[test]
    fn who_keeps_its_port_is_named_in_the_reply_key() {
        let flow = flow::<V4>(v4, 4000);
        assert_eq!(flow.reply_key(PORTS).dst, flow.client);
        for edge in [60_999, 62_000] {
            assert_eq!(Flow { source_port: Be16::new(edge), ..flow }.reply_key(PORTS).dst, flow.client, "port {edge}");
        }
        for inside in [61_000, 61_999] {
            assert_eq!(Flow { source_port: Be16::new(inside), ..flow }.reply_key(PORTS).dst, V4::ANY, "port {inside}");
        }
    }

    #[test]
    fn each_entry_leads_to_the_other() {
        let flow = flow::<V6>(v6, 61_000);
        let (request, reply) = (flow.request_key(), flow.reply_key(PORTS));
        assert_eq!(flow.partner_key(&request, PORTS), reply);
        assert_eq!(flow.partner_key(&reply, PORTS), request);
        assert_eq!(flow.mirrored().mirrored(), flow);
        assert_eq!(flow.mirrored().seen_other, flow.seen);
    }

    #[test]
    fn a_seal_breaks_when_any_field_is_of_another_flow() {
        let (flow, other) = (flow::<V4>(v4, 61_000), flow::<V4>(|last| v4(last + 100), 61_001));
        assert!(flow.is_sealed());
        for (sentence, mixed) in [
            ("the client", Flow { client: other.client, ..flow }),
            ("the frontend", Flow { frontend: other.frontend, ..flow }),
            ("the backend", Flow { backend: other.backend, ..flow }),
            ("the client's port", Flow { client_port: Be16::new(1), ..flow }),
            ("the frontend's port", Flow { frontend_port: Be16::new(1), ..flow }),
            ("the backend's port", Flow { backend_port: Be16::new(1), ..flow }),
            ("the source port", Flow { source_port: other.source_port, ..flow }),
            ("the backend id", Flow { backend_id: 8, ..flow }),
            ("the generation", Flow { generation: 2, ..flow }),
            ("the flags", Flow { flags: 0, ..flow }),
            ("the protocol", Flow { proto: UDP, ..flow }),
            ("client and backend, exchanged", Flow { client: flow.backend, backend: flow.client, ..flow }),
            ("nothing at all", Flow { seal: flow.seal ^ 1, ..flow }),
        ] {
            assert!(!mixed.is_sealed(), "{sentence}");
        }
        let touched = Flow { used: 9, seen: 9, seen_other: 9, source: other.source, ..flow };
        assert!(touched.is_sealed(), "what packets change is not under seal");
    }

    #[test]
    fn a_flow_outlives_its_last_packet_by_the_timeout_of_what_it_has_shown() {
        let settings = PacketSettings { tcp: TcpTimeouts::default(), ..PacketSettings::default() };
        let ack = seen::SPOKE | seen::SYN | seen::ACK;
        for (sentence, proto, seen, seen_other, seconds) in [
            ("TCP, a SYN", TCP, seen::SPOKE | seen::SYN, 0, 120),
            ("TCP, established", TCP, ack, seen::SPOKE | seen::SYN, 86_400),
            ("TCP, half closed", TCP, ack | seen::FIN, ack | seen::ACK_AFTER_FIN, 3_600),
            ("UDP, no reply", UDP, seen::SPOKE, 0, 30),
            ("UDP, one question and its answers", UDP, seen::SPOKE, seen::SPOKE, 30),
            ("UDP, a question after an answer", UDP, seen::SPOKE | seen::ACK, seen::SPOKE, 120),
        ] {
            let request = Flow { proto, seen, seen_other, used: 1000, ..flow::<V4>(v4, 61_000) };
            let entries = [(request.request_key(), request), (request.reply_key(PORTS), request.mirrored())];
            for (key, entry) in entries {
                let alive = |now| entry.is_alive(&key, &settings, (30, 120), now);
                assert!(alive(1000 + seconds) && !alive(1001 + seconds), "{sentence}, direction {}", key.direction());
                assert!(alive(0), "{sentence}: a clock read before another CPU's is no age");
            }
        }
    }

    #[test]
    fn hashes_of_neighbouring_flows_spread() {
        let mut buckets = [0_u32; 16];
        for port in 0..1600 {
            let tuple = Tuple { src_port: Be16::new(32_768 + port), ..flow::<V4>(v4, 1).request() };
            buckets[tuple.hash(42) as usize % 16] += 1;
        }
        assert!(buckets.iter().all(|count| (50..150).contains(count)), "{buckets:?}");
    }
}
