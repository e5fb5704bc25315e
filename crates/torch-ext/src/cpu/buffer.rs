//! Memory on cache-line boundaries for packed weights and the KV cache.

use super::elem::Elem;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

/// A zeroed, 64-byte aligned array of elements.
pub(crate) struct Buffer<E> {
    lines: Vec<Line>,
    len_elems: usize,
    elem: std::marker::PhantomData<E>,
}

impl<E: Elem> Buffer<E> {
    /// `len_elems` zeros.
    pub(crate) fn zeroed(len_elems: usize) -> Self {
        let num_lines = (len_elems * size_of::<E>()).div_ceil(64);
        Self { lines: vec![Line([0; 64]); num_lines], len_elems, elem: std::marker::PhantomData }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len_elems
    }

    /// The first element.
    pub(crate) fn as_ptr(&self) -> *const E {
        self.lines.as_ptr().cast()
    }

    /// The first element, for writing.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut E {
        self.lines.as_mut_ptr().cast()
    }

    /// Bytes held.
    pub(crate) fn size_bytes(&self) -> usize {
        self.lines.len() * 64
    }
}

/// A pointer that tasks of one loop share; each task keeps to elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

#[expect(unsafe_code, reason = "tasks of one loop write disjoint parts of one buffer")]
mod shared {
    use super::Shared;

    // SAFETY: the pointer itself is only a number; every use is an unsafe block that states which elements it owns.
    unsafe impl<T: Send> Send for Shared<T> {}
    // SAFETY: as above.
    unsafe impl<T: Send> Sync for Shared<T> {}

    impl<T> Shared<T> {
        pub(crate) fn new(start: *mut T) -> Self {
            Self(start)
        }

        /// `len` elements from `start_elems`.
        ///
        /// # Safety
        /// They must lie inside the buffer, the buffer must outlive the loop, and no other task of the loop may
        /// touch them.
        pub(crate) unsafe fn slice<'a>(self, start_elems: usize, len: usize) -> &'a mut [T] {
            // SAFETY: handed on from the caller.
            unsafe { std::slice::from_raw_parts_mut(self.0.add(start_elems), len) }
        }

        /// The element at `at_elems`, for a kernel's reads or writes.
        ///
        /// # Safety
        /// It must lie inside the buffer.
        pub(crate) unsafe fn at(self, at_elems: usize) -> *mut T {
            // SAFETY: handed on from the caller.
            unsafe { self.0.add(at_elems) }
        }
    }
}
