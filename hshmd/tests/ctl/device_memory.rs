//! Memory of a device's own that belongs to a segment, on doubles of the drivers' libraries. Theirs is memory of the
//! host's, so that this test can look at it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hshm_client::{Client, DevicePart, Error, ErrorCode, OffsetPointer};

use crate::doubles::{self, Double, GpuVendor};
use crate::harness::{Daemon, assert_refused, wait_until};

/// How far the doubles' addresses on the device are from the host's.
const SHIFT: u64 = 1 << 52;
const MIB: u64 = 1 << 20;

fn double(vendor: GpuVendor) -> PathBuf {
    doubles::library(vendor, Double::Whole)
}

fn kind(vendor: GpuVendor) -> &'static str {
    match vendor {
        GpuVendor::Cuda => "cuda-shm",
        GpuVendor::Rocm => "rocm-shm",
    }
}

fn daemon_of(vendor: GpuVendor, more: &[(&str, &Path)]) -> Daemon {
    let library = double(vendor);
    let mut settings = vec![(doubles::variable(vendor), library.as_path())];
    settings.extend_from_slice(more);
    Daemon::start_with(&settings)
}

/// A worker in a process of its own, which has the double.
fn worker(daemon: &Daemon, vendor: GpuVendor, what: &str) -> Child {
    let mut worker = Command::new(std::env::current_exe().unwrap());
    worker.args(["device_memory::work", "--exact", "--ignored", "--nocapture"]);
    worker.env("HSHM_TEST_SOCKET", daemon.socket()).env("HSHM_TEST_WORK", what);
    worker.env(doubles::variable(vendor), double(vendor));
    worker.stdout(Stdio::null()).spawn().unwrap()
}

fn pool(daemon: &Daemon, what: &str) -> u64 {
    daemon.json("inspect g")["device"]["memory"][what].as_u64().unwrap()
}

#[test]
fn device_memory_is_shared_and_outlives_who_allocated_and_wrote_it() {
    for vendor in GpuVendor::ALL {
        let mut daemon = daemon_of(vendor, &[]);
        let line = format!(
            "create g --size 4M --backend {} --device-memory 5M --device 1 --custom-header 64",
            kind(vendor)
        );
        let said = daemon.text(&line);
        assert!(said.contains(&format!("with 6 MiB of {vendor} device 1")), "{said}");
        assert_eq!((pool(&daemon, "bytes"), pool(&daemon, "allocated_blocks")), (6 * MIB, 0));
        // One process writes, and is killed with more in its hand.
        let mut writer = worker(&daemon, vendor, "write");
        wait_until("the writer holds two blocks", || pool(&daemon, "allocated_blocks") == 2);
        writer.kill().unwrap();
        writer.wait().unwrap();
        wait_until("the daemon sees that it died", || {
            daemon.json("inspect g")["segment"]["holders"] == 0
        });
        assert!(daemon.text("check g").contains("is sound"));
        // Another finds what it wrote, and frees it; the block that was in no cell stays.
        assert!(worker(&daemon, vendor, "read").wait().unwrap().success());
        assert_eq!(pool(&daemon, "allocated_blocks"), 1);
        let text = daemon.text("inspect g");
        assert!(text.contains("own memory") && text.contains("6 MiB of device 1"), "{text}");
        // Without a service manager it goes with the daemon, and is asked for anew.
        daemon.kill();
        daemon.restart();
        assert!(daemon.json("inspect g")["device"]["memory"].is_null());
        let segment = daemon.client().attach("g").unwrap();
        let Err(Error::Daemon(gone)) = segment.device_part(None) else { panic!("it is there") };
        assert_eq!(gone.kind(), Some(ErrorCode::NotFound));
        assert!(gone.to_string().contains("device memory"), "{gone}");
    }
}

