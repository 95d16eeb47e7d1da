//! Asks the memory for data that will be read soon: random rows of a mapped file cost a cache miss each otherwise.

/// Asks for the cache lines of `data`. Changes no result; does nothing where the CPU has no such instruction.
#[inline(always)]
pub fn prefetch<T>(data: &[T]) {
    lines(data, |line| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults; x86-64 has it.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line)
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    });
}

/// The same, no nearer than the level-2 cache: for data that will be read later.
#[inline(always)]
pub fn prefetch_far<T>(data: &[T]) {
    lines(data, |line| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch never faults; x86-64 has it.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line)
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    });
}

/// Every cache line of `data`.
#[inline(always)]
fn lines<T>(data: &[T], ask: impl Fn(*const i8)) {
    let start = data.as_ptr().cast::<i8>();
    (0..size_of_val(data)).step_by(64).for_each(|line| ask(start.wrapping_add(line)));
}
