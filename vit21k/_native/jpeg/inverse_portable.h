#ifndef INVERSE_PORTABLE_H
#define INVERSE_PORTABLE_H
/* The inverse transform, for eight columns or rows at a time, on whatever processor. */
#include <stdint.h>
#include <string.h>

#include "inverse.h"

static inline Lanes splat(int32_t v) { return (Lanes){v, v, v, v, v, v, v, v}; }

/* One pass over columns: constants are those of jidctint.c, times 2^13. */
static inline void transform(Lanes x[8], int shift) {
    Lanes half = splat(1 << (shift - 1));
    Lanes z1 = (x[2] + x[6]) * 4433, t2 = z1 - x[6] * 15137, t3 = z1 + x[2] * 6270;
    Lanes t0 = (x[0] + x[4]) << 13, t1 = (x[0] - x[4]) << 13;
    Lanes e0 = t0 + t3 + half, e3 = t0 - t3 + half, e1 = t1 + t2 + half, e2 = t1 - t2 + half;
    Lanes z3 = x[7] + x[3], z4 = x[5] + x[1], z5 = (z3 + z4) * 9633;
    z1 = (x[7] + x[1]) * -7373;
    Lanes z2 = (x[5] + x[3]) * -20995;
    z3 = z3 * -16069 + z5, z4 = z4 * -3196 + z5;
    Lanes o0 = x[7] * 2446 + z1 + z3, o1 = x[5] * 16819 + z2 + z4;
    Lanes o2 = x[3] * 25172 + z2 + z3, o3 = x[1] * 12299 + z1 + z4;
    x[0] = (e0 + o3) >> shift, x[7] = (e0 - o3) >> shift;
    x[1] = (e1 + o2) >> shift, x[6] = (e1 - o2) >> shift;
    x[2] = (e2 + o1) >> shift, x[5] = (e2 - o1) >> shift;
    x[3] = (e3 + o0) >> shift, x[4] = (e3 - o0) >> shift;
}

#ifdef __clang__
#define PAIR(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PAIR(a, b, ...) __builtin_shuffle(a, b, (Lanes){__VA_ARGS__})
#endif

static inline void transpose(Lanes x[8]) {
    Lanes a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = PAIR(x[2 * i], x[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        a[2 * i + 1] = PAIR(x[2 * i], x[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + j] = PAIR(a[i + j], a[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            b[i + j + 2] = PAIR(a[i + j], a[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        x[i] = PAIR(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        x[i + 4] = PAIR(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Coefficients -> rows y of x, multiplied, with columns as `place_of` has them. */
static inline void take_block(int16_t *block, const int16_t *quant, Lanes x[8]) {
    for (int y = 0; y < 4; y++) {
        Lanes two, by;
        memcpy(&two, block + 16 * y, sizeof two);
        memcpy(&by, quant + 16 * y, sizeof by);
        x[y] = (two << 16 >> 16) * (by << 16 >> 16);
        x[y + 4] = (two >> 16) * (by >> 16);
    }
    memset(block, 0, 128);
}

static inline void transform_block(int16_t *block, const int16_t *quant, uint8_t *out, int stride,
                                   Lanes *too_large) {
    typedef uint8_t Bytes __attribute__((vector_size(8)));
    Lanes x[8], sum = splat(0);
    take_block(block, quant, x);
    for (int y = 0; y < 8; y++) sum += (x[y] ^ x[y] >> 31) - (x[y] >> 31);
    *too_large |= sum > MAX_COLUMN_SUM;
    transform(x, 11);
    transpose(x);
    Lanes columns[8] = {x[0], x[2], x[4], x[6], x[1], x[3], x[5], x[7]};
    transform(columns, 18);
    transpose(columns);
    for (int y = 0; y < 8; y++) {
        Lanes v = columns[y] + 128;
        v &= ~(v < 0);
        v = (v & ~(v > 255)) | ((v > 255) & 255);
        Bytes bytes = __builtin_convertvector(v, Bytes);
        memcpy(out + y * stride, &bytes, 8);
    }
}

#endif
