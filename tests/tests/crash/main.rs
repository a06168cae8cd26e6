//! The agent is ended at its calls into the kernel, and its calls fail, while clients are served: nobody notices, and the
//! next start, or the same agent once nothing fails any more, brings everything to where it should be.
//!
//! ```text
//! scene    a node with Services before and after a change, clients that count, and what the tables should hold
//! strace   which calls an agent makes; ends it at one of them, or lets some of them fail
//! ended    SIGKILL at every call that changes something
//! failing  every tenth call fails
//! lanes    several scenes share the work of a test
//! ```

mod ended;
mod failing;
mod lanes;
mod scene;
mod strace;
