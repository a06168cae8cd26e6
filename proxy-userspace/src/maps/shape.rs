//! The fields of what tables of flows hold: to tell tables of another version from ours, and to read them.
//!
//! In: the fields of another version's elements, by name. Out: elements of ours. A field that another version does not have is
//! zero, which has to mean what was so before there was the field; one that we do not have is left behind.

use std::mem::offset_of;
use std::ops::Range;

use proxy_common::abi::{Flow, FlowKey};
use proxy_common::addr::Family;
use proxy_common::packet::ip::{V4, V6};

/// One field of a struct, and which bytes it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub at: Range<usize>,
}

/// The fields of keys and of flows, in the order in which they lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub key: Vec<Field>,
    pub flow: Vec<Field>,
}

/// Names every field of a struct; that none is missing is for a test to say.
macro_rules! fields {
    ($type:ty: $($field:ident),*) => {{
        let mut fields = vec![$(field(stringify!($field), offset_of!($type, $field), |value: &$type| &value.$field)),*];
        fields.sort_by_key(|field| field.at.start);
        fields
    }};
}

fn field<T, F>(name: &str, at: usize, _: fn(&T) -> &F) -> Field {
    Field { name: name.to_owned(), at: at..at + size_of::<F>() }
}

fn shape<A>() -> Shape {
    Shape {
        key: fields!(FlowKey<A>: src, dst, ports, kind),
        flow: fields!(
            Flow<A>: client, frontend, backend, source, client_port, frontend_port, backend_port, source_port, backend_id,
            generation, seal, used, seen, seen_other, flags, proto, pad
        ),
    }
}

impl Shape {
    pub fn ours(family: Family) -> Self {
        match family {
            Family::V4 => shape::<V4>(),
            Family::V6 => shape::<V6>(),
        }
    }

    /// What a text says of one family.
    ///
    /// A line is a field: `IPv4 flow client 0 4` is the one of that name, of IPv4, in a flow (or in its `key`), from byte 0 on,
    /// four bytes long. Lines that say something else are for others.
    pub fn read(text: &str, family: Family) -> Self {
        let mut shape = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [of, part, name, at, len] = words[..] else { continue };
            let fields = match part {
                "key" => &mut shape.key,
                "flow" => &mut shape.flow,
                _ => continue,
            };
            if let (Ok(at), Ok(len)) = (at.parse::<u16>(), len.parse::<u16>())
                && of == word(family)
            {
                let at = usize::from(at);
                fields.push(Field { name: name.to_owned(), at: at..at + usize::from(len) });
            }
        }
        shape
    }

    /// What [`Self::read`] reads.
    pub fn text(&self, family: Family) -> String {
        let lines = |part: &'static str, fields: &[Field]| {
            let line =
                |Field { name, at }: &Field| format!("{} {part} {name} {} {}\n", word(family), at.start, at.len());
            fields.iter().map(line).collect::<String>()
        };
        lines("key", &self.key) + &lines("flow", &self.flow)
    }
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// How elements with other fields become ours.
#[derive(Debug)]
pub struct Conversion {
    /// From where to where.
    moves: Vec<(Range<usize>, Range<usize>)>,
}

/// A number may be longer or shorter elsewhere; what is longer than this is no number.
const LONGEST: usize = size_of::<u64>();

impl Conversion {
    /// Names the field that has become something else.
    pub fn new(theirs: &[Field], ours: &[Field]) -> Result<Self, String> {
        let mut moves = Vec::new();
        for Field { name, at } in ours {
            let Some(from) = theirs.iter().find(|field| field.name == *name) else { continue };
            if from.at.len() != at.len() && from.at.len().max(at.len()) > LONGEST {
                return Err(format!("field {name} has {} bytes, expected {}", from.at.len(), at.len()));
            }
            moves.push((from.at.clone(), at.clone()));
        }
        Ok(Self { moves })
    }

    /// Writes what `theirs` says to `ours`, which is all zero. `None` when a number does not fit.
    pub fn apply(&self, theirs: &[u8], ours: &mut [u8]) -> Option<()> {
        for (from, to) in &self.moves {
            let (from, to) = (theirs.get(from.clone())?, ours.get_mut(to.clone())?);
            if from.len() == to.len() {
                to.copy_from_slice(from);
            } else {
                put(number(from), to)?;
            }
        }
        Some(())
    }
}

