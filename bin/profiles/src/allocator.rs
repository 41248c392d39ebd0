//! The system's allocator, with a look at some of what passes. It is that of the C library and not another,
//! because a node's idle memory is what the mirror is judged by, and arenas cost more of it than they save time.

#![allow(unsafe_code, reason = "a global allocator cannot be had without")]

use std::alloc::{GlobalAlloc, Layout, System};

use crate::heap;

/// Allocates from the system; some of it is noted once [`heap::start`] was called, and nothing before.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: all memory is the system allocator's, to which every call is passed on as it came; what is noted of
// addresses is never used to reach memory.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the system allocator asks for.
        let pointer = unsafe { System.alloc(layout) };
        heap::allocated(pointer, layout.size());
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        heap::allocated(pointer, layout.size());
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // First: as soon as it is free, another thread may be given the same address.
        heap::freed(pointer);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        heap::freed(pointer);
        // SAFETY: as above.
        let pointer = unsafe { System.realloc(pointer, layout, size) };
        heap::allocated(pointer, size);
        pointer
    }
}
