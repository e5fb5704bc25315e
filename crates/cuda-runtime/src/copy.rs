//! Copies that bypass the processor's caches.
#![expect(unsafe_code, reason = "stores past the caches are intrinsics")]

/// Copies `from` to `to`, which only a device reads soon: an ordinary copy would first fetch the old content of `to` into
/// the caches, a third more memory traffic.
///
/// # Panics
/// When the lengths differ.
pub(super) fn copy_past_caches(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "a copy between slices of different lengths");
    #[cfg(target_arch = "x86_64")]
    x86::copy(from, to);
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    /// Four registers are one line of the cache.
    const LINE: usize = 4;

    pub(super) fn copy(from: &[u8], to: &mut [u8]) {
        // SAFETY: any bytes are a valid register.
        let (head, body, _) = unsafe { to.align_to_mut::<__m128i>() };
        let head_bytes = head.len();
        let num_lines = body.len() / LINE;
        let body_bytes = num_lines * LINE * size_of::<__m128i>();
        let lines = body.chunks_exact_mut(LINE);
        let sources = from[head_bytes..].chunks_exact(LINE * size_of::<__m128i>());
        for (line, source) in lines.zip(sources) {
            let source = source.as_ptr().cast::<__m128i>();
            // SAFETY: both sides have four registers, the stored ones are aligned, and SSE2 is part of x86-64.
            unsafe {
                let values = [
                    _mm_loadu_si128(source),
                    _mm_loadu_si128(source.add(1)),
                    _mm_loadu_si128(source.add(2)),
                    _mm_loadu_si128(source.add(3)),
                ];
                for (register, value) in line.iter_mut().zip(values) {
                    _mm_stream_si128(register, value);
                }
            }
        }
        // SAFETY: SSE is part of x86-64. Another thread or device that is signalled afterwards sees all of the copy.
        unsafe { _mm_sfence() };
        to[..head_bytes].copy_from_slice(&from[..head_bytes]);
        let tail = head_bytes + body_bytes;
        to[tail..].copy_from_slice(&from[tail..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn copies_every_byte_and_no_other(len in 0_usize..400, from_at in 0_usize..40, to_at in 0_usize..40) {
            let from: Vec<u8> = (0..500_u32).map(|value| (value * 37 + 11) as u8).collect();
            let mut to = vec![0xEE; 500];
            copy_past_caches(&from[from_at..from_at + len], &mut to[to_at..to_at + len]);
            prop_assert_eq!(&to[to_at..to_at + len], &from[from_at..from_at + len]);
            let others = to[..to_at].iter().chain(&to[to_at + len..]);
            prop_assert!(others.copied().all(|byte| byte == 0xEE));
        }
    }
}
