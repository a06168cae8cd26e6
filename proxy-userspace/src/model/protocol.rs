//! Transport protocols by their names in the API.

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;

/// The IANA number; a protocol that is not given is TCP.
pub fn number(name: Option<&str>) -> Option<u8> {
    match name {
        None | Some("" | "TCP") => Some(TCP),
        Some("UDP") => Some(UDP),
        Some("SCTP") => Some(SCTP),
        Some(_) => None,
    }
}

/// The name of a number, for people.
pub fn name(number: u8) -> &'static str {
    match number {
        TCP => "TCP",
        UDP => "UDP",
        SCTP => "SCTP",
        _ => "unknown",
    }
}
