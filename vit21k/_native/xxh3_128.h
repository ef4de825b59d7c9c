/* XXH3, 128 bits, seed 0, of bytes that are all there.
 *
 * Written from the published description of the algorithm ("XXH3 Algorithm Overview", in
 * doc/xxhash_spec.md of the xxHash project), which is also where its constants come from.  The
 * tests compare it with the `xxhash` module at every length up to 5,000.
 */
#ifndef XXH3_128_H
#define XXH3_128_H

#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "for little-endian machines only"
#endif
#ifndef __SIZEOF_INT128__
#error "for machines of 64 bits only"
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

typedef struct {
    uint64_t low, high;
} Hash128;

static const uint64_t P32_1 = 0x9E3779B1u, P32_2 = 0x85EBCA77u, P32_3 = 0xC2B2AE3Du;
static const uint64_t P64_1 = 0x9E3779B185EBCA87u, P64_2 = 0xC2B2AE3D27D4EB4Fu, P64_3 = 0x165667B19E3779F9u,
                      P64_4 = 0x85EBCA77C2B2AE63u, P64_5 = 0x27D4EB2F165667C5u;
static const uint64_t MIX_1 = 0x165667919E3779F9u, MIX_2 = 0x9FB21C651E98DF25u;

enum { STRIPE = 64, LANES = 8, SECRET_BYTES = 192, STRIPES_OF_BLOCK = 16, BLOCK = STRIPE * STRIPES_OF_BLOCK };

static const uint8_t SECRET[SECRET_BYTES] __attribute__((aligned(64))) = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint32_t read_32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

static inline uint64_t read_64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, 8);
    return value;
}

static inline Hash128 product(uint64_t one, uint64_t other) {
    const unsigned __int128 whole = (unsigned __int128)one * other;
    return (Hash128){(uint64_t)whole, (uint64_t)(whole >> 64)};
}

static inline uint64_t folded(uint64_t one, uint64_t other) {
    const Hash128 whole = product(one, other);
    return whole.low ^ whole.high;
}

static inline uint64_t avalanche(uint64_t hash) {
    hash = (hash ^ hash >> 37) * MIX_1;
    return hash ^ hash >> 32;
}

static inline uint64_t avalanche_of_xxh64(uint64_t hash) {
    hash = (hash ^ hash >> 33) * P64_2;
    hash = (hash ^ hash >> 29) * P64_3;
    return hash ^ hash >> 32;
}

/* Up to 16 bytes. */
static Hash128 hash_of_few(const uint8_t *data, size_t size) {
    if (size == 0)
        return (Hash128){avalanche_of_xxh64(read_64(SECRET + 64) ^ read_64(SECRET + 72)),
                         avalanche_of_xxh64(read_64(SECRET + 80) ^ read_64(SECRET + 88))};
    if (size <= 3) {
        const uint32_t first = data[0], middle = data[size >> 1], last = data[size - 1];
        const uint32_t low = first << 16 | middle << 24 | last | (uint32_t)size << 8;
        const uint32_t swapped = __builtin_bswap32(low);
        const uint32_t high = swapped << 13 | swapped >> 19;
        return (Hash128){avalanche_of_xxh64(low ^ (uint64_t)(read_32(SECRET) ^ read_32(SECRET + 4))),
                         avalanche_of_xxh64(high ^ (uint64_t)(read_32(SECRET + 8) ^ read_32(SECRET + 12)))};
    }
    if (size <= 8) {
        const uint64_t both = read_32(data) | (uint64_t)read_32(data + size - 4) << 32;
        Hash128 hash = product(both ^ read_64(SECRET + 16) ^ read_64(SECRET + 24), P64_1 + (size << 2));
        hash.high += hash.low << 1;
        hash.low ^= hash.high >> 3;
        hash.low = (hash.low ^ hash.low >> 35) * MIX_2;
        hash.low ^= hash.low >> 28;
        hash.high = avalanche(hash.high);
        return hash;
    }
    const uint64_t first = read_64(data);
    uint64_t last = read_64(data + size - 8);
    Hash128 mixed = product(first ^ last ^ read_64(SECRET + 32) ^ read_64(SECRET + 40), P64_1);
    mixed.low += (uint64_t)(size - 1) << 54;
    last ^= read_64(SECRET + 48) ^ read_64(SECRET + 56);
    mixed.high += last + (last & 0xFFFFFFFFu) * (P32_2 - 1);
    mixed.low ^= __builtin_bswap64(mixed.high);
    Hash128 hash = product(mixed.low, P64_2);
    hash.high += mixed.high * P64_2;
    return (Hash128){avalanche(hash.low), avalanche(hash.high)};
}

