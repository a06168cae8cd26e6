//! What tables of flows hold, said in words in a table beside them, so that another version can read them.
//!
//! The kernel would say it too, in BTF, but only to who has `CAP_SYS_ADMIN`, which an agent need not have. In: the folder of
//! the tables. Out: [`Shape`]s as text.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use proxy_common::addr::Family;
use proxy_common::tables::name;

use super::shape::Shape;
use crate::sys::CallError;
use crate::sys::bpf::{Map, array, pin_anew};

/// Twice what ours is, for versions that have more to say.
const ROOM: usize = 4096;
type Text = [u8; ROOM];

/// What is said about the tables in `folder`; `None` where nothing is.
pub fn described(folder: &Path) -> Result<Option<String>, CallError> {
    let path = folder.join(name::SHAPES);
    let read = Map::<u32, Text>::open(&path)
        .and_then(|table| table.get(&0).map_err(|error| CallError::new("read map", path.display(), error)));
    match read {
        Ok(text) => Ok(text.map(|text| String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned())),
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Says that the tables in `folder` are ours.
pub fn describe(folder: &Path) -> Result<(), CallError> {
    let ours: String = [Family::V4, Family::V6].map(|family| Shape::ours(family).text(family)).concat();
    if described(folder).is_ok_and(|text| text.as_ref() == Some(&ours)) { Ok(()) } else { say(folder, &ours) }
}

/// Says this about the tables in `folder`.
pub fn say(folder: &Path, text: &str) -> Result<(), CallError> {
    let path = folder.join(name::SHAPES);
    let fail = |error| CallError::new("write map", path.display(), error);
    let table = array::<Text>(1).map_err(fail)?;
    let mut bytes = [0; ROOM];
    let room = bytes.get_mut(..text.len()).ok_or_else(|| fail(io::ErrorKind::FileTooLarge.into()))?;
    room.copy_from_slice(text.as_bytes());
    table.set(&0, &bytes).map_err(fail)?;
    pin_anew(table.as_fd(), &path)
}
