//! bpf(2): typed maps with batches, links, pins and the grace period.
//!
//! aya has no batch calls and cannot swap the program of a cgroup link, so these calls are made here, each with the
//! part of `union bpf_attr` it needs (the kernel takes a shorter attribute as padded with zeros).
#![expect(unsafe_code, reason = "bpf(2) takes pointers in integers")]

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aya::Pod;

use super::{CallError, passes};

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// Map types as the kernel numbers them (`enum bpf_map_type`).
pub mod map_type {
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const PERCPU_ARRAY: u32 = 6;
    pub const LRU_HASH: u32 = 9;
    pub const LPM_TRIE: u32 = 11;
    pub const ARRAY_OF_MAPS: u32 = 12;
    pub const SK_STORAGE: u32 = 24;
}

/// Elements per batch call: large enough to make the call itself cheap, small enough to bound the buffers.
const BATCH: usize = 16_384;

/// `BPF_NOEXIST` and `BPF_EXIST`.
const NOEXIST: u64 = 1;
const EXIST: u64 = 2;

/// `ENOTSUPP` of the kernel, which libc does not know: a map type without batch calls.
const ENOTSUPP: i32 = 524;

#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct TcxCreateAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// Up to the last field that a kernel writes: for a device it writes all of them, however short the attribute is.
#[repr(C)]
#[derive(Default)]
struct ProgQueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

/// The leading fields of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub name: [u8; 16],
}

/// The leading fields of `struct bpf_link_info` for a link to a cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkInfo {
    pub link_type: u32,
    pub id: u32,
    pub program_id: u32,
    pad: u32,
    /// 0 when the cgroup is gone: the link is defunct.
    pub cgroup_id: u64,
    pub attach_type: u32,
    pad2: u32,
}

impl LinkInfo {
    /// `BPF_LINK_TYPE_CGROUP`.
    pub const CGROUP: u32 = 3;
}

/// The leading fields of `struct bpf_link_info` for a TCX link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcxLinkInfo {
    pub link_type: u32,
    pub id: u32,
    pub program_id: u32,
    pad: u32,
    /// 0 when the device is gone or somebody detached the link: it is defunct.
    pub device: u32,
    pub attach_type: u32,
}

impl TcxLinkInfo {
    /// `BPF_LINK_TYPE_TCX`.
    pub const TCX: u32 = 11;
}

/// The leading fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    program_type: u32,
    id: u32,
}

/// Where a program stands at a device (`enum bpf_attach_type`).
pub mod tcx {
    pub const INGRESS: u32 = 46;
    pub const EGRESS: u32 = 47;
    /// Flag of an attachment without a relative: before all others.
    pub const FIRST: u32 = 1 << 3;
    /// After all others.
    pub const LAST: u32 = 1 << 4;
}

/// `BPF_MPROG_MAX`: as many programs as one place takes.
const MOST_PROGRAMS: usize = 64;

/// What a pinned descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Map,
    Link,
    Other,
}

/// Calls bpf(2).
///
/// # Safety
/// Every address inside `attr` must point to memory that is valid for what `command` reads and writes.
unsafe fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is live and its size is given; the caller vouches for the addresses in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: called with what bpf(2) has just returned: a descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }
}

fn pointer<T: ?Sized>(value: &T) -> u64 {
    std::ptr::from_ref(value).cast::<()>() as u64
}

fn pointer_mut<T: ?Sized>(value: &mut T) -> u64 {
    std::ptr::from_mut(value).cast::<()>() as u64
}

/// The bytes of plain data.
pub fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: `Pod` promises that every byte of the value is initialised and readable.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The value with these bytes; `None` when they are too few or too many.
pub fn of_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as the value has, and `Pod` promises that any will do.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Opens whatever is pinned at `path`.
pub fn open_pin(path: &Path) -> Result<OwnedFd, CallError> {
    let fail = |error: io::Error| CallError::new("open pin", path.display(), error);
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|error| fail(error.into()))?;
    let mut attr = ObjAttr { pathname: c_path.as_ptr() as u64, ..ObjAttr::default() };
    // SAFETY: `c_path` ends with NUL and outlives the call.
    unsafe { bpf(OBJ_GET, &mut attr) }.map(owned).map_err(fail)
}

