//! Both hooks of a device: packets that come in, and packets that go out.

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::addr::Family;
use proxy_common::packet::ip::{Ip, V4, V6};
use proxy_common::packet::parse::version;
use proxy_common::packet::state::State;
use proxy_common::packet::{Action, hook};

use crate::maps::Kernel;
use crate::maps::packets::{ask_predecessor, is_told, near, state};
use crate::packet::Skb;
use crate::route;

#[classifier]
pub(crate) fn tc_ingress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let Some((family, start)) = view(skb) else { return TC_ACT_UNSPEC };
    let action = match family {
        Family::V4 => ingress::<V4>(skb, start),
        Family::V6 => ingress::<V6>(skb, start),
    };
    known(action, &context, 0)
}

#[classifier]
pub(crate) fn tc_egress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let Some((family, start)) = view(skb) else { return TC_ACT_UNSPEC };
    let action = match family {
        Family::V4 => egress::<V4>(skb, start),
        Family::V6 => egress::<V6>(skb, start),
    };
    known(action, &context, 1)
}

/// A packet of which we know nothing may be known to others.
#[inline(always)]
fn known(action: Option<i32>, context: &TcContext, hook: u32) -> i32 {
    action.unwrap_or_else(|| {
        ask_predecessor(context, hook);
        TC_ACT_UNSPEC
    })
}

/// The version of a packet and where its network header begins; `None` for what is not ours.
#[inline(always)]
fn view(skb: Skb) -> Option<(Family, usize)> {
    version(&skb, near(skb.device())?, skb.vlan()).ok()?
}

#[inline(always)]
fn ingress<A: Ip>(mut skb: Skb, start: usize) -> Option<i32>
where
    Kernel<Skb>: proxy_common::packet::Node<A>,
{
    let state = state::<A>()?;
    match hook::ingress(&mut Kernel(skb), &mut skb, state.at(start)) {
        Action::Forward if !is_told() => Some(route::forward(skb, state)),
        action => act(skb, action, 0, state),
    }
}

#[inline(always)]
fn egress<A: Ip>(mut skb: Skb, start: usize) -> Option<i32>
where
    Kernel<Skb>: proxy_common::packet::Node<A>,
{
    let state = state::<A>()?;
    let action = hook::egress(&mut Kernel(skb), &mut skb, state.at(start));
    act(skb, action, BPF_F_INGRESS, state)
}

/// Turns an action into what the kernel wants to hear; `back` are the flags of a redirection to where the packet came from.
/// What is neither dropped nor sent elsewhere goes on to the other programs of the device. `None`: not ours.
#[inline(always)]
fn act<A: Ip>(skb: Skb, action: Action, back: u32, state: &State<A>) -> Option<i32> {
    if matches!(action, Action::Out | Action::Home | Action::Forward) && is_told() {
        return Some(action as i32);
    }
    Some(match action {
        Action::Pass => return None,
        // Past the stack goes only what came in.
        Action::Translated | Action::Forward => TC_ACT_UNSPEC,
        Action::Drop => TC_ACT_SHOT,
        Action::Back => skb.redirect(skb.device(), back),
        Action::Out => route::out(skb, state),
        Action::Home => route::home(skb, state),
    })
}
