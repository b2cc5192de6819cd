// Matrices of a warp, spread over its lanes' registers.
DEVICE u32 pack_f16(f32 low, f32 high) { u32 y; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low)); return y; }
DEVICE u32 pack_bf16(f32 low, f32 high) { u32 y; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low)); return y; }

// Four matrices of 8 rows of 16 bytes; each lane names a row.
DEVICE void load_matrices(u32* to, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
}
DEVICE void load_matrices(f32* to, const void* row) {
    u32 words[4];
    load_matrices(words, row);
    #pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = __uint_as_float(words[i]);
}
DEVICE void load_matrices_transposed(u32* to, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
}

// Of lines of 16 bytes, words along columns: each pair of lines arrives as halves of two bytes, which are then parted. A lane
// has an even and an odd column: of four terms first, then of four that are 16 later.
DEVICE void load_rows_of_bytes(u32* to, const void* line) {
    u32 pairs[4];
    load_matrices_transposed(pairs, line);
    #pragma unroll
    for (int i = 0; i < 4; i += 2) {
        to[i] = __byte_perm(pairs[i], pairs[i + 1], 0x6420);
        to[i + 1] = __byte_perm(pairs[i], pairs[i + 1], 0x7531);
    }
}
// The same, column by column.
DEVICE void load_columns_of_bytes(u32* to, const void* line) {
    u32 words[4];
    load_rows_of_bytes(words, line);
    to[0] = words[0]; to[1] = words[2]; to[2] = words[1]; to[3] = words[3];
}

// sums[16, 8] += left[16, k] * right[k, 8]
#define MULTIPLY(name, instruction, sum, constraint) \
    DEVICE void name(sum* sums, const u32* left, const u32* right) { \
        asm volatile("mma.sync.aligned." instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
            : constraint(sums[0]), constraint(sums[1]), constraint(sums[2]), constraint(sums[3]) \
            : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1])); \
    }
MULTIPLY(multiply_f16, "m16n8k16.row.col.f32.f16.f16.f32", f32, "+f")
MULTIPLY(multiply_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", f32, "+f")
MULTIPLY(multiply_i8, "m16n8k32.row.col.s32.s8.s8.s32", i32, "+r")
MULTIPLY(multiply_u8, "m16n8k32.row.col.s32.u8.u8.s32", i32, "+r")
MULTIPLY(multiply_i8_u8, "m16n8k32.row.col.s32.s8.u8.s32", i32, "+r")
MULTIPLY(multiply_u8_i8, "m16n8k32.row.col.s32.u8.s8.s32", i32, "+r")
MULTIPLY(multiply_words, "m16n8k8.row.col.f32.tf32.tf32.f32", f32, "+f")

// To the nearest with 10 bits of fraction; infinities and NaNs stay.
DEVICE u32 tf32_from(f32 x) { u32 y; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)); return y; }
DEVICE void multiply_tf32(f32* sums, const f32* left, const f32* right) {
    u32 a[4], b[2];
    #pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = tf32_from(left[i]);
    #pragma unroll
    for (int i = 0; i < 2; ++i) b[i] = tf32_from(right[i]);
    multiply_words(sums, a, b);
}
// x = high + low, up to 2^-24 of x: the high part is cut off, so that it is finite where x is. Of an infinity only the high
// part is left, and `finite` is zero: its product with a lower part would be NaN.
DEVICE void split_tf32(f32 x, u32* high, u32* finite, u32* low) {
    const bool is_finite = fabsf(x) < INF_F32;
    *high = __float_as_uint(x) & 0xffffe000u;
    *finite = is_finite ? *high : 0u;
    *low = is_finite ? tf32_from(x - __uint_as_float(*high)) : 0u;
}
DEVICE void multiply_tf32x3(f32* sums, const f32* left, const f32* right) {
    u32 a[4], finite_a[4], low_a[4], b[2], finite_b[2], low_b[2];
    #pragma unroll
    for (int i = 0; i < 4; ++i) split_tf32(left[i], a + i, finite_a + i, low_a + i);
    #pragma unroll
    for (int i = 0; i < 2; ++i) split_tf32(right[i], b + i, finite_b + i, low_b + i);
    multiply_words(sums, low_a, finite_b);
    multiply_words(sums, finite_a, low_b);
    multiply_words(sums, a, b);
}
