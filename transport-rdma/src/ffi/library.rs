//! libibverbs(7), opened when it is first wanted: a host without it runs everything but RDMA.
//!
//! The crates `rdma-sys` and `ibverbs` declare the verbs as functions of a shared library, and a program that is linked
//! that way does not start where the library is missing. Here those verbs are defined that are called, by the two crates
//! or by this one: each hands its arguments on to its namesake in the library. So nothing is left for the linker to find
//! there, and the library is not among those that the program needs (`docs/adr/0013`; `afterimage/tests/linking.rs`).
//! What is not in the list are the verbs of the data path: `ibv_post_send`, `ibv_poll_cq` and their like are no functions
//! of the library, but of the device's driver, and are reached through the open device.
//!
//! [`open`] says why there is no library, and comes before the first verb. Without one, a verb fails as its manual page
//! says: null and `ENOSYS`, or that number.

use rdma_sys as sys;
use std::{
    arch::global_asm,
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    mem::transmute_copy,
    ptr::null_mut,
    sync::OnceLock,
};

/// What is opened.
const NAME: &CStr = c"libibverbs.so.1";

/// Why there are no verbs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// No file of that name is where the dynamic linker looks.
    #[error("libibverbs.so.1 is not installed; package libibverbs1, ibverbs-providers")]
    NotInstalled,
    /// It is there, and cannot be loaded: in the dynamic linker's words.
    #[error("libibverbs.so.1 cannot be loaded: {0}")]
    Unusable(String),
    /// It lacks a verb.
    #[error("libibverbs.so.1 is too old: it has no {0}")]
    TooOld(&'static str),
}

/// Loads the library, the first time.
///
/// # Errors
/// It is not there, or cannot be used. The answer is the same for the rest of the process's life.
pub fn open() -> Result<(), LibraryError> {
    verbs().as_ref().map(|_| ()).map_err(Clone::clone)
}

fn verbs() -> &'static Result<Verbs, LibraryError> {
    static VERBS: OnceLock<Result<Verbs, LibraryError>> = OnceLock::new();
    VERBS.get_or_init(|| Verbs::load(NAME))
}

/// The dynamic linker's words for what just failed in this thread.
fn linker_words() -> String {
    // SAFETY: has no conditions; the words stay until the thread's next call of the dynamic linker.
    let words = unsafe { libc::dlerror() };
    if words.is_null() {
        return "the dynamic linker does not say why".to_owned();
    }
    // SAFETY: not null, so a C string, copied before anything else is asked of the dynamic linker.
    unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
}

fn load(name: &CStr) -> Result<*mut c_void, LibraryError> {
    // SAFETY: `name` is a C string. The library's initialisers run; those of libibverbs and of what it needs have no
    // conditions. It is never closed, so what is found in it stays valid.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !library.is_null() {
        return Ok(library);
    }
    let why = linker_words();
    // (A library that libibverbs needs may be missing too: then the words begin with that one's name.)
    let missing = format!("{}: cannot open shared object file: No such file", name.to_string_lossy());
    Err(if why.starts_with(&missing) { LibraryError::NotInstalled } else { LibraryError::Unusable(why) })
}

/// What a verb returns where there is no library.
trait Failed {
    fn failed() -> Self;
}

impl Failed for c_int {
    fn failed() -> Self {
        libc::ENOSYS
    }
}

impl Failed for isize {
    fn failed() -> Self {
        -(libc::ENOSYS as Self)
    }
}

impl Failed for () {
    fn failed() {}
}

impl<T> Failed for *mut T {
    fn failed() -> Self {
        set_errno(libc::ENOSYS);
        null_mut()
    }
}

impl Failed for *const c_char {
    fn failed() -> Self {
        c"there is no libibverbs".as_ptr()
    }
}

fn set_errno(number: c_int) {
    // SAFETY: has no conditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: points to this thread's own `errno`.
    unsafe { errno.write(number) };
}

macro_rules! verbs {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $returns:ty)?;)*) => {
        /// The verbs, found in the library.
        #[derive(Debug)]
        struct Verbs {
            $($name: unsafe extern "C" fn($($type),*) $(-> $returns)?,)*
        }

        impl Verbs {
            fn load(name: &CStr) -> Result<Self, LibraryError> {
                let library = load(name)?;
                Ok(Self {
                    $($name: {
                        const VERB: &str = concat!(stringify!($name), "\0");
                        // SAFETY: the library is open, and `VERB` ends in a zero. Found is its default version.
                        let found = unsafe { libc::dlsym(library, VERB.as_ptr().cast()) };
                        if found.is_null() {
                            return Err(LibraryError::TooOld(stringify!($name)));
                        }
                        // SAFETY: a function of that name in libibverbs has this signature: <infiniband/verbs.h>.
                        unsafe { transmute_copy::<*mut c_void, unsafe extern "C" fn($($type),*) $(-> $returns)?>(&found) }
                    },)*
                })
            }
        }

        $(
            // For this program only: the library and its drivers, which call verbs too, must find the library's own.
            global_asm!(concat!(".hidden ", stringify!($name)));
            // SAFETY: the name is libibverbs' own, which this program is not linked to; the definition behaves as the
            // library's does.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $type),*) $(-> $returns)? {
                match verbs() {
                    // SAFETY: the caller keeps the verb's own conditions.
                    Ok(verbs) => unsafe { (verbs.$name)($($argument),*) },
                    Err(_) => Failed::failed(),
                }
            }
        )*
    };
}

