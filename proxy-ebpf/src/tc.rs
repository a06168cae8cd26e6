//! Both hooks of a device: packets that come in, and packets that go out.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use proxy_common::abi::Device;
use proxy_common::addr::Family;
use proxy_common::packet::ip::{V4, V6};
use proxy_common::packet::parse::version;
use proxy_common::packet::{Action, hook};

use crate::maps::Kernel;
use crate::maps::packets::{device, state};
use crate::packet::Skb;

#[classifier]
pub(crate) fn tc_ingress(context: TcContext) -> i32 {
    let mut skb = Skb::new(&context);
    let Some((device, family, start)) = view(skb) else { return TC_ACT_UNSPEC };
    let node = &mut Kernel(skb);
    let action = match family {
        Family::V4 => state::<V4>().map(|state| hook::ingress(node, device, &mut skb, state.at(start))),
        Family::V6 => state::<V6>().map(|state| hook::ingress(node, device, &mut skb, state.at(start))),
    };
    skb.act(action.unwrap_or(Action::Pass))
}

#[classifier]
pub(crate) fn tc_egress(context: TcContext) -> i32 {
    let mut skb = Skb::new(&context);
    let Some((device, family, start)) = view(skb) else { return TC_ACT_UNSPEC };
    let node = &mut Kernel(skb);
    let action = match family {
        Family::V4 => state::<V4>().map(|state| hook::egress(node, device, &mut skb, state.at(start))),
        Family::V6 => state::<V6>().map(|state| hook::egress(node, device, &mut skb, state.at(start))),
    };
    skb.act(action.unwrap_or(Action::Pass))
}

/// The device, the version of a packet and where its network header begins; `None` for what is not ours.
#[inline(always)]
fn view(skb: Skb) -> Option<(&'static Device, Family, usize)> {
    let device = device(skb.device())?;
    let (family, start) = version(&skb, device.flags & Device::NO_LINK_HEADER == 0).ok()??;
    Some((device, family, start))
}
