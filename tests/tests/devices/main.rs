//! Programs at devices: chosen, followed, kept and removed, beside those of others (issue 5, line 1).
//!
//! Each test has a network namespace and a BPF filesystem of its own. What stands-in agents attach counts packets and does
//! nothing else; `real` has the product's programs.
//!
//! ```text
//! stage    a node whose programs count, an outside, and the thread of an agent
//! choice   which devices get programs
//! follow   how soon
//! others   beside whose programs
//! keep     one of ours at each hook, whatever happens
//! clean    until ours are taken away
//! real     a node with the agent itself
//! upper    devices on top of others
//! ```

mod choice;
mod clean;
mod follow;
mod keep;
mod others;
mod real;
mod stage;
mod upper;