/// A number of up to [`LONGEST`] bytes, in the order of this machine.
fn number(bytes: &[u8]) -> u64 {
    let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    if cfg!(target_endian = "big") { bytes.iter().fold(0, add) } else { bytes.iter().rev().fold(0, add) }
}

fn put(number: u64, bytes: &mut [u8]) -> Option<()> {
    let (whole, len) = (number.to_ne_bytes(), bytes.len());
    let kept = if cfg!(target_endian = "big") { LONGEST - len..LONGEST } else { 0..len };
    bytes.copy_from_slice(&whole[kept]);
    (self::number(bytes) == number).then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

    #[test]
    fn every_byte_of_a_flow_is_of_a_field_that_is_named() {
        let check = |what: &str, fields: Vec<Field>, size: usize| {
            let end = fields.iter().fold(0, |end, field| {
                assert_eq!(field.at.start, end, "{what}: what lies before {}", field.name);
                field.at.end
            });
            assert_eq!(end, size, "{what}: what lies behind its last field");
        };
        let [four, six] = FAMILIES.map(Shape::ours);
        check("FlowKey<V4>", four.key, size_of::<FlowKey<V4>>());
        check("FlowKey<V6>", six.key, size_of::<FlowKey<V6>>());
        check("Flow<V4>", four.flow, size_of::<Flow<V4>>());
        check("Flow<V6>", six.flow, size_of::<Flow<V6>>());
    }

    #[test]
    fn what_is_said_of_two_families_is_read_of_each() {
        let text: String = FAMILIES.map(|family| Shape::ours(family).text(family)).concat();
        assert!(text.starts_with("IPv4 key src 0 4\nIPv4 key dst 4 4\n"), "{text}");
        for family in FAMILIES {
            assert_eq!(Shape::read(&text, family), Shape::ours(family));
        }
        let more = text.replace("IPv4 key dst", "IPv4 colour red 1 2\nIPv4 key dst") + "IPv4 key no number 1";
        assert_eq!(Shape::read(&more, Family::V4), Shape::ours(Family::V4), "a later version says more");
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "(IPv4 (key|flow) [a-z]{0,3} [0-9]{0,6} [0-9]{0,6}\n|.{0,20}\n){0,5}") {
            let shape = Shape::read(&text, Family::V4);
            if let Ok(conversion) = Conversion::new(&shape.flow, &Shape::ours(Family::V4).flow) {
                let _ = conversion.apply(&[7; 32], &mut [0; 48]);
            }
        }
    }

    fn of(list: &[(&str, usize, usize)]) -> Vec<Field> {
        list.iter().map(|(name, at, len)| Field { name: (*name).to_owned(), at: *at..at + len }).collect()
    }

    #[test]
    fn fields_go_where_their_names_are_and_numbers_change_their_length() {
        let theirs = of(&[("gone", 0, 2), ("port", 2, 2), ("client", 4, 16), ("used", 20, 4), ("id", 24, 8)]);
        let ours = of(&[("client", 0, 16), ("id", 16, 4), ("used", 24, 8), ("added", 32, 4), ("port", 36, 2)]);
        let conversion = Conversion::new(&theirs, &ours).unwrap();
        let client: [u8; 16] = std::array::from_fn(|at| at as u8 + 1);
        let element = |id: u64| [&[9, 9, 0x12, 0x34][..], &client, &7_u32.to_ne_bytes(), &id.to_ne_bytes()].concat();
        let mut made = [0; 38];
        conversion.apply(&element(70_000), &mut made).unwrap();
        let wanted = [&client[..], &70_000_u32.to_ne_bytes(), &[0; 4], &7_u64.to_ne_bytes(), &[0; 4], &[0x12, 0x34]];
        assert_eq!(made[..], wanted.concat());
        assert_eq!(conversion.apply(&element(1 << 32), &mut [0; 38]), None, "a number that does not fit");
        assert_eq!(conversion.apply(&[0; 8], &mut [0; 38]), None, "an element that is too short");
    }

    #[test]
    fn an_address_of_another_length_is_another_thing() {
        let (theirs, ours) = (of(&[("client", 0, 4)]), of(&[("client", 0, 16)]));
        assert_eq!(Conversion::new(&theirs, &ours).unwrap_err(), "field client has 4 bytes, expected 16");
    }
}
