//! Segments for devices, on doubles of the drivers' libraries and without.

use std::path::{Path, PathBuf};
use std::process::Command;

use hshm_client::{BackendKind, Client, CreateOptions, DeviceChoice, Error, ThreadLocalAllocator};

use crate::doubles::{self, Double, GpuVendor};
use crate::harness::{Daemon, assert_refused, wait_until};

const KINDS: [(GpuVendor, &str); 2] =
    [(GpuVendor::Cuda, "cuda-shm"), (GpuVendor::Rocm, "rocm-shm")];

/// What names no library, so that a machine's own driver plays no part.
const NOWHERE: &str = "/nowhere/libdriver.so";

fn double(vendor: GpuVendor) -> PathBuf {
    doubles::library(vendor, Double::Whole)
}

/// A daemon on a machine without drivers.
fn without() -> Daemon {
    let nowhere = Path::new(NOWHERE);
    Daemon::start_with(&[("HSHM_LIBCUDA", nowhere), ("HSHM_LIBAMDHIP64", nowhere)])
}

fn with_both() -> Daemon {
    let (cuda, rocm) = (double(GpuVendor::Cuda), double(GpuVendor::Rocm));
    Daemon::start_with(&[("HSHM_LIBCUDA", &cuda), ("HSHM_LIBAMDHIP64", &rocm)])
}

#[test]
fn without_a_driver_nothing_is_made_and_the_reason_is_told() {
    let daemon = without();
    daemon.text("create known --size 2M");
    for (vendor, kind) in KINDS {
        let output = daemon.ctl(&format!("create g --size 2M --backend {kind}"));
        assert_refused(&output, &["\"g\"", kind, &vendor.to_string(), NOWHERE, "posix-shm"]);
    }
    assert_eq!(daemon.names(), ["known"]);
    assert_eq!(daemon.objects("known").len(), 1);
    let status = daemon.text("status");
    assert!(status.contains("CUDA: there is no CUDA driver"), "{status}");
    assert!(status.contains("ROCm: there is no ROCm driver"), "{status}");
    assert_refused(&daemon.ctl("inspect g"), &["no segment"]);
}

#[test]
fn status_tells_the_drivers_and_their_devices() {
    let daemon = with_both();
    let status = daemon.text("status");
    let cuda = "CUDA 12.4: 0 Double 0 with 16 GiB; 1 Double 1 with 16 GiB, native host atomics";
    assert!(status.contains(cuda), "{status}");
    assert!(status.contains("ROCm 6.3: 0 Double 0 with 16 GiB; 1 Double 1"), "{status}");
    let drivers = &daemon.json("status")["drivers"];
    assert_eq!(drivers[0]["driver"]["version"], "12.4");
    assert_eq!(drivers[1]["driver"]["devices"][1]["name"], "Double 1");
}

#[test]
fn one_of_two_drivers_is_enough_for_its_kind() {
    let rocm = double(GpuVendor::Rocm);
    let settings = [("HSHM_LIBCUDA", Path::new(NOWHERE)), ("HSHM_LIBAMDHIP64", rocm.as_path())];
    let daemon = Daemon::start_with(&settings);
    daemon.text("create r --size 2M --backend rocm-shm");
    assert_refused(&daemon.ctl("create c --size 2M --backend cuda-shm"), &["no CUDA driver"]);
    assert_eq!(daemon.names(), ["r"]);
}

