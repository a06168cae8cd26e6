//! The agent is ended at its calls into the kernel while clients are served: nobody notices, and the next start brings
//! everything to where it should be.
//!
//! ```text
//! scene    a node with Services before and after a change, clients that count, and what the tables should hold
//! strace   which calls an agent makes; ends it at one of them
//! ended    SIGKILL at every call that changes something
//! ```

mod ended;
mod scene;
mod strace;
