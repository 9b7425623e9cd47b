//! Builds the shim over Boost.Interprocess where its headers are, and notes which versions of the
//! peers are built in.

use std::env;
use std::path::Path;

/// The packages whose versions the report names.
const PEERS: [&str; 5] =
    ["libmimalloc-sys", "snmalloc-sys", "tikv-jemalloc-sys", "rpmalloc-sys", "iceoryx2-cal"];

fn main() {
    let lock = Path::new("../Cargo.lock");
    emit("rerun-if-changed=../Cargo.lock");
    emit("rerun-if-changed=shim/boost.cpp");
    let locked = std::fs::read_to_string(lock).unwrap_or_default();
    for package in PEERS {
        let variable = package.to_uppercase().replace('-', "_");
        emit(&format!("rustc-env=VERSION_{variable}={}", locked_version(&locked, package)));
    }
    emit("rustc-check-cfg=cfg(boost)");
    if let Err(reason) = build_boost() {
        emit(&format!("rustc-env=NO_BOOST={reason}"));
    } else {
        emit("rustc-cfg=boost");
    }
    let compiler = cc::Build::new().cpp(true).try_get_compiler();
    let compiler = compiler.map(|c| c.path().display().to_string()).unwrap_or_default();
    emit(&format!("rustc-env=CXX_COMPILER={compiler}"));
    let rustc = env::var("RUSTC").unwrap_or_default();
    let version = std::process::Command::new(rustc).arg("--version").output();
    let version = version.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    emit(&format!("rustc-env=RUSTC_VERSION={}", version.unwrap_or_default()));
}

/// Tells cargo something.
fn emit(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "cargo::{line}");
}

fn build_boost() -> Result<(), &'static str> {
    let mut probe = cc::Build::new();
    probe.cpp(true).file("shim/probe.cpp").cargo_warnings(false).cargo_metadata(false);
    probe.try_expand().map_err(|_| "Boost.Interprocess was not found (Debian: libboost-dev)")?;
    let mut shim = cc::Build::new();
    shim.cpp(true).std("c++17").file("shim/boost.cpp").warnings(false);
    shim.try_compile("hshm_bench_boost").map_err(|_| "the shim does not compile here")
}

/// The version of `package` in the text of a `Cargo.lock`.
fn locked_version<'l>(locked: &'l str, package: &str) -> &'l str {
    let entry = format!("name = \"{package}\"\nversion = \"");
    let found = locked.split_once(&entry).and_then(|(_, rest)| rest.split_once('"'));
    found.map_or("", |(version, _)| version)
}
