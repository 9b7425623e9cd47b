//! The groups of whoever is at the other end of a connection.
#![allow(unsafe_code, reason = "nix has no such socket option")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

/// Room for as many as nearly everybody has. Whoever has more costs a second call.
const FEW: usize = 32;

/// Its groups besides the first, as they were when it connected (`SO_PEERGROUPS`).
pub(crate) fn of(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0; FEW];
    loop {
        match read(socket, &mut groups) {
            Ok(count) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // They cannot become more meanwhile, and the kernel knows of no more than 65536.
            Err((Errno::ERANGE, count)) if count > groups.len() => groups.resize(count, 0),
            Err((errno, _)) => return Err(errno.into()),
        }
    }
}

/// Puts them into `groups` and says how many they are, also if they are too many.
fn read(socket: &impl AsFd, groups: &mut [u32]) -> Result<usize, (Errno, usize)> {
    let bytes = size_of_val(groups);
    let mut len = libc::socklen_t::try_from(bytes).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: [ffi] `groups` has `len` bytes, which the kernel does not write beyond; any number is
    // a group's.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    let count = usize::try_from(len).unwrap_or(usize::MAX) / size_of::<u32>();
    if done == 0 { Ok(count) } else { Err((Errno::last(), count)) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_groups_of_whoever_connected_are_found_however_many_they_are() {
        let mut expected: Vec<u32> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        expected.sort_unstable();
        let (_near, far) = UnixStream::pair().unwrap();
        let mut found = of(&far).unwrap();
        found.sort_unstable();
        assert_eq!(found, expected);
        // With too little room it is said how much there must be.
        if !expected.is_empty() {
            assert_eq!(read(&far, &mut []), Err((Errno::ERANGE, expected.len())));
        }
    }
}
