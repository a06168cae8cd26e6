//! The contract between the kernel programs and the agent, and every rule about packets and choices.
//!
//! ```text
//! dialled address -> ABSENT (one bit: whether to look at all)
//!                 -> INDEX -> FRONTEND, SERVICE word -> SLOTS -> BACKENDS, STATS -> where it goes
//!                 |                                \-> VERSION (policies, affinity, source ranges) -> SLOTS
//!                 \-> INDEX -> FRONTEND of the address (only on a miss): leave alone, try the node port, or refuse
//! ```
//!
//! Sockets ([`socket`]) and packets ([`packet`]) ask the same decision ([`balance`]), each once per connection or flow.
//!
//! In: bytes of addresses, packets and tables, through traits. Out: a verdict. Refuses to know: kernel contexts, map handles,
//! Kubernetes. Builds without the standard library and runs the same in the kernel, in the agent and in a unit test.
#![no_std]
#![expect(
    clippy::inline_always,
    reason = "the kernel's virtual machine passes five words to a function and no references"
)]

#[cfg(any(test, feature = "cases"))]
extern crate std;

pub mod abi;
pub mod addr;
pub mod balance;
#[cfg(any(test, feature = "cases"))]
mod fake;
pub mod index;
pub mod packet;
pub mod policy;
pub mod reason;
pub mod socket;
#[cfg(feature = "stress")]
pub mod stress;
pub mod tables;
