//! What needs a device: kernels that use a live segment beside the host's threads.
//!
//! Where there is one, this runs it all there, and prints what was measured:
//!
//! ```text
//! cargo test --release -p hshm-memory --features cuda,rocm --test device -- --ignored --nocapture on_a_real_device
//! ```
//!
//! The kernels are compiled when they are needed, by the vendor's library for that (NVRTC or hiprtc;
//! `HSHM_LIBNVRTC` and `HSHM_LIBHIPRTC` name others), or by clang (`CLANG`); or `HSHM_KERNELS` names a file with them. Without
//! a device the same runs on the doubles of the drivers' libraries, whose threads are the host's.

#![cfg(all(unix, not(hshm_loom)))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bench;
mod compiler;
#[path = "../gpu/doubles.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod doubles;
mod gpu;
mod own;
mod scenarios;

use std::env;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hshm_memory::gpu::GpuVendor;

use self::compiler::RuntimeCompiler;
use self::doubles::Double;
use self::gpu::Gpu;

/// For whose devices a process is to run the scenarios.
const VENDOR: &str = "HSHM_TEST_VENDOR";
/// The object of the segment in which a process's kernels are to work until it is killed.
const VICTIM: &str = "HSHM_TEST_VICTIM";

/// Set for a process that makes memory on the device, and passes it on.
const MAKER: &str = "HSHM_TEST_MAKER";

/// How long all of it may take on one vendor's device. What hangs is ended, and its kernels with it.
const PATIENCE: Duration = Duration::from_secs(300);
/// How much shared memory it needs.
const ROOM_BYTES: u64 = 192 << 20;

/// Prints what was measured.
#[allow(clippy::print_stdout, reason = "whoever runs this by hand wants to see it")]
fn say(gpu: &Gpu, what: &str) {
    println!("{}: {what}", gpu.vendor);
}

/// This test in a process of its own: a driver, once loaded, is a process's for good.
fn again(vendor: GpuVendor) -> Command {
    let mut process = Command::new(env::current_exe().unwrap());
    process.args(["kit", "--exact", "--ignored", "--nocapture"]);
    process.env(VENDOR, vendor.to_string().to_lowercase());
    process
}

#[test]
#[ignore = "another test runs it, in a process of its own"]
fn kit() {
    let Ok(vendor) = env::var(VENDOR) else { return };
    let gpu = Gpu::open(vendor.parse().unwrap()).unwrap();
    if let Ok(object) = env::var(VICTIM) {
        scenarios::victim(&gpu, &object);
        return;
    }
    if env::var_os(MAKER).is_some() {
        own::maker(&gpu);
        return;
    }
    scenarios::attributes(&gpu);
    scenarios::host_blocks(&gpu);
    scenarios::threads(&gpu);
    scenarios::shared_heap(&gpu);
    scenarios::rate(&gpu);
    scenarios::bandwidth(&gpu);
    scenarios::killed(&gpu, |object| victim(gpu.vendor, object));
    // Last: not every device, and not every release of a driver, can share its own memory.
    own::passed(&gpu, |socket| maker(gpu.vendor, socket));
    own::kept(&gpu, |socket| maker(gpu.vendor, socket));
    say(&gpu, "done");
}

fn victim(vendor: GpuVendor, object: &str) -> Child {
    again(vendor).env(VICTIM, object).stdout(Stdio::null()).spawn().unwrap()
}

fn maker(vendor: GpuVendor, socket: OwnedFd) -> Child {
    again(vendor).env(MAKER, "1").stdin(socket).stdout(Stdio::null()).spawn().unwrap()
}

/// Runs a process to its end, or ends it: what it said, which is passed on as it comes, and how it ended.
#[allow(clippy::print_stdout, reason = "whoever runs this by hand wants to see it")]
fn run(mut process: Command) -> (String, ExitStatus) {
    let mut child = process.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = thread::spawn(move || {
        let mut said = String::new();
        for line in lines.map_while(Result::ok) {
            println!("{line}");
            said.push_str(&line);
            said.push('\n');
        }
        said
    });
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it did not end within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(20));
    };
    (reader.join().unwrap(), status)
}

fn assert_done(vendor: GpuVendor, process: Command) {
    let (said, status) = run(process);
    assert!(status.success() && said.contains(&format!("{vendor}: done")), "{vendor}: {status}");
}

