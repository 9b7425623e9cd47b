//! Backends for devices, on doubles of the drivers' libraries.
//!
//! A process has one driver of a vendor, for good. So each scenario runs in a process of its own, for
//! each vendor, on a library that is compiled here from `double.c`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod doubles;
mod scenarios;

use std::env;
use std::process::{Command, Output};

use hshm_memory::gpu::GpuVendor;

use self::doubles::Double;

/// Which scenario a process is to run.
const SCENARIO: &str = "HSHM_TEST_SCENARIO";
/// And for whose devices.
const VENDOR: &str = "HSHM_TEST_VENDOR";

/// Runs a scenario in a process of its own.
fn run(scenario: &str, vendor: GpuVendor, settings: &[(&str, &str)]) -> Output {
    let mut process = Command::new(env::current_exe().unwrap());
    process.args(["scenario", "--exact", "--ignored", "--nocapture"]);
    for variable in ["HSHM_LIBCUDA", "HSHM_LIBAMDHIP64", "LD_LIBRARY_PATH"] {
        process.env_remove(variable);
    }
    process.env(SCENARIO, scenario).env(VENDOR, vendor.to_string().to_lowercase());
    process.envs(settings.iter().copied()).output().unwrap()
}

fn assert_done(scenario: &str, vendor: GpuVendor, settings: &[(&str, &str)]) {
    let output = run(scenario, vendor, settings);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let done = said.contains(&format!("scenario {scenario}: done"));
    assert!(output.status.success() && done, "{vendor} {settings:?}: {said}{errors}");
}

/// Runs a scenario on both vendors' doubles, with settings for them.
fn on_doubles(scenario: &str, settings: &[(&str, &str)]) {
    for vendor in GpuVendor::ALL {
        let library = doubles::library(vendor, Double::Whole);
        let mut settings = settings.to_vec();
        settings.push((doubles::variable(vendor), library.to_str().unwrap()));
        assert_done(scenario, vendor, &settings);
    }
}

/// Fails each call of the one named, which CUDA and HIP have under different names.
fn on_doubles_failing(scenario: &str, cuda: &str, hip: &str, code: impl std::fmt::Display) {
    for (vendor, call) in [(GpuVendor::Cuda, cuda), (GpuVendor::Rocm, hip)] {
        let library = doubles::library(vendor, Double::Whole);
        let failure = format!("{call}={code}");
        let settings = [
            ("HSHM_DOUBLE_FAIL", failure.as_str()),
            (doubles::variable(vendor), library.to_str().unwrap()),
        ];
        assert_done(scenario, vendor, &settings);
    }
}

#[test]
#[ignore = "one of the others runs it, in a process of its own"]
#[allow(clippy::print_stdout, reason = "the process that runs this one reads it")]
fn scenario() {
    let (Ok(name), Ok(vendor)) = (env::var(SCENARIO), env::var(VENDOR)) else { return };
    scenarios::run(&name, vendor.parse().unwrap());
    println!("scenario {name}: done");
}

#[test]
fn a_driver_tells_its_version_and_devices() {
    on_doubles("probe", &[]);
}

#[test]
fn a_driver_is_found_by_its_usual_name() {
    for vendor in GpuVendor::ALL {
        let library = doubles::library(vendor, Double::Whole);
        let folder = library.parent().unwrap().to_str().unwrap();
        assert_done("probe", vendor, &[("LD_LIBRARY_PATH", folder)]);
    }
}

#[test]
fn registered_memory_has_other_addresses_on_the_device() {
    on_doubles("register", &[]);
}

#[test]
fn memory_that_was_committed_later_is_registered_when_asked_for() {
    on_doubles("grow", &[]);
}

#[test]
fn pieces_that_are_apart_on_the_device_are_not_taken_for_one() {
    on_doubles("scattered", &[("HSHM_DOUBLE_SCATTER", "1")]);
}

#[test]
fn several_devices_share_one_registration() {
    on_doubles("devices", &[]);
}

#[test]
fn a_number_beyond_the_devices_is_refused() {
    on_doubles("no_such_device", &[]);
}

#[test]
fn a_driver_without_a_device_says_so() {
    on_doubles("no_device", &[("HSHM_DOUBLE_DEVICES", "0")]);
}

#[test]
fn no_driver_is_an_error_that_names_what_was_tried() {
    for vendor in GpuVendor::ALL {
        let variable = doubles::variable(vendor);
        assert_done("no_driver", vendor, &[(variable, "/nowhere/libdriver.so")]);
        assert_done("no_driver_or_device", vendor, &[]);
    }
}

#[test]
fn a_library_that_lacks_a_function_is_refused_before_any_call() {
    for vendor in GpuVendor::ALL {
        let library = doubles::library(vendor, Double::Lacking);
        let settings = [(doubles::variable(vendor), library.to_str().unwrap())];
        assert_done("missing_symbol", vendor, &settings);
    }
}

#[test]
fn a_library_of_something_else_is_refused() {
    for (vendor, other) in [(GpuVendor::Cuda, GpuVendor::Rocm), (GpuVendor::Rocm, GpuVendor::Cuda)]
    {
        let library = doubles::library(other, Double::Whole);
        let settings = [(doubles::variable(vendor), library.to_str().unwrap())];
        assert_done("another_library", vendor, &settings);
    }
}

