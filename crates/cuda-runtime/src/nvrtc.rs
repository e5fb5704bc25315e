//! CUDA C++ to machine code by NVRTC, the compiler as a library. Works without a GPU.
//!
//! The kernels use no header of the toolkit, so NVRTC is all a machine needs. Results are kept on disk (`cache.rs`).
#![expect(unsafe_code, reason = "NVRTC has a C interface")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;
use libloading::os::unix::{Library as UnixLibrary, RTLD_GLOBAL, RTLD_NOW};

use super::cache;
use crate::CudaError;

const NVRTC: &str = "libnvrtc.so.13";
/// NVRTC opens this one by its bare name, so it must already be there.
const BUILTINS: &str = "libnvrtc-builtins.so.13.0";
const HELP: &str = "`cargo xtask setup --cuda` or `pip install nvidia-cuda-nvrtc` brings it";

/// The architecture of a GPU, `sm_90` for compute capability 9.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arch {
    /// The first number of the compute capability.
    pub major: u32,
    /// The second one.
    pub minor: u32,
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.major, self.minor)
    }
}

/// CUDA source with all that decides what it compiles to. Entry points must be `extern "C"`.
#[derive(Clone, Debug)]
pub struct Program {
    /// The name in messages and of the source in profiles.
    pub name: &'static str,
    /// The source.
    pub source: &'static str,
    /// What the source includes: names and texts.
    pub headers: &'static [(&'static str, &'static str)],
    /// Macros and their values.
    pub defines: Vec<(&'static str, String)>,
    /// Further options of NVRTC, such as `--fmad=false`.
    pub options: &'static [&'static str],
    /// Whether it uses what this one architecture has and later ones do not.
    pub is_specific: bool,
}

impl Program {
    fn option_list(&self, arch: Arch) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={arch}{}", if self.is_specific { "a" } else { "" }),
            "--std=c++17".to_owned(),
            // Lets a profile name source lines; the machine code is the same.
            "--generate-line-info".to_owned(),
        ];
        options.extend(self.defines.iter().map(|(name, value)| format!("--define-macro={name}={value}")));
        options.extend(self.options.iter().map(|option| (*option).to_owned()));
        options
    }

    /// Everything the machine code depends on, in one hash.
    fn key(&self, arch: Arch, version: Version) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut part = |text: &str| {
            // With its length, so that moving text from one part to the next makes another key.
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        part(&format!("nvrtc {}.{}", version.major, version.minor));
        part(self.name);
        part(self.source);
        for (name, text) in self.headers {
            part(name);
            part(text);
        }
        for option in self.option_list(arch) {
            part(&option);
        }
        hasher.finalize()
    }
}

/// Of the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// The number before the point.
    pub major: c_int,
    /// The number behind it.
    pub minor: c_int,
}

/// The version of NVRTC.
///
/// # Errors
/// When it cannot be opened.
pub fn version() -> Result<Version, CudaError> {
    Nvrtc::get()?.version()
}

/// Machine code for one architecture.
#[derive(Clone, Debug)]
pub struct Cubin {
    /// An ELF file.
    pub bytes: Vec<u8>,
    /// The compiler's warnings; empty when the code comes from the cache.
    pub warnings: String,
}

/// Compiles a program.
///
/// # Errors
/// When NVRTC cannot be opened, does not know the architecture, or refuses the source (with its log).
pub fn compile(program: &Program, arch: Arch) -> Result<Cubin, CudaError> {
    let nvrtc = Nvrtc::get()?;
    let handle = nvrtc.create(program)?;
    let result = nvrtc.compile(&handle, program, arch);
    nvrtc.destroy(handle);
    result
}

/// Compiles a program unless the same one lies in the folder `cache_dir`, where it is then kept. A damaged file there is
/// made anew.
///
/// # Errors
/// As [`compile`], and when the folder cannot be written to.
pub fn compile_cached(program: &Program, arch: Arch, cache_dir: &Path) -> Result<Cubin, CudaError> {
    let key = program.key(arch, Nvrtc::get()?.version()?);
    let path = cache_dir.join(format!("{}-{arch}-{}.cubin", program.name, &key.to_hex()[..16]));
    if let Some(bytes) = cache::read(&path, &key)? {
        return Ok(Cubin { bytes, warnings: String::new() });
    }
    let cubin = compile(program, arch)?;
    cache::write(&path, &key, &cubin.bytes)?;
    Ok(cubin)
}

type ProgramHandle = *mut std::ffi::c_void;
type Code = c_int;

/// The functions of the library that are used.
struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    create_program: unsafe extern "C" fn(
        *mut ProgramHandle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Code,
    compile_program: unsafe extern "C" fn(ProgramHandle, c_int, *const *const c_char) -> Code,
    log_size: SizeFunction,
    log: BytesFunction,
    cubin_size: SizeFunction,
    cubin: BytesFunction,
    destroy_program: unsafe extern "C" fn(*mut ProgramHandle) -> Code,
    // Last, so that nothing outlives it.
    _library: Library,
}

