//! The functions of zlib that flate2 calls, forwarded to the pure Rust zlib-rs.
//!
//! pingora asks flate2 for its `zlib-ng` back end, whose build script needs cmake. This crate takes the place of
//! `libz-ng-sys` through `[patch.crates-io]` and has no build script. Only names that flate2 uses are here.
#![allow(non_camel_case_types, non_snake_case, clippy::missing_safety_doc)]

use core::ffi::{c_char, c_int, c_uint, c_void};
use libz_rs_sys as z;
pub use z::{
    Z_BLOCK, Z_BUF_ERROR, Z_DATA_ERROR, Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_FINISH, Z_FULL_FLUSH, Z_MEM_ERROR,
    Z_NEED_DICT, Z_NO_FLUSH, Z_OK, Z_PARTIAL_FLUSH, Z_STREAM_END, Z_STREAM_ERROR, Z_SYNC_FLUSH,
};

pub type uInt = c_uint;

/// The stream state as flate2 fills it; same layout as zlib-rs's own, which the assertion below holds.
#[repr(C)]
pub struct z_stream {
    pub next_in: *mut u8,
    pub avail_in: uInt,
    pub total_in: z::uLong,
    pub next_out: *mut u8,
    pub avail_out: uInt,
    pub total_out: z::uLong,
    pub msg: *mut c_char,
    pub state: *mut z::internal_state,
    pub zalloc: extern "C" fn(*mut c_void, uInt, uInt) -> *mut c_void,
    pub zfree: extern "C" fn(*mut c_void, *mut c_void),
    pub opaque: *mut c_void,
    pub data_type: c_int,
    pub adler: z::uLong,
    pub reserved: z::uLong,
}

const _: () = assert!(size_of::<z_stream>() == size_of::<z::z_stream>());

macro_rules! forward {
    ($($name:ident($($arg:ident: $ty:ty),*);)*) => {$(
        pub unsafe extern "C" fn $name(stream: *mut z_stream $(, $arg: $ty)*) -> c_int {
            // SAFETY: same layout (asserted above); the caller owes what zlib's contract asks of it.
            unsafe { z::$name(stream.cast() $(, $arg)*) }
        }
    )*};
}

forward! {
    deflate(flush: c_int);
    deflateEnd();
    deflateReset();
    deflateParams(level: c_int, strategy: c_int);
    deflateSetDictionary(dictionary: *const u8, len: uInt);
    inflate(flush: c_int);
    inflateEnd();
    inflateReset();
    inflateReset2(window_bits: c_int);
    inflateSetDictionary(dictionary: *const u8, len: uInt);
    deflateInit2_(level: c_int, method: c_int, window_bits: c_int, mem_level: c_int, strategy: c_int,
        version: *const c_char, size: c_int);
    inflateInit2_(window_bits: c_int, version: *const c_char, size: c_int);
}

pub extern "C" fn zlibVersion() -> *const c_char {
    z::zlibVersion()
}
