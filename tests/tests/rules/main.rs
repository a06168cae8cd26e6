//! What becomes of packets by the rules of Services, in namespaces with the real agent and the real kernel (issue 5, lines 4,
//! 6, 7 and 8).

mod abuse;
mod icmp;
mod large;
mod moved;
mod policies;
mod ports;
mod stale;
mod straight;