/// Pins what `fd` is at `path`, also when it is pinned elsewhere.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> Result<(), CallError> {
    let fail = |error: io::Error| CallError::new("pin", path.display(), error);
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|error| fail(error.into()))?;
    let mut attr = ObjAttr { pathname: c_path.as_ptr() as u64, bpf_fd: raw(fd), ..ObjAttr::default() };
    // SAFETY: `c_path` ends with NUL and outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop).map_err(fail)
}

/// Pins what `fd` is at `path`, in the place of what is pinned there. For a moment nothing is.
pub fn pin_anew(fd: BorrowedFd<'_>, path: &Path) -> Result<(), CallError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CallError::new("remove pin", path.display(), error))
        }
        _ => pin(fd, path),
    }
}

/// What `fd` is, by how calls for one kind fail: the names of its descriptors would need `/proc`.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    Ok(if is_map(fd)? {
        Kind::Map
    } else if is_link(fd)? {
        Kind::Link
    } else {
        Kind::Other
    })
}

/// There is no room for a key, so a map says so, or has none to tell; what is no map is an invalid argument.
fn is_map(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut attr = ElemAttr { map_fd: raw(fd), ..ElemAttr::default() };
    // SAFETY: the kernel refuses to read from or write to address 0.
    let asked = unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) };
    fails_with(asked, &[libc::EFAULT, libc::ENOENT, libc::EOPNOTSUPP, ENOTSUPP])
}

/// A link looks for the program, which is no descriptor; what is no link is an invalid argument.
fn is_link(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut attr = LinkUpdateAttr { link_fd: raw(fd), new_prog_fd: u32::MAX, ..LinkUpdateAttr::default() };
    // SAFETY: no addresses in the attribute.
    let asked = unsafe { bpf(LINK_UPDATE, &mut attr) };
    fails_with(asked, &[libc::EBADF])
}

/// Whether the call failed with one of `errnos`; an error when it failed for want of something and so gave no answer.
fn fails_with(asked: io::Result<libc::c_long>, errnos: &[i32]) -> io::Result<bool> {
    match asked {
        Err(error) if passes(&error) => Err(error),
        Err(error) => Ok(error.raw_os_error().is_some_and(|errno| errnos.contains(&errno))),
        Ok(_) => Ok(false),
    }
}

/// Fills `info` from `fd`, which must be of the kind that `I` describes.
fn info<I: Default>(fd: BorrowedFd<'_>) -> io::Result<I> {
    let mut info = I::default();
    let mut attr = InfoAttr { bpf_fd: raw(fd), info_len: size_of::<I>() as u32, info: pointer_mut(&mut info) };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, whose fields take any bytes.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Type, sizes and name of a map.
pub fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(fd)
}

/// Program and cgroup of a link.
pub fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

/// Puts `program` in the place of the link's program; packets see the old one or the new one, never none.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link_fd: raw(link), new_prog_fd: raw(program), ..LinkUpdateAttr::default() };
    // SAFETY: no addresses in the attribute.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes the link's program from where it stands, now: what only loses its last holder is freed a little later.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = link.as_raw_fd();
    // SAFETY: no addresses in the attribute.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

/// Device and program of a TCX link; of another link nothing but the type means anything.
pub fn tcx_link_info(fd: BorrowedFd<'_>) -> io::Result<TcxLinkInfo> {
    info(fd)
}

/// The id of a program.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    info::<ProgramInfo>(program).map(|info| info.id)
}

/// Attaches `program` to a device of the calling thread's network namespace; the link is the attachment.
pub fn tcx_attach(program: BorrowedFd<'_>, device: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr =
        TcxCreateAttr { prog_fd: raw(program), target_ifindex: device, attach_type, flags, ..TcxCreateAttr::default() };
    // SAFETY: no addresses in the attribute.
    unsafe { bpf(LINK_CREATE, &mut attr) }.map(owned)
}

