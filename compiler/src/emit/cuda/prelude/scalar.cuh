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
// Powers wrap; a negative exponent gives 0, but for the base 1; exponents beyond 32 bits count as the greatest of those.
#define POWER(type) \
    DEVICE type pow_##type(type a, type b) { \
        if ((i64)b < 0 && (type)-1 < (type)1) return a == 1; \
        u64 n = (u64)b > 0xffffffffull ? 0xffffffffull : (u64)b; \
        type power = 1; \
        for (; n; n >>= 1, a = (type)((u64)a * (u64)a)) if (n & 1) power = (type)((u64)power * (u64)a); \
        return power; \
    }
POWER(i8) POWER(i16) POWER(i32) POWER(i64) POWER(u8) POWER(u16) POWER(u32) POWER(u64)
#define ORDERED(type) \
    DEVICE type max_##type(type a, type b) { return a > b ? a : b; } \
    DEVICE type min_##type(type a, type b) { return a < b ? a : b; }
SIGNED(i8, u8) SIGNED(i16, u16) SIGNED(i32, u32) SIGNED(i64, u64)
UNSIGNED(u8) UNSIGNED(u16) UNSIGNED(u32) UNSIGNED(u64)
ORDERED(i8) ORDERED(i16) ORDERED(i32) ORDERED(i64) ORDERED(u8) ORDERED(u16) ORDERED(u32) ORDERED(u64) ORDERED(bool)
