//! The program file in memory. In: nothing. Out: less of it is resident.

use std::ffi::{c_int, c_void};
use std::slice;

use libc::{MADV_DONTNEED, PF_W, PT_LOAD, dl_iterate_phdr, dl_phdr_info, madvise, size_t};

/// Unmaps the pages of the program file that were touched. They stay in the page cache for as long as the system likes,
/// and whatever runs again is mapped again.
#[expect(unsafe_code, reason = "walks the program's own segments")]
pub(super) fn unmap() {
    // SAFETY: the callback expects no data and does not unwind.
    unsafe { dl_iterate_phdr(Some(unmap_segments), std::ptr::null_mut()) };
}

/// The first object is the program itself; there is no other where it is static.
#[expect(unsafe_code, reason = "see above")]
unsafe extern "C" fn unmap_segments(object: *mut dl_phdr_info, _: size_t, _: *mut c_void) -> c_int {
    // SAFETY: the C library hands out a valid description with as many headers as it says.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    // What may be written, now or while it was relocated, has no other copy.
    for segment in headers.iter().filter(|segment| segment.p_type == PT_LOAD && segment.p_flags & PF_W == 0) {
        let start = base + segment.p_vaddr;
        let aligned = start & !(PAGE - 1);
        let len = start - aligned + segment.p_memsz;
        // SAFETY: these pages are equal to those of the file, which take their place at the next access. An error
        // (larger pages than these are aligned to) changes nothing.
        unsafe { madvise(aligned as *mut c_void, len as size_t, MADV_DONTNEED) };
    }
    1
}

/// The smallest there is.
const PAGE: u64 = 4096;
