//! Memory for packed weights and the KV cache: zeroed, on cache-line boundaries, in large pages.
//!
//! A decode step streams all weights; with 4 KiB pages the processor spends a part of that time looking up
//! addresses. Many tensors are smaller than a large page, so they share regions.
#![expect(unsafe_code, reason = "buffers are disjoint parts of shared mappings")]

use std::sync::Arc;

use memmap2::MmapMut;

use super::elem::Elem;
use crate::CpuKernelError;

/// Buffers start here or at a multiple: a cache line, and a vector register.
const ALIGN_BYTES: usize = 64;
/// The size of a large page on x86-64 and, with 4 KiB pages, on Arm.
const LARGE_PAGE_BYTES: usize = 2 << 20;
/// What is reserved at once. Pages that nothing touches take no memory.
const REGION_BYTES: usize = 64 << 20;

/// Where buffers come from.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    region: Option<Arc<Region>>,
    used_bytes: usize,
}

/// A mapping; it goes when the arena and the last buffer in it have gone.
#[derive(Debug)]
struct Region {
    start: *mut u8,
    len_bytes: usize,
    _mapping: MmapMut,
}

// SAFETY: the pointer is into the mapping, which moves with it; the region itself reads and writes nothing.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Arena {
    /// `len_elems` zeros.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub(crate) fn zeroed<E: Elem>(&mut self, len_elems: usize) -> Result<Buffer<E>, CpuKernelError> {
        let size_bytes = len_elems.checked_mul(size_of::<E>()).unwrap_or(usize::MAX / 2);
        let padded_bytes = size_bytes.next_multiple_of(ALIGN_BYTES);
        let region = match &self.region {
            Some(region) if region.len_bytes - self.used_bytes >= padded_bytes => Arc::clone(region),
            _ => {
                let region = Arc::new(Region::map(padded_bytes.max(REGION_BYTES))?);
                self.region = Some(Arc::clone(&region));
                self.used_bytes = 0;
                region
            }
        };
        let start = region.start.wrapping_add(self.used_bytes).cast();
        self.used_bytes += padded_bytes;
        Ok(Buffer { start, len_elems, _region: region })
    }
}

impl Region {
    fn map(len_bytes: usize) -> Result<Self, CpuKernelError> {
        let mapped_bytes = len_bytes.saturating_add(LARGE_PAGE_BYTES);
        let mut mapping = MmapMut::map_anon(mapped_bytes)
            .map_err(|source| CpuKernelError::OutOfMemory { size_bytes: mapped_bytes, source })?;
        // Only a wish: a system without large pages works as well, more slowly.
        #[cfg(target_os = "linux")]
        let _ = mapping.advise(memmap2::Advice::HugePage);
        let start = mapping.as_mut_ptr();
        let start = start.wrapping_add(start.align_offset(LARGE_PAGE_BYTES));
        Ok(Self { start, len_bytes, _mapping: mapping })
    }
}

/// A zeroed, 64-byte aligned array of elements.
pub(crate) struct Buffer<E> {
    start: *mut E,
    len_elems: usize,
    _region: Arc<Region>,
}

// SAFETY: a buffer is the only owner of its part of the region.
unsafe impl<E: Send> Send for Buffer<E> {}
// SAFETY: as above; through a shared reference it only hands out its address.
unsafe impl<E: Sync> Sync for Buffer<E> {}

impl<E: Elem> Buffer<E> {
    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.len_elems
    }

    /// The first element.
    pub(crate) fn as_ptr(&self) -> *const E {
        self.start.cast_const()
    }

    /// The first element, for writing.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut E {
        self.start
    }

    /// Bytes held.
    pub(crate) fn size_bytes(&self) -> usize {
        self.len_elems * size_of::<E>()
    }
}

/// A pointer that tasks of one loop share; each task keeps to elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedPtr<T>(*mut T);

// SAFETY: the pointer itself is only a number; every use is an unsafe block that states which elements it owns.
unsafe impl<T: Send> Send for SharedPtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedPtr<T> {}

impl<T> SharedPtr<T> {
    pub(crate) fn new(start: *mut T) -> Self {
        Self(start)
    }

    /// `len` elements from `start_elems`.
    ///
    /// # Safety
    /// They must lie inside the buffer, the buffer must outlive the loop, and no other task of the loop may
    /// touch them.
    pub(crate) unsafe fn slice<'a>(self, start_elems: usize, len: usize) -> &'a mut [T] {
        // SAFETY: guaranteed by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start_elems), len) }
    }

    /// The element at `at_elems`, for a kernel's reads or writes.
    ///
    /// # Safety
    /// It must lie inside the buffer.
    pub(crate) unsafe fn at(self, at_elems: usize) -> *mut T {
        // SAFETY: guaranteed by the caller.
        unsafe { self.0.add(at_elems) }
    }
}
