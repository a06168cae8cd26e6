//! Source ports for translations of packets: a range that no process is given a port of.
//!
//! In: a network namespace, a range. Out: the range is among its reserved ports (`net.ipv4.ip_local_reserved_ports`, which
//! counts for IPv6 too), beside those of others. A process may still ask for such a port by number: whoever draws one looks
//! for sockets.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use proxy_common::abi::{PacketSettings, PortRange};
use proxy_common::tables::name;
use tracing::{debug, warn};

use crate::sys::CallError;
use crate::sys::bpf::Map;
use crate::sys::net::inside;

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

type Ports = RangeInclusive<u16>;

/// The range that the tables below `current` speak of.
pub fn in_use(current: &Path) -> Option<PortRange> {
    let packets = Map::<u32, PacketSettings>::open(&current.join(name::PACKETS)).ok()?;
    packets.get(&0).ok()?.map(|packets| packets.ports).filter(|ports| ports.count > 0)
}

/// Reserves `range` in the place of the one `before`. A container may not be allowed to: that is told where it matters.
pub fn keep(netns: Option<&Path>, range: PortRange, before: Option<PortRange>) -> Result<(), CallError> {
    let ours = ports(range);
    let change =
        |reserved: &[Ports]| with(&before.map_or(reserved.to_vec(), |old| without(reserved, ports(old))), ours.clone());
    inside(netns, || match set(change) {
        Ok(()) => debug!("source ports {} to {} are ours", ours.start(), ours.end()),
        Err(error) if ephemeral_ports_overlap(&ours) => warn!(
            "processes may be given ports {0} to {1}, which translated packets use too: {RESERVED} could not be written \
             ({error}); set net.ipv4.ip_local_reserved_ports={0}-{1} on this node, or choose others with --source-ports",
            ours.start(),
            ours.end()
        ),
        Err(error) => debug!("{RESERVED} could not be written, and need not be: {error}"),
    })
}

/// Gives `range` back.
pub fn give_back(netns: Option<&Path>, range: PortRange) -> Result<(), CallError> {
    inside(netns, || set(|reserved| without(reserved, ports(range))))?
        .map_err(|error| CallError::new("give back ports in", RESERVED, error))
}

fn ports(PortRange { first, count }: PortRange) -> Ports {
    first..=first.saturating_add(count.saturating_sub(1))
}

fn set(change: impl FnOnce(&[Ports]) -> Vec<Ports>) -> io::Result<()> {
    let now = parse(&fs::read_to_string(RESERVED)?);
    let wanted = change(&now);
    // A line break alone is an empty list.
    if wanted == now { Ok(()) } else { fs::write(RESERVED, format!("{}\n", text(&wanted))) }
}

fn ephemeral_ports_overlap(ours: &Ports) -> bool {
    let told = fs::read_to_string(EPHEMERAL).unwrap_or_default();
    let mut ends = told.split_whitespace().filter_map(|word| word.parse::<u16>().ok());
    ends.next().zip(ends.next()).is_none_or(|(first, last)| first <= *ours.end() && last >= *ours.start())
}

/// As the kernel prints it: `8080,9000-9100`.
fn parse(text: &str) -> Vec<Ports> {
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).collect()
}

fn text(ranges: &[Ports]) -> String {
    let words: Vec<String> = ranges.iter().map(|range| format!("{}-{}", range.start(), range.end())).collect();
    words.join(",")
}

fn with(ranges: &[Ports], ours: Ports) -> Vec<Ports> {
    let holds = ranges.iter().any(|range| range.start() <= ours.start() && ours.end() <= range.end());
    ranges.iter().cloned().chain((!holds).then_some(ours)).collect()
}

fn without(ranges: &[Ports], ours: Ports) -> Vec<Ports> {
    let (first, last) = (*ours.start(), *ours.end());
    let outside = |range: &Ports| {
        let (start, end) = (*range.start(), *range.end());
        let before = first.checked_sub(1).map(|before| start..=end.min(before));
        let after = last.checked_add(1).map(|after| start.max(after)..=end);
        before.into_iter().chain(after).filter(|range| !range.is_empty()).collect::<Vec<_>>()
    };
    ranges.iter().flat_map(outside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Ports = 61_000..=65_535;

    #[test]
    fn the_ports_of_others_stay_reserved() {
        for (before, kept, given_back) in [
            ("", "61000-65535", ""),
            ("8080,9000-9100", "8080-8080,9000-9100,61000-65535", "8080-8080,9000-9100"),
            ("60000-60999", "60000-60999,61000-65535", "60000-60999"),
            ("60000-65535", "60000-65535", "60000-60999"),
        ] {
            let ours = with(&parse(&format!("{before}\n")), OURS);
            assert_eq!(text(&ours), kept, "{before}");
            assert_eq!(text(&without(&ours, OURS)), given_back, "{before}");
        }
    }
}
