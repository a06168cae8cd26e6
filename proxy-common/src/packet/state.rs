//! What a hook knows of the packet it looks at.
//!
//! The stages of a hook hand it on: each reads what those before it wrote, and decides which one is next. It is in one place,
//! since all functions of a kernel program share 512 bytes of stack: there it lies in memory of the CPU, which is zero at
//! first. So zero is a state, and nothing is read that this packet's stages have not written.

use crate::abi::{Flow, FlowKey, Frontend, FrontendKey};
use crate::addr::{Addr, Be16};
use crate::balance::Choice;
use crate::packet::flow::Point;
use crate::packet::ip::{Header, Ip, Part};
use crate::packet::parse::{Content, Parsed, Quoted, Tuple};
use crate::packet::track::Found;
use crate::packet::{Action, Stop, Table};

#[derive(Clone, Copy, Debug)]
pub struct State<A> {
    pub parsed: Parsed<A>,
    pub form: Form,
    /// Flags of the destination ([`crate::abi::address`]), once somebody asked.
    pub class: u32,
    pub is_classified: bool,
    /// Where the packet's flow is filed.
    pub key: FlowKey<A>,
    /// The packet's flow, once it has one.
    pub found: Found<A>,
    /// `CLOCK_MONOTONIC` seconds when it was found: asked once, since a look at the clock is as dear as a look-up.
    pub now: u32,
    pub point: Point,
    /// The node itself sends it: it goes out, and never came in.
    pub is_own: bool,
    /// It is to no destination of any concern, and yet its port is of concern ([`Flow::FOREIGN`]).
    pub is_foreign: bool,
    /// What is done with the packet once it is translated.
    pub action: Action,
    /// Flags of the source, once a new flow is to begin.
    pub source: u32,
    /// What was dialled: a frontend, or what [`State::stop`] says.
    pub has_frontend: bool,
    pub frontend: Frontend,
    pub choice: Choice,
    /// The flow begins after one that lost its backend.
    pub moved: bool,
    /// The flow begins after one whose port the backend knows from a connection that is not ours; else 0.
    pub contested: u16,
    /// Decides which ports are tried.
    pub hash: u32,
    /// The address at which sockets might have them.
    pub local: A,
    /// Of the ports tried, how firmly the one is held whose owner gives way soonest ([`crate::packet::track::hold`]), and its
    /// number.
    pub loosest: (u32, u32),
    /// A flow that has what this one wants, or this one as its other entry holds it.
    pub rival: Found<A>,
    /// Why it ends here.
    pub stop: Stop,
}

/// A packet as flows see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Transport,
    LaterFragment,
    /// An error about a packet of a flow: it is no sign of life, and begins none.
    Error,
    /// It belongs to no flow: another protocol, or a fragment whose first one did not come by.
    WithoutPorts,
}

/// The stage that comes next. A number: that is all that a function of a kernel program can return.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Which flow is it?
    Find,
    /// Of no concern: is it a reply of a flow that goes past the stack?
    Past,
    /// None that what goes out belongs to: does the node itself send it to a destination of any concern, or from one of our
    /// ports?
    Own,
    /// Which flow, of those to its destination?
    Request,
    /// None yet: is its destination of concern, and may it begin one?
    Ask,
    /// What is dialled?
    Dial,
    /// May who dials be who it says?
    Vet,
    /// Which backend?
    Choose,
    /// A flow to that one.
    Begin,
    /// From which port?
    Pick,
    Store,
    /// A known one: it is told.
    Follow,
    /// It is out of reach of floods from now on.
    Promote,
    Translate,
    Done,
    /// As [`State::stop`] says.
    Stop,
}

impl<A: Ip> State<A> {
    /// All zero.
    #[must_use]
    pub const fn empty() -> Self {
        let none = Be16::new(0);
        let header = Header { src: A::ANY, dst: A::ANY, proto: 0, next: 0, end: 0, part: Part::Whole };
        let flow = Flow {
            client: A::ANY,
            frontend: A::ANY,
            backend: A::ANY,
            source: A::ANY,
            client_port: none,
            frontend_port: none,
            backend_port: none,
            source_port: none,
            backend_id: 0,
            generation: 0,
            seal: 0,
            used: 0,
            seen: 0,
            seen_other: 0,
            flags: 0,
            proto: 0,
            pad: 0,
        };
        let found = Found { table: Table::Established, flow };
        Self {
            parsed: Parsed {
                start: 0,
                header,
                content: Content::Transport,
                tuple: Tuple { src: A::ANY, dst: A::ANY, src_port: none, dst_port: none, proto: 0 },
                flags: 0,
                quoted: Quoted { start: 0, header },
            },
            form: Form::Transport,
            class: 0,
            is_classified: false,
            key: FlowKey { src: A::ANY, dst: A::ANY, ports: 0, kind: 0 },
            found,
            now: 0,
            point: Point::RequestIn,
            is_own: false,
            is_foreign: false,
            action: Action::Pass,
            source: 0,
            has_frontend: false,
            frontend: Frontend {
                key: FrontendKey { addr: Addr::UNSPECIFIED_V6, port: none, proto: 0, pad: 0 },
                service: 0,
                kind: 0,
            },
            choice: Choice {
                backend: 0,
                generation: 0,
                addr: Addr::UNSPECIFIED_V6,
                port: none,
                kind: 0,
                flags: 0,
                policies: 0,
            },
            moved: false,
            contested: 0,
            hash: 0,
            local: A::ANY,
            loosest: (0, 0),
            rival: found,
            stop: Stop::Pass,
        }
    }

    /// For a packet whose network header begins at `start`, in bytes.
    #[inline(always)]
    pub const fn at(&mut self, start: usize) -> &mut Self {
        self.parsed.start = start;
        self
    }

    /// The stage after one that may have ended it.
    #[inline(always)]
    pub(super) fn after(&mut self, stage: Result<Next, Stop>) -> Next {
        match stage {
            Ok(next) => next,
            Err(stop) => {
                self.end(stop);
                Next::Stop
            }
        }
    }

    /// Variant by variant: copied as a whole, a reason that is not there is copied too, and the verifier refuses to read it.
    #[inline(always)]
    pub(super) fn end(&mut self, stop: Stop) {
        match stop {
            Stop::Pass => self.stop = Stop::Pass,
            Stop::Leave(reason) => self.stop = Stop::Leave(reason),
            Stop::Drop(reason) => self.stop = Stop::Drop(reason),
            Stop::Reject(reason) => self.stop = Stop::Reject(reason),
            Stop::Echo => self.stop = Stop::Echo,
        }
    }
}
