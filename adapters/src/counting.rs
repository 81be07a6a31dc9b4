//! The heap, counted where it is used: what a model takes is what the thread that loaded it allocated and kept.
//!
//! Resident memory of the process cannot say what one model takes: other loads and requests run beside it and a freed
//! page need not go back to the system. So the binary declares [`CountingAllocator`] as its global allocator. Each
//! allocation adds its size to a counter of its thread and each release subtracts it, without a lock and without a
//! shared cache line; [`measure`] reads the counter before and after a load.
//!
//! What is counted is what was asked for, not the allocator's own overhead (about 8 bytes and rounding per block).
//! What a load hands to another thread to free, or frees for another thread, is counted on the wrong side; an engine
//! that loads on one thread and keeps the result, as tract does, has neither. Memory that C or C++ code takes is not
//! seen here: [`native_bytes`] asks the C library for all of it and subtracts what Rust took.

#![allow(unsafe_code, reason = "a global allocator is an unsafe trait, and the C library's statistics are a foreign function")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

use berth_types::ByteSize;

/// A thread adds to the process-wide sum only after this many bytes of change, so that threads do not share a cache
/// line on each allocation. The sum is off by at most this much per thread.
const FLUSH: i64 = 16 << 10;

/// Bytes that Rust code holds in this process, without what the threads have not added yet.
static TOTAL: AtomicI64 = AtomicI64::new(0);

thread_local! {
    // Constant initialisers and no destructors: these can be read and written at any moment of a thread's life, also
    // while its other thread-locals are being torn down, and never allocate.
    static NET: Cell<i64> = const { Cell::new(0) };
    static PENDING: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator with a counter per thread. Declare it in the binary:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: berth_adapters::counting::CountingAllocator = berth_adapters::counting::CountingAllocator;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

fn count(bytes: i64) {
    // A thread without its counters (none is known) goes uncounted rather than aborting inside the allocator.
    let _ = NET.try_with(|net| net.set(net.get().wrapping_add(bytes)));
    let _ = PENDING.try_with(|pending| {
        let sum = pending.get().wrapping_add(bytes);
        if sum.abs() < FLUSH {
            pending.set(sum);
        } else {
            TOTAL.fetch_add(sum, Ordering::Relaxed);
            pending.set(0);
        }
    });
}

/// Sizes of a layout are at most `isize::MAX`, so they fit.
fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

// SAFETY: every call goes to `System` with the arguments unchanged and its answer is passed on, so its guarantees hold
// as they are. Counting touches two thread-local integers and one atomic: it does not allocate, lock, unwind or look at
// the block.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            count(signed(layout.size()));
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            count(signed(layout.size()));
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: the caller got `block` from this allocator, that is from `System`, with this `layout`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller got `block` from this allocator, that is from `System`, with this `layout`.
        let moved = unsafe { System.realloc(block, layout, new_size) };
        // A failed growth leaves the old block as it was.
        if !moved.is_null() {
            count(signed(new_size) - signed(layout.size()));
        }
        moved
    }
}

/// Whether this process allocates through [`CountingAllocator`].
#[must_use]
pub fn installed() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let before = NET.get();
        let block = black_box(Box::new([0_u8; 64]));
        let counted = NET.get() != before;
        drop(block);
        counted
    })
}

/// Runs `work` and says how many bytes this thread allocated in it and has not freed since; `None` when the counting
/// allocator is not installed. What `work` returns is part of the measure, what it dropped is not.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Option<ByteSize>) {
    let before = NET.get();
    let made = work();
    let kept = NET.get().wrapping_sub(before);
    (made, installed().then(|| ByteSize(u64::try_from(kept).unwrap_or(0))))
}

