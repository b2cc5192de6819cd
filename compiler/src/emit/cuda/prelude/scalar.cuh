// Scalar functions that C does not have, or has with other edge cases.
DEVICE f32 max_f32(f32 a, f32 b) { f32 c; asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b)); return c; }
DEVICE f32 min_f32(f32 a, f32 b) { f32 c; asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b)); return c; }
DEVICE f64 max_f64(f64 a, f64 b) { return a > b || a != a ? a : b; }
DEVICE f64 min_f64(f64 a, f64 b) { return a < b || a != a ? a : b; }
DEVICE f32 sign_f32(f32 x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }
DEVICE f64 sign_f64(f64 x) { return x > 0.0 ? 1.0 : x < 0.0 ? -1.0 : x; }
DEVICE f32 sigmoid_f32(f32 x) { return 1.0f / (1.0f + expf(-x)); }
DEVICE f64 sigmoid_f64(f64 x) { return 1.0 / (1.0 + exp(-x)); }

// Integer division never traps: by zero it gives 0, the least integer by -1 wraps.
#define SIGNED(type, unsigned_type) \
    DEVICE type div_##type(type a, type b) { return b == 0 ? 0 : b == -1 ? (type)(0 - (unsigned_type)a) : a / b; } \
    DEVICE type rem_##type(type a, type b) { return b == 0 || b == -1 ? 0 : a % b; } \
    DEVICE type abs_##type(type a) { return a < 0 ? (type)(0 - (unsigned_type)a) : a; } \
    DEVICE type sign_##type(type a) { return (a > 0) - (a < 0); }
#define UNSIGNED(type) \
    DEVICE type div_##type(type a, type b) { return b == 0 ? 0 : a / b; } \
    DEVICE type rem_##type(type a, type b) { return b == 0 ? 0 : a % b; } \
    DEVICE type abs_##type(type a) { return a; } \
    DEVICE type sign_##type(type a) { return a > 0; }
#define ORDERED(type) \
    DEVICE type max_##type(type a, type b) { return a > b ? a : b; } \
    DEVICE type min_##type(type a, type b) { return a < b ? a : b; }
SIGNED(i8, u8) SIGNED(i16, u16) SIGNED(i32, u32) SIGNED(i64, u64)
UNSIGNED(u8) UNSIGNED(u16) UNSIGNED(u32) UNSIGNED(u64)
ORDERED(i8) ORDERED(i16) ORDERED(i32) ORDERED(i64) ORDERED(u8) ORDERED(u16) ORDERED(u32) ORDERED(u64) ORDERED(bool)