#[test]
fn a_segment_for_devices_shows_its_device_and_registration() {
    let daemon = with_both();
    for (vendor, kind) in KINDS {
        let name = format!("s-{kind}");
        let created = daemon.text(&format!("create {name} --size 2M --backend {kind}"));
        assert!(created.contains(kind), "{created}");
        let inspected = daemon.json(&format!("inspect {name}"));
        assert_eq!(inspected["segment"]["backend"], kind);
        assert_eq!(inspected["device"]["device_name"], "Double 0");
        let size = &inspected["segment"]["committed_bytes"];
        assert_eq!(&inspected["device"]["registered_bytes"], size);
        let text = daemon.text(&format!("inspect {name}"));
        let device = format!("{vendor} 0, Double 0");
        assert!(text.contains(&device) && text.contains("taken by the driver"), "{text}");
        assert!(text.contains("/dev/shm/"), "{text}");
        // The double's first device says no.
        assert_eq!(inspected["device"]["host_native_atomics"], false);
        let words = "each modify words of their own";
        assert!(text.contains("native host atomics") && text.contains(words), "{text}");
        assert!(daemon.text(&format!("check {name}")).contains("is sound"));
        // Grown, it is registered as long as it is then.
        daemon.text(&format!("grow {name} --size 8M"));
        let inspected = daemon.json(&format!("inspect {name}"));
        assert_eq!(inspected["device"]["registered_bytes"], 8 << 20);
        daemon.text(&format!("destroy {name}"));
    }
    daemon.text("create plain --size 2M");
    assert!(daemon.json("inspect plain")["device"].is_null());
}

#[test]
fn what_an_older_release_does_not_tell_is_not_known() {
    let library = double(GpuVendor::Rocm);
    let settings =
        [("HSHM_LIBAMDHIP64", library.as_path()), ("HSHM_DOUBLE_HIP", Path::new("50221153"))];
    let daemon = Daemon::start_with(&settings);
    daemon.text("create r --size 2M --backend rocm-shm");
    assert!(daemon.json("inspect r")["device"]["host_native_atomics"].is_null());
    let text = daemon.text("inspect r");
    assert!(text.contains("native host atomics") && text.contains("not known"), "{text}");
}

#[test]
fn a_driver_that_refuses_leaves_nothing_behind() {
    for (vendor, kind) in KINDS {
        let library = double(vendor);
        let call =
            if vendor == GpuVendor::Cuda { "cuMemHostRegister_v2" } else { "hipHostRegister" };
        let failure = format!("{call}=801");
        let daemon = Daemon::start_with(&[
            (doubles::variable(vendor), &library),
            ("HSHM_DOUBLE_FAIL", Path::new(&failure)),
        ]);
        daemon.text("create known --size 2M");
        let output = daemon.ctl(&format!("create g --size 2M --backend {kind}"));
        assert_refused(&output, &["code 801", "not supported"]);
        assert_eq!((daemon.names().len(), daemon.objects("known").len()), (1, 1));
    }
}

/// Debian's own library of ROCm, as the name that it is loaded by.
const REAL_ROCM: &str = "libamdhip64.so.5";

#[test]
#[ignore = "needs ROCm's own library: apt-get install libamdhip64-5"]
fn the_real_library_of_rocm_without_a_device_says_so_and_nothing_is_left() {
    if Path::new("/dev/kfd").exists() {
        return;
    }
    let daemon = Daemon::start_with(&[
        ("HSHM_LIBCUDA", Path::new(NOWHERE)),
        ("HSHM_LIBAMDHIP64", Path::new(REAL_ROCM)),
    ]);
    daemon.text("create known --size 2M");
    let output = daemon.ctl("create g --size 2M --backend rocm-shm");
    assert_refused(&output, &["\"g\"", "rocm-shm", "the ROCm driver finds no device"]);
    assert_eq!(daemon.names(), ["known"]);
    assert_eq!(daemon.objects("known").len(), 1);
    let status = daemon.text("status");
    assert!(status.contains("ROCm: the ROCm driver finds no device"), "{status}");
    let drivers = &daemon.json("status")["drivers"];
    assert!(drivers[1]["driver"].is_null(), "{drivers}");
    // And by its usual names.
    let child = Command::new(env!("CARGO_BIN_EXE_hshmd"))
        .args(["--gpu-probe", "rocm"])
        .env_remove("HSHM_LIBAMDHIP64")
        .output()
        .unwrap();
    let said = String::from_utf8(child.stdout).unwrap();
    assert!(child.status.success() && said.contains("finds no device"), "{said}");
}