/// Bytes on the heap that Rust did not ask for: what C and C++ libraries of this process hold. `None` when the counting
/// allocator is not installed or the C library cannot say (other than glibc 2.33 and newer).
///
/// It is the difference of two counts taken one after the other while other threads go on, and includes the C
/// allocator's overhead: good for changes of hundreds of kibibytes, not for less.
#[must_use]
pub fn native_bytes() -> Option<ByteSize> {
    if !installed() {
        return None;
    }
    PENDING.with(|pending| TOTAL.fetch_add(pending.replace(0), Ordering::Relaxed));
    let all = c_heap_in_use()?;
    let rust = u64::try_from(TOTAL.load(Ordering::Relaxed)).unwrap_or(0);
    Some(ByteSize(all.saturating_sub(rust)))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn c_heap_in_use() -> Option<u64> {
    // SAFETY: the function has no arguments, returns a plain struct by value and is safe to call from any thread.
    let info = unsafe { libc::mallinfo2() };
    // Blocks in the arenas plus blocks that are mappings of their own. Zero: another allocator stands in for malloc.
    let in_use = (info.uordblks + info.hblkhd) as u64;
    (in_use > 0).then_some(in_use)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn c_heap_in_use() -> Option<u64> {
    None
}

/// Hands freed memory back to the system. The C library keeps what was freed for later; after a load (which frees about
/// as much as it keeps) or an unload of a large model that would be memory which the process has and no model uses.
/// Takes a few milliseconds and holds up other threads' allocations for parts of it, so it is for large changes only.
pub fn return_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the function takes no pointer, locks the arenas as `malloc` does, and is safe to call from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Blocks from this size on are mappings of their own, which go back to the system when they are freed. Below it are the
/// buffers that bodies of requests and downloads arrive in.
const OWN_MAPPING: i32 = 4 << 20;
/// Free memory at the end of an arena that is kept for the next buffers.
const KEPT: i32 = 16 << 20;

/// Lets freed buffers be used again. Left alone, the C library hands the end of each arena back as soon as a few hundred
/// kibibytes of it are free: each buffer that a body arrives in is then made of fresh pages, zeroed one by one, which costs
/// a download a sixth of its time. What is kept is at most 16 MiB for each thread that works, and [`return_freed`] gives
/// that back, too. Call it first thing in `main`; another allocator in place of malloc does not mind.
pub fn keep_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the function takes two numbers, locks the main arena as `malloc` does, and is safe to call at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_kept_is_measured_and_what_is_dropped_is_not() {
        let (kept, measured) = measure(|| {
            drop(black_box(vec![1_u8; 5 << 20]));
            let mut grown: Vec<u8> = Vec::with_capacity(1000);
            grown.resize(3 << 20, 1);
            let zeroed = vec![0_u8; 1 << 20];
            (grown, zeroed)
        });
        assert_eq!(measured, Some(ByteSize::mib(4)));
        let ((), measured) = measure(move || drop(kept));
        assert_eq!(measured, Some(ByteSize::ZERO), "a load that frees more than it takes is no negative size");
    }

    #[test]
    fn other_threads_do_not_disturb_a_measure() {
        let ((), measured) = measure(|| {
            let other = std::thread::Builder::new().spawn(|| black_box(vec![1_u8; 8 << 20]).len()).expect("threads can be made");
            assert_eq!(other.join().expect("it does not panic"), 8 << 20);
        });
        // The handle and what the thread library keeps are small.
        assert!(measured.expect("installed in tests") < ByteSize::kib(64), "{measured:?}");
    }

    /// Allocates when its thread's other thread-locals are gone.
    struct Late(std::sync::mpsc::Sender<usize>);

    impl Drop for Late {
        fn drop(&mut self) {
            let _ = self.0.send(black_box(vec![7_u8; 100_000]).len());
        }
    }

    #[test]
    fn a_thread_may_allocate_while_it_is_torn_down() {
        thread_local! {
            static LATE: std::cell::RefCell<Option<Late>> = const { std::cell::RefCell::new(None) };
        }
        let (send, receive) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || LATE.with(|late| *late.borrow_mut() = Some(Late(send))));
        thread.join().expect("it does not panic");
        assert_eq!(receive.recv_timeout(Duration::from_secs(10)), Ok(100_000));
    }

    /// Pages of this process that were made so far.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn faults() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/stat").expect("this is Linux");
        let mut fields = status.rsplit(')').next().expect("a name comes first").split_whitespace();
        fields.nth(7).and_then(|faults| faults.parse().ok()).expect("the tenth field is a number")
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn buffers_that_come_and_go_are_not_made_of_fresh_pages_each_time() {
        keep_buffers();
        let fill = || drop(black_box((0..8).map(|_| vec![1_u8; 512 << 10]).collect::<Vec<_>>()));
        fill();
        let before = faults();
        (0..16).for_each(|_| fill());
        // Of fresh pages these were 16,384 faults.
        assert!(faults() - before < 2_000, "{} faults", faults() - before);
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn memory_of_c_code_is_seen_beside_rusts() {
        let before = native_bytes().expect("installed, glibc").0;
        let rust = black_box(vec![1_u8; 32 << 20]);
        // SAFETY: the block is freed below and never read.
        let block = black_box(unsafe { libc::malloc(64 << 20) });
        let after = native_bytes().expect("installed, glibc").0;
        // SAFETY: it came from `malloc` above and is freed once.
        unsafe { libc::free(block) };
        drop(rust);
        let seen = after.saturating_sub(before);
        // Tests of other modules allocate at the same time; theirs are far smaller.
        assert!((56 << 20..72 << 20).contains(&seen), "{seen} bytes seen of {}", 64 << 20);
    }
}