/// The ids of the programs at a device, in the order in which they run. EINVAL below kernel 6.6.
pub fn tcx_programs(device: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    programs(device, attach_type)
}

/// The ids of the programs at a cgroup itself.
pub fn cgroup_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    programs(raw(cgroup), attach_type)
}

fn programs(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST_PROGRAMS];
    let mut attr = ProgQueryAttr {
        target,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: MOST_PROGRAMS as u32,
        ..ProgQueryAttr::default()
    };
    // SAFETY: there is room for `count` ids, and for every field that the kernel writes back.
    match unsafe { bpf(PROG_QUERY, &mut attr) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    ids.truncate(attr.count as usize);
    ids.retain(|id| *id != 0);
    Ok(ids)
}

/// A map whose keys and values are plain data of the sizes that the kernel holds.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    info: MapInfo,
    types: PhantomData<(K, V)>,
}

/// Writing element number `index` failed; those before it are in the map.
#[derive(Debug)]
pub struct BatchError {
    pub index: usize,
    pub source: io::Error,
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// Opens the map pinned at `path`.
    pub fn open(path: &Path) -> Result<Self, CallError> {
        let fd = open_pin(path)?;
        Self::new(fd).map_err(|error| CallError::new("open map", path.display(), error))
    }

    /// Takes a map's descriptor, refusing one whose sizes differ: reading it would go past the buffers.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        if kind(fd.as_fd())? != Kind::Map {
            return Err(io::Error::other("not a map"));
        }
        let info = map_info(fd.as_fd())?;
        let sizes = (info.key_size as usize, info.value_size as usize);
        let wanted = (size_of::<K>(), size_of::<V>());
        if sizes != wanted || info.map_type == map_type::PERCPU_ARRAY {
            return Err(io::Error::other(format!("key and value are {sizes:?} bytes, expected {wanted:?}")));
        }
        Ok(Self { fd, info, types: PhantomData })
    }

    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    /// True when both are one map in the kernel.
    pub fn is(&self, other: &Self) -> bool {
        self.info.id == other.info.id
    }

    pub fn max_entries(&self) -> u32 {
        self.info.max_entries
    }

    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        let mut attr = self.elem(pointer(key), pointer_mut(&mut value));
        // SAFETY: key and value have the sizes that `new` compared with the map's.
        match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
            // SAFETY: plain data, zeroed and then written by the kernel.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn set(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = self.elem(pointer(key), pointer(value));
        // SAFETY: key and value have the sizes that `new` compared with the map's.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Adds `key` unless it is there; says whether it was not.
    pub fn add(&self, key: &K, value: &V) -> io::Result<bool> {
        let mut attr = ElemAttr { flags: NOEXIST, ..self.elem(pointer(key), pointer(value)) };
        // SAFETY: key and value have the sizes that `new` compared with the map's.
        match unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) } {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            added => added.map(|_| true),
        }
    }

    /// Changes what `key` has; one that is not there is not added.
    pub fn replace(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = ElemAttr { flags: EXIST, ..self.elem(pointer(key), pointer(value)) };
        // SAFETY: key and value have the sizes that `new` compared with the map's.
        match unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes `key`; one that is not there is fine.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        let mut attr = self.elem(pointer(key), 0);
        // SAFETY: the key has the size that `new` compared with the map's.
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    /// Sets `keys` to `values` in order, in few calls where the kernel has batches.
    pub fn set_all(&self, keys: &[K], values: &[V]) -> Result<(), BatchError> {
        assert_eq!(keys.len(), values.len(), "each key has its value");
        let mut done = 0;
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            self.set_chunk(keys, values)
                .map_err(|error| BatchError { index: done + error.index, source: error.source })?;
            done += keys.len();
        }
        Ok(())
    }

    fn set_chunk(&self, keys: &[K], values: &[V]) -> Result<(), BatchError> {
        if keys.len() > 1 {
            match self.update_batch(keys, values) {
                Err(error) if no_batches(&error.source) => {}
                result => return result,
            }
        }
        for (index, (key, value)) in keys.iter().zip(values).enumerate() {
            self.set(key, value).map_err(|source| BatchError { index, source })?;
        }
        Ok(())
    }

    fn update_batch(&self, keys: &[K], values: &[V]) -> Result<(), BatchError> {
        let mut attr = BatchAttr {
            keys: pointer(keys),
            values: pointer(values),
            count: keys.len() as u32,
            map_fd: raw(self.fd.as_fd()),
            ..BatchAttr::default()
        };
        // SAFETY: both slices hold `count` elements of the map's sizes.
        let result = unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) };
        result.map(drop).map_err(|source| BatchError { index: attr.count as usize, source })
    }

    /// All elements, in few calls where the kernel has batches.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.each_batch(BATCH, |keys, values| {
            entries.extend(keys.iter().copied().zip(values.iter().copied()));
            Ok(())
        })?;
        Ok(entries)
    }

    /// Shows all elements to `visit`, about `room` at a time, one by one where the kernel has no batches.
    pub fn each_batch(&self, room: usize, mut visit: impl FnMut(&[K], &[V]) -> io::Result<()>) -> io::Result<()> {
        match self.lookup_batches(room, &mut visit) {
            Err(error) if no_batches(&error) => self.walk(visit),
            result => result,
        }
    }

    fn lookup_batches(&self, room: usize, visit: &mut impl FnMut(&[K], &[V]) -> io::Result<()>) -> io::Result<()> {
        let look = |from, next: &mut Cursor, room, (keys, values): &mut (Vec<K>, Vec<V>)| {
            keys.clear();
            keys.reserve(room);
            values.clear();
            values.reserve(room);
            let (at_keys, at_values) = (keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64);
            // SAFETY: both vectors have room for so many elements of the map's sizes.
            let (found, more) = unsafe { lookup_batch(self.fd.as_fd(), from, next, room, at_keys, at_values) }?;
            // SAFETY: the kernel filled so many plain elements of each.
            unsafe {
                keys.set_len(found);
                values.set_len(found);
            }
            Ok(more)
        };
        in_batches(room, (Vec::new(), Vec::new()), look, |(keys, values)| visit(keys, values))
    }

    /// Every element by single calls; elements that vanish meanwhile are left out.
    fn walk(&self, mut visit: impl FnMut(&[K], &[V]) -> io::Result<()>) -> io::Result<()> {
        let mut key = self.next_key(None)?;
        while let Some(current) = key {
            if let Some(value) = self.get(&current)? {
                visit(&[current], &[value])?;
            }
            key = self.next_key(Some(&current))?;
        }
        Ok(())
    }

    fn next_key(&self, after: Option<&K>) -> io::Result<Option<K>> {
        let mut next = MaybeUninit::<K>::zeroed();
        let mut attr = self.elem(after.map_or(0, pointer), pointer_mut(&mut next));
        // SAFETY: both keys have the size that `new` compared with the map's.
        match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) } {
            // SAFETY: plain data, zeroed and then written by the kernel.
            Ok(_) => Ok(Some(unsafe { next.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn elem(&self, key: u64, value_or_next: u64) -> ElemAttr {
        ElemAttr { map_fd: raw(self.fd.as_fd()), key, value_or_next, ..ElemAttr::default() }
    }
}

/// A cursor: a key of an array or trie, a bucket number of a hash. No map's exceeds 64 bytes.
type Cursor = [u64; 8];

/// Shows a map in batches: `look` fills the buffers from one cursor, 0 at first, up to the next one and says whether there may be
/// more; `visit` is shown them.
fn in_batches<B>(
    mut room: usize,
    mut buffers: B,
    look: impl Fn(u64, &mut Cursor, usize, &mut B) -> io::Result<bool>,
    mut visit: impl FnMut(&B) -> io::Result<()>,
) -> io::Result<()> {
    let mut cursor: Cursor = [0; 8];
    let mut first = true;
    loop {
        let from = if first { 0 } else { pointer(&cursor) };
        let mut next = cursor;
        match look(from, &mut next, room, &mut buffers) {
            Ok(more) => {
                visit(&buffers)?;
                if !more {
                    return Ok(());
                }
                (cursor, first) = (next, false);
            }
            // A bucket of a hash did not fit.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 24 => room *= 2,
            Err(error) => return Err(error),
        }
    }
}

/// One batch; says how many elements were found, and whether there may be more.
///
/// # Safety
/// There must be room for `room` elements of the map's sizes at the addresses `keys` and `values`, and a live cursor at `from`
/// unless that is 0.
unsafe fn lookup_batch(
    map: BorrowedFd<'_>,
    from: u64,
    next: &mut Cursor,
    room: usize,
    keys: u64,
    values: u64,
) -> io::Result<(usize, bool)> {
    let mut attr = BatchAttr {
        in_batch: from,
        out_batch: pointer_mut(next),
        keys,
        values,
        count: room as u32,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: the caller vouches for the addresses, and a cursor has room for every map's.
    let more = match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => return Err(error),
    };
    Ok(((attr.count as usize).min(room), more))
}

/// A map whose keys and values are of no type of ours: as bytes.
#[derive(Debug)]
pub struct Rows {
    fd: OwnedFd,
    info: MapInfo,
}

impl Rows {
    /// Opens the hash pinned at `path`. Maps of other kinds have values that are longer than they say (one for each CPU), or none
    /// to read.
    pub fn open(path: &Path) -> Result<Self, CallError> {
        let fail = |error| CallError::new("open map", path.display(), error);
        let Pin { kind, fd, .. } = Pin::open(path)?;
        if kind != Kind::Map {
            return Err(fail(io::Error::other("not a map")));
        }
        let info = map_info(fd.as_fd()).map_err(fail)?;
        if ![map_type::HASH, map_type::LRU_HASH].contains(&info.map_type) {
            return Err(fail(io::Error::other(format!("map type {} is no hash", info.map_type))));
        }
        Ok(Self { fd, info })
    }

    pub fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Shows all elements to `visit`, about `room` at a time: key and value of each.
    pub fn each_batch(
        &self,
        room: usize,
        mut visit: impl FnMut(&mut dyn Iterator<Item = (&[u8], &[u8])>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (key_size, value_size) = (self.info.key_size as usize, self.info.value_size as usize);
        let look = |from, next: &mut Cursor, room, (keys, values): &mut (Vec<u8>, Vec<u8>)| {
            keys.resize(room * key_size, 0);
            values.resize(room * value_size, 0);
            let (at_keys, at_values) = (keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64);
            // SAFETY: both vectors have room for so many elements of the map's sizes.
            let (found, more) = unsafe { lookup_batch(self.fd.as_fd(), from, next, room, at_keys, at_values) }?;
            keys.truncate(found * key_size);
            values.truncate(found * value_size);
            Ok(more)
        };
        in_batches(room, (Vec::new(), Vec::new()), look, |(keys, values)| {
            visit(&mut keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)))
        })
    }
}

/// True when the kernel or the map type has no batch calls.
fn no_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

/// True when this kernel and these rights allow batch calls on arrays.
pub fn batches_work() -> bool {
    let Ok(fd) = create_map(map_type::ARRAY, 4, 2, None) else { return false };
    let Ok(map) = Map::<u32, u32>::new(fd) else { return false };
    map.update_batch(&[0, 1], &[1, 2]).is_ok()
}

/// An array of values of this type, in nobody's program.
pub fn array<V: Pod>(entries: u32) -> io::Result<Map<u32, V>> {
    create_map(map_type::ARRAY, size_of::<V>() as u32, entries, None).and_then(Map::new)
}

fn create_map(map_type: u32, value_size: u32, max_entries: u32, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let inner_map_fd = inner.map_or(0, raw);
    let mut attr = MapCreateAttr { map_type, key_size: 4, value_size, max_entries, map_flags: 0, inner_map_fd };
    within_memory(|| {
        // SAFETY: no addresses in the attribute.
        unsafe { bpf(MAP_CREATE, &mut attr) }.map(owned)
    })
}

/// Makes a map or a program. Kernels before 5.11 count those of all processes of a user against the limit of locked memory
/// and refuse with EPERM what is past it, so it is lifted then.
pub fn within_memory<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && lift_memory_limit().is_ok() => make(),
        made => made,
    }
}