static inline uint64_t mixed_16(const uint8_t *data, const uint8_t *secret) {
    return folded(read_64(data) ^ read_64(secret), read_64(data + 8) ^ read_64(secret + 8));
}

static inline void mix_32(Hash128 *hash, const uint8_t *one, const uint8_t *other, const uint8_t *secret) {
    hash->low += mixed_16(one, secret);
    hash->low ^= read_64(other) + read_64(other + 8);
    hash->high += mixed_16(other, secret + 16);
    hash->high ^= read_64(one) + read_64(one + 8);
}

/* 17 to 240 bytes. */
static Hash128 hash_of_some(const uint8_t *data, size_t size) {
    Hash128 sum = {size * P64_1, 0};
    if (size <= 128) {
        for (int n = (int)(size - 1) / 32; n >= 0; n--)
            mix_32(&sum, data + 16 * n, data + size - 16 * (n + 1), SECRET + 32 * n);
    } else {
        for (size_t end = 32; end <= 128; end += 32)
            mix_32(&sum, data + end - 32, data + end - 16, SECRET + end - 32);
        sum.low = avalanche(sum.low);
        sum.high = avalanche(sum.high);
        for (size_t end = 160; end <= size; end += 32)
            mix_32(&sum, data + end - 32, data + end - 16, SECRET + 3 + end - 160);
        mix_32(&sum, data + size - 16, data + size - 32, SECRET + 103);
    }
    return (Hash128){avalanche(sum.low + sum.high),
                     0 - avalanche(sum.low * P64_1 + sum.high * P64_4 + size * P64_2)};
}

/* What takes in more than 240 bytes: stripes of 64, the n-th of a block of 16 with the secret from
 * 8 n on, and a scrambling between two blocks.  All ways come to the same sums. */
typedef void TakeIn(uint64_t *sums, const uint8_t *data, size_t size);

enum { SCRAMBLE_AT = SECRET_BYTES - STRIPE, LAST_AT = SECRET_BYTES - STRIPE - 7 };

static inline void add_stripe(uint64_t *sums, const uint8_t *data, const uint8_t *secret) {
    for (int lane = 0; lane < LANES; lane++) {
        const uint64_t value = read_64(data + 8 * lane);
        const uint64_t keyed = value ^ read_64(secret + 8 * lane);
        sums[lane ^ 1] += value;
        sums[lane] += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
    }
}

static void take_in_plainly(uint64_t *sums, const uint8_t *data, size_t size) {
    const uint8_t *last = data + size - STRIPE;
    size_t left = size - 1; /* the last byte comes with the last stripe, in any case */
    for (; left >= BLOCK; left -= BLOCK, data += BLOCK) {
        for (int n = 0; n < STRIPES_OF_BLOCK; n++) add_stripe(sums, data + STRIPE * n, SECRET + 8 * n);
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] = (sums[lane] ^ sums[lane] >> 47 ^ read_64(SECRET + SCRAMBLE_AT + 8 * lane)) * P32_1;
    }
    for (size_t n = 0; n < left / STRIPE; n++) add_stripe(sums, data + STRIPE * n, SECRET + 8 * n);
    add_stripe(sums, last, SECRET + LAST_AT);
}

#if defined(__x86_64__)
#define FOR_AVX2 __attribute__((target("avx2")))
#define FOR_AVX512 __attribute__((target("avx512f")))

FOR_AVX2 static inline __m256i added_256(__m256i sum, const uint8_t *data, const uint8_t *secret) {
    const __m256i value = _mm256_loadu_si256((const __m256i *)data);
    const __m256i keyed = _mm256_xor_si256(value, _mm256_loadu_si256((const __m256i *)secret));
    const __m256i times = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
    return _mm256_add_epi64(_mm256_add_epi64(sum, _mm256_shuffle_epi32(value, 0x4E)), times);
}

FOR_AVX2 static inline __m256i scrambled_256(__m256i sum, const uint8_t *secret) {
    const __m256i prime = _mm256_set1_epi64x((int64_t)P32_1);
    sum = _mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47));
    sum = _mm256_xor_si256(sum, _mm256_loadu_si256((const __m256i *)secret));
    const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(sum, 32), prime);
    return _mm256_add_epi64(_mm256_mul_epu32(sum, prime), _mm256_slli_epi64(high, 32));
}

