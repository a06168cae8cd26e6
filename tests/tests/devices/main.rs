//! Programs at devices: chosen, followed, kept and removed, beside those of others (issue 5, line 1).
//!
//! Each test has a network namespace and a BPF filesystem of its own. What is attached here counts packets and does nothing
//! else; that the product's programs leave alone what is not theirs is shown where they are tested.
//!
//! ```text
//! stage    a node whose programs count, an outside, and the thread of an agent
//! choice   which devices get programs
//! follow   how soon
//! others   beside whose programs
//! keep     one of ours at each hook, whatever happens
//! clean    until ours are taken away
//! ```

mod choice;
mod clean;
mod follow;
mod keep;
mod others;
mod stage;
