//! The library's functions. cudarc's own loader panics where a library or a symbol is absent, and looks only for
//! versions of the driver API that it is built for; NVRTC's functions are the same in all of them.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use super::NvrtcError;

type Program = *mut c_void;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// NVRTC's functions.
#[derive(Debug)]
pub(super) struct Library {
    pub path: PathBuf,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    cubin_size: Size,
    cubin: Text,
    ptx_size: Size,
    ptx: Text,
    log_size: Size,
    log: Text,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// A compilation: the image or NVRTC's refusal, and the log in either case.
pub(super) struct Compilation {
    pub image: Result<Vec<u8>, String>,
    /// The same as PTX, where there is an image.
    pub ptx: Vec<u8>,
    pub log: String,
}

/// Destroys a program when it goes out of scope.
struct Owned<'a>(&'a Library, Program);

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: the program is live and ours.
        unsafe { (self.0.destroy)(&mut self.1) };
    }
}

impl Library {
    /// Opens a library, for the rest of the process.
    pub fn open(path: &Path) -> Result<Library, NvrtcError> {
        // NVRTC opens its builtins by bare name at the first compilation, and some packages have no run path: opened
        // here by absolute path, they are found by name then.
        let builtins = path.parent().map(|folder| super::search::libraries(folder, "libnvrtc-builtins.so"));
        for builtin in builtins.into_iter().flatten() {
            // SAFETY: NVIDIA's libraries run no code that could harm when opened.
            if let Ok(library) = unsafe { libloading::Library::new(&builtin) } {
                std::mem::forget(library);
            }
        }
        let refused = |e: libloading::Error| NvrtcError::Load { path: path.into(), reason: e.to_string() };
        // SAFETY: as above.
        let library = unsafe { libloading::Library::new(path) }.map_err(refused)?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: NVRTC's documented signatures, unchanged since version 11.
                *unsafe { library.get($name) }.map_err(refused)?
            };
        }
        let functions = Library {
            path: path.into(),
            create: symbol!(b"nvrtcCreateProgram\0"),
            compile: symbol!(b"nvrtcCompileProgram\0"),
            destroy: symbol!(b"nvrtcDestroyProgram\0"),
            cubin_size: symbol!(b"nvrtcGetCUBINSize\0"),
            cubin: symbol!(b"nvrtcGetCUBIN\0"),
            ptx_size: symbol!(b"nvrtcGetPTXSize\0"),
            ptx: symbol!(b"nvrtcGetPTX\0"),
            log_size: symbol!(b"nvrtcGetProgramLogSize\0"),
            log: symbol!(b"nvrtcGetProgramLog\0"),
            version: symbol!(b"nvrtcVersion\0"),
            error_string: symbol!(b"nvrtcGetErrorString\0"),
        };
        std::mem::forget(library);
        Ok(functions)
    }

    pub fn version(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        unsafe { (self.version)(&mut major, &mut minor) };
        (major, minor)
    }

    fn reason(&self, code: c_int) -> String {
        // SAFETY: gives a static string, or null.
        let text = unsafe { (self.error_string)(code) };
        if text.is_null() {
            return code.to_string();
        }
        // SAFETY: not null, and NUL-terminated.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), NvrtcError> {
        if code == 0 { Ok(()) } else { Err(NvrtcError::Call { call, code: self.reason(code) }) }
    }

    pub fn compile(&self, source: &CString, name: &CString, flags: &[CString]) -> Result<Compilation, NvrtcError> {
        let mut program = std::ptr::null_mut();
        let none = std::ptr::null();
        // SAFETY: NUL-terminated strings and no headers.
        let code = unsafe { (self.create)(&mut program, source.as_ptr(), name.as_ptr(), 0, none, none) };
        self.check("nvrtcCreateProgram", code)?;
        let program = Owned(self, program);
        let flags: Vec<_> = flags.iter().map(|f| f.as_ptr()).collect();
        // SAFETY: the program is live, the flags are NUL-terminated.
        let code = unsafe { (self.compile)(program.1, flags.len() as c_int, flags.as_ptr()) };
        let log = self.bytes(&program, "nvrtcGetProgramLog", self.log_size, self.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_string();
        if code != 0 {
            return Ok(Compilation { image: Err(self.reason(code)), ptx: Vec::new(), log });
        }
        let image = Ok(self.bytes(&program, "nvrtcGetCUBIN", self.cubin_size, self.cubin)?);
        let ptx = self.bytes(&program, "nvrtcGetPTX", self.ptx_size, self.ptx)?;
        Ok(Compilation { image, ptx, log })
    }

    fn bytes(&self, program: &Owned<'_>, call: &'static str, size: Size, get: Text) -> Result<Vec<u8>, NvrtcError> {
        let mut len = 0;
        // SAFETY: the program is live.
        self.check(call, unsafe { size(program.1, &mut len) })?;
        let mut bytes = vec![0u8; len];
        // SAFETY: the buffer has the size that NVRTC asked for.
        self.check(call, unsafe { get(program.1, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}