#[test]
fn refused_registrations_are_told_by_their_numbers() {
    for (code, scenario) in [
        (2, "out_of_memory"),
        (712, "registered_already"),
        (801, "not_supported"),
        (4242, "unknown_code"),
    ] {
        on_doubles_failing(scenario, "cuMemHostRegister_v2", "hipHostRegister", code);
    }
}

#[test]
fn a_driver_that_fails_on_the_way_leaves_nothing_registered() {
    for (cuda, hip) in [
        ("cuDeviceGetCount", "hipGetDeviceCount"),
        ("cuDevicePrimaryCtxRetain", "hipGetDevice"),
        ("cuCtxPushCurrent_v2", "hipSetDevice"),
        ("cuMemHostRegister_v2", "hipHostRegister"),
    ] {
        on_doubles_failing("fails_on_the_way", cuda, hip, 999);
    }
}

#[test]
fn a_devices_own_memory_is_mapped_by_whoever_has_a_descriptor() {
    on_doubles("own_memory", &[]);
}

#[test]
fn a_devices_own_memory_that_cannot_be_had_leaves_nothing() {
    for call in [
        "MemGetAllocationGranularity",
        "MemCreate",
        "MemExportToShareableHandle",
        "MemImportFromShareableHandle",
        "MemAddressReserve",
        "MemMap",
        "MemSetAccess",
    ] {
        for vendor in GpuVendor::ALL {
            let folder = tempfile::tempdir().unwrap();
            let log = folder.path().join("log");
            let library = doubles::library(vendor, Double::Whole);
            let prefix = if vendor == GpuVendor::Cuda { "cu" } else { "hip" };
            let failure = format!("{prefix}{call}=2");
            let settings = [
                ("HSHM_DOUBLE_FAIL", failure.as_str()),
                ("HSHM_DOUBLE_LOG", log.to_str().unwrap()),
                (doubles::variable(vendor), library.to_str().unwrap()),
            ];
            assert_done("own_memory_refused", vendor, &settings);
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let of = |word: &str| {
                log.lines().filter(|line| line.split(' ').next() == Some(word)).count()
            };
            // What was imported is released as well.
            let imported =
                usize::from(["MemAddressReserve", "MemMap", "MemSetAccess"].contains(&call));
            assert_eq!(of("release-memory"), of("create") + imported, "{call}: {log}");
            assert_eq!(of("map"), of("unmap"), "{call}: {log}");
        }
    }
}

#[test]
fn a_release_that_cannot_share_a_devices_own_memory_says_so() {
    let rocm = GpuVendor::Rocm;
    let library = doubles::library(rocm, Double::Whole);
    let settings =
        [("HSHM_DOUBLE_HIP", "50221153"), (doubles::variable(rocm), library.to_str().unwrap())];
    assert_done("own_memory_too_old", rocm, &settings);
    // And one that takes descriptors by their value.
    let settings = [("HSHM_DOUBLE_HIP", "70151831"), settings[1]];
    assert_done("own_memory", rocm, &settings);
}

#[test]
fn an_address_that_is_refused_leaves_the_registration() {
    let (cuda, hip) = ("cuMemHostGetDevicePointer_v2", "hipHostGetDevicePointer");
    on_doubles_failing("address_refused", cuda, hip, 1);
}

#[test]
fn an_end_that_is_refused_is_told_once() {
    on_doubles_failing("end_refused", "cuMemHostUnregister", "hipHostUnregister", 713);
}

#[test]
fn what_was_added_and_is_refused_leaves_what_was_there() {
    on_doubles_failing("growth_refused", "cuMemHostRegister_v2", "hipHostRegister", "2@2");
}

#[test]
fn each_mapping_of_the_same_memory_has_its_own_registration() {
    on_doubles("mapped_twice", &[]);
}

#[test]
fn a_driver_that_cannot_start_says_why() {
    on_doubles_failing("initialise_803", "cuInit", "hipInit", 803);
}

#[test]
fn a_registration_ends_with_the_mapping() {
    for vendor in GpuVendor::ALL {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let library = doubles::library(vendor, Double::Whole);
        let settings = [
            ("HSHM_DOUBLE_LOG", log.to_str().unwrap()),
            (doubles::variable(vendor), library.to_str().unwrap()),
        ];
        assert_done("drop", vendor, &settings);
        let log = std::fs::read_to_string(log).unwrap();
        let of = |word: &str| log.lines().filter(|line| line.starts_with(word)).count();
        assert_eq!((of("register"), of("unregister")), (3, 3), "{log}");
        if vendor == GpuVendor::Cuda {
            // Each context was given back as often as it was retained.
            assert!(
                log.lines().rfind(|line| line.starts_with("release")).unwrap().contains(" 0 0 "),
                "{log}"
            );
        }
    }
}

#[test]
fn a_forked_child_goes_on_without_the_device() {
    on_doubles("fork", &[]);
}

#[test]
fn a_killed_process_leaves_a_segment_that_others_register_and_recover() {
    on_doubles("killed", &[]);
}

#[test]
fn memory_that_is_given_back_stays_the_one_that_devices_see() {
    on_doubles("punch", &[]);
}

#[test]
fn a_manager_makes_and_opens_them_by_name() {
    on_doubles("manager", &[]);
    for vendor in GpuVendor::ALL {
        assert_done("manager_without_driver", vendor, &[]);
    }
}