/// What a user of a machine with devices does, on each vendor's first one.
#[test]
#[ignore = "needs a device"]
#[allow(clippy::print_stdout, reason = "whoever runs this by hand wants to see it")]
fn on_a_real_device() {
    let daemon = Daemon::start();
    let status = daemon.json("status");
    println!("{}", daemon.text("status"));
    let mut found = 0;
    for (driver, (vendor, kind)) in status["drivers"].as_array().unwrap().iter().zip(KINDS) {
        if driver["driver"].is_null() {
            println!("{vendor}: nothing runs: {}", driver["problem"]);
            continue;
        }
        found += 1;
        println!("{}", daemon.text(&format!("create g --size 16M --backend {kind}")));
        let inspected = daemon.json("inspect g");
        let device = &driver["driver"]["devices"][0];
        assert_eq!(inspected["device"]["device_name"], device["name"]);
        assert_eq!(inspected["device"]["host_native_atomics"], device["host_native_atomics"]);
        let size = &inspected["segment"]["committed_bytes"];
        assert_eq!(&inspected["device"]["registered_bytes"], size);
        println!("{}", daemon.text("inspect g"));
        let mut worker = Command::new(std::env::current_exe().unwrap());
        worker.args(["gpu::device_worker", "--exact", "--ignored", "--nocapture"]);
        worker.env("HSHM_TEST_SOCKET", daemon.socket());
        assert!(worker.status().unwrap().success(), "{vendor}");
        assert!(daemon.text("check g").contains("is sound"));
        daemon.text("destroy g");
        // Memory of its own, which a process ended after it was taken and before anybody else had it mapped.
        let create = format!("create g --size 16M --backend {kind} --device-memory 64M");
        println!("{}", daemon.text(&create));
        for _ in 0..2 {
            assert!(worker.status().unwrap().success(), "{vendor}");
        }
        assert_eq!(daemon.json("inspect g")["device"]["memory"]["allocated_blocks"], 0);
        assert!(daemon.text("check g").contains("is sound"));
        daemon.text("destroy g");
    }
    assert_ne!(found, 0, "this machine has no device");
}

/// A worker that has the segment `g` registered, and its device memory mapped if it has some.
#[test]
#[ignore = "another test runs it, in a process of its own"]
fn device_worker() {
    let Some(socket) = std::env::var_os("HSHM_TEST_SOCKET") else { return };
    let client = Client::builder().socket(socket).connect().unwrap();
    let choice = DeviceChoice::Number(0);
    let segment = client.attach_with::<ThreadLocalAllocator>("g", choice).unwrap();
    let block = segment.put_bytes(b"for the device").unwrap();
    let memory = segment.backend().device().unwrap();
    memory.device_address(0, block.offset_bytes(), 14).unwrap();
    // SAFETY: [owned] nobody else knows of the block.
    unsafe { segment.free(block) }.unwrap();
    if client.device_pool("g").unwrap().is_some() {
        let part = segment.device_part(None).unwrap();
        let block = part.allocate(1 << 20).unwrap();
        part.device_address(block, 1 << 20).unwrap();
        // SAFETY: [owned] as above.
        unsafe { part.free(block) }.unwrap();
    }
    segment.detach().unwrap();
}

#[test]
fn a_library_that_is_too_old_is_told() {
    let library = doubles::library(GpuVendor::Rocm, Double::Lacking);
    let daemon = Daemon::start_with(&[("HSHM_LIBAMDHIP64", &library)]);
    assert!(daemon.text("status").contains("lacks the function hipHostUnregister"));
}

#[test]
fn a_driver_that_crashes_is_not_the_daemons_end() {
    let library = double(GpuVendor::Cuda);
    let daemon = Daemon::start_with(&[
        ("HSHM_LIBCUDA", &library),
        ("HSHM_LIBAMDHIP64", Path::new(NOWHERE)),
        ("HSHM_DOUBLE_CRASH", Path::new("1")),
    ]);
    assert_refused(
        &daemon.ctl("create g --size 2M --backend cuda-shm"),
        &["the CUDA driver cannot be asked", "signal"],
    );
    assert!(daemon.text("status").contains("CUDA: the CUDA driver cannot be asked"));
    assert!(daemon.names().is_empty());
}