FOR_AVX2 static void take_in_avx2(uint64_t *sums, const uint8_t *data, size_t size) {
    __m256i one = _mm256_loadu_si256((__m256i *)sums), two = _mm256_loadu_si256((__m256i *)(sums + 4));
    const uint8_t *last = data + size - STRIPE;
    size_t left = size - 1;
    for (; left >= BLOCK; left -= BLOCK, data += BLOCK) {
#pragma GCC unroll 16
        for (int n = 0; n < STRIPES_OF_BLOCK; n++) {
            one = added_256(one, data + STRIPE * n, SECRET + 8 * n);
            two = added_256(two, data + STRIPE * n + 32, SECRET + 8 * n + 32);
        }
        one = scrambled_256(one, SECRET + SCRAMBLE_AT);
        two = scrambled_256(two, SECRET + SCRAMBLE_AT + 32);
    }
    for (size_t n = 0; n < left / STRIPE; n++) {
        one = added_256(one, data + STRIPE * n, SECRET + 8 * n);
        two = added_256(two, data + STRIPE * n + 32, SECRET + 8 * n + 32);
    }
    one = added_256(one, last, SECRET + LAST_AT);
    two = added_256(two, last + 32, SECRET + LAST_AT + 32);
    _mm256_storeu_si256((__m256i *)sums, one);
    _mm256_storeu_si256((__m256i *)(sums + 4), two);
}

FOR_AVX512 static inline __m512i added_512(__m512i sum, const uint8_t *data, const uint8_t *secret) {
    const __m512i value = _mm512_loadu_si512(data);
    const __m512i keyed = _mm512_xor_si512(value, _mm512_loadu_si512(secret));
    const __m512i times = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));
    return _mm512_add_epi64(_mm512_add_epi64(sum, _mm512_shuffle_epi32(value, (_MM_PERM_ENUM)0x4E)), times);
}

FOR_AVX512 static inline __m512i scrambled_512(__m512i sum, const uint8_t *secret) {
    const __m512i prime = _mm512_set1_epi64((int64_t)P32_1);
    sum = _mm512_xor_si512(sum, _mm512_srli_epi64(sum, 47));
    sum = _mm512_xor_si512(sum, _mm512_loadu_si512(secret));
    const __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(sum, 32), prime);
    return _mm512_add_epi64(_mm512_mul_epu32(sum, prime), _mm512_slli_epi64(high, 32));
}

FOR_AVX512 static void take_in_avx512(uint64_t *sums, const uint8_t *data, size_t size) {
    __m512i sum = _mm512_loadu_si512(sums);
    const uint8_t *last = data + size - STRIPE;
    size_t left = size - 1;
    for (; left >= BLOCK; left -= BLOCK, data += BLOCK) {
#pragma GCC unroll 16
        for (int n = 0; n < STRIPES_OF_BLOCK; n++) sum = added_512(sum, data + STRIPE * n, SECRET + 8 * n);
        sum = scrambled_512(sum, SECRET + SCRAMBLE_AT);
    }
    for (size_t n = 0; n < left / STRIPE; n++) sum = added_512(sum, data + STRIPE * n, SECRET + 8 * n);
    sum = added_512(sum, last, SECRET + LAST_AT);
    _mm512_storeu_si512(sums, sum);
}
#endif

/* Returns the quickest way that this processor knows, or one of them by its number. */
static TakeIn *way_to_take_in(int number) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int has_avx512 = __builtin_cpu_supports("avx512f"), has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx512 && (number < 0 || number == 2)) return take_in_avx512;
    if (has_avx2 && (number < 0 || number == 1)) return take_in_avx2;
#else
    (void)number;
#endif
    return take_in_plainly;
}

static uint64_t merged(const uint64_t *sums, const uint8_t *secret, uint64_t hash) {
    for (int pair = 0; pair < LANES / 2; pair++)
        hash += folded(sums[2 * pair] ^ read_64(secret + 16 * pair),
                       sums[2 * pair + 1] ^ read_64(secret + 16 * pair + 8));
    return avalanche(hash);
}

/* More than 240 bytes. */
static Hash128 hash_of_many(const uint8_t *data, size_t size, TakeIn *take_in) {
    uint64_t sums[LANES] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1};
    take_in(sums, data, size);
    return (Hash128){merged(sums, SECRET + 11, size * P64_1),
                     merged(sums, SECRET + SCRAMBLE_AT - 11, ~(size * P64_2))};
}

/* Writes the digest of *size* bytes in the order of bytes that `xxhsum` prints. */
static void xxh3_128(const uint8_t *data, size_t size, TakeIn *take_in, uint8_t *digest) {
    const Hash128 hash = size > 240  ? hash_of_many(data, size, take_in)
                         : size > 16 ? hash_of_some(data, size)
                                     : hash_of_few(data, size);
    const uint64_t swapped[2] = {__builtin_bswap64(hash.high), __builtin_bswap64(hash.low)};
    memcpy(digest, swapped, 16);
}

#endif
