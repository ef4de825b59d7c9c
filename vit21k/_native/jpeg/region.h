/* A region of an image: the blocks that it needs, read and transformed. */
#ifndef REGION_H
#define REGION_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "block.h"
#include "colour.h"
#include "header.h"
#include "inverse.h"
#include "resample.h"
#include "arena.h"
#include "transposed.h"

enum { SMALL_SCAN = 4096 }; /* bytes */
enum { MARGIN = 2 }; /* pixels around a region, for interpolation of chroma */

/* What a thread keeps from image to image: most share their Huffman tables. */
typedef struct {
    Huffman tables[2 * NUM_SLOTS]; /* DC tables, then AC tables */
    int16_t quant[NUM_SLOTS][BLOCK];
    uint8_t order[NUM_PLACES]; /* of coefficients, in zigzag order */
    Arena arena;
} Decoder;

typedef struct {
    const Header *header;
    Decoder *decoder;
    int32_t mcus_x, mcus_y;                   /* of the image */
    int32_t first_x, last_x, first_y, last_y; /* MCUs that the region needs */
    Lanes too_large;                          /* not zero anywhere: coefficients are */
    Plane planes[MAX_COMPONENTS];
    const uint8_t *raw;       /* pixels of an image that is not encoded, or NULL */
    uint8_t *data;            /* entropy-coded, without stuffed bytes */
    uint8_t *chroma;          /* a row of each of two colours */
    uint16_t *sums;           /* while one is made */
    uint32_t *pixels;         /* ROWS_AT_ONCE rows of the region */
    size_t stride;            /* of those, in pixels */
    Resampler resampler;
    Transposed transposed;
} Region;

static int make_region(Region *region, const int32_t *box) {
    const Header *header = region->header;
    int width = 8 * header->components[0].h, height = 8 * header->components[0].v;
    if (box[0] < 0 || box[1] < 0 || box[2] <= box[0] || box[3] <= box[1]) return UNSUPPORTED;
    if (box[2] > header->width || box[3] > header->height) return UNSUPPORTED;
    region->mcus_x = (header->width + width - 1) / width;
    region->mcus_y = (header->height + height - 1) / height;
    if (header->restart_interval && region->mcus_x % header->restart_interval) return UNSUPPORTED;
    region->first_x = at_least(box[0] - MARGIN, 0) / width;
    region->first_y = at_least(box[1] - MARGIN, 0) / height;
    region->last_x = (at_most(box[2] + MARGIN, header->width) - 1) / width;
    region->last_y = (at_most(box[3] + MARGIN, header->height) - 1) / height;
    return DONE;
}

/* num_bytes: of the file. */
static int make_tables(Decoder *decoder, const Header *header, size_t num_bytes) {
    When when = num_bytes - header->scan_start < SMALL_SCAN ? IF_USED_AGAIN : AT_ONCE;
    uint32_t made = 0; /* a bit for each table */
    memset(decoder->order, BLOCK, sizeof decoder->order); /* behind the last one */
    for (int k = 0; k < BLOCK; k++) {
        int place = place_of(ZIGZAG[k] & 7, ZIGZAG[k] >> 3);
        decoder->order[k] = (uint8_t)place;
        for (int slot = 0; slot < NUM_SLOTS; slot++)
            decoder->quant[slot][place] = (int16_t)header->quant[slot][k];
    }
    for (int c = 0; c < 2 * header->num_components; c++) {
        const Component *component = &header->components[c / 2];
        int kind = c % 2 ? AC : DC, slot = kind == AC ? NUM_SLOTS + component->ac : component->dc;
        if (made >> slot & 1) continue; /* else it would seem to be used again */
        if (make_table(&decoder->tables[slot], header->huffman[slot], kind, when)) return UNSUPPORTED;
        made |= 1u << slot;
    }
    return DONE;
}

static void lay_out_planes(Region *region) {
    const Component *luma = region->header->components;
    int columns = region->last_x - region->first_x + 1, rows = region->last_y - region->first_y + 1;
    for (int c = 0; c < region->header->num_components; c++) {
        const Component *component = &region->header->components[c];
        Plane *plane = &region->planes[c];
        plane->stride = columns * component->h * 8;
        plane->first_x = region->first_x * component->h * 8;
        plane->first_y = region->first_y * component->v * 8;
        plane->width = (region->header->width * component->h + luma->h - 1) / luma->h;
        plane->height = (region->header->height * component->v + luma->v - 1) / luma->v;
        size_t num_bytes = (size_t)plane->stride * rows * component->v * 8;
        plane->samples = take(&region->decoder->arena, num_bytes);
    }
}

static void lay_out(Region *region, size_t num_bytes, const int32_t *box, const Resize *resize) {
    Arena *arena = &region->decoder->arena;
    int columns = box[2] - box[0], rows = box[3] - box[1], is_transposed = resize->is_transposed;
    size_t width = (size_t)columns;
    empty(arena);
    lay_out_planes(region);
    region->data = take(arena, num_bytes + PADDING);
    region->chroma = take(arena, 2 * width);
    region->sums = take(arena, 2 * width);
    region->stride = (width + 15) & ~(size_t)15;
    region->pixels = take(arena, 4 * ROWS_AT_ONCE * region->stride);
    lay_out_resampler(&region->resampler, arena, resize, is_transposed ? rows : columns,
                      is_transposed ? columns : rows);
    if (is_transposed) lay_out_transposed(&region->transposed, arena, columns, rows, resize->across.count);
}

