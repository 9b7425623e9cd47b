//! The examples of the book: each block of Rust in it is compiled and run as a documentation test of
//! this crate. Those that need a daemon include `tests/book/daemon.rs` in hidden lines. Its shell sessions
//! are run by `tests/tests/book.rs`, which also sees to it that no page is missing here.

macro_rules! pages {
    ($($name:ident: $path:literal),* $(,)?) => {
        $(
            #[doc = include_str!(concat!("../../docs/book/src/", $path))]
            pub struct $name;
        )*
    };
}

pages! {
    Patterns: "application/patterns.md",
    Lifetimes: "application/lifetimes.md",
    Processes: "application/processes.md",
    Crashes: "application/crashes.md",
    Allocators: "application/allocators.md",
    Collections: "application/collections.md",
    Devices: "devices.md",
}
