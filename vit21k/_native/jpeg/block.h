#ifndef BLOCK_H
#define BLOCK_H
/* Entropy-coded data -> the coefficients of a block. */
#include <stdint.h>
#include <string.h>

#include "huffman.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bytes are taken in the order of x86 and ARM"
#endif

/* Behind the last bit, so much may be read; a block takes less. */
enum { PADDING = 512 };

/* Where coefficients go: those behind the last one, too, to where they do no harm. */
enum { NUM_PLACES = 256, BLOCK_ROOM = BLOCK + 1 };

/* Takes bits of entropy-coded data without stuffed bytes, followed by PADDING zeros. */
typedef struct {
    const uint8_t *at, *end;
    uint64_t bits; /* the next ones, from the top */
    int32_t count; /* how many of them there are */
} Reader;

/* Have 56 bits or more; behind the end of the data there are zeros. */
static inline void refill(Reader *reader) {
    uint64_t next;
    memcpy(&next, reader->at, sizeof next);
    reader->bits |= __builtin_bswap64(next) >> reader->count;
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
static inline int read_code(Reader *reader, const Huffman *table) {
    int entry = table->look[peek(reader, VIEW_BITS)];
    if (entry) {
        drop(reader, entry >> 8);
        return entry & 255;
    }
    int code = (int)peek(reader, 16);
    for (int length = VIEW_BITS + 1; length <= 16; length++)
        if (code < table->end_of[length]) {
            drop(reader, length);
            return table->values[((code >> (16 - length)) + table->offset_of[length]) & 255];
        }
    return -1;
}

/* A coefficient of any length.  Return its distance from the one before, END, or -1. */
static inline int read_symbol(Reader *reader, const Huffman *table, int is_dc, int *value) {
    refill(reader);
    int run_size = read_code(reader, table), size = run_size & 15;
    *value = 0;
    if (run_size < 0) return -1;
    if (!is_dc && !size && run_size != 0xF0) return END;
    if (size) *value = extended((int)peek(reader, size), size), drop(reader, size);
    return (run_size >> 4) + 1;
}

static inline int read_dc(Reader *reader, const Huffman *table, int *prediction) {
    refill(reader);
    Step step = table->steps[peek(reader, VIEW_BITS)];
    int value = step.first;
    drop(reader, step.num_bits);
    if (step.to_first == SLOW && read_symbol(reader, table, 1, &value) < 0) return DAMAGED;
    *prediction += value;
    return *prediction == (int16_t)*prediction ? DONE : DAMAGED;
}

/* On the way through a block. */
typedef struct {
    Reader reader;
    int place, first_place; /* in zigzag order: after the last step, and after its first half */
    uint64_t bits_before;   /* the last step */
    int first_bits, num_bits; /* of it */
} Walk;

/* Return whether the block has more steps.  Takes VIEW_BITS or less. */
static inline int take_step(Walk *walk, const Step *steps, const uint8_t *restrict order,
                            int16_t *restrict block) {
    Step step = steps[peek(&walk->reader, VIEW_BITS)];
    walk->bits_before = walk->reader.bits;
    walk->first_bits = step.first_bits, walk->num_bits = step.num_bits;
    drop(&walk->reader, step.num_bits);
    walk->first_place = walk->place + step.to_first;
    walk->place = walk->first_place + step.to_second;
    if (block) {
        block[order[walk->place]] = step.second; /* none: overwritten */
        block[order[walk->first_place]] = step.first;
    }
    return walk->place < LAST;
}

/* Read a block; NULL: pass over it.  Coefficient k, in zigzag order, goes to block[order[k]].
 * Return the last place with a coefficient, or -1.  Takes fewer bytes than PADDING. */
static inline int read_block(Reader *reader, const Huffman *dc, const Huffman *ac, int *prediction,
                             const uint8_t *order, int16_t *block) {
    if (read_dc(reader, dc, prediction)) return -1;
    if (block) block[0] = (int16_t)*prediction;
    const Step *steps = ac->steps;
    /* In registers; member by member, since GCC copies a whole one through memory. */
    Walk walk = {.reader = {reader->at, reader->end, reader->bits, reader->count}};
    while (walk.place < LAST) {
        refill(&walk.reader); /* 5 x VIEW_BITS < 56 */
        if (take_step(&walk, steps, order, block) && take_step(&walk, steps, order, block) &&
            take_step(&walk, steps, order, block) && take_step(&walk, steps, order, block) &&
            take_step(&walk, steps, order, block))
            continue;
        if (walk.first_place == LAST) { /* full: the second half, if any, is the next block's */
            walk.place = LAST;
            walk.reader.bits = walk.bits_before << walk.first_bits;
            walk.reader.count += walk.num_bits - walk.first_bits;
        } else if (walk.place >= SLOW) {
            int value, ahead = read_symbol(&walk.reader, ac, 0, &value);
            if (ahead < 0) return -1;
            walk.place += ahead - SLOW;
            if (block) block[order[walk.place]] = (int16_t)value;
        }
    }
    reader->at = walk.reader.at, reader->bits = walk.reader.bits;
    reader->count = walk.reader.count;
    int last = walk.place < END ? walk.place : walk.place - END;
    return last > LAST || reader->at > reader->end + 8 ? -1 : last;
}

#endif
