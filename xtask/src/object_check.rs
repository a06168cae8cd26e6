//! Whether the compiled object holds what the agent will look for: every hook, every map, types, and the licence.

use std::fmt;

use anyhow::{Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol};
use proxy_common::tables::name;

const HOOKS: [&str; 4] = ["connect", "sendmsg", "recvmsg", "getpeername"];
/// Functions in the section `classifier`.
const DEVICE_HOOKS: [&str; 2] = ["tc_ingress", "tc_egress"];
const MAPS: [&str; 25] = [
    name::INDEX,
    name::FRONTEND,
    name::SERVICE,
    name::VERSION,
    name::SLOTS,
    name::BACKENDS,
    name::STATS,
    name::ABSENT,
    name::SOURCES,
    name::CONFIG,
    name::AFFINITY,
    name::SOCKETS,
    name::SOCKETS_MORE,
    name::REASONS,
    name::PACKETS,
    name::DEVICES,
    name::NEAR,
    name::UNSTEERED,
    name::FLOWS4,
    name::FLOWS6,
    name::EMBRYONIC4,
    name::EMBRYONIC6,
    name::FRAGMENTS4,
    name::FRAGMENTS6,
    name::DIRECT,
];

/// What a good object holds, for the user.
#[derive(Debug)]
pub(crate) struct Contents {
    programs: usize,
    maps: usize,
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} programs, {} maps", self.programs, self.maps)
    }
}

pub(crate) fn inspect(bytes: &[u8]) -> Result<Contents> {
    let file = object::File::parse(bytes)?;
    let sections: Vec<&str> = file.sections().filter_map(|section| section.name().ok()).collect();
    let symbols: Vec<&str> = file.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    let missing = missing(&sections, &symbols);
    ensure!(missing.is_empty(), "it lacks {}", missing.join(", "));
    let for_sockets = sections.iter().filter(|name| name.starts_with("cgroup/")).count();
    Ok(Contents { programs: for_sockets + DEVICE_HOOKS.len(), maps: MAPS.len() })
}

/// Everything that should be there and is not, by name.
fn missing(sections: &[&str], symbols: &[&str]) -> Vec<String> {
    let hooks = HOOKS.iter().flat_map(|hook| [4, 6].map(|family| format!("cgroup/{hook}{family}")));
    let wanted_sections = [".BTF", "license", ".maps"].map(str::to_owned).into_iter().chain(hooks);
    let sections =
        wanted_sections.filter(|name| !sections.contains(&name.as_str())).map(|name| format!("section {name}"));
    let maps = MAPS.iter().filter(|name| !symbols.contains(name)).map(|name| format!("map {name}"));
    let programs = DEVICE_HOOKS.iter().filter(|name| !symbols.contains(name)).map(|name| format!("program {name}"));
    sections.chain(programs).chain(maps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_object_lacks_is_named() {
        let hooks: Vec<String> =
            HOOKS.iter().flat_map(|hook| [4, 6].map(|family| format!("cgroup/{hook}{family}"))).collect();
        let mut sections: Vec<&str> = hooks.iter().map(String::as_str).chain([".BTF", "license", ".maps"]).collect();
        let symbols = [&MAPS[..], &DEVICE_HOOKS[..]].concat();
        assert_eq!(missing(&sections, &symbols), Vec::<String>::new());
        sections.retain(|name| *name != "cgroup/recvmsg6");
        let (symbols, expected) =
            (&symbols[1..symbols.len() - 1], ["section cgroup/recvmsg6", "program tc_egress", "map INDEX"]);
        assert_eq!(missing(&sections, symbols), expected);
    }
}
