// Neighbours in memory, loaded and stored at once: 2, 4, 8 or 16 bytes at a multiple of that. Registers may be wider than
// memory: halves become f32 on the way in, and are rounded on the way out.
template <int bytes> struct Words;
template <> struct Words<2> { typedef u16 type; };
template <> struct Words<4> { typedef u32 type; };
template <> struct Words<8> { typedef uint2 type; };
template <> struct Words<16> { typedef uint4 type; };

DEVICE void convert(f32* to, f16 from) { *to = f32_from(from); }
DEVICE void convert(f32* to, bf16 from) { *to = f32_from(from); }
DEVICE void convert(f16* to, f32 from) { *to = f16_from(from); }
DEVICE void convert(bf16* to, f32 from) { *to = bf16_from(from); }
template <typename T> DEVICE void convert(T* to, T from) { *to = from; }

// Spelled out, because what the compiler makes of a wide access may be narrow ones.
#define ACCESSES(space) \
    DEVICE void load_##space(u16* x, const void* from) { \
        asm volatile("ld." #space ".b16 %0, [%1];" : "=h"(*x) : "l"(__cvta_generic_to_##space(from)) : "memory"); \
    } \
    DEVICE void load_##space(u32* x, const void* from) { \
        asm volatile("ld." #space ".b32 %0, [%1];" : "=r"(*x) : "l"(__cvta_generic_to_##space(from)) : "memory"); \
    } \
    DEVICE void load_##space(uint2* x, const void* from) { \
        asm volatile("ld." #space ".v2.b32 {%0, %1}, [%2];" \
            : "=r"(x->x), "=r"(x->y) : "l"(__cvta_generic_to_##space(from)) : "memory"); \
    } \
    DEVICE void load_##space(uint4* x, const void* from) { \
        asm volatile("ld." #space ".v4.b32 {%0, %1, %2, %3}, [%4];" \
            : "=r"(x->x), "=r"(x->y), "=r"(x->z), "=r"(x->w) : "l"(__cvta_generic_to_##space(from)) : "memory"); \
    } \
    DEVICE void store_##space(void* to, const u16* x) { \
        asm volatile("st." #space ".b16 [%0], %1;" :: "l"(__cvta_generic_to_##space(to)), "h"(*x) : "memory"); \
    } \
    DEVICE void store_##space(void* to, const u32* x) { \
        asm volatile("st." #space ".b32 [%0], %1;" :: "l"(__cvta_generic_to_##space(to)), "r"(*x) : "memory"); \
    } \
    DEVICE void store_##space(void* to, const uint2* x) { \
        asm volatile("st." #space ".v2.b32 [%0], {%1, %2};" \
            :: "l"(__cvta_generic_to_##space(to)), "r"(x->x), "r"(x->y) : "memory"); \
    } \
    DEVICE void store_##space(void* to, const uint4* x) { \
        asm volatile("st." #space ".v4.b32 [%0], {%1, %2, %3, %4};" \
            :: "l"(__cvta_generic_to_##space(to)), "r"(x->x), "r"(x->y), "r"(x->z), "r"(x->w) : "memory"); \
    } \
    template <int n, typename R, typename T> DEVICE void load_vector_##space(R* to, const T* from) { \
        typename Words<n * sizeof(T)>::type words; \
        load_##space(&words, from); \
        _Pragma("unroll") \
        for (int i = 0; i < n; ++i) convert(to + i, ((const T*)&words)[i]); \
    } \
    template <int n, typename R, typename T> DEVICE void store_vector_##space(T* to, const R* from) { \
        typename Words<n * sizeof(T)>::type words; \
        _Pragma("unroll") \
        for (int i = 0; i < n; ++i) convert((T*)&words + i, from[i]); \
        store_##space(to, &words); \
    }
ACCESSES(global)
ACCESSES(shared)
