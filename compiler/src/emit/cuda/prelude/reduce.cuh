// Reductions over lanes of a warp, and a block. Every thread takes part and has the result; the order is fixed.
#define SUM(type, a, b) ((a) + (b))
#define PROD(type, a, b) ((a) * (b))
#define MAX(type, a, b) max_##type(a, b)
#define MIN(type, a, b) min_##type(a, b)
#define REDUCE(name, OP, type, neutral) \
    template <int lanes = 32> DEVICE type warp_##name##_##type(type x) { \
        for (int lane = lanes / 2; lane > 0; lane /= 2) x = OP(type, x, __shfl_xor_sync(0xffffffffu, x, lane)); \
        return x; \
    } \
    DEVICE type block_##name##_##type(type x, type* partial, int threads) { \
        const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); \
        x = warp_##name##_##type(x); \
        if (thread % 32 == 0) partial[thread / 32] = x; \
        __syncthreads(); \
        x = warp_##name##_##type(thread % 32 < threads / 32 ? partial[thread % 32] : (type)(neutral)); \
        __syncthreads(); \
        return x; \
    }
#define REDUCTIONS(type, least, greatest) \
    REDUCE(sum, SUM, type, 0) REDUCE(prod, PROD, type, 1) REDUCE(max, MAX, type, least) REDUCE(min, MIN, type, greatest)
REDUCE(max, MAX, bool, false) REDUCE(min, MIN, bool, true)
REDUCTIONS(i8, -128, 127) REDUCTIONS(u8, 0, 255)
REDUCTIONS(i16, -32768, 32767) REDUCTIONS(u16, 0, 65535)
REDUCTIONS(u32, 0, 0xffffffffu) REDUCTIONS(u64, 0, 0xffffffffffffffffull)
REDUCTIONS(f32, -INF_F32, INF_F32)
REDUCTIONS(f64, -INF_F64, INF_F64)
REDUCTIONS(i32, -2147483647 - 1, 2147483647)
REDUCTIONS(i64, -9223372036854775807ll - 1, 9223372036854775807ll)