fn lift_memory_limit() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit outlives the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How this kernel waits for running programs.
#[derive(Debug)]
pub enum Grace {
    /// `membarrier(MEMBARRIER_CMD_GLOBAL)`.
    Membarrier,
    /// An array of maps: changing it makes the kernel wait for every program (`maybe_wait_bpf_programs`).
    OuterMap { outer: OwnedFd, inner: OwnedFd },
}

impl Grace {
    /// Finds a way that works here.
    ///
    /// membarrier is compiled out of some kernels, refused by seccomp filters and with `nohz_full`, and does nothing on a
    /// single processor, where a preempted program may still be on its way.
    pub fn find() -> io::Result<Self> {
        if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1) && membarrier().is_ok() {
            return Ok(Self::Membarrier);
        }
        let inner = create_map(map_type::ARRAY, 4, 1, None)?;
        let outer = create_map(map_type::ARRAY_OF_MAPS, 4, 1, Some(inner.as_fd()))?;
        Ok(Self::OuterMap { outer, inner })
    }

    /// Returns when every program that ran at the time of the call has ended.
    pub fn wait(&self) -> io::Result<()> {
        match self {
            Self::Membarrier => membarrier(),
            Self::OuterMap { outer, inner } => {
                let (key, value) = (0_u32, raw(inner.as_fd()));
                let mut attr = ElemAttr {
                    map_fd: raw(outer.as_fd()),
                    key: pointer(&key),
                    value_or_next: pointer(&value),
                    ..ElemAttr::default()
                };
                // SAFETY: key and value are 4 bytes, as the map was created.
                unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
            }
        }
    }
}

