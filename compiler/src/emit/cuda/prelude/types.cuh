// Element types and their conversions. NVRTC has no <stdint.h> and no INFINITY.
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long long i64;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;
struct f16 { u16 bits; };
struct bf16 { u16 bits; };

#define INF_F32 __int_as_float(0x7f800000)
#define NAN_F32 __int_as_float(0x7fc00000)
#define INF_F64 __longlong_as_double(0x7ff0000000000000ll)
#define NAN_F64 __longlong_as_double(0x7ff8000000000000ll)
#define DEVICE static __device__ __forceinline__
#pragma nv_diag_suppress 177 // Not every kernel uses every function.

DEVICE f32 f32_from(f16 x) { f32 y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
DEVICE f32 f32_from(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEVICE f16 f16_from(f32 x) { f16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }
DEVICE bf16 bf16_from(f32 x) { bf16 y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); return y; }

// A pointer that is known to be a multiple of so many bytes: what follows may be loaded and stored as vectors.
template <int bytes, typename T> DEVICE T* aligned(T* p) { return (T*)__builtin_assume_aligned(p, bytes); }

// Float to integer truncates and saturates; NaN gives 0.
DEVICE i32 i32_from(f32 x) { return __float2int_rz(x); }
DEVICE u32 u32_from(f32 x) { return __float2uint_rz(x); }
DEVICE i64 i64_from(f32 x) { return x != x ? 0 : __float2ll_rz(x); }
DEVICE u64 u64_from(f32 x) { return x != x ? 0 : __float2ull_rz(x); }
DEVICE i32 i32_from(f64 x) { return x != x ? 0 : __double2int_rz(x); }
DEVICE u32 u32_from(f64 x) { return x != x ? 0 : __double2uint_rz(x); }
DEVICE i64 i64_from(f64 x) { return x != x ? 0 : __double2ll_rz(x); }
DEVICE u64 u64_from(f64 x) { return x != x ? 0 : __double2ull_rz(x); }
#define NARROW(type, least, greatest) \
    DEVICE type type##_from(f32 x) { return (type)min(max(i32_from(x), least), greatest); } \
    DEVICE type type##_from(f64 x) { return (type)min(max(i32_from(x), least), greatest); }
NARROW(i8, -128, 127)
NARROW(u8, 0, 255)
NARROW(i16, -32768, 32767)
NARROW(u16, 0, 65535)
