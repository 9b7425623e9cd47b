//! What operating systems do each in their own way, and the logic of this library asks for alike.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub(crate) use self::unix::*;
#[cfg(windows)]
pub(crate) use self::windows::*;

/// What runs at a fork.
pub(crate) type ForkHandler = extern "C" fn();