fn membarrier() -> io::Result<()> {
    const GLOBAL: libc::c_int = 1;
    // SAFETY: no addresses.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A pin and what it is.
#[derive(Debug)]
pub struct Pin {
    pub path: PathBuf,
    pub kind: Kind,
    pub fd: OwnedFd,
}

impl Pin {
    pub fn open(path: &Path) -> Result<Self, CallError> {
        let fd = open_pin(path)?;
        let kind = kind(fd.as_fd()).map_err(|error| CallError::new("look at", path.display(), error))?;
        Ok(Self { path: path.to_owned(), kind, fd })
    }
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    #[test]
    fn attributes_have_the_layout_of_the_kernel() {
        assert_eq!(mem::offset_of!(ElemAttr, key), 8);
        assert_eq!(mem::offset_of!(BatchAttr, count), 32);
        assert_eq!(mem::offset_of!(BatchAttr, elem_flags), 40);
        assert_eq!(mem::offset_of!(LinkInfo, cgroup_id), 16);
        assert_eq!(mem::offset_of!(TcxLinkInfo, device), 16);
        assert_eq!(mem::offset_of!(TcxCreateAttr, expected_revision), 24);
        assert_eq!(mem::offset_of!(ProgQueryAttr, count), 24);
        assert_eq!(mem::offset_of!(ProgQueryAttr, revision), 56);
        assert_eq!(mem::offset_of!(MapInfo, name), 24);
    }

    #[test]
    fn a_kernel_without_batches_is_told_from_a_failed_write() {
        for errno in [libc::EINVAL, libc::EOPNOTSUPP, ENOTSUPP] {
            assert!(no_batches(&io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::E2BIG, libc::ENOSPC, libc::EPERM, libc::ENOMEM] {
            assert!(!no_batches(&io::Error::from_raw_os_error(errno)));
        }
    }
}
