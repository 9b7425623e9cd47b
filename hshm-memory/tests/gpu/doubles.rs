//! Compiling the doubles of the drivers' libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

pub(crate) use hshm_memory::gpu::GpuVendor;

/// Which of a vendor's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Double {
    Whole,
    /// Without the function that ends a registration.
    Lacking,
}

/// The variable that names a vendor's library.
pub(crate) fn variable(vendor: GpuVendor) -> &'static str {
    match vendor {
        GpuVendor::Cuda => "HSHM_LIBCUDA",
        GpuVendor::Rocm => "HSHM_LIBAMDHIP64",
    }
}

/// A double, in a folder where it has its usual name.
pub(crate) fn library(vendor: GpuVendor, double: Double) -> PathBuf {
    // One at a time: tests of this program run side by side, and want the same ones.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hshm-memory/tests/gpu");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{vendor}-{double:?}"));
    fs::create_dir_all(&folder).unwrap();
    let file = match vendor {
        GpuVendor::Cuda => "libcuda.so.1",
        GpuVendor::Rocm => "libamdhip64.so.5",
    };
    let library = folder.join(file);
    let source = sources.join("double.c");
    let age = |path: &Path| fs::metadata(path).and_then(|found| found.modified());
    if age(&library).is_ok_and(|built| built > age(&source).unwrap()) {
        return library;
    }
    // Another run of this program may use the library: it is replaced, not written over.
    let fresh = folder.join(format!("fresh.{}", std::process::id()));
    let mut compile = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compile.args([
        "-std=gnu11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-pthread",
    ]);
    match vendor {
        GpuVendor::Cuda => compile.arg("-DCUDA"),
        GpuVendor::Rocm => {
            let map = sources.join("hip.map");
            compile.arg(format!("-Wl,--version-script={}", map.display()))
        }
    };
    if let Double::Lacking = double {
        compile.arg("-DLACKS_UNREGISTER");
    }
    compile.arg(format!("-Wl,-soname,{file}")).arg("-o").arg(&fresh).arg(&source);
    let output = compile.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if let GpuVendor::Cuda = vendor {
        // cudarc asks for this name first.
        let _ = std::os::unix::fs::symlink(file, folder.join("libcuda.so"));
    }
    fs::rename(fresh, &library).unwrap();
    library
}
