//! Asks the memory for data that will be read soon: random rows of a mapped file cost a cache miss each otherwise.

/// Asks for the cache lines of `data`. Changes no result; does nothing where the CPU has no such instruction.
#[inline(always)]
pub fn prefetch<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let bytes = std::mem::size_of_val(data);
        let start = data.as_ptr().cast::<i8>();
        for line in (0..bytes).step_by(64) {
            // SAFETY: the address lies inside `data`, and a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(line)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// The same, no nearer than the level-2 cache: for data that will be read later.
#[inline(always)]
pub fn prefetch_far<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let bytes = std::mem::size_of_val(data);
        let start = data.as_ptr().cast::<i8>();
        for line in (0..bytes).step_by(64) {
            // SAFETY: the address lies inside `data`, and a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.add(line)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}
