//! ServiceCIDR: the ranges that ClusterIPs are taken from.

use ipnet::IpNet;

use super::address::parse_cidr;
use super::objects::ServiceCidr;
use super::problem::Problems;

pub(super) fn convert(object: &ServiceCidr, problems: &mut Problems) -> Box<[IpNet]> {
    object.spec.cidrs.iter().enumerate().filter_map(|(at, text)| read(at, text, problems)).collect()
}

fn read(at: usize, text: &str, problems: &mut Problems) -> Option<IpNet> {
    let cidr = parse_cidr(text);
    if cidr.is_none() {
        problems.push(format!("spec.cidrs[{at}] {text:?} is no prefix and is left out; write it like 10.96.0.0/16"));
    }
    cidr
}
