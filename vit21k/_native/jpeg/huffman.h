#ifndef HUFFMAN_H
#define HUFFMAN_H
/* Huffman tables, made for lookups. */
#include <stdint.h>
#include <string.h>

#include "jpeg.h"

enum { VIEW_BITS = 11, NUM_VIEWS = 1 << VIEW_BITS };

/* Steps that end a block, and that are left to `read_symbol`.  Positions in a block, a step too far
 * (LAST + 2 x 16), END and SLOW more than a position: all differ. */
enum { LAST = BLOCK - 1, END = 96, SLOW = 176 };

/* The coefficients that the next VIEW_BITS bits hold whole: two of AC, or one of DC, at most. */
typedef struct {
    uint8_t num_bits, first_bits;  /* of both; of the first */
    uint8_t to_first, to_second;   /* distance from the one before; or END, or SLOW */
    int16_t first, second;         /* what they are; 0: there is none */
} Step;

/* What a table is of: codes of DC, of AC, or codes whose steps are not needed. */
typedef enum { DC, AC, CODES } Kind;

/* Whether to make steps.  That takes longer than reading a small file without them, so the first
 * small file with a table goes without, and others with the same table have them. */
typedef enum { AT_ONCE, IF_USED_AGAIN } When;

/* A Huffman table, and the bytes of DHT that it was made from. */
typedef struct {
    uint8_t counts[17];
    uint8_t values[256];
    uint8_t is_made, has_steps;
    uint8_t has_only_slow; /* steps: all of them are SLOW */
    uint16_t look[NUM_VIEWS]; /* code length << 8 | value; 0: a longer code */
    Step steps[NUM_VIEWS];
    int32_t end_of[18]; /* first 16-bit number after the codes of each length */
    int32_t offset_of[17];
} Huffman;

/* Place in zigzag order -> natural order. */
static const uint8_t ZIGZAG[BLOCK] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/* The number that *size* bits stand for. */
static inline int extended(int bits, int size) {
    return size && bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits;
}

/* Views that begin with a code.  firsts: what each of them begins with. */
static void add_code(Huffman *table, int code, int length, int value, Kind kind, Step *firsts) {
    int first = code << (VIEW_BITS - length), num_views = 1 << (VIEW_BITS - length);
    int run = kind == DC ? 0 : value >> 4, size = value & 15, num_bits = length + size;
    for (int view = first; view < first + num_views; view++)
        table->look[view] = (uint16_t)(length << 8 | value);
    if (!table->has_steps || num_bits > VIEW_BITS) return;
    /* libjpeg takes any other that has no bits for the end, too */
    Step step = {.num_bits = (uint8_t)num_bits, .first_bits = (uint8_t)num_bits};
    step.to_first = (uint8_t)(kind == AC && !size && run != 15 ? END : run + 1);
    for (int bits = 0; bits < 1 << size; bits++) {
        step.first = (int16_t)extended(bits, size);
        for (int i = 0; i < 1 << (VIEW_BITS - num_bits); i++) firsts[first++] = step;
    }
}

/* What each view begins with -> steps, with a second coefficient where a view holds one. */
static void make_steps(Huffman *table, const Step *firsts) {
    for (int view = 0; view < NUM_VIEWS; view++) {
        Step step = firsts[view], next = firsts[view << step.num_bits & (NUM_VIEWS - 1)];
        int is_whole = step.num_bits + next.num_bits <= VIEW_BITS;
        if (step.to_first < END && next.to_first != SLOW && is_whole) {
            step.num_bits += next.num_bits;
            step.to_second = next.to_first, step.second = next.first;
        }
        table->steps[view] = step;
    }
}

/* counts_values: 16 counts and as many values as they say. */
static int make_table(Huffman *table, const uint8_t *counts_values, Kind kind, When when) {
    int total = 0, code = 0, index = 0;
    for (int length = 0; length < 16; length++) total += counts_values[length];
    int is_again = table->is_made && !memcmp(table->counts + 1, counts_values, 16) &&
        !memcmp(table->values, counts_values + 16, total);
    if (is_again && (table->has_steps || kind == CODES)) return DONE;
    table->is_made = 0;
    table->has_steps = kind != CODES && (when == AT_ONCE || is_again);
    memcpy(table->counts + 1, counts_values, 16);
    memset(table->values, 0, sizeof table->values);
    memcpy(table->values, counts_values + 16, total);
    memset(table->look, 0, sizeof table->look);
    Step scratch[NUM_VIEWS], *firsts = kind == AC && table->has_steps ? scratch : table->steps;
    int is_filled = kind == CODES || (table->has_only_slow && !table->has_steps);
    for (int view = 0; view < NUM_VIEWS && !is_filled; view++)
        firsts[view] = (Step){.to_first = SLOW};
    table->has_only_slow = kind != CODES && !table->has_steps;
    for (int length = 1; length <= 16; length++) {
        table->offset_of[length] = index - code;
        for (int n = 0; n < table->counts[length]; n++, code++, index++) {
            if (code >= 1 << length || (kind == DC && table->values[index] > 15)) return UNSUPPORTED;
            if (length <= VIEW_BITS)
                add_code(table, code, length, table->values[index], kind, firsts);
        }
        if (code > 1 << length) return UNSUPPORTED;
        table->end_of[length] = code << (16 - length);
        code <<= 1;
    }
    if (kind == AC && table->has_steps) make_steps(table, firsts);
    table->is_made = 1;
    return DONE;
}

#endif
