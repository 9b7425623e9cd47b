//! A device's own memory, passed from one process to another.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;

use hshm_memory::gpu::DeviceBuffer;
use hshm_memory::gpu::arena::ArenaOptions;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::bench::{Bench, Named};
use crate::gpu::Gpu;
use crate::say;

const MIB: u64 = 1 << 20;

/// For the board. Its name goes away at once: one of the processes is killed.
fn bench(gpu: &Gpu) -> Bench {
    let name = Named(format!("hshm-test-device-own.{}", std::process::id()));
    let arena = ArenaOptions { bytes: MIB, ring_entries: 16 };
    Bench::create(gpu.vendor, &name, 16 * MIB, arena)
}

/// Runs a kernel over all of the buffer, whose threads say how many words they wrote or found right.
fn run(gpu: &Gpu, bench: &Bench, kernel: &str, buffer: &DeviceBuffer, value: u64) {
    let (groups, threads) = if gpu.is_double { (1, 4) } else { (64, 256) };
    let count = buffer.bytes() / 8;
    let (said, _) = bench.sweep(gpu, groups, threads).run(kernel, buffer.address(), count, value);
    assert_eq!(said, count, "{kernel} {value}");
}

fn killed(mut maker: Child) {
    maker.kill().unwrap();
    assert_eq!(maker.wait().unwrap().signal(), Some(9));
}

/// One process makes memory on the device, fills it, and passes it on; the other finds what stands there, changes it
/// where the first sees it, and has it still when the first was killed.
pub(crate) fn passed(gpu: &Gpu, start_maker: impl Fn(OwnedFd) -> Child) {
    let bench = bench(gpu);
    let (mut here, there) = UnixStream::pair().unwrap();
    let maker = start_maker(there.into());
    let (file, bytes) = receive(&here);
    let buffer = DeviceBuffer::from_fd(gpu.vendor, 0, file, bytes).unwrap();
    run(gpu, &bench, "check_own", &buffer, 1);
    run(gpu, &bench, "write_own", &buffer, 2);
    here.write_all(&[1]).unwrap();
    let mut byte = [0];
    here.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [2], "the maker saw what was written here");
    killed(maker);
    run(gpu, &bench, "check_own", &buffer, 3);
    drop(buffer);
    bench.assert_empty();
    say(gpu, &format!("{} MiB of the device's own memory passed and kept", bytes >> 20));
}

/// Nothing but a descriptor is left of the memory that a process made and filled, as the daemon has it between two
/// clients: who maps it then finds what stood there.
pub(crate) fn kept(gpu: &Gpu, start_maker: impl Fn(OwnedFd) -> Child) {
    let bench = bench(gpu);
    let (here, there) = UnixStream::pair().unwrap();
    let maker = start_maker(there.into());
    let (file, bytes) = receive(&here);
    killed(maker);
    let again = || file.try_clone().unwrap();
    for value in [1, 2] {
        let buffer = DeviceBuffer::from_fd(gpu.vendor, 0, again(), bytes).unwrap();
        run(gpu, &bench, "check_own", &buffer, value);
        run(gpu, &bench, "write_own", &buffer, value + 1);
    }
    bench.assert_empty();
    say(gpu, "the device's own memory outlived all who had it mapped");
}

/// The first of the two processes. Its standard input leads to the other.
pub(crate) fn maker(gpu: &Gpu) {
    let bench = bench(gpu);
    let buffer = DeviceBuffer::create(gpu.vendor, 0, 4 * MIB).unwrap();
    run(gpu, &bench, "write_own", &buffer, 1);
    let mut other = UnixStream::from(std::io::stdin().lock().as_fd().try_clone_to_owned().unwrap());
    let descriptor = [buffer.fd().as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptor)];
    let text = buffer.bytes().to_le_bytes();
    let parts = [IoSlice::new(&text)];
    sendmsg::<()>(other.as_raw_fd(), &parts, &control, MsgFlags::empty(), None).unwrap();
    let mut byte = [0];
    other.read_exact(&mut byte).unwrap();
    run(gpu, &bench, "check_own", &buffer, 2);
    run(gpu, &bench, "write_own", &buffer, 3);
    other.write_all(&[2]).unwrap();
    // Until it is killed, or the other is gone.
    let _ = other.read(&mut byte);
}

fn receive(socket: &UnixStream) -> (OwnedFd, u64) {
    let mut text = [0; 8];
    let mut control = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags).unwrap();
    let Some(ControlMessageOwned::ScmRights(passed)) = message.cmsgs().unwrap().next() else {
        panic!("no descriptor came");
    };
    // SAFETY: [owned] the kernel just made the descriptor for this process.
    let file = unsafe { OwnedFd::from_raw_fd(passed[0]) };
    (file, u64::from_le_bytes(text))
}