/* Allocate memory for a region whose file has *num_bytes*. */
static int reserve(Region *region, size_t num_bytes, const int32_t *box, const Resize *resize) {
    Arena *arena = &region->decoder->arena;
    lay_out(region, num_bytes, box, resize);
    if (arena->used <= arena->capacity) return DONE;
    if (enlarge(arena)) return NO_MEMORY;
    lay_out(region, num_bytes, box, resize);
    return DONE;
}

/* One MCU, to the planes if the region needs it.  block: zeros, before and after. */
static int read_mcu(Reader *reader, Region *region, int x, int y, int *predictions,
                    int16_t *block) {
    const Header *header = region->header;
    Decoder *decoder = region->decoder;
    int is_needed = x >= region->first_x && x <= region->last_x && y >= region->first_y;
    for (int c = 0; c < header->num_components; c++) {
        const Component *component = &header->components[c];
        const Huffman *dc = &decoder->tables[component->dc];
        const Huffman *ac = &decoder->tables[NUM_SLOTS + component->ac];
        const int16_t *quant = decoder->quant[component->quant];
        const Plane *plane = &region->planes[c];
        for (int v = 0; v < component->v; v++)
            for (int h = 0; h < component->h; h++) {
                int last = is_needed
                    ? read_block(reader, dc, ac, predictions + c, decoder->order, block)
                    : read_block(reader, dc, ac, predictions + c, decoder->order, NULL);
                if (last < 0) return DAMAGED;
                if (!is_needed) continue;
                uint8_t *out = plane->samples +
                    (size_t)((y - region->first_y) * component->v + v) * 8 * plane->stride +
                    ((x - region->first_x) * component->h + h) * 8;
                to_samples(block, quant, last > 0, out, plane->stride, &region->too_large);
            }
    }
    return DONE;
}

/* The next marker at or after *at*, stuffed bytes being none; NULL: there is none. */
static const uint8_t *next_marker(const uint8_t *at, const uint8_t *end) {
    while (end - at >= 2 && (at = memchr(at, 0xFF, (size_t)(end - at - 1)))) {
        if (at[1] && at[1] != 0xFF) return at;
        at += at[1] ? 1 : 2;
    }
    return NULL;
}

/* Copy entropy-coded data up to the next marker without stuffed bytes, and zeros behind it.
 * Return the marker's place, or NULL. */
static const uint8_t *unstuff(const uint8_t *at, const uint8_t *end, uint8_t *out, Reader *reader) {
    *reader = (Reader){.at = out};
    while (end - at >= 2) {
        const uint8_t *found = memchr(at, 0xFF, (size_t)(end - at - 1));
        if (!found) return NULL;
        size_t count = (size_t)(found - at) + !found[1]; /* with the 0xFF, if that is stuffed */
        memcpy(out, at, count);
        out += count, at = found + 1 + !found[1];
        if (found[1] && found[1] != 0xFF) {
            memset(out, 0, PADDING);
            reader->end = out;
            return found;
        }
    }
    return NULL;
}

/* Whether no more bits were taken than there are. */
static int is_whole(const Reader *reader) {
    return (reader->at - reader->end) * 8 <= reader->count;
}

/* Rows down to the last that is needed, without restart markers. */
static int read_rows(Region *region, const uint8_t *start, const uint8_t *end) {
    Reader reader;
    int predictions[MAX_COMPONENTS] = {0};
    int16_t block[BLOCK_ROOM] __attribute__((aligned(64))) = {0};
    const uint8_t *marker = unstuff(start, end, region->data, &reader);
    if (!marker || marker[1] != EOI) return DAMAGED;
    for (int y = 0; y <= region->last_y; y++)
        for (int x = 0; x < region->mcus_x; x++)
            if (read_mcu(&reader, region, x, y, predictions, block)) return DAMAGED;
    return is_whole(&reader) ? DONE : DAMAGED;
}

/* The stretches between restart markers that are needed; others are passed over. */
static int read_tiles(Region *region, const uint8_t *start, const uint8_t *end) {
    int interval = region->header->restart_interval, per_row = region->mcus_x / interval;
    int num_tiles = per_row * region->mcus_y;
    int16_t block[BLOCK_ROOM] __attribute__((aligned(64))) = {0};
    for (int tile = 0; tile < num_tiles; tile++) {
        Reader reader;
        int predictions[MAX_COMPONENTS] = {0}, y = tile / per_row, x = tile % per_row * interval;
        int is_needed = y >= region->first_y && y <= region->last_y && x <= region->last_x &&
            x + interval > region->first_x;
        const uint8_t *marker =
            is_needed ? unstuff(start, end, region->data, &reader) : next_marker(start, end);
        int expected = tile == num_tiles - 1 ? EOI : RST0 + (tile & 7);
        if (!marker || marker[1] != expected) return DAMAGED;
        start = marker + 2;
        if (!is_needed) continue;
        for (int i = 0; i < interval; i++)
            if (read_mcu(&reader, region, x + i, y, predictions, block)) return DAMAGED;
        if (!is_whole(&reader)) return DAMAGED;
    }
    return DONE;
}

static int read_region(Region *region, const uint8_t *content, size_t num_bytes) {
    const uint8_t *start = content + region->header->scan_start, *end = content + num_bytes;
    int has_tiles = region->header->restart_interval > 0;
    int status = has_tiles ? read_tiles(region, start, end) : read_rows(region, start, end);
    for (int i = 0; i < 8; i++)
        if (region->too_large[i]) status = DAMAGED;
    return status;
}
#endif
