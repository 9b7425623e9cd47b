//! Compiling the kernels when they are needed: by the vendor's library for that, by clang, or for a double. Or they were
//! compiled before, on another machine.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, ptr};

use hshm_memory::gpu::GpuVendor;
use libloading::Library;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn kernels() -> PathBuf {
    here().join("tests/device/kernels.cu")
}

fn include() -> String {
    format!("-I{}", here().join("include").display())
}

/// A vendor's compiler as a library: NVRTC or hiprtc, whose functions are alike.
pub(crate) struct RuntimeCompiler {
    vendor: GpuVendor,
    library: Library,
}

impl RuntimeCompiler {
    /// The variable that names the library, if it is not to be looked for.
    pub(crate) fn variable(vendor: GpuVendor) -> &'static str {
        match vendor {
            GpuVendor::Cuda => "HSHM_LIBNVRTC",
            GpuVendor::Rocm => "HSHM_LIBHIPRTC",
        }
    }

    /// The library, if there is one.
    pub(crate) fn find(vendor: GpuVendor) -> Result<Self, String> {
        let usual: &[&str] = match vendor {
            GpuVendor::Cuda => {
                &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"]
            }
            // Before ROCm 6 it is in the same library as the rest.
            GpuVendor::Rocm => {
                &["libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so", "libamdhip64.so.5"]
            }
        };
        let named = env::var(Self::variable(vendor)).ok();
        let names = named.as_deref().map_or(usual.to_vec(), |name| vec![name]);
        for name in &names {
            // SAFETY: [foreign] the initialisers of the vendor's library run.
            if let Ok(library) = unsafe { Library::new(*name) } {
                return Ok(Self { vendor, library });
            }
        }
        Err(format!("none of {} can be loaded", names.join(", ")))
    }

    fn name(&self, ending: &str) -> String {
        let prefix = if self.vendor == GpuVendor::Cuda { "nvrtc" } else { "hiprtc" };
        format!("{prefix}{ending}")
    }

    fn symbol<T: Copy>(&self, ending: &str) -> T {
        // SAFETY: [foreign] each is asked for as the type that nvrtc.h and hiprtc.h both give it.
        *unsafe { self.library.get::<T>(self.name(ending)) }.unwrap()
    }

    /// What a program gives of one of the two that are asked for by length and then content.
    fn text(&self, program: *mut c_void, length: &str, content: &str) -> Vec<u8> {
        type Length = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
        type Content = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;
        let (length, content) = (self.symbol::<Length>(length), self.symbol::<Content>(content));
        let mut bytes = 0;
        // SAFETY: [foreign] the program is one; the answer is stored in a local.
        assert_eq!(unsafe { length(program, &raw mut bytes) }, 0);
        let mut found = vec![0_u8; bytes];
        // SAFETY: [foreign] as above; there is as much room as it said.
        assert_eq!(unsafe { content(program, found.as_mut_ptr().cast()) }, 0);
        found
    }

    /// The kernels for an architecture, such as `compute_90` or `gfx90a`: PTX, or AMD's object.
    ///
    /// # Errors
    /// What the compiler says.
    pub(crate) fn compile(&self, architecture: &str) -> Result<Vec<u8>, String> {
        type Create = unsafe extern "C" fn(
            *mut *mut c_void,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
        // A program that was copied to another machine comes without them.
        let source =
            fs::read(kernels()).map_err(|error| format!("{}: {error}", kernels().display()))?;
        let source = CString::new(source).unwrap();
        let mut program = ptr::null_mut();
        let create = self.symbol::<Create>("CreateProgram");
        // SAFETY: [foreign] two strings that live, no headers, and a local for the answer.
        let status = unsafe {
            create(
                &raw mut program,
                source.as_ptr(),
                c"kernels.cu".as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            )
        };
        assert_eq!(status, 0);
        let mut options = vec![include()];
        match self.vendor {
            GpuVendor::Cuda => options.push(format!("--gpu-architecture={architecture}")),
            // Not told, it is that of the device that is current.
            GpuVendor::Rocm if architecture == "native" => {}
            GpuVendor::Rocm => options.push(format!("--offload-arch={architecture}")),
        }
        let options: Vec<_> =
            options.into_iter().map(|option| CString::new(option).unwrap()).collect();
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).unwrap();
        let compile = self.symbol::<Compile>("CompileProgram");
        // SAFETY: [foreign] the program was just made, and the options live.
        let status = unsafe { compile(program, count, pointers.as_ptr()) };
        if status != 0 {
            let log = self.text(program, "GetProgramLogSize", "GetProgramLog");
            let log = String::from_utf8_lossy(&log);
            return Err(format!("{architecture}: code {status} {log}"));
        }
        Ok(match self.vendor {
            GpuVendor::Cuda => self.text(program, "GetPTXSize", "GetPTX"),
            GpuVendor::Rocm => self.text(program, "GetCodeSize", "GetCode"),
        })
    }
}