#[test]
fn device_memory_that_cannot_be_had_leaves_no_segment() {
    for vendor in GpuVendor::ALL {
        let prefix = if vendor == GpuVendor::Cuda { "cu" } else { "hip" };
        let failure = format!("{prefix}MemCreate=2");
        let daemon = daemon_of(vendor, &[("HSHM_DOUBLE_FAIL", Path::new(&failure))]);
        let create = format!("create g --size 4M --backend {}", kind(vendor));
        let output = daemon.ctl(&format!("{create} --device-memory 1G"));
        assert_refused(&output, &["\"g\"", "MemCreate", "code 2", "out of memory"]);
        let output = daemon.ctl(&format!("{create} --device-memory 2M --device 7"));
        assert_refused(&output, &["\"g\"", "device 7", "the driver shows 2"]);
        assert!(daemon.names().is_empty());
        // Nor is a segment that is not for devices, or whose allocator cannot keep the tables, any good for it.
        for wrong in ["--backend posix-shm", "--backend memfd"] {
            let output = daemon.ctl(&format!("create g --size 4M {wrong} --device-memory 2M"));
            assert_refused(&output, &["not for devices", "cuda-shm"]);
        }
        let output = daemon.ctl(&format!("{create} --allocator stack --device-memory 2M"));
        assert_refused(&output, &["thread-local"]);
        assert!(daemon.names().is_empty());
        daemon.text(&create);
        let client = daemon.client();
        let none = client.attach("g").unwrap().device_part(None).unwrap_err();
        assert_eq!(none.daemon_code(), Some(ErrorCode::NotFound));
        assert!(client.device_pool("g").unwrap().is_none());
    }
}

#[test]
fn a_segment_has_device_memory_once_and_none_after_it_was_made_anew() {
    let daemon = daemon_of(GpuVendor::Cuda, &[]);
    let create = "create g --size 4M --backend cuda-shm";
    daemon.text(&format!("{create} --device-memory 2M"));
    let client = daemon.client();
    let again = client.add_device_memory("g", 0, MIB).unwrap_err();
    assert_eq!(again.daemon_code(), Some(ErrorCode::Exists));
    let zero = client.add_device_memory("g", 0, 0).unwrap_err();
    assert_eq!(zero.daemon_code(), Some(ErrorCode::BadArgument));
    daemon.text("destroy g");
    daemon.text(create);
    assert!(client.device_pool("g").unwrap().is_none());
    client.add_device_memory("g", 1, MIB).unwrap();
    assert_eq!(client.device_pool("g").unwrap().unwrap().0.device, 1);
}

/// The words of a block, by an address on the double's device.
fn word(part: &DevicePart, block: OffsetPointer) -> *mut u64 {
    let address = part.device_address(block, 8).unwrap() - SHIFT;
    std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap())
}

#[test]
#[ignore = "another test runs it, in a process of its own"]
fn work() {
    let (Some(socket), Ok(what)) =
        (std::env::var_os("HSHM_TEST_SOCKET"), std::env::var("HSHM_TEST_WORK"))
    else {
        return;
    };
    let client = Client::builder().socket(socket).connect().unwrap();
    let segment = client.attach("g").unwrap();
    // The tables of device memory are found by the daemon's word; the application's header is its own.
    let cell = segment.custom_header().0;
    // As this process counts the devices.
    let part = segment.device_part(Some(0)).unwrap();
    if what == "write" {
        let block = part.allocate_into(cell, 10_000).unwrap();
        assert_eq!(part.usable_bytes(block).unwrap(), 12_288);
        // SAFETY: [owned] the block was just allocated, and on the double the host can write to it.
        unsafe { word(&part, block).write(0xfeed) };
        part.allocate(1).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(120));
    } else {
        let block = segment.read_cell(cell).unwrap();
        // SAFETY: [owned] its writer is dead.
        assert_eq!(unsafe { word(&part, block).read() }, 0xfeed);
        assert!(part.device_address(block, 8 * MIB).is_none());
        // SAFETY: [owned] as above.
        assert!(unsafe { part.free_from(cell) }.unwrap());
    }
}
