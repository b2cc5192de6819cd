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

template <int n, typename R, typename T> DEVICE void load_vector(R* to, const T* from) {
    const typename Words<n * sizeof(T)>::type words = *(const typename Words<n * sizeof(T)>::type*)from;
    #pragma unroll
    for (int i = 0; i < n; ++i) convert(to + i, ((const T*)&words)[i]);
}
template <int n, typename R, typename T> DEVICE void store_vector(T* to, const R* from) {
    typename Words<n * sizeof(T)>::type words;
    #pragma unroll
    for (int i = 0; i < n; ++i) convert((T*)&words + i, from[i]);
    *(typename Words<n * sizeof(T)>::type*)to = words;
}