/// Names a file with the kernels, for the driver to load: as `tests/arena/compile` writes them, say.
pub(crate) const READY: &str = "HSHM_KERNELS";

/// The kernels that the user has ready.
///
/// # Errors
/// Why the file that is named cannot be read, or that none is.
pub(crate) fn ready() -> Result<Vec<u8>, String> {
    let file = env::var_os(READY).ok_or_else(|| format!("{READY} is not set"))?;
    let mut found =
        fs::read(&file).map_err(|error| format!("{READY}={}: {error}", file.display()))?;
    // PTX is taken as a string.
    found.push(0);
    Ok(found)
}

/// The kernels by clang, for an architecture such as `sm_70` or `gfx90a`.
///
/// # Errors
/// What the compiler says, or that there is none.
pub(crate) fn by_clang(vendor: GpuVendor, architecture: &str) -> Result<Vec<u8>, String> {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang-16".into());
    let folder = tempfile::tempdir().unwrap();
    let product = folder.path().join("product");
    let mut command = Command::new(&clang);
    command.args(["-O2", "--cuda-device-only", &include()]).arg("-o").arg(&product);
    match vendor {
        // Left to itself it says PTX 6.0 for sm_70, in which there is no nanosleep.
        GpuVendor::Cuda => {
            command.args(["-x", "cuda", "-nocudainc", "-nocudalib", "-S", "--cuda-feature=+ptx63"])
        }
        GpuVendor::Rocm => command.args(["-x", "hip", "-nogpuinc", "-nogpulib"]),
    };
    command.arg(match vendor {
        GpuVendor::Cuda => format!("--cuda-gpu-arch={architecture}"),
        GpuVendor::Rocm => format!("--offload-arch={architecture}"),
    });
    let output =
        command.arg(kernels()).output().map_err(|error| format!("no {clang} here: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let mut found = fs::read(product).map_err(|error| error.to_string())?;
    // PTX is taken as a string.
    found.push(0);
    Ok(found)
}

/// The image for a double: the path of a library that has the kernels as functions of the host's.
pub(crate) fn for_double() -> Vec<u8> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let product = folder.join("libkernels.so");
    let image = || CString::new(product.as_os_str().as_bytes()).unwrap().into_bytes_with_nul();
    let age = |path: &Path| fs::metadata(path).and_then(|found| found.modified());
    let sources = [kernels(), here().join("include/hshm/device.h")];
    if let Ok(built) = age(&product)
        && sources.iter().all(|source| built > age(source).unwrap())
    {
        return image();
    }
    let fresh = folder.join(format!("kernels.{}.fresh", std::process::id()));
    let mut command = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()));
    command.args(["-x", "c", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    command.args(["-shared", "-fPIC", &include(), "-o"]).arg(&fresh);
    let output = command.arg(kernels()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Others may have it loaded: it is replaced, not written over.
    fs::rename(&fresh, &product).unwrap();
    image()
}

/// What an image is called in messages.
pub(crate) fn first_line(image: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(image).map(CStr::to_string_lossy).unwrap_or_default();
    text.lines().next().unwrap_or_default().chars().take(80).collect()
}