verbs! {
    // Devices.
    fn ibv_get_device_list(count: *mut c_int) -> *mut *mut sys::ibv_device;
    fn ibv_free_device_list(list: *mut *mut sys::ibv_device);
    fn ibv_get_device_name(device: *mut sys::ibv_device) -> *const c_char;
    fn ibv_open_device(device: *mut sys::ibv_device) -> *mut sys::ibv_context;
    fn ibv_close_device(context: *mut sys::ibv_context) -> c_int;
    fn ibv_query_device(context: *mut sys::ibv_context, attributes: *mut sys::ibv_device_attr) -> c_int;
    fn ibv_query_port(context: *mut sys::ibv_context, port: u8, attributes: *mut c_void) -> c_int;
    fn ibv_query_gid(context: *mut sys::ibv_context, port: u8, index: c_int, gid: *mut sys::ibv_gid) -> c_int;
    fn _ibv_query_gid_table(context: *mut sys::ibv_context, entries: *mut c_void, most: usize, flags: u32, size: usize) -> isize;
    // Domains and memory.
    fn ibv_alloc_pd(context: *mut sys::ibv_context) -> *mut sys::ibv_pd;
    fn ibv_dealloc_pd(domain: *mut sys::ibv_pd) -> c_int;
    fn ibv_reg_mr(domain: *mut sys::ibv_pd, addr: *mut c_void, len: usize, access: c_int) -> *mut sys::ibv_mr;
    fn ibv_reg_mr_iova2(domain: *mut sys::ibv_pd, addr: *mut c_void, len: usize, iova: u64, access: c_uint) -> *mut sys::ibv_mr;
    fn ibv_dereg_mr(region: *mut sys::ibv_mr) -> c_int;
    // Completions.
    fn ibv_create_comp_channel(context: *mut sys::ibv_context) -> *mut sys::ibv_comp_channel;
    fn ibv_destroy_comp_channel(channel: *mut sys::ibv_comp_channel) -> c_int;
    fn ibv_create_cq(context: *mut sys::ibv_context, entries: c_int, of: *mut c_void, channel: *mut sys::ibv_comp_channel, vector: c_int) -> *mut sys::ibv_cq;
    fn ibv_destroy_cq(queue: *mut sys::ibv_cq) -> c_int;
    fn ibv_get_cq_event(channel: *mut sys::ibv_comp_channel, queue: *mut *mut sys::ibv_cq, of: *mut *mut c_void) -> c_int;
    fn ibv_ack_cq_events(queue: *mut sys::ibv_cq, count: c_uint);
    fn ibv_wc_status_str(status: c_uint) -> *const c_char;
    // Queue pairs and addresses.
    fn ibv_create_qp(domain: *mut sys::ibv_pd, attributes: *mut sys::ibv_qp_init_attr) -> *mut sys::ibv_qp;
    fn ibv_modify_qp(queue: *mut sys::ibv_qp, attributes: *mut sys::ibv_qp_attr, mask: c_int) -> c_int;
    fn ibv_destroy_qp(queue: *mut sys::ibv_qp) -> c_int;
    fn ibv_create_ah(domain: *mut sys::ibv_pd, attributes: *mut sys::ibv_ah_attr) -> *mut sys::ibv_ah;
    fn ibv_destroy_ah(address: *mut sys::ibv_ah) -> c_int;
    fn ibv_attach_mcast(queue: *mut sys::ibv_qp, group: *const sys::ibv_gid, lid: u16) -> c_int;
    fn ibv_detach_mcast(queue: *mut sys::ibv_qp, group: *const sys::ibv_gid, lid: u16) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_or_is_another_is_refused_by_name() {
        assert_eq!(Verbs::load(c"libibverbs.so.0").unwrap_err(), LibraryError::NotInstalled);
        assert_eq!(Verbs::load(c"libc.so.6").unwrap_err(), LibraryError::TooOld("ibv_get_device_list"));
        let error = Verbs::load(c"/proc/self/status").unwrap_err();
        assert!(matches!(error, LibraryError::Unusable(_)), "{error}");
    }

    #[test]
    fn without_a_library_every_verb_fails_as_its_manual_says() {
        assert!(<*mut sys::ibv_pd>::failed().is_null());
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOSYS));
        assert_eq!((c_int::failed(), isize::failed()), (libc::ENOSYS, -38));
    }
}
