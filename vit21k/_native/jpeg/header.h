#ifndef HEADER_H
#define HEADER_H
/* The marker segments of a JPEG, up to its entropy-coded data.  Names are those of ITU-T T.81. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "jpeg.h"

typedef struct {
    int32_t identifier, h, v, quant, dc, ac;
} Component;

typedef struct {
    int32_t width, height, num_components, restart_interval;
    int32_t has_unusual_metadata; /* that another reader may refuse */
    Component components[MAX_COMPONENTS];
    uint16_t quant[NUM_SLOTS][BLOCK]; /* in zigzag order */
    uint8_t has_quant[NUM_SLOTS];
    const uint8_t *huffman[2 * NUM_SLOTS]; /* counts, then values */
    size_t scan_start;
} Header;

static int u16(const uint8_t *at) { return at[0] << 8 | at[1]; }

static int read_quant(Header *header, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int is_wide = *at >> 4, slot = *at & 15;
        at++;
        if (is_wide || slot >= NUM_SLOTS || end - at < BLOCK) return UNSUPPORTED;
        for (int k = 0; k < BLOCK; k++) header->quant[slot][k] = at[k];
        header->has_quant[slot] = 1;
        at += BLOCK;
    }
    return DONE;
}

static int read_huffman(Header *header, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int kind = *at >> 4, slot = *at & 15, total = 0;
        at++;
        if (kind > 1 || slot >= NUM_SLOTS || end - at < 16) return UNSUPPORTED;
        for (int length = 0; length < 16; length++) total += at[length];
        if (total > 256 || end - at < 16 + total) return UNSUPPORTED;
        header->huffman[kind * NUM_SLOTS + slot] = at;
        at += 16 + total;
    }
    return DONE;
}

static int read_frame(Header *header, const uint8_t *at, const uint8_t *end) {
    if (header->width || end - at < 6 || at[0] != 8) return UNSUPPORTED;
    header->height = u16(at + 1), header->width = u16(at + 3);
    header->num_components = at[5];
    if (!header->height || !header->width || end - at != 6 + 3 * at[5]) return UNSUPPORTED;
    if (at[5] != 1 && at[5] != 3) return UNSUPPORTED;
    for (int c = 0; c < at[5]; c++) {
        const uint8_t *entry = at + 6 + 3 * c;
        Component *component = &header->components[c];
        component->identifier = entry[0];
        component->h = entry[1] >> 4, component->v = entry[1] & 15;
        component->quant = entry[2];
        if (entry[2] >= NUM_SLOTS) return UNSUPPORTED;
        if (c && (component->h != 1 || component->v != 1)) return UNSUPPORTED;
        for (int b = 0; b < c; b++)
            if (header->components[b].identifier == entry[0]) return UNSUPPORTED;
    }
    Component *first = header->components;
    if (at[5] == 1) { /* sampling factors of a single component say nothing */
        if (first->h < 1 || first->h > 4 || first->v < 1 || first->v > 4) return UNSUPPORTED;
        first->h = first->v = 1;
    }
    if (first->h < 1 || first->h > 2 || first->v < 1 || first->v > first->h) return UNSUPPORTED;
    return first->h == 2 && header->width < 5 ? UNSUPPORTED : DONE; /* too narrow for the filter */
}

static int read_scan(Header *header, const uint8_t *at, const uint8_t *end) {
    int n = header->num_components;
    if (!n || end - at != 4 + 2 * n || at[0] != n) return UNSUPPORTED;
    for (int c = 0; c < n; c++) {
        Component *component = &header->components[c];
        component->dc = at[2 + 2 * c] >> 4, component->ac = at[2 + 2 * c] & 15;
        if (at[1 + 2 * c] != component->identifier) return UNSUPPORTED;
        if (component->dc >= NUM_SLOTS || component->ac >= NUM_SLOTS) return UNSUPPORTED;
        if (!header->has_quant[component->quant] || !header->huffman[component->dc] ||
            !header->huffman[NUM_SLOTS + component->ac])
            return UNSUPPORTED;
    }
    const uint8_t *spectral = at + 1 + 2 * n;
    return spectral[0] == 0 && spectral[1] == 63 && spectral[2] == 0 ? DONE : UNSUPPORTED;
}

/* What says how colours are stored, and what a reader of metadata may refuse. */
static int read_app(Header *header, int marker, const uint8_t *at, int size, int *is_jfif) {
    if (marker == APP14) return UNSUPPORTED; /* Adobe's: colours may be stored in other ways */
    if (marker == APP0 && size >= 14 && !memcmp(at, "JFIF", 5)) *is_jfif = 1;
    else if (marker == APP0 || marker == APP13 || (marker == APP2 && size < 14))
        header->has_unusual_metadata = 1;
    return DONE;
}

static int read_header(Header *header, const uint8_t *content, size_t num_bytes) {
    size_t place = 2;
    int is_jfif = 0;
    memset(header, 0, sizeof *header);
    if (num_bytes < 4 || content[0] != 0xFF || content[1] != 0xD8) return UNSUPPORTED;
    while (place + 4 <= num_bytes && content[place] == 0xFF) {
        int marker = content[place + 1], size = u16(content + place + 2), status = DONE;
        const uint8_t *at = content + place + 4, *end = content + place + 2 + size;
        if (size < 2 || num_bytes - place - 2 < (size_t)size) return UNSUPPORTED;
        if (marker == DQT) status = read_quant(header, at, end);
        else if (marker == DHT) status = read_huffman(header, at, end);
        else if (marker == SOF0 || marker == SOF1) status = read_frame(header, at, end);
        else if (marker >= APP0 && marker <= APP15)
            status = read_app(header, marker, at, size - 2, &is_jfif);
        else if (marker == DRI) {
            if (size != 4) return UNSUPPORTED;
            header->restart_interval = u16(at);
        } else if (marker == SOS) {
            header->scan_start = place + 2 + size;
            if (header->num_components == 3 && !is_jfif) return UNSUPPORTED;
            return read_scan(header, at, end);
        } else if (marker != COM) return UNSUPPORTED;
        if (status) return status;
        place += 2 + (size_t)size;
    }
    return UNSUPPORTED;
}

#endif
