#ifndef HUFFMAN_H
#define HUFFMAN_H
/* Entropy-coded data -> coefficients. */
#include <stdint.h>
#include <string.h>

#include "header.h"

enum { LOOK_BITS = 11, PADDING = 512 };

/* A Huffman table, made for lookups, and the bytes of DHT that it was made from. */
typedef struct {
    uint8_t counts[17];
    uint8_t values[256];
    uint8_t is_made;
    uint16_t look[1 << LOOK_BITS];  /* code length << 8 | value; 0: a longer code */
    int32_t whole[1 << LOOK_BITS];  /* of AC: coefficient << 16 | run << 8 | bits; 0: not in view */
    int32_t end_of[18];             /* first 16-bit number after the codes of each length */
    int32_t offset_of[17];
} Huffman;

/* Takes bits of entropy-coded data without stuffed bytes, behind which PADDING zeros lie. */
typedef struct {
    const uint8_t *at, *end;
    uint64_t bits; /* the next ones, from the top */
    int32_t count; /* how many of them there are */
} Reader;

/* Place in zigzag order -> natural order. */
static const uint8_t ZIGZAG[BLOCK] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/* In most views of the next LOOK_BITS bits, code and coefficient are there whole. */
static void see_whole(Huffman *table) {
    for (int view = 0; view < 1 << LOOK_BITS; view++) {
        int length = table->look[view] >> 8, run = table->look[view] >> 4 & 15;
        int size = table->look[view] & 15, rest = LOOK_BITS - length - size;
        table->whole[view] = 0;
        if (!length || !size || rest < 0) continue;
        int value = view >> rest & ((1 << size) - 1);
        if (value < 1 << (size - 1)) value -= (1 << size) - 1;
        table->whole[view] = (int32_t)((uint32_t)value << 16) | run << 8 | (length + size);
    }
}

/* counts_values: 16 counts and as many values as they say. */
static int make_table(Huffman *table, const uint8_t *counts_values, int is_dc) {
    int total = 0, code = 0, index = 0;
    for (int length = 0; length < 16; length++) total += counts_values[length];
    if (table->is_made && !memcmp(table->counts + 1, counts_values, 16) &&
        !memcmp(table->values, counts_values + 16, total))
        return DONE;
    table->is_made = 0;
    memcpy(table->counts + 1, counts_values, 16);
    memset(table->values, 0, sizeof table->values);
    memcpy(table->values, counts_values + 16, total);
    memset(table->look, 0, sizeof table->look);
    for (int length = 1; length <= 16; length++) {
        table->offset_of[length] = index - code;
        for (int n = 0; n < table->counts[length]; n++, code++, index++) {
            if (code >= 1 << length || (is_dc && table->values[index] > 15)) return NOT_PLAIN;
            if (length > LOOK_BITS) continue;
            int first = code << (LOOK_BITS - length);
            for (int view = 0; view < 1 << (LOOK_BITS - length); view++)
                table->look[first + view] = (uint16_t)(length << 8 | table->values[index]);
        }
        if (code > 1 << length) return NOT_PLAIN;
        table->end_of[length] = code << (16 - length);
        code <<= 1;
    }
    if (!is_dc) see_whole(table);
    table->is_made = 1;
    return DONE;
}

/* Have 56 bits or more; behind the end of the data there are zeros. */
static inline void refill(Reader *reader) {
    const uint8_t *at = reader->at;
    uint64_t next = 0;
    for (int i = 0; i < 8; i++) next = next << 8 | at[i];
    reader->bits |= next >> reader->count;
    reader->at += (63 - reader->count) >> 3;
    reader->count |= 56;
}

static inline uint32_t peek(const Reader *reader, int count) {
    return (uint32_t)(reader->bits >> (64 - count));
}

static inline void drop(Reader *reader, int count) {
    reader->bits <<= count, reader->count -= count;
}

/* A value, or -1.  Takes up to 16 bits. */
static inline int symbol(Reader *reader, const Huffman *table) {
    int entry = table->look[peek(reader, LOOK_BITS)];
    if (entry) {
        drop(reader, entry >> 8);
        return entry & 255;
    }
    int code = (int)peek(reader, 16);
    for (int length = LOOK_BITS + 1; length <= 16; length++)
        if (code < table->end_of[length]) {
            drop(reader, length);
            return table->values[((code >> (16 - length)) + table->offset_of[length]) & 255];
        }
    return -1;
}

/* size: 1 to 15. */
static inline int extra(Reader *reader, int size) {
    int value = (int)peek(reader, size);
    drop(reader, size);
    return value < 1 << (size - 1) ? value - (1 << size) + 1 : value;
}

static inline int read_dc(Reader *reader, const Huffman *table, int *prediction) {
    if (reader->count < 32) refill(reader);
    int size = symbol(reader, table);
    if (size < 0) return DAMAGED;
    if (size) *prediction += extra(reader, size);
    return *prediction < -32768 || *prediction > 32767 ? DAMAGED : DONE;
}

/* Read a block to natural order, multiplied; NULL: pass over it.  Return the last place with a
 * coefficient, or -1.  Takes fewer bytes than PADDING. */
static inline int read_block(Reader *outer, const Huffman *dc, const Huffman *ac, int *prediction,
                             const uint16_t *quant, int32_t *block) {
    Reader reader = *outer; /* in registers */
    int last = 0;
    if (read_dc(&reader, dc, prediction)) return -1;
    if (block) block[0] = *prediction * quant[0];
    for (int k = 1; k < BLOCK; k++) {
        if (reader.count < LOOK_BITS) refill(&reader);
        int whole = ac->whole[peek(&reader, LOOK_BITS)], value;
        if (whole) {
            k += whole >> 8 & 15, value = whole >> 16;
            drop(&reader, whole & 255);
        } else {
            if (reader.count < 32) refill(&reader);
            int run_size = symbol(&reader, ac), size = run_size & 15;
            if (run_size < 0) return -1;
            if (!size && run_size != 0xF0) break; /* libjpeg takes any such for the end, too */
            k += run_size >> 4;
            if (!size) continue;
            value = extra(&reader, size);
        }
        if (k >= BLOCK) return -1;
        if (block) block[ZIGZAG[k]] = value * quant[k];
        last = k;
    }
    *outer = reader;
    return reader.at > reader.end + 8 ? -1 : last;
}

#endif