#[test]
fn kernels_use_the_segment_on_doubles_of_either_driver() {
    for vendor in GpuVendor::ALL {
        let library = doubles::library(vendor, Double::Whole);
        let mut process = again(vendor);
        process.env(doubles::variable(vendor), library);
        assert_done(vendor, process);
    }
}

#[test]
fn a_kernel_that_hangs_is_named_and_ended() {
    for vendor in GpuVendor::ALL {
        let library = doubles::library(vendor, Double::Whole);
        let mut process = again(vendor);
        process.env(doubles::variable(vendor), library);
        process.env("HSHM_DOUBLE_HANG", "turn_over").env(gpu::PATIENCE, "1");
        let output = process.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("turn_over did not end within 1s"), "{said}");
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{said}");
    }
}

#[test]
fn what_a_driver_refuses_is_told_by_its_name() {
    for (vendor, launch, name) in [
        (GpuVendor::Cuda, "cuLaunchKernel", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (GpuVendor::Rocm, "hipModuleLaunchKernel", "hipErrorIllegalAddress"),
    ] {
        let library = doubles::library(vendor, Double::Whole);
        let mut process = again(vendor);
        process.env(doubles::variable(vendor), library);
        process.env("HSHM_DOUBLE_FAIL", format!("{launch}=700"));
        let output = process.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(name), "{said}");
    }
}

#[test]
#[ignore = "needs a device"]
#[allow(clippy::print_stdout, reason = "whoever runs this by hand wants to see it")]
fn on_a_real_device() {
    let room = scenarios::room_bytes();
    assert!(
        room >= ROOM_BYTES,
        "/dev/shm has room for {} MiB, and {} are needed: docker run --shm-size 1g, say",
        room >> 20,
        ROOM_BYTES >> 20
    );
    let mut found = 0;
    for vendor in GpuVendor::ALL {
        match hshm_memory::gpu::probe(vendor) {
            Err(why) => println!("{vendor}: nothing runs: {why}"),
            Ok(_) => {
                found += 1;
                assert_done(vendor, again(vendor));
            }
        }
    }
    assert_ne!(found, 0, "this machine has no device; without --ignored the same runs on doubles");
}

/// What a device's code has to have of what crosses, and what it must not have.
fn assert_what_crosses(code: &str) {
    for instruction in ["ld.acquire.sys.b64", "st.release.sys.b64", "atom.acq_rel.gpu.cas.b64"] {
        assert!(code.contains(instruction), "there is no {instruction}");
    }
    for line in code.lines() {
        let modifies = ["atom.", "red."].iter().any(|word| line.trim_start().starts_with(word));
        assert!(!(modifies && line.contains(".sys")), "both sides would modify a word: {line}");
    }
}

#[test]
#[ignore = "needs NVRTC: pip download nvidia-cuda-nvrtc, and HSHM_LIBNVRTC"]
fn nvrtc_compiles_the_kernels_for_every_architecture() {
    let compiler = RuntimeCompiler::find(GpuVendor::Cuda).unwrap();
    // The last one is assembled too.
    let compute = ["compute_75", "compute_80", "compute_90", "compute_100", "compute_120"];
    for architecture in compute.into_iter().chain(["sm_90"]) {
        let code = compiler.compile(architecture).unwrap();
        let code = String::from_utf8(code).unwrap();
        assert_eq!(code.matches(".entry").count(), 9, "{architecture}");
        // What is passed to them is as long as they take it for.
        let taken = format!("_param_0[{}]", size_of::<gpu::Kit>());
        assert_eq!(code.matches(&taken).count(), 9, "{architecture}");
        assert_what_crosses(&code);
    }
    // A mistake is told, not swallowed.
    assert!(compiler.compile("compute_1").unwrap_err().contains("compute_1"));
}

#[test]
#[ignore = "needs hiprtc: apt-get install libamdhip64-5, and HSHM_LIBHIPRTC where it has another name"]
fn hiprtc_compiles_the_kernels() {
    let compiler = RuntimeCompiler::find(GpuVendor::Rocm).unwrap();
    for architecture in ["gfx90a", "gfx1030"] {
        let code = compiler.compile(architecture).unwrap();
        assert!(code.starts_with(b"\x7fELF") || code.starts_with(b"__CLANG_OFFLOAD_BUNDLE__"));
    }
}