#[test]
fn a_restarted_daemon_knows_what_is_for_devices_even_without_its_records() {
    let mut daemon = with_both();
    for (_, kind) in KINDS {
        daemon.text(&format!("create s-{kind} --size 2M --backend {kind}"));
    }
    daemon.kill();
    std::fs::remove_dir_all(daemon.path().join("state/segments")).unwrap();
    daemon.restart();
    for (_, kind) in KINDS {
        assert_eq!(daemon.json(&format!("inspect s-{kind}"))["segment"]["backend"], kind);
    }
}

/// Attaches in a process of its own, and answers what the scenario says.
#[test]
fn workers_register_for_themselves_or_go_without() {
    let daemon = with_both();
    for (vendor, kind) in KINDS {
        daemon.text(&format!("create w-{kind} --size 2M --backend {kind}"));
        for (setting, expected) in [("double", "registered"), ("nowhere", "plain")] {
            let library = if setting == "double" { double(vendor) } else { PathBuf::from(NOWHERE) };
            let mut worker = Command::new(std::env::current_exe().unwrap());
            worker.args(["gpu::worker", "--exact", "--ignored", "--nocapture"]);
            worker
                .env("HSHM_TEST_SOCKET", daemon.socket())
                .env("HSHM_TEST_SEGMENT", format!("w-{kind}"));
            worker.env(doubles::variable(vendor), library);
            let output = worker.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(
                said.contains(&format!("worker: {expected}")),
                "{kind} {setting}: {said}{errors}"
            );
        }
        wait_until("the daemon sees that the workers ended", || {
            daemon.json(&format!("inspect w-{kind}"))["segment"]["holders"] == 0
        });
        let heap = &daemon.json(&format!("inspect w-{kind}"))["heap"];
        assert_eq!(heap["allocated_blocks"], 0);
    }
}

#[test]
#[ignore = "another test runs it, in a process of its own"]
#[allow(clippy::print_stdout, reason = "the process that runs this one reads it")]
fn worker() {
    let Some(socket) = std::env::var_os("HSHM_TEST_SOCKET") else { return };
    let name = std::env::var("HSHM_TEST_SEGMENT").unwrap();
    let client = Client::builder().socket(socket).connect().unwrap();
    let segment = client.attach(&name).unwrap();
    let memory = segment.backend().device().unwrap();
    let block = segment.put_bytes(b"for the device").unwrap();
    let found = memory.device_address(0, block.offset_bytes(), 14);
    let said = if memory.registration().is_some() {
        let host = segment.resolve(block, 14).unwrap().addr().get() as u64;
        assert_ne!(found.unwrap(), host);
        "registered"
    } else {
        assert!(found.is_err());
        // Who must have the device is told why there is none.
        let first = client.attach_with::<ThreadLocalAllocator>(&name, DeviceChoice::Number(0));
        let Err(Error::Segment { source, .. }) = first else { panic!("attached without a driver") };
        assert!(source.to_string().contains("there is no"), "{source}");
        "plain"
    };
    let mut text = [0; 14];
    segment.read_bytes(block, &mut text).unwrap();
    assert_eq!(&text, b"for the device");
    // SAFETY: [owned] nobody else knows of the block.
    unsafe { segment.free(block) }.unwrap();
    let without = client.attach_with::<ThreadLocalAllocator>(&name, DeviceChoice::None).unwrap();
    assert_eq!(without.backend().device().unwrap().registration(), None);
    without.detach().unwrap();
    let options = CreateOptions { backend: BackendKind::Memfd, ..CreateOptions::new("m", 1 << 20) };
    if client.create(&options).is_ok() {
        // What is not for devices does not mind which is chosen.
        client.attach_with::<ThreadLocalAllocator>("m", DeviceChoice::Number(77)).unwrap();
        client.destroy("m", true).unwrap();
    }
    segment.detach().unwrap();
    println!("worker: {said}");
}