impl Nvrtc {
    fn get() -> Result<&'static Self, CudaError> {
        static NVRTC_LIBRARY: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
        NVRTC_LIBRARY.get_or_init(Self::open).as_ref().map_err(|reason| CudaError::Library {
            name: NVRTC,
            reason: reason.clone(),
            help: HELP,
        })
    }

    fn open() -> Result<Self, String> {
        let mut reason = String::new();
        for dir in library_dirs() {
            // SAFETY: NVRTC's libraries run no code of consequence when they are opened.
            let opened = unsafe {
                UnixLibrary::open(Some(dir.join(BUILTINS)), RTLD_NOW | RTLD_GLOBAL)
                    .and_then(|builtins| Ok((builtins, UnixLibrary::open(Some(dir.join(NVRTC)), RTLD_NOW)?)))
            };
            match opened {
                Ok((builtins, library)) => {
                    // NVRTC opens them again whenever it compiles, so they stay for good.
                    std::mem::forget(builtins);
                    return Self::resolve(library.into()).map_err(|error| error.to_string());
                }
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    }

    fn resolve(library: Library) -> Result<Self, libloading::Error> {
        // SAFETY: the names and signatures are those of `nvrtc.h` of CUDA 13.
        unsafe {
            Ok(Self {
                version: *library.get(b"nvrtcVersion\0")?,
                error_string: *library.get(b"nvrtcGetErrorString\0")?,
                create_program: *library.get(b"nvrtcCreateProgram\0")?,
                compile_program: *library.get(b"nvrtcCompileProgram\0")?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                log: *library.get(b"nvrtcGetProgramLog\0")?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize\0")?,
                cubin: *library.get(b"nvrtcGetCUBIN\0")?,
                destroy_program: *library.get(b"nvrtcDestroyProgram\0")?,
                _library: library,
            })
        }
    }

    fn check(&self, call: &'static str, code: Code) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function returns a static string for every code.
        let reason = unsafe { CStr::from_ptr((self.error_string)(code)) };
        Err(CudaError::Call { call, reason: reason.to_string_lossy().into_owned() })
    }

    fn version(&self) -> Result<Version, CudaError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid for the call.
        let code = unsafe { (self.version)(&mut major, &mut minor) };
        self.check("nvrtcVersion", code)?;
        Ok(Version { major, minor })
    }

    fn create(&self, program: &Program) -> Result<ProgramHandle, CudaError> {
        let source = c_string(program.source)?;
        let name = c_string(&format!("{}.cu", program.name))?;
        let names = c_strings(program.headers.iter().map(|(name, _)| *name))?;
        let texts = c_strings(program.headers.iter().map(|(_, text)| *text))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: all strings end with 0 and live over the call, and both lists have as many as is said.
        let code = unsafe {
            (self.create_program)(
                &mut handle,
                source.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                pointers(&texts).as_ptr(),
                pointers(&names).as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        Ok(handle)
    }

    fn compile(&self, handle: &ProgramHandle, program: &Program, arch: Arch) -> Result<Cubin, CudaError> {
        let options = program.option_list(arch);
        let options = c_strings(options.iter().map(String::as_str))?;
        // SAFETY: the handle is a program that is not destroyed yet, and the options live over the call.
        let code =
            unsafe { (self.compile_program)(*handle, options.len() as c_int, pointers(&options).as_ptr()) };
        let log = self.output(*handle, self.log_size, self.log, "nvrtcGetProgramLog")?;
        let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n', ' ']).to_owned();
        if let Err(error) = self.check("nvrtcCompileProgram", code) {
            let log = if log.is_empty() { error.to_string() } else { log };
            return Err(CudaError::Compile { program: program.name, arch: arch.to_string(), log });
        }
        let bytes = self.output(*handle, self.cubin_size, self.cubin, "nvrtcGetCUBIN")?;
        Ok(Cubin { bytes, warnings: log })
    }

    /// An output of the compiler, by the pair of functions for its size and its bytes.
    fn output(
        &self,
        handle: ProgramHandle,
        size: SizeFunction,
        bytes: BytesFunction,
        call: &'static str,
    ) -> Result<Vec<u8>, CudaError> {
        let mut size_bytes = 0;
        // SAFETY: the handle is a program that is not destroyed yet.
        self.check(call, unsafe { size(handle, &mut size_bytes) })?;
        let mut out = vec![0_u8; size_bytes];
        // SAFETY: the buffer has the size that NVRTC asks for.
        self.check(call, unsafe { bytes(handle, out.as_mut_ptr().cast()) })?;
        Ok(out)
    }

    fn destroy(&self, mut handle: ProgramHandle) {
        // SAFETY: the handle came from `create` and is not used again. Its code can only say that it was none.
        unsafe { (self.destroy_program)(&mut handle) };
    }
}

type SizeFunction = unsafe extern "C" fn(ProgramHandle, *mut usize) -> Code;
type BytesFunction = unsafe extern "C" fn(ProgramHandle, *mut c_char) -> Code;

/// Where NVRTC may lie: where the system looks, and beside the libtorch of this process, as the wheels put it.
fn library_dirs() -> Vec<PathBuf> {
    let mut dirs = vec![PathBuf::new()];
    let torch_dir = torch_ext::library_dir();
    if let Some(packages) = torch_dir.as_deref().and_then(|lib| lib.ancestors().nth(2)) {
        dirs.push(packages.join("nvidia/cu13/lib"));
    }
    dirs
}

fn c_string(text: &str) -> Result<CString, CudaError> {
    CString::new(text)
        .map_err(|error| CudaError::Call { call: "nvrtcCreateProgram", reason: error.to_string() })
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<CString>, CudaError> {
    texts.map(c_string).collect()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}

#[cfg(all(test, feature = "nvrtc"))]
mod tests;
