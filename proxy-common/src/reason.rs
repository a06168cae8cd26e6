//! Every way in which a hook can end, each a counter in REASONS and a name that people read.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// Why a hook did what it did; the number is the index into REASONS.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $variant),* }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Stable name for people and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

reasons! {
    /// A new connection or flow was sent to a backend.
    Translated = "translated",
    /// A datagram followed the flow its socket already had.
    FollowedFlow = "followed_flow",
    /// No backend is usable anywhere: refused (B5 reject).
    NoEndpoints = "no_endpoints",
    /// Backends exist, but none here, and the policy is Local: unreachable (B5 drop).
    NoLocalEndpoints = "no_local_endpoints",
    /// A port of a ClusterIP that no Service defines: refused.
    UndefinedPort = "undefined_port",
    /// An address inside a ServiceCIDR that no Service has: unreachable.
    UnallocatedAddress = "unallocated_address",
    /// loadBalancerSourceRanges exclude the client: unreachable.
    SourceNotAllowed = "source_not_allowed",
    /// A pod dialled a frontend with source ranges, which only the packet hooks can decide: refused.
    SourceUnknown = "source_unknown",
    /// Tables contradicted each other three times in a row: refused, never misdirected.
    TablesChanging = "tables_changing",
    /// A socket's flow could not be stored: refused, so that a reply is never misread.
    SocketTableFull = "socket_table_full",
    /// An older flow of a socket with many frontends was forgotten to make room.
    SocketFlowEvicted = "socket_flow_evicted",
    /// A packet ends before it should or contradicts itself: left to the stack.
    BrokenPacket = "broken_packet",
    /// TCP in mid-flow to a frontend, but no flow: left to the stack.
    TcpWithoutFlow = "tcp_without_flow",
    /// A segment with the addresses and ports of a flow that it cannot be part of: left alone.
    ForeignSegment = "foreign_segment",
    /// A packet to a frontend claims to come from where no packet can come from: dropped.
    SpoofedSource = "spoofed_source",
    /// A loopback address on the wire: dropped.
    LoopbackOnWire = "loopback_on_wire",
    /// A fragment to a frontend before the first one of its datagram: dropped.
    FragmentBeforeFirst = "fragment_before_first",
    /// No port of our own is left towards a backend: rejected.
    PortsExhausted = "ports_exhausted",
    /// A flow could not be stored: dropped, the client tries again.
    FlowTableFull = "flow_table_full",
    /// A packet has to leave with this node's address, and the device has none: dropped.
    NoSourceAddress = "no_source_address",
    /// SCTP needs another port, which its checksum does not allow us: dropped.
    SctpPort = "sctp_port",
    /// A UDP flow left a backend that stopped serving.
    FlowMoved = "flow_moved",
    /// An echo request to an address of a Service was answered.
    EchoAnswered = "echo_answered",
    /// Ports of our own are scarce: a flow took the one of a connection that had ended, or of one that never began.
    PortTakenOver = "port_taken_over",
    /// The kernel of this node would tell a client of a shorter way to a backend, or a backend of one to a client: dropped.
    RedirectDropped = "redirect_dropped",
    /// The agent told of an externalIP that is somebody else's.
    ExternalIpClaimed = "external_ip_claimed",
    /// What the node itself sent to a Service, or was answered, finds no route: dropped.
    NoRoute = "no_route",
    /// The agent left out an address that no object may name: loopback, link-local, multicast, unspecified.
    AddressRefused = "address_refused",
}
