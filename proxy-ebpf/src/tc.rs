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
use crate::maps::packets::{has_link_header, is_told, state};
use crate::packet::Skb;
use crate::route;

#[classifier]
pub(crate) fn tc_ingress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let Some((family, start)) = view(skb) else { return TC_ACT_UNSPEC };
    match family {
        Family::V4 => ingress::<V4>(skb, start),
        Family::V6 => ingress::<V6>(skb, start),
    }
}

#[classifier]
pub(crate) fn tc_egress(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    let Some((family, start)) = view(skb) else { return TC_ACT_UNSPEC };
    match family {
        Family::V4 => egress::<V4>(skb, start),
        Family::V6 => egress::<V6>(skb, start),
    }
}

/// The version of a packet and where its network header begins; `None` for what is not ours.
#[inline(always)]
fn view(skb: Skb) -> Option<(Family, usize)> {
    let has_link_header = has_link_header(skb.device())?;
    version(&skb, has_link_header).ok()?
}

#[inline(always)]
fn ingress<A: Ip>(mut skb: Skb, start: usize) -> i32
where
    Kernel<Skb>: proxy_common::packet::Node<A>,
{
    let Some(state) = state::<A>() else { return TC_ACT_UNSPEC };
    match hook::ingress(&mut Kernel(skb), &mut skb, state.at(start)) {
        Action::Forward if !is_told() => route::forward(skb, state),
        action => act(skb, action, 0, state),
    }
}

#[inline(always)]
fn egress<A: Ip>(mut skb: Skb, start: usize) -> i32
where
    Kernel<Skb>: proxy_common::packet::Node<A>,
{
    let Some(state) = state::<A>() else { return TC_ACT_UNSPEC };
    let action = hook::egress(&mut Kernel(skb), &mut skb, state.at(start));
    act(skb, action, BPF_F_INGRESS, state)
}

/// Turns an action into what the kernel wants to hear; `back` are the flags of a redirection to where the packet came from.
/// What is neither dropped nor sent elsewhere goes on to the other programs of the device.
#[inline(always)]
fn act<A: Ip>(skb: Skb, action: Action, back: u32, state: &State<A>) -> i32 {
    if matches!(action, Action::Out | Action::Home | Action::Forward) && is_told() {
        return action as i32;
    }
    match action {
        // Past the stack goes only what came in.
        Action::Pass | Action::Translated | Action::Forward => TC_ACT_UNSPEC,
        Action::Drop => TC_ACT_SHOT,
        Action::Back => skb.redirect(skb.device(), back),
        Action::Out => route::out(skb, state),
        Action::Home => route::home(skb, state),
    }
}
