//! c10d's `TCPStore`: one process serves keys and queues of bytes, others reach it by host and port.
//!
//! The shim is `csrc/store.cpp`. Queues are used as mailboxes: a value is gone once it is taken. Calls on one [`Store`] wait for each other, a waiting [`Store::pop`] included: who waits opens a connection of its own.
#![expect(unsafe_code, reason = "the store is a C++ object")]

use std::ffi::{c_char, c_void};
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use crate::ExtError;
use crate::ffi::check;

unsafe extern "C" {
    fn te_store_open(
        host: *const c_char,
        host_len: usize,
        port: u16,
        is_server: bool,
        listen_fd: i32,
        timeout_ms: i64,
        out: *mut *mut c_void,
        out_port: *mut u16,
    ) -> i32;
    fn te_store_close(store: *mut c_void);
    fn te_store_set(
        store: *mut c_void,
        key: *const c_char,
        key_len: usize,
        value: *const u8,
        len: usize,
    ) -> i32;
    fn te_store_get(
        store: *mut c_void,
        key: *const c_char,
        key_len: usize,
        timeout_ms: i64,
        found: *mut i32,
        out: *mut *mut u8,
        out_len: *mut usize,
    ) -> i32;
    fn te_store_push(
        store: *mut c_void,
        key: *const c_char,
        key_len: usize,
        value: *const u8,
        len: usize,
    ) -> i32;
    fn te_store_pop(
        store: *mut c_void,
        key: *const c_char,
        key_len: usize,
        timeout_ms: i64,
        found: *mut i32,
        out: *mut *mut u8,
        out_len: *mut usize,
    ) -> i32;
    fn te_store_queue_len(store: *mut c_void, key: *const c_char, key_len: usize, out: *mut i64) -> i32;
    fn te_store_free(bytes: *mut u8);
}

/// Takes or reads a value: the shape that `te_store_get` and `te_store_pop` share.
type Take =
    unsafe extern "C" fn(*mut c_void, *const c_char, usize, i64, *mut i32, *mut *mut u8, *mut usize) -> i32;

/// A connection to a store, and the store itself where it was [served](Store::serve).
#[derive(Debug)]
pub struct Store {
    handle: *mut c_void,
    port: u16,
}

// SAFETY: a TCPStore guards its connection with a lock of its own, and nothing in it belongs to a thread.
unsafe impl Send for Store {}
// SAFETY: as above: every operation takes that lock first.
unsafe impl Sync for Store {}

impl Store {
    /// Serves a store on a socket that is bound already, and connects to it.
    ///
    /// # Errors
    /// When the socket cannot be listened on.
    pub fn serve(listener: TcpListener) -> Result<Self, ExtError> {
        let port = listener.local_addr().map_err(|error| ExtError::Libtorch(error.to_string()))?.port();
        // The server closes it.
        Self::serve_on(listener.into_raw_fd(), port)
    }

    /// Serves a store on a socket that another process has bound and handed down, by its number and its port.
    ///
    /// # Errors
    /// When there is no such socket, or it has another port.
    pub fn serve_on(socket: i32, port: u16) -> Result<Self, ExtError> {
        Self::open("127.0.0.1", port, Some(socket), Duration::from_secs(60))
    }

    /// Connects to a store, trying again until `timeout`, which is in effect at least one try of about a second.
    ///
    /// # Errors
    /// When there is none.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self, ExtError> {
        Self::open(host, port, None, timeout)
    }

    fn open(host: &str, port: u16, listen_fd: Option<i32>, timeout: Duration) -> Result<Self, ExtError> {
        let (mut handle, mut out_port) = (std::ptr::null_mut(), 0);
        // SAFETY: the host is a live buffer of the length given, both results are live variables, and the shim keeps
        // none of them.
        check(unsafe {
            te_store_open(
                host.as_ptr().cast(),
                host.len(),
                port,
                listen_fd.is_some(),
                listen_fd.unwrap_or(-1),
                millis(timeout),
                &raw mut handle,
                &raw mut out_port,
            )
        })?;
        Ok(Self { handle, port: out_port })
    }

    /// The port that it listens on or is connected to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sets a key.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), ExtError> {
        // SAFETY: the handle is live as long as `self`; key and value are live buffers of the lengths given.
        check(unsafe {
            te_store_set(self.handle, key.as_ptr().cast(), key.len(), value.as_ptr(), value.len())
        })
    }

    /// The value of a key, once it is set; `None` when it is not set within `timeout`.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<Option<Vec<u8>>, ExtError> {
        self.take(te_store_get, key, timeout)
    }

    /// Puts a value at the end of a queue.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn push(&self, queue: &str, value: &[u8]) -> Result<(), ExtError> {
        // SAFETY: as in `set`.
        check(unsafe {
            te_store_push(self.handle, queue.as_ptr().cast(), queue.len(), value.as_ptr(), value.len())
        })
    }

    /// Takes the first value of a queue; `None` when there is none within `timeout`.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn pop(&self, queue: &str, timeout: Duration) -> Result<Option<Vec<u8>>, ExtError> {
        self.take(te_store_pop, queue, timeout)
    }

    /// How many values wait in a queue.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn queue_len(&self, queue: &str) -> Result<u64, ExtError> {
        let mut len = 0;
        // SAFETY: as in `set`; the result is a live variable.
        check(unsafe { te_store_queue_len(self.handle, queue.as_ptr().cast(), queue.len(), &raw mut len) })?;
        Ok(u64::try_from(len).unwrap_or(0))
    }

    fn take(&self, entry: Take, key: &str, timeout: Duration) -> Result<Option<Vec<u8>>, ExtError> {
        let (mut found, mut bytes, mut len) = (0, std::ptr::null_mut(), 0);
        // SAFETY: the handle is live as long as `self`, the key is a live buffer of the length given, and the results
        // are live variables.
        check(unsafe {
            entry(
                self.handle,
                key.as_ptr().cast(),
                key.len(),
                millis(timeout),
                &raw mut found,
                &raw mut bytes,
                &raw mut len,
            )
        })?;
        if found == 0 {
            return Ok(None);
        }
        // SAFETY: on success the shim hands over `len` bytes that only this function knows of.
        let value = unsafe { std::slice::from_raw_parts(bytes, len) }.to_vec();
        // SAFETY: they came from the shim and are freed once.
        unsafe { te_store_free(bytes) };
        Ok(Some(value))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the handle came from `te_store_open` and is closed once.
        unsafe { te_store_close(self.handle) }
    }
}

/// At least one: zero means "for ever" to c10d.
fn millis(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX).max(1)
}
